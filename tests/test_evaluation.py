"""Ranking without sorting against a stable sort in float64, and against fastreid's own functions."""

import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_ice.evaluation import (
    FeatureRows,
    Identities,
    Similarities,
    chunk_size,
    counting,
    counting_on_device,
    evaluate_rank,
    rank_queries,
    ranking,
)


def sorted_ranks(row, wanted, junk):
    """Ranks from 1 of the wanted images in a stable sort by falling similarity, junk left out."""
    order = [image for image in np.argsort(-row.astype(np.float64), kind="stable") if image not in junk]
    return [rank for rank, image in enumerate(order, start=1) if image in wanted]


def sorted_scores(similarities, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank):
    """The definitions, one query after the other: curve, AP and INP of the queries that have a match."""
    curve, precisions, penalties, queries = np.zeros(max_rank), [], [], []
    for q, row in enumerate(similarities):
        same = set(np.flatnonzero(gallery_ids == query_ids[q]))
        junk = {image for image in same if gallery_cameras[image] == query_cameras[q]}
        ranks = sorted_ranks(row, same - junk, junk)
        if not ranks:
            continue
        queries.append(q)
        curve[ranks[0] - 1 :] += 1
        precision = 0.0
        for found, rank in enumerate(ranks, start=1):
            precision += found / rank
        precisions.append(precision / len(ranks))
        penalties.append(len(ranks) / ranks[-1])
    return curve / max(1, len(queries)), np.array(precisions), np.array(penalties), np.array(queries)


def random_problem(seed, queries=9, gallery=40, people=5, cameras=3, levels=None):
    """Similarities and labels. ``levels``: how many different similarities there are, for ties."""
    rng = np.random.default_rng(seed)
    similarities = rng.normal(size=(queries, gallery)).astype(np.float32)
    if levels is not None:
        similarities = rng.integers(-levels, levels + 1, (queries, gallery)).astype(np.float32) / 4
        similarities[rng.random((queries, gallery)) < 0.1] = -0.0
    labels = (rng.integers(0, people, queries), rng.integers(0, people, gallery))
    views = (rng.integers(0, cameras, queries), rng.integers(0, cameras, gallery))
    return similarities, *labels, *views


def rank(similarities, *labels, max_rank=50, queries_at_once=4):
    rows = torch.from_numpy(similarities)
    return rank_queries(lambda start, stop: rows[start:stop], Identities(*labels), queries_at_once, max_rank)


def assert_equal_to_sort(problem, max_rank=50, **kwargs):
    expected = sorted_scores(*problem, max_rank)
    if len(expected[3]) == 0:
        with pytest.raises(ValueError, match="None of the .* queries has a match"):
            rank(*problem, max_rank=max_rank, **kwargs)
        return
    found = rank(*problem, max_rank=max_rank, **kwargs)
    for part, reference in zip(found, expected):
        assert np.array_equal(part, reference)


@pytest.fixture(params=["compiled", "device"])
def backend(request, monkeypatch):
    """Rank by the compiled kernels, or by the torch operations that an accelerator runs, here on CPU tensors."""
    if request.param == "device":
        monkeypatch.setattr(counting, "ranks_of_matches", on_device)
        monkeypatch.setattr(counting, "first_nan", lambda rows: counting_on_device.first_nan(torch.from_numpy(rows)))
    return request.param


def on_device(similarities, relevant):
    return counting_on_device.ranks_of_matches(torch.from_numpy(np.ascontiguousarray(similarities)), relevant)


def test_by_hand():
    # similarities fall from left to right; X: match, J: junk, o: somebody else
    #   o J X o X  -> ranks 2 and 4 without the junk: AP (1/2 + 2/4) / 2, INP 2/4
    similarities = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32)
    found = rank(similarities, [7], [1, 7, 7, 2, 7], [0], [0, 0, 1, 1, 2], max_rank=4)
    assert found.average_precisions.tolist() == [0.5] and found.inverse_negative_penalties.tolist() == [0.5]
    assert found.cmc.tolist() == [0, 1, 1, 1]
    assert found.mean_average_precision == 0.5 and found.mean_inverse_negative_penalty == 0.5


def test_equal_similarities_rank_by_gallery_index(backend):
    #            o    X    o    X    o
    similarities = np.array([[0.5, 0.5, 0.5, 0.5, 0.5]], np.float32)
    found = rank(similarities, [7], [1, 7, 1, 7, 1], [0], [1, 1, 1, 1, 1])
    assert found.average_precisions.tolist() == [(1 / 2 + 2 / 4) / 2]


@pytest.mark.parametrize("levels", [None, 0, 2, 30])
@pytest.mark.parametrize("gallery", [1, 2, 3, 10, 60, 128, 129, 700])
def test_equals_stable_sort(backend, gallery, levels):
    for seed in range(4):
        for people, cameras in ((1, 2), (5, 3), (40, 2), (3, 1)):
            problem = random_problem(seed, gallery=gallery, people=people, cameras=cameras, levels=levels)
            assert_equal_to_sort(problem)


@pytest.mark.parametrize("scale", [1e-38, 1e-3, 1e30])
def test_many_matches_of_any_scale(backend, scale):
    """More matches than are compared one by one: their places are looked up."""
    similarities, *labels = random_problem(0, queries=3, gallery=900, people=2)
    similarities[1] = np.round(similarities[1])  # few values
    similarities[2, 5] *= 1e6  # all matches but one in few bins
    assert_equal_to_sort((similarities * np.float32(scale), *labels))


def test_infinite_similarities(backend):
    similarities, *labels = random_problem(1, queries=4, gallery=300, people=2, levels=5)
    similarities[0, ::7] = -np.inf
    similarities[1, ::5] = np.inf
    similarities[2] = np.where(similarities[2] > 0, np.inf, -np.inf)
    assert_equal_to_sort((similarities, *labels))


def test_float64_similarities_are_not_rounded():
    close = np.array([[0.5, 0.5 + 1e-12]])
    assert rank(close, [1], [0, 1], [0], [1, 1]).average_precisions.tolist() == [1]
    assert rank(close.astype(np.float32), [1], [0, 1], [0], [1, 1]).average_precisions.tolist() == [0.5]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 12),
    gallery=st.integers(1, 150),
    people=st.integers(1, 12),
    cameras=st.integers(1, 4),
    levels=st.none() | st.integers(0, 6),
    at_once=st.integers(1, 13),
    max_rank=st.integers(1, 60),
)
def test_property(seed, queries, gallery, people, cameras, levels, at_once, max_rank):
    problem = random_problem(seed, queries, gallery, people, cameras, levels)
    assert_equal_to_sort(problem, max_rank=max_rank, queries_at_once=at_once)
    relevant = Identities(*problem[1:]).relevant(0, queries)
    assert np.array_equal(counting.ranks_of_matches(problem[0], relevant), on_device(problem[0], relevant))


def test_threads_change_nothing():
    problem = random_problem(3, queries=100, gallery=200)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_equal_to_sort(problem, queries_at_once=64)
    finally:
        torch.set_num_threads(before)


def test_queries_without_match_are_left_out():
    similarities, query_ids, gallery_ids, *cameras = random_problem(5)
    query_ids[::2] = 99  # nobody in the gallery
    found = rank(similarities, query_ids, gallery_ids, *cameras)
    assert set(found.queries) <= {1, 3, 5, 7} and len(found.average_precisions) == len(found.queries)
    assert_equal_to_sort((similarities, query_ids, gallery_ids, *cameras))


def test_nan_names_the_pair(backend):
    similarities, *labels = random_problem(5)
    similarities[6, 11] = np.nan
    with pytest.raises(ValueError, match="query 6 and gallery image 11 is NaN"):
        rank(similarities, *labels)


def test_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="each gallery image, found 3 identities and 2 cameras"):
        Identities([1], [1, 2, 3], [0], [0, 1])
    with pytest.raises(ValueError, match="each query image, found 0"):
        Identities([], [1], [], [0])
    with pytest.raises(ValueError, match=r"1 queries and 3 gallery images, found a matrix of shape \(1, 2\)"):
        evaluate_rank(np.zeros((1, 2)), np.ones(1), np.ones(3), np.zeros(1), np.ones(3))


def test_chunk_fits_the_budget():
    cpu = torch.device("cpu")
    assert 4 * 82161 * chunk_size(82161, cpu) <= ranking.MEMORY_BUDGET_MB * 2**20
    assert chunk_size(10**9, cpu) == 1


# fastreid's functions


def upstream_ranking():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastreid_ice import compat  # noqa: F401  isort: skip
        from fastreid.evaluation import rank as rank_module
    return sys.modules["fastreid.evaluation.rank"] if callable(rank_module) else rank_module


def distance_problem(seed, queries=20, gallery=80):
    """No ties, and at least 50 gallery images left for each query, which upstream needs."""
    similarities, *labels = random_problem(seed, queries, gallery, people=6, cameras=4)
    return 1 - similarities, *labels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_upstream_python(dtype):
    upstream = upstream_ranking()
    for seed in range(5):
        distances, *labels = distance_problem(seed)
        expected = upstream.eval_market1501(distances.astype(dtype), *labels, 50)
        for part, reference in zip(evaluate_rank(distances.astype(dtype), *labels), expected):
            np.testing.assert_allclose(part, reference, rtol=0, atol=1e-6)


def test_equals_upstream_cython():
    rank_cy = pytest.importorskip("fastreid.evaluation.rank_cylib.rank_cy")
    for seed in range(5):
        problem = distance_problem(seed)
        expected = rank_cy.evaluate_cy(*problem, 50)
        for part, reference in zip(evaluate_rank(*problem), expected):
            np.testing.assert_allclose(part, reference, rtol=0, atol=1e-5)


def test_small_gallery_keeps_the_length_of_the_curve():
    cmc, *_ = evaluate_rank(np.array([[0.2, 0.1, 0.3]]), [1], [1, 2, 3], [0], [1, 1, 1])
    assert cmc.dtype == np.float32 and cmc.tolist() == [0] + [1] * 49


def test_cuhk03_protocol_is_refused():
    with pytest.raises(ValueError, match="use_metric_cuhk03"):
        evaluate_rank(np.zeros((1, 1)), [1], [1], [0], [1], use_metric_cuhk03=True)


# features and their similarities


def rows_of(features, batch=7):
    rows = FeatureRows()
    for part in features.split(batch):
        rows.append(part)
    return rows


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 10 rows of 13 dimensions, which batches of 7 straddle."""
    monkeypatch.setattr("fastreid_ice.evaluation.features.BLOCK_BYTES", 10 * 13 * 4)


def random_features(images=64, dimensions=13, seed=0):
    return torch.randn(images, dimensions, generator=torch.Generator().manual_seed(seed))


def test_rows_are_kept_in_order(small_blocks):
    features = random_features()
    rows = rows_of(features)
    assert len(rows) == 64 and len(rows.parts()) == 7
    for start, stop in ((0, 64), (9, 10), (10, 20), (3, 41), (60, 64)):
        assert torch.equal(torch.cat(rows.parts(start, stop)), features[start:stop])
        assert torch.equal(rows.matrix(start, stop), features[start:stop])


def test_half_precision_batches_become_float32():
    rows = rows_of(random_features().bfloat16())
    assert rows.matrix().dtype == torch.float32


def test_normalised_in_place(small_blocks):
    features = random_features()
    features[3] = 0
    rows = rows_of(features)
    memory = [part.data_ptr() for part in rows.parts()]
    rows.normalize()
    assert torch.equal(rows.matrix(), torch.nn.functional.normalize(features, dim=1))
    assert [part.data_ptr() for part in rows.parts()] == memory


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_similarities_equal_upstream_distances(small_blocks, metric):
    upstream_ranking()
    from fastreid.utils.compute_dist import build_dist

    features = random_features()
    expected = build_dist(features[:23], features[23:], metric)
    rows = rows_of(features)
    if metric == "cosine":
        rows.normalize()
    similarities = Similarities(rows, 23, metric)
    assert similarities.queries_at_once == 23
    for start, stop in ((0, 23), (5, 12), (22, 23)):
        found = similarities.distances(start, stop).numpy().copy()
        np.testing.assert_allclose(found, expected[start:stop], rtol=0, atol=3e-5 if metric == "euclidean" else 1e-6)
        other = similarities(start, stop).numpy()
        np.testing.assert_allclose(other, -found + (metric == "cosine"), rtol=0, atol=1e-6)


def test_chunks_of_queries_change_nothing(small_blocks):
    """Whole numbers, so that products are exact however they are summed; many are equal."""
    features = torch.randint(-2, 3, (64, 13), generator=torch.Generator().manual_seed(0)).float()
    rng = np.random.default_rng(0)
    labels = (rng.integers(0, 4, 24), rng.integers(0, 4, 40), rng.integers(0, 3, 24), rng.integers(0, 3, 40))
    expected = sorted_scores((features[:24] @ features[24:].T).numpy(), *labels, 50)
    similarities = Similarities(rows_of(features), 24, "cosine")
    for at_once in (1, 5, 24):
        found = rank_queries(similarities, Identities(*labels), at_once)
        for part, reference in zip(found, expected):
            assert np.array_equal(part, reference)


def test_unknown_metric_names_the_choices():
    with pytest.raises(ValueError, match="metric is 'manhattan'; choose one of cosine, euclidean"):
        Similarities(rows_of(random_features()), 5, "manhattan")


@pytest.mark.parametrize(("image", "kind"), [(4, r"query 4 \(4.jpg\)"), (9, r"gallery image 4 \(9.jpg\)")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_image(image, kind, value):
    features = random_features()
    features[image, 2] = value
    with pytest.raises(ValueError, match=f"of 1 of 64 images are NaN or infinite, first of {kind}"):
        rows_of(features).check_finite([f"{i}.jpg" for i in range(64)], num_query=5)


def test_camera_normalization_by_hand(small_blocks):
    features, cameras = random_features(images=160), torch.arange(160) % 3
    few = torch.arange(10, 39)
    cameras[few] = 9  # a camera with 29 images
    features[cameras == 1, 4] = 2.5  # a constant dimension
    rows = rows_of(features)
    rows.normalize_cameras(cameras)
    expected = torch.empty(160, 13)
    for camera in (0, 1, 2):
        own = features[cameras == camera].double()
        scale = own.std(dim=0, unbiased=False)
        expected[cameras == camera] = torch.where(scale > 1e-9, (own - own.mean(dim=0)) / scale, 0.0).float()
    whole = features.double()
    expected[few] = ((whole[few] - whole.mean(dim=0)) / whole.std(dim=0, unbiased=False)).float()
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(rows.matrix(), expected, rtol=0, atol=1e-5)
    assert bool((rows.matrix()[cameras == 1, 4] == 0).all())
