"""What both backends must agree on, so that they give the same labels. Imports neither of them."""

# Similarities are summed in float64 and ranked as multiples of 2^-32: far above the rounding of the sum, so that
# mathematically equal ones are equal whatever the order of summation, and far below float32's own resolution.
GRID = 2.0**32

# Rounding in the sums moves a distance by about 1e-7. Distances that equal eps (they exist at round values
# such as 0.5, where weights are equal) count as "within eps" however a path rounds.
TOLERANCE = 1e-6


def half_length(k1: int) -> int:
    """Entries of a neighbour list that the half-size reciprocal sets are made of: Python's round(k1 / 2) + 1.

    Example:
        >>> [half_length(k1) for k1 in (30, 25, 20, 1)]
        [16, 13, 11, 1]
    """
    return round(k1 / 2) + 1


def least_overlap(eps: float) -> float:
    """The overlap m that a distance of eps stands for: 1 - m / (2 - m) <= eps is m >= 2 (1 - eps) / (2 - eps).

    Example:
        >>> round(least_overlap(0.5), 4), round(least_overlap(1.0), 4)
        (0.6667, 0.0)
    """
    eps = eps + TOLERANCE
    return max(2 * (1 - eps) / (2 - eps), 0.0)
