"""How many gallery images rank before each true match of a query, in compiled CPU kernels.

A row of similarities is read once, in strips that stay in the first-level cache. A strip is compared with the query's
matches, the worst first, until no image in it ranks before one; the comparisons are vector code. With many matches
each image's place among them is looked up instead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastreid_ice.compiled import njit
from fastreid_ice.parallel import map_rows

# Gallery images compared with a match at once.
STRIP = 128

# With more matches than this, an image's place among them is searched instead.
COMPARED = 48

# Of the search's table. Few bins then hold a match, whatever the number of matches.
BINS_PER_MATCH = 16

# NaN are found beforehand; without them, minima and maxima are vector code.
REORDER = {"nsz", "nnan"}


class Relevant(NamedTuple):
    """The gallery images of each query's identity, query after query, ascending within a query.

    Attributes:
        matches: (M,) int64, those of another camera.
        match_bounds: (B + 1,) int64, where each query's matches begin.
        junk: (J,) int64, those of the query's own camera.
        junk_bounds: (B + 1,) int64.
    """

    matches: np.ndarray
    match_bounds: np.ndarray
    junk: np.ndarray
    junk_bounds: np.ndarray


def ranks_of_matches(similarities: np.ndarray, relevant: Relevant) -> np.ndarray:
    """Rank of each match among its query's gallery images without the junk, from 0, ascending within a query.

    Images are ranked by similarity, equal ones by gallery index.

    Args:
        similarities: (B, G) float32 or float64 array, without NaN.
        relevant: of the B queries.

    Returns:
        (M,) int64.
    """
    ranks = np.empty(len(relevant.matches), np.int64)
    map_rows(lambda a, b: _rank_rows(similarities, *relevant, ranks, a, b), len(similarities))
    return ranks


def first_nan(similarities: np.ndarray) -> tuple[int, int] | None:
    """(row, column) of a NaN, or None."""
    bad = np.zeros(len(similarities), np.bool_)
    map_rows(lambda a, b: _mark_nan(similarities, bad, a, b), len(similarities))
    if not bad.any():
        return None
    row = int(bad.argmax())
    return row, int(np.isnan(similarities[row]).argmax())


@njit(cache=True, nogil=True)
def _mark_nan(similarities, bad, start, stop):
    for i in range(start, stop):
        row = similarities[i]
        count = np.uint32(0)  # as wide as the values: this is what makes it vector code
        for k in range(len(row)):
            count = np.uint32(count + np.uint32(row[k] != row[k]))
        bad[i] = count > 0


@njit(cache=True, nogil=True)
def _rank_rows(similarities, matches, match_bounds, junk, junk_bounds, ranks, start, stop):
    """Write the ranks of the matches of rows start..stop."""
    for i in range(start, stop):
        first, last = match_bounds[i], match_bounds[i + 1]
        if first == last:
            continue
        row = similarities[i]
        ids = matches[first:last]
        order = np.argsort(-row[ids], kind="mergesort")
        ids = ids[order]
        scores = row[ids]
        before = ranks[first:last]
        if len(ids) <= COMPARED:
            _compare(row, scores, ids, before)
        else:
            _search(row, scores, ids, before)
        for image in junk[junk_bounds[i] : junk_bounds[i + 1]]:
            for j in range(_place(scores, ids, 0, len(ids), row[image], image), len(ids)):
                before[j] -= 1


@njit(cache=True, nogil=True)
def _count_above(strip, score):
    count = np.uint32(0)
    for k in range(len(strip)):
        count = np.uint32(count + np.uint32(strip[k] > score))
    return np.int64(count)


@njit(cache=True, nogil=True)
def _count_from(strip, score):
    count = np.uint32(0)
    for k in range(len(strip)):
        count = np.uint32(count + np.uint32(strip[k] >= score))
    return np.int64(count)


@njit(cache=True, nogil=True)
def _compare(row, scores, ids, before):
    """Write to before[j] how many images of the row rank before match j; scores descend, equal ones by id.

    An image as similar as the match ranks before it if it stands before it in the gallery.
    """
    before[:] = 0
    for start in range(0, len(row), STRIP):
        strip = row[start : start + STRIP]
        stop = start + len(strip)
        for j in range(len(ids) - 1, -1, -1):
            score = scores[j]
            if stop <= ids[j]:
                count = _count_from(strip, score)
            elif start > ids[j]:
                count = _count_above(strip, score)
            else:
                inside = ids[j] - start
                count = _count_from(strip[:inside], score) + _count_above(strip[inside:], score)
            if count == 0:
                break  # what ranks before a better match ranks before this one too
            before[j] += count


@njit(cache=True, nogil=True)
def _place(scores, ids, first, last, score, image):
    """How many of the sorted matches rank before the image, if it is at least ``first`` and at most ``last``."""
    size = last - first
    while size > 0:
        half = (size + 1) // 2
        other = first + half - 1
        ahead = (scores[other] > score) | ((scores[other] == score) & (ids[other] < image))
        first += half * ahead  # no branch, for none could be predicted
        size -= half
    return first


@njit(cache=True, nogil=True, fastmath=REORDER)
def _assign_bins(values, best, scale, last, bins):
    """Bin of each value, 1 for the best match's; a lower value never gets a lower bin, rounding included."""
    if scale == 0:  # and a difference may be infinite
        bins[: len(values)] = 1
        return
    for k in range(len(values)):
        bins[k] = np.int32(min(max((best - values[k]) * scale + 1, 0), last))


@njit(cache=True, nogil=True)
def _search(row, scores, ids, before):
    """As :func:`_compare`, by the place of each image among the matches.

    The range between the best and the worst match is cut into bins, most of which hold no match: an image's bin then
    tells its place. In the others it is searched among the bin's matches.
    """
    count = len(ids)
    last = BINS_PER_MATCH * count  # for images behind all matches; bin 0 for those before all
    width = (scores[0] - scores[-1]) / (last - 2)
    scale = row.dtype.type(1 / width if width > 1e-30 else 0)  # 0: all in one bin
    bins = np.empty(max(STRIP, count), np.int32)
    _assign_bins(scores, scores[0], scale, last, bins)
    table = np.zeros(last + 2, np.int32)  # matches in the bins before each
    for j in range(count):
        table[bins[j] + 1] += 1
    for k in range(last + 1):
        table[k + 1] += table[k]
    places = np.zeros(count + 1, np.int64)
    for start in range(0, len(row), STRIP):
        strip = row[start : start + STRIP]
        _assign_bins(strip, scores[0], scale, last, bins)
        for k in range(len(strip)):
            first, end = table[bins[k]], table[bins[k] + 1]
            if end > first:
                places[_place(scores, ids, first, end, strip[k], start + k)] += 1
            else:
                places[first] += 1
    total = 0
    for j in range(count):
        total += places[j]  # an image at place k ranks before the matches k, k + 1, ...
        before[j] = total - 1  # match j itself is at place j
