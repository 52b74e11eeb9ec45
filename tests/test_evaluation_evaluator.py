"""The evaluator against fastreid's own, through fastreid's inference loop."""

import importlib
import logging
import subprocess
import sys

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.engine import launch
from fastreid.evaluation import ReidEvaluator, inference_on_dataset, print_csv_format
from fastreid.evaluation.query_expansion import aqe
from fastreid.evaluation.roc import evaluate_roc_py
from fastreid.utils import comm
from fastreid.utils.compute_dist import compute_jaccard_distance
from sklearn.metrics import roc_curve

from fastreid_ice.evaluation import (
    FeatureRows,
    Identities,
    RerankedSimilarities,
    Similarities,
    expand_queries,
    true_positive_rates,
)
from fastreid_ice.evaluation.evaluator import ICEReidEvaluator

QUERIES, GALLERY = 24, 120


class FakeLoader(list):
    """Batches as fastreid's test loader makes them; the "images" are features, one row of pixels each."""

    def __init__(self, features, identities, cameras, batch=10):
        self.dataset = range(len(features))
        for start in range(0, len(features), batch):
            part = slice(start, start + batch)
            paths = [f"{i}.jpg" for i in self.dataset[part]]
            images = features[part][:, None, None, :]  # (b, 1, 1, D)
            self.append({"images": images, "targets": identities[part], "camids": cameras[part], "img_paths": paths})


class Flatten(torch.nn.Module):
    """A model whose embedding is not symmetric, so that a flipped image gives another one."""

    def forward(self, batch):
        return batch["images"].flatten(1) * torch.linspace(0.5, 1.5, batch["images"].shape[-1])


def images_of_people(seed=0, dimensions=32, people=12):
    """Features that cluster by identity, identities and cameras of the queries and the gallery."""
    generator = torch.Generator().manual_seed(seed)
    total = QUERIES + GALLERY
    identities = torch.randint(0, people, (total,), generator=generator)
    centers = torch.randn(people, dimensions, generator=generator)
    features = centers[identities] + 1.2 * torch.randn(total, dimensions, generator=generator)
    return features, identities, torch.randint(0, 3, (total,), generator=generator)


def config(*options):
    cfg = get_cfg()
    cfg.merge_from_list(list(options))
    return cfg


def evaluate(evaluator_class, cfg, images, num_query=QUERIES, flip=False):
    return inference_on_dataset(Flatten(), FakeLoader(*images), evaluator_class(cfg, num_query), flip_test=flip)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("TEST.METRIC", "euclidean"),
        ("TEST.AQE.ENABLED", True),
        ("TEST.AQE.ENABLED", True, "TEST.AQE.QE_TIME", 2, "TEST.METRIC", "euclidean"),
        ("TEST.RERANK.ENABLED", True),
        ("TEST.RERANK.ENABLED", True, "TEST.RERANK.K1", 7, "TEST.RERANK.K2", 1, "TEST.RERANK.LAMBDA", 0.1),
        ("TEST.RERANK.ENABLED", True, "TEST.METRIC", "euclidean"),
        ("TEST.ROC.ENABLED", True),
        ("TEST.ROC.ENABLED", True, "TEST.RERANK.ENABLED", True, "TEST.AQE.ENABLED", True),
    ],
    ids=lambda options: " ".join(str(option).replace("TEST.", "") for option in options) or "cosine",
)
def test_same_numbers_as_fastreid(options, flip, monkeypatch):
    module = importlib.import_module("fastreid.evaluation.rank")
    monkeypatch.setattr(module, "evaluate_rank", module.evaluate_rank.__wrapped__)  # upstream's own, not our repair
    for seed in range(2):
        expected = evaluate(ReidEvaluator, config(*options), images_of_people(seed), flip=flip)
        found = evaluate(ICEReidEvaluator, config(*options), images_of_people(seed), flip=flip)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=1e-4), key  # percent


def test_table_of_fastreid_prints(caplog):
    results = evaluate(ICEReidEvaluator, config(), images_of_people())
    results["dataset"] = "Tiny"
    with caplog.at_level(logging.INFO, "fastreid"):
        print_csv_format(results)
    assert "| Dataset" in caplog.text and "| mINP" in caplog.text


def test_small_gallery_and_again_after_reset():
    """Upstream fails with fewer than ten gallery images."""
    features, identities, cameras = images_of_people()
    evaluator = ICEReidEvaluator(config(), 2)
    for _ in range(2):
        loader = FakeLoader(features[:5], torch.tensor([1, 2, 2, 1, 3]), torch.tensor([0, 0, 1, 1, 1]))
        results = inference_on_dataset(Flatten(), loader, evaluator)
        assert results["Rank-10"] == 100 and len(evaluator._features) == 5


def test_jaccard_metric_ranks_by_the_jaccard_distance_alone():
    rerank = ("TEST.RERANK.K1", 9, "TEST.RERANK.K2", 3, "TEST.RERANK.LAMBDA", 0.0)
    alone = evaluate(ICEReidEvaluator, config("TEST.METRIC", "jaccard", *rerank), images_of_people())
    mixed = evaluate(ICEReidEvaluator, config("TEST.RERANK.ENABLED", True, *rerank), images_of_people())
    assert alone == mixed


def test_unknown_metric_is_refused_before_inference():
    with pytest.raises(ValueError, match="TEST.METRIC is 'typo'; choose one of cosine, euclidean, jaccard"):
        ICEReidEvaluator(config("TEST.METRIC", "typo"), 3)


def test_camera_normalization_removes_what_a_camera_adds():
    features, identities, cameras = images_of_people()
    shifts = 8 * torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    shifted = (features + shifts[cameras], identities, cameras)
    cfg = config()
    cfg.TEST.CAMERA_NORMALIZATION = True
    plain = evaluate(ICEReidEvaluator, cfg, (features, identities, cameras))
    assert evaluate(ICEReidEvaluator, cfg, shifted) == pytest.approx(plain, abs=1e-3)
    assert evaluate(ICEReidEvaluator, config(), shifted)["mAP"] < plain["mAP"] - 20


def test_nan_names_the_file():
    features, *labels = images_of_people()
    features[QUERIES + 5, 3] = float("nan")
    with pytest.raises(ValueError, match=rf"first of gallery image 5 \({QUERIES + 5}.jpg\)"):
        evaluate(ICEReidEvaluator, config(), (features, *labels))


def test_nobody_in_the_gallery():
    features, identities, cameras = images_of_people()
    identities[:QUERIES] += 100
    with pytest.raises(ValueError, match=f"None of the {QUERIES} queries has a match"):
        evaluate(ICEReidEvaluator, config(), (features, identities, cameras))
    with pytest.raises(ValueError, match="found 144 queries among 144 images"):
        evaluate(ICEReidEvaluator, config(), (features, identities, cameras), num_query=144)


# the parts


def test_query_expansion_equals_fastreid():
    features, *_ = images_of_people()
    for times, k, alpha in ((1, 5, 3.0), (2, 10, 1.0), (1, 1, 0.0)):
        expected = torch.cat(aqe(features[:QUERIES], features[QUERIES:], times, k, alpha))
        torch.testing.assert_close(expand_queries(features, times, k, alpha), expected, rtol=0, atol=1e-5)
    assert len(expand_queries(features[:3], 1, 5)) == 3  # fewer images than neighbours


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 1), (5, 3)])
def test_reranked_distances_equal_fastreid(metric, k1, k2):
    features = images_of_people()[0] / 6
    features = F.normalize(features, dim=1) if metric == "cosine" else features
    expected = compute_jaccard_distance(features, k1, k2, search_option=3)[:QUERIES, QUERIES:]
    alone = RerankedSimilarities(features, QUERIES, None, metric, k1, k2)
    np.testing.assert_allclose(alone.distances(0, QUERIES), expected, rtol=0, atol=1e-5)
    original = Similarities(FeatureRows.of(features.clone()), QUERIES, metric)
    mixed = RerankedSimilarities(features, QUERIES, original, metric, k1, k2, weight=0.25)
    expected = 0.75 * expected[3:9] + 0.25 * original.distances(3, 9).numpy()
    np.testing.assert_allclose(mixed.distances(3, 9), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mixed(3, 9), -expected, rtol=0, atol=1e-5)


def test_jaccard_distances_of_equal_images_are_not_negative():
    """Sums of minima may exceed 1 by their rounding."""
    features = F.normalize(images_of_people()[0], dim=1).repeat_interleave(3, dim=0)
    distances = RerankedSimilarities(features, len(features) // 2, None).distances(0, len(features) // 2)
    assert float(distances.min()) >= 0


@pytest.mark.parametrize("people", [2, 12, 60])
@pytest.mark.parametrize("digits", [0, 1, 6])
def test_roc_equals_scikit_learn(people, digits):
    """``digits`` makes ties, within matches, within strangers and between both."""
    for seed in range(6):
        _, identities, cameras = images_of_people(seed, people=people)
        generator = np.random.default_rng(seed)
        distances = np.abs(generator.normal(size=(QUERIES, GALLERY))).round(digits).astype(np.float32)
        labels = (identities[:QUERIES], identities[QUERIES:], cameras[:QUERIES], cameras[QUERIES:])
        scores, different = evaluate_roc_py(distances, *(part.numpy() for part in labels))
        false_rates, true_rates, _ = roc_curve(different, scores)
        rates = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.9)
        expected = [true_rates[np.argmin(np.abs(false_rates - rate))] for rate in rates]
        rows = torch.from_numpy(distances)
        found = true_positive_rates(lambda a, b, rows=rows: rows[a:b].clone(), Identities(*labels), 7, rates)
        assert found == pytest.approx(expected, abs=1e-12)


def test_roc_keeps_its_first_point():
    """Two equal steps, a match and a stranger each; what lies between them is on the line, but the first of all."""
    rows = torch.tensor([[0.9, 0.9, 0.8, 0.8]])
    identities = Identities([1], [1, 2, 1, 2], [0], [1, 1, 1, 1])
    assert true_positive_rates(lambda a, b: rows[a:b].clone(), identities, 1, (0.5, 0.9)) == [0.5, 1]
    false_rates, true_rates, _ = roc_curve([0, 1, 0, 1], rows[0])
    assert false_rates.tolist() == [0, 0.5, 1] and true_rates.tolist() == [0, 0.5, 1]


def test_roc_without_strangers_or_matches():
    rows = torch.rand(2, 3)
    alone = Identities([1, 1], [1, 1, 1], [0, 0], [1, 1, 1])
    nobody = Identities([1, 1], [2, 2, 2], [0, 0], [1, 1, 1])
    for identities in (alone, nobody):
        assert np.isnan(true_positive_rates(lambda a, b: rows[a:b], identities, 2)).all()


def test_pure_modules_do_not_import_fastreid():
    code = (
        "import sys, fastreid_ice.evaluation; sys.exit(any(name.split('.')[0] == 'fastreid' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# several processes


def evaluate_share(folder, processes):
    """One process's share of the loader; the first process writes the scores."""
    features, identities, cameras = images_of_people()
    own = slice(*(len(features) * (comm.get_rank() + i) // processes for i in range(2)))
    results = evaluate(ICEReidEvaluator, config(), (features[own], identities[own], cameras[own]))
    if comm.is_main_process():
        torch.save(dict(results), f"{folder}/results.pth")
    else:
        assert results == {}


def test_two_processes_equal_one(tmp_path, monkeypatch):
    monkeypatch.setattr("fastreid_ice.compat.device._named", torch.device("cpu"))  # else it would take two GPUs
    launch(evaluate_share, 2, dist_url="auto", args=(str(tmp_path), 2))
    expected = evaluate(ICEReidEvaluator, config(), images_of_people())
    assert torch.load(tmp_path / "results.pth") == expected
