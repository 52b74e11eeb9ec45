"""Render people in Market-1501's layout and of its size, to time and try whole trainings without the real one.

    python benchmarks/rendered_market.py datasets
    FASTREID_DATASETS=datasets python tools/train_net.py --config-file configs/ICE/market.yml

About 12,000 training, 4,000 query and 18,000 gallery images of 128 x 64 pixels, of 736 + 736 people under six cameras,
in ``<folder>/Market-1501-v15.09.15``; a minute on sixteen cores, five on two. They are easier to tell apart than real
people: what is measured on them is time, and that two ways end alike.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fastreid_ice.cores import usable_cores
from fastreid_ice.synthetic import render_synthetic_reid

FOLDER = "Market-1501-v15.09.15"
FIRST_TEST_IDENTITY = 751  # fastreid asserts that no identity is above 1501
SPLITS = ("bounding_box_train", "query", "bounding_box_test")
_NAME = re.compile(r"(\d+)_c(\d)_(\d+)\.jpg")


def render(root: Path, parts: int = 16, identities: int = 46, processes: int | None = None) -> dict[str, int]:
    """Render the dataset, each part of it by itself; the same numbers give the same files.

    Args:
        root: of the datasets; :data:`FOLDER` in it must not be there.
        parts: each of people and images of its own.
        identities: of each part's training images, and as many of its test images.
        processes: that render; default as many as there are cores.

    Returns:
        Images by split.

    Raises:
        FileExistsError: the folder is there.
        ValueError: more identities than Market-1501 has.
    """
    if parts * identities >= FIRST_TEST_IDENTITY:
        raise ValueError(f"{parts} parts of {identities} identities are more than Market-1501's 750")
    (root / FOLDER).mkdir(parents=True)
    for split in SPLITS:
        (root / FOLDER / split).mkdir()
    count: Counter[str] = Counter()
    with get_context("spawn").Pool(processes or usable_cores()) as pool:
        for found in pool.imap_unordered(_part, [(root / FOLDER, part, identities) for part in range(parts)]):
            count.update(found)
    return dict(count)


def _part(task: tuple[Path, int, int]) -> Counter[str]:
    folder, part, identities = task
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        rendered = render_synthetic_reid(
            Path(temporary) / "part",
            seed=100 + part,
            train_identities=identities,
            test_identities=identities,
            cameras=6,
            train_images=(2, 4),
            gallery_images=(3, 5),
            distractors=3 * identities,
        )
        for split in SPLITS:
            for path in sorted((rendered / split).glob("*.jpg")):
                name = _NAME.fullmatch(path.name)
                assert name is not None
                identity = _identity(int(name[1]), split == SPLITS[0], part, identities)
                target = folder / split / f"{identity:04d}_c{name[2]}s1_{part:02d}{int(name[3]):05d}_00.jpg"
                target.write_bytes(path.read_bytes())
                count[split] += 1
    return count


def _identity(rendered: int, trained: bool, part: int, identities: int) -> int:
    """Among all parts; 0, a distractor's, stays."""
    if rendered == 0:
        return 0
    first = 1 if trained else FIRST_TEST_IDENTITY
    return first + part * identities + rendered - 1 - (0 if trained else identities)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the datasets (FASTREID_DATASETS)")
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--identities", type=int, default=46, help="of each part, to train on and to test on")
    args = parser.parse_args(argv)
    count = render(args.root, args.parts, args.identities)
    sys.stdout.write("\n".join(f"{split}: {count[split]:,} images" for split in SPLITS) + "\n")


if __name__ == "__main__":
    main()
