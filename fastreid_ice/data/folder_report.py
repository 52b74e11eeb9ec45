"""What somebody's own images are like, and the settings that suit them.

Needs numpy and Pillow only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastreid_ice.data.folder_scan import FolderScan, count_names
from fastreid_ice.image_files import ImageFacts, inspect_images, same_pixels

PEOPLE_SIZE = (256, 128)
TALL = (1.6, 3.2)  # aspect ratios, height / width, that PEOPLE_SIZE serves
LONG_SIDE, SHORT_LONG_SIDE = 256, 128  # of the input, in pixels
SMALL_IMAGE = 128  # longest side, in pixels, below which more input pixels add nothing
STEP = 16  # the backbones' last maps are 1/16 of the input
LEAST_SIDE = 64
PADDING_SHARE = 10 / 256  # of the input's longest side; the reference code pads 256 x 128 by 10

EPS, MIN_SAMPLES, K1, LEAST_K1 = 0.55, 4, 30, 5
IMAGES_PER_K1 = 20  # without identities: at least this many images per neighbour


@dataclass(frozen=True)
class Spread:
    """The 5th, 50th and 95th percentile of a quantity."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class Recommendation:
    """Settings to begin with, each with its reason.

    Attributes:
        input_size: (height, width) in pixels, ``INPUT.SIZE_TRAIN`` and ``INPUT.SIZE_TEST``.
        padding: in pixels, ``INPUT.PADDING.SIZE``.
        eps: ``CLUSTERING.EPS``.
        min_samples: ``CLUSTERING.MIN_SAMPLES``.
        k1: ``CLUSTERING.K1``.
        reasons: name of a setting -> one or two sentences.
    """

    input_size: tuple[int, int]
    padding: int
    eps: float
    min_samples: int
    k1: int
    reasons: dict[str, str]


@dataclass(frozen=True)
class FolderReport:
    """What the images of a folder are like.

    Attributes:
        images: number of files, those that cannot be read included.
        per_camera: camera's name -> images; None without cameras.
        per_identity: images per identity; None without identities.
        per_track: images per track; None without tracks.
        width: in pixels, of the images that can be read.
        height: likewise.
        aspect: height / width.
        unreadable: (path, reason).
        duplicates: groups of files with the same pixels.
        recommendation: settings for these images.
    """

    images: int
    per_camera: dict[str, int] | None
    per_identity: Spread | None
    per_track: Spread | None
    width: Spread
    height: Spread
    aspect: Spread
    unreadable: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    recommendation: Recommendation


def check_folder(scan: FolderScan, workers: int | None = None) -> FolderReport:
    """Decode all images of a folder once and say what they are like.

    Args:
        scan: made with ``verify=False``, for else files that cannot be read are an error, or missing, there already.
        workers: threads that decode, None: one per processor.

    Raises:
        ValueError: no image can be read.
    """
    facts = inspect_images(scan.paths, workers)
    good = [image for image in facts if image.problem is None]
    unreadable = (*scan.skipped, *((image.path, image.problem) for image in facts if image.problem is not None))
    if not good:
        raise ValueError(f"None of the {len(facts)} images in {scan.folder} can be read; first: {facts[0].problem}.")
    per_identity, per_track = _sizes(scan.identities), _sizes(scan.tracks)
    width, height, aspect = _spreads(good)
    return FolderReport(
        images=len(facts) + len(scan.skipped),
        per_camera=None if scan.camera_names is None else count_names(scan.camera_names),
        per_identity=per_identity,
        per_track=per_track,
        width=width,
        height=height,
        aspect=aspect,
        unreadable=unreadable,
        duplicates=tuple(same_pixels(good)),
        recommendation=recommend(
            len(good),
            aspect=aspect.median,
            longest_side=max(width.median, height.median),
            per_identity=None if per_identity is None else per_identity.median,
            per_track=None if per_track is None else per_track.median,
        ),
    )


def recommend(
    images: int,
    *,
    aspect: float,
    longest_side: float,
    per_identity: float | None = None,
    per_track: float | None = None,
) -> Recommendation:
    """Settings to begin with.

    Args:
        images: number of images.
        aspect: their median height / width.
        longest_side: of the median image, in pixels.
        per_identity: median number of images of an identity, None where identities are unknown.
        per_track: median number of images of a track, None without tracks; an identity has at least as many.
    """
    size, why_size = _input_size(aspect, longest_side)
    padding = max(1, round(PADDING_SHARE * max(size)))
    k1, why_k1 = _k1(images, per_identity, per_track)
    min_samples, why_min_samples = _min_samples(per_identity)
    reasons = {
        "input_size": why_size,
        "padding": f"4 % of the longest side of {max(size)} pixels, as the reference code's 10 of 256.",
        "eps": f"{EPS} is the reference code's value for people. The right one depends on how well the features fit "
        "these images, which pictures alone do not tell: extract them and look at several values with sweep_eps.",
        "min_samples": why_min_samples,
        "k1": why_k1,
    }
    return Recommendation(size, padding, EPS, min_samples, k1, reasons)


def _input_size(aspect: float, longest_side: float) -> tuple[tuple[int, int], str]:
    """(height, width) and the reason."""
    if TALL[0] <= aspect <= TALL[1]:
        return PEOPLE_SIZE, (
            f"The median image is {aspect:.2f} times as high as wide, as pictures of standing people are; "
            "256 x 128 is the size at which weights for people are trained."
        )
    longest = LONG_SIDE if longest_side > SMALL_IMAGE else SHORT_LONG_SIDE
    shortest = longest * min(aspect, 1 / aspect)
    other = min(longest, max(LEAST_SIDE, STEP * round(shortest / STEP)))
    size = (longest, other) if aspect >= 1 else (other, longest)
    shape = "about square" if other == longest else "wider than high" if aspect < 1 else "higher than wide"
    why = (
        f"The median image is {shape} (height / width {aspect:.2f}) with a longest side of {longest_side:.0f} pixels: "
        f"{longest} pixels for it"
    )
    why += ", since more would only enlarge small images" if longest == SHORT_LONG_SIDE else ""
    return size, f"{why}; the other side in proportion, a multiple of {STEP}."


def _k1(images: int, per_identity: float | None, per_track: float | None) -> tuple[int, str]:
    if per_identity is not None:
        k1 = int(np.clip(round(2 * per_identity), LEAST_K1, K1))
        text = f"twice the {per_identity:.4g} images of the median identity, at least {LEAST_K1} and at most {K1}"
    else:
        k1 = int(np.clip(images // IMAGES_PER_K1, LEAST_K1, K1))
        text = f"a {IMAGES_PER_K1}th of {images:,} images, at least {LEAST_K1} and at most {K1}"
        if per_track is not None and k1 < min(2 * per_track, K1):
            k1 = int(min(2 * per_track, K1))
            text = f"twice the {per_track:.4g} images of the median track, at most {K1}"
    if k1 == K1:
        return k1, "30 is the reference code's value; nothing here asks for fewer neighbours."
    return k1, f"Reciprocal neighbours far beyond an identity's own images mix identities: {text}."


def _min_samples(per_identity: float | None) -> tuple[int, str]:
    if per_identity is not None and per_identity < 2 * MIN_SAMPLES:
        fewer = max(2, int(per_identity // 2))
        return fewer, (
            f"Half of the {per_identity:.4g} images of the median identity: with {MIN_SAMPLES} too many identities "
            "would be outliers."
        )
    return MIN_SAMPLES, (
        f"{MIN_SAMPLES} is the reference code's value. Identities of fewer images become outliers: lower it to 2 or 3 "
        "where most have only a few."
    )


def _spreads(images: list[ImageFacts]) -> tuple[Spread, Spread, Spread]:
    """Of widths, heights, and heights over widths."""
    width = np.array([image.width for image in images], float)
    height = np.array([image.height for image in images], float)
    return _spread(width), _spread(height), _spread(height / width)


def _sizes(numbers: np.ndarray | None) -> Spread | None:
    """Of the numbers of images per identity or track."""
    return None if numbers is None else _spread(np.bincount(numbers[numbers >= 0]))


def _spread(values: np.ndarray) -> Spread:
    low, median, high = np.percentile(values, [5, 50, 95])
    return Spread(float(low), float(median), float(high))
