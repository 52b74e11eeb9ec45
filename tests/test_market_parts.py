"""Datasets that are parts of Market-1501."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
from PIL import Image

from fastreid_ice.data.market_parts import Market1501Half, Market1501Validation


@pytest.fixture
def market(tmp_path):
    """Nine training identities under two cameras, two images each; one query with one match."""
    folder = tmp_path / "Market-1501-v15.09.15"
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (4, 8)).save(folder / "query" / "0001_c1s1_000001_00.jpg")
    Image.new("RGB", (4, 8)).save(folder / "bounding_box_test" / "0001_c2s1_000001_00.jpg")
    for identity in range(2, 20, 2):
        for camera in (1, 3):
            for frame in (1, 2):
                name = f"{identity:04d}_c{camera}s1_00000{frame}_00.jpg"
                Image.new("RGB", (4, 8)).save(folder / "bounding_box_train" / name)
    return tmp_path


def test_every_fourth_identity_is_held_out(market):
    dataset = Market1501Validation(root=str(market))
    held_out = {16, 6}  # the fourth and the eighth of the names market1501_10, ..._12, ... , ..._2, ..._4, ..._6, ..._8
    assert {identity for _, identity, _ in dataset.train} == {
        f"market1501_{i}" for i in range(2, 20, 2) if i not in held_out
    }
    assert [(identity, camera) for _, identity, camera in dataset.query] == [(6, 0), (6, 2), (16, 0), (16, 2)]
    assert [path[-14:] for path, *_ in dataset.query] == ["_000001_00.jpg"] * 4
    assert [item[1:] for item in dataset.gallery] == [item[1:] for item in dataset.query]
    paths = [path for path, *_ in dataset.train + dataset.query + dataset.gallery]
    assert len(paths) == len(set(paths)) == 36


def test_half_of_the_identities_and_the_whole_test_set(market):
    dataset = Market1501Half(root=str(market))
    kept = {10, 14, 18, 4, 8}  # the first, third, ... of those names
    assert {identity for _, identity, _ in dataset.train} == {f"market1501_{i}" for i in kept}
    assert len(dataset.train) == 4 * len(kept)
    assert [item[1:] for item in dataset.query] == [(1, 0)]
    assert [item[1:] for item in dataset.gallery] == [(1, 1)]
