"""Operations on images of bytes: Pillow's blur compiled, in which strong views spent most of their time.

Pillow approximates a Gaussian by three box filters along each axis, whose width is not whole: the two pixels at the
ends of a box count in part (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box
filtering", SSVM 2011), in whole numbers of 24 bits. For the radii of views a box has one whole pixel or three, so that
sums of neighbours, which are vector code, take less time than Pillow's running sums.
"""

from __future__ import annotations

import math

import numpy as np

from fastreid_ice.compiled import njit

PASSES = 3
SHIFT = np.uint32(24)
HALF = np.uint32(1 << 23)


def gaussian_blur(pixels: np.ndarray, radius: float) -> np.ndarray:
    """Blur an image as ``PIL.ImageFilter.GaussianBlur`` does.

    Args:
        pixels: (H, W, C) uint8, of at least one pixel.
        radius: standard deviation of the Gaussian in pixels, at least 0.

    Returns:
        (H, W, C) uint8, C-contiguous, another array.
    """
    if radius == 0:
        return pixels.copy()
    whole, inside, end = box(radius)
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    return _blur(rows, channels, whole, inside, end).reshape(pixels.shape)


def crop(pixels: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """A part of an image, black where it lies outside of it.

    Args:
        pixels: (H, W, 3) uint8.
        top: row of the image that becomes the first; may be negative.
        left: likewise, column.
        size: (height, width) of the part.

    Returns:
        (height, width, 3) uint8, C-contiguous, another array.
    """
    result = np.zeros((*size, pixels.shape[2]), np.uint8)
    inside = pixels[max(top, 0) : max(top + size[0], 0), max(left, 0) : max(left + size[1], 0)]
    row, column = max(-top, 0), max(-left, 0)
    result[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return result


def box(radius: float) -> tuple[int, np.uint32, np.uint32]:
    """The box whose three-fold application has this standard deviation, in Pillow's single precision.

    Args:
        radius: above 0.

    Returns:
        number of whole pixels on each side of the middle, weight of these, weight of the pixel behind them; weights as
        parts of 2^24.
    """
    single = np.float32
    variance = single(radius) * single(radius) / single(PASSES)
    length = single(math.sqrt(12.0 * float(variance) + 1.0))
    whole = single(math.floor((float(length) - 1.0) / 2.0))
    one = single(1)
    part = (single(2) * whole + one) * (whole * (whole + one) - single(3) * variance)
    part = part / (single(6) * (variance - (whole + one) * (whole + one)))
    half = whole + part  # of the box, without the middle
    whole_pixels = int(half)
    inside = int(single(1 << 24) / (half * single(2) + one))
    return whole_pixels, np.uint32(inside), np.uint32(((1 << 24) - (2 * whole_pixels + 1) * inside) // 2)


@njit(cache=True, nogil=True)
def _blur(rows, channels, whole, inside, end):  # type: ignore[no-untyped-def]
    """Along the rows of (H, W * C) uint8, then along the columns."""
    height, width = rows.shape
    margin = (whole + 1) * channels
    line, sums = np.empty(width + 2 * margin, np.uint8), np.empty(width, np.uint32)
    result, other, blurred = np.empty_like(rows), np.empty_like(rows), np.empty(width, np.uint8)
    for y in range(height):
        middle = line[margin : margin + width]
        _copy(rows[y], middle)
        for _ in range(PASSES):
            for x in range(margin):  # the pixels at the border go on outside
                line[x] = line[margin + x % channels]
                line[margin + width + x] = line[margin + width - channels + x % channels]
            before, behind = line[:width], line[2 * margin : 2 * margin + width]
            if whole == 0:
                _weigh_one(middle, inside, before, behind, end, blurred)
            elif whole == 1:
                left, right = line[channels : channels + width], line[margin + channels : margin + channels + width]
                _weigh_three(middle, left, right, inside, before, behind, end, blurred)
            else:
                _set(sums, middle)
                for shift in range(channels, margin, channels):
                    _add(sums, line[shift : shift + width], line[2 * margin - shift : 2 * margin - shift + width])
                _weigh(sums, inside, before, behind, end, blurred)
            _copy(blurred, middle)
        _copy(middle, result[y])
    for _ in range(PASSES):
        result, other = other, result
        for y in range(height):
            above, below = other[max(y - whole - 1, 0)], other[min(y + whole + 1, height - 1)]
            if whole == 0:
                _weigh_one(other[y], inside, above, below, end, result[y])
            elif whole == 1:
                upper, lower = other[max(y - 1, 0)], other[min(y + 1, height - 1)]
                _weigh_three(other[y], upper, lower, inside, above, below, end, result[y])
            else:
                _set(sums, other[y])
                for shift in range(1, whole + 1):
                    _add(sums, other[max(y - shift, 0)], other[min(y + shift, height - 1)])
                _weigh(sums, inside, above, below, end, result[y])
    return result


@njit(cache=True, nogil=True)
def _copy(given, taken):  # type: ignore[no-untyped-def]
    for x in range(len(given)):
        taken[x] = given[x]


@njit(cache=True, nogil=True)
def _weigh_one(row, inside, before, behind, end, result):  # type: ignore[no-untyped-def]
    """A row's pixels with those of the box's ends; cut to 32 bits, which it fits, so that its products have no more."""
    for x in range(len(row)):
        ends = np.uint32(before[x]) + np.uint32(behind[x])
        result[x] = np.uint8(np.uint32(np.uint32(row[x]) * inside + ends * end + HALF) >> SHIFT)


@njit(cache=True, nogil=True)
def _weigh_three(row, left, right, inside, before, behind, end, result):  # type: ignore[no-untyped-def]
    for x in range(len(row)):
        ends = np.uint32(before[x]) + np.uint32(behind[x])
        total = np.uint32(row[x]) + np.uint32(left[x]) + np.uint32(right[x])
        result[x] = np.uint8(np.uint32(total * inside + ends * end + HALF) >> SHIFT)


@njit(cache=True, nogil=True)
def _set(sums, row):  # type: ignore[no-untyped-def]
    for x in range(len(sums)):
        sums[x] = row[x]


@njit(cache=True, nogil=True)
def _add(sums, before, behind):  # type: ignore[no-untyped-def]
    for x in range(len(sums)):
        sums[x] += np.uint32(before[x]) + np.uint32(behind[x])


@njit(cache=True, nogil=True)
def _weigh(sums, inside, before, behind, end, result):  # type: ignore[no-untyped-def]
    """Boxes of five pixels and more, which have been added up."""
    for x in range(len(sums)):
        sums[x] = sums[x] * inside + (np.uint32(before[x]) + np.uint32(behind[x])) * end + HALF
    for x in range(len(sums)):
        result[x] = sums[x] >> SHIFT
