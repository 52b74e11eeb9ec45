"""The exact search in blocks of rows and columns: the same lists, within the memory budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.clustering import (
    ca_jaccard,
    camera_aware_neighbors,
    float64_search,
    jaccard_distances,
    k_reciprocal_encoding,
    nearest_neighbors,
)
from fastreid_ice.clustering.float64_search import search_in_float64
from fastreid_ice.clustering.torch_ops import encoding, jaccard, search
from tests.clustering_features import blobs
from tests.tensor_sizes import Sizes

FEATURES = {
    "generic": F.normalize(torch.randn(700, 24, generator=torch.Generator().manual_seed(0)), dim=1),
    # 12 distinct rows: every list is full of equal neighbours, and every row is unclear
    "ties": F.normalize(torch.randn(12, 24, generator=torch.Generator().manual_seed(1)), dim=1)[torch.arange(700) % 12],
    "clusters": blobs(40, 17, dimensions=24),
}


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("columns", [7, 64, 699])
def test_blocks_of_columns_change_nothing(kind, columns, monkeypatch):
    features = FEATURES[kind]
    expected = nearest_neighbors(features, 30, backend="torch")
    assert np.array_equal(expected[1].numpy(), nearest_neighbors(features, 30, backend="numba")[1].numpy())
    monkeypatch.setattr(search, "COLUMNS", columns)
    monkeypatch.setattr(float64_search, "COLUMNS", columns)
    found = nearest_neighbors(features, 30, backend="torch", memory_budget_mb=1)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    some = nearest_neighbors(features, 30, rows=(100, 130), backend="torch")
    assert torch.equal(some[0], expected[0][100:130]) and torch.equal(some[1], expected[1][100:130])


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("columns", [7, 64, 699])
def test_blocks_of_columns_change_nothing_within_cameras(kind, columns, monkeypatch):
    """Each list is searched once more for all of its unclear rows together, whatever the chunks."""
    features, searches = FEATURES[kind], []
    cameras = torch.randint(6, (len(features),), generator=torch.Generator().manual_seed(2)) % 5  # one of them twice
    products = features.double() @ features.double().t()
    same = cameras[:, None] == cameras
    expected = []
    for length, hidden in ((6, ~same), (21, same)):
        order = (products * float64_search.GRID).round().masked_fill(hidden, -torch.inf)
        expected.append(order.sort(dim=1, descending=True, stable=True).indices[:, :length])

    def counted(features, images, *args):
        searches.append(len(images))
        return search_in_float64(features, images, *args)

    for module in (search, float64_search, ca_jaccard):
        monkeypatch.setattr(module, "COLUMNS", columns)
    monkeypatch.setattr(ca_jaccard, "search_in_float64", counted)
    found = camera_aware_neighbors(features, cameras, 6, 21, memory_budget_mb=1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert len(searches) == 2 and (max(searches) > 300) == (kind == "ties")


def test_many_images_of_cameras_leave_room_for_many_rows(monkeypatch):
    features = F.normalize(torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    cameras = torch.arange(20_000) % 3
    expected = camera_aware_neighbors(features, cameras, 5, 5, (0, 900))
    monkeypatch.setattr(ca_jaccard, "COLUMNS", 256)
    with Sizes() as sizes:
        found = camera_aware_neighbors(features, cameras, 5, 5, (0, 900), memory_budget_mb=1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert sizes.largest <= 2**20
    assert max(sizes.rows) >= 200


@pytest.mark.parametrize("columns", [7, 64])
def test_a_list_of_everyone(columns, monkeypatch):
    features = FEATURES["clusters"][:90]
    expected = nearest_neighbors(features, 200, backend="torch")
    monkeypatch.setattr(search, "COLUMNS", columns)
    found = nearest_neighbors(features, 200, backend="torch")
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_many_images_leave_room_for_many_rows(monkeypatch):
    """Whole rows of 20,000 products would be six at a time in 1 MiB; a million images fit 27 in 256."""
    features = F.normalize(torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = nearest_neighbors(features, 5, rows=(0, 900), backend="torch")
    monkeypatch.setattr(search, "COLUMNS", 256)
    with Sizes() as sizes:
        found = nearest_neighbors(features, 5, rows=(0, 900), backend="torch", memory_budget_mb=1)
    assert torch.equal(found[1], expected[1])
    assert sizes.largest <= 2**20
    assert max(sizes.rows) >= 300


def test_wide_features_stay_within_the_budget():
    """The exact sums are made of a few rows at a time, whatever number of rows the products had."""
    features = F.normalize(torch.randn(600, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    with Sizes() as sizes:
        nearest_neighbors(features, 20, backend="torch", memory_budget_mb=2)
    assert sizes.largest <= 2 * 2**20


def test_unclear_rows_are_many_at_a_time(monkeypatch):
    features = FEATURES["ties"].repeat(30, 1)  # 21,000 images
    images = torch.arange(0, 21_000, 50)
    expected = search_in_float64(features, images, 10, 256)
    monkeypatch.setattr(float64_search, "COLUMNS", 256)
    with Sizes() as sizes:
        found = search_in_float64(features, images, 10, 1)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert sizes.largest <= 2**20
    assert max(sizes.rows) >= 64  # of whole rows it would be one


def test_whole_arrays_of_the_jaccard_stages_are_half_as_large(monkeypatch):
    features = blobs(100, 20, spread=0.3)
    similarities, ranks = nearest_neighbors(features, 20, backend="torch")
    expected = k_reciprocal_encoding(features, ranks, similarities, 20, 6, backend="torch")
    graph = jaccard_distances(expected, 0.1)
    for module in (encoding, jaccard):
        monkeypatch.setattr(module, "BYTES_PER_ENTRY", 64 * 64)  # many chunks, each far smaller than the whole
    with Sizes() as sizes:
        found = k_reciprocal_encoding(features, ranks, similarities, 20, 6, backend="torch", memory_budget_mb=1)
    assert found.indices.dtype == torch.int32
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    entries = len(found.values)
    assert sizes.largest <= max(4 * entries, ranks.nbytes)
    with Sizes() as sizes:
        distances = jaccard_distances(found, 0.1, memory_budget_mb=1)  # few pairs
    assert all(torch.equal(a, b) for a, b in zip(distances, graph))
    assert sizes.largest <= 8 * (entries + 1)  # the sort's order, and the work before each entry
