"""fastreid's evaluation of re-identification, ranked without sorting, on the device of the features."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, NamedTuple

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.evaluation import DatasetEvaluator
from fastreid.utils import comm
from torch import Tensor

from fastreid_ice.evaluation.expansion import expand_queries
from fastreid_ice.evaluation.features import FeatureRows
from fastreid_ice.evaluation.ranking import Identities, rank_queries
from fastreid_ice.evaluation.rerank import RerankedSimilarities
from fastreid_ice.evaluation.roc import RATES, true_positive_rates
from fastreid_ice.evaluation.similarities import METRICS, PLAIN_METRICS, Similarities

logger = logging.getLogger(__name__)

# The ROC's counts take some times the memory of the similarities they are made of.
ROC_SHARE = 8


class _Images(NamedTuple):
    """What one process has seen, in the order of its loader."""

    features: FeatureRows
    identities: Tensor
    cameras: Tensor
    paths: list[str]


class ICEReidEvaluator(DatasetEvaluator):
    """Scores a model's features of query and gallery images, in the place of fastreid's ``ReidEvaluator``.

    Reads the same keys: ``TEST.METRIC``, ``TEST.AQE``, ``TEST.RERANK``, ``TEST.ROC``. ``TEST.METRIC jaccard``, which
    upstream offers but cannot compute, ranks by the Jaccard distance of ``TEST.RERANK.K1`` and ``K2`` alone. With
    ``TEST.CAMERA_NORMALIZATION`` (off where a config lacks it) each camera's mean and standard deviation are taken
    out of the features first.

    Args:
        cfg: the config.
        num_query: the first images of the loader are the queries, the others the gallery.
        output_dir: kept for upstream's callers; nothing is written.

    Note:
        :meth:`evaluate` is a collective: all processes call it, the first one computes. In several processes the
        features travel through CPU memory.
    """

    def __init__(self, cfg: Any, num_query: int, output_dir: str | None = None):
        if cfg.TEST.METRIC not in METRICS:
            raise ValueError(f"TEST.METRIC is {cfg.TEST.METRIC!r}; choose one of {', '.join(METRICS)}.")
        self.cfg = cfg
        self._num_query = num_query
        self.reset()

    def reset(self) -> None:
        self._features = FeatureRows()
        self._identities: list[Tensor] = []
        self._cameras: list[Tensor] = []
        self._paths: list[str] = []

    def process(self, inputs: dict, outputs: Tensor) -> None:
        """Keep a batch's features (b, D), on their device, with its ``targets``, ``camids`` and ``img_paths``."""
        self._features.append(outputs)
        self._identities.append(torch.as_tensor(inputs["targets"]))
        self._cameras.append(torch.as_tensor(inputs["camids"]))
        self._paths += inputs.get("img_paths", [])

    def evaluate(self) -> OrderedDict[str, float]:
        """Rank and score. The features are normalised in place: :meth:`reset` before the next round.

        Returns:
            In percent: Rank-1, Rank-5, Rank-10, mAP, mINP, and metric, the mean of mAP and Rank-1; with
            ``TEST.ROC.ENABLED`` also TPR@FPR=1e-04, 1e-03 and 1e-02, in [0, 1]. Empty on all processes but the first.

        Raises:
            ValueError: no images, no gallery, a feature that is not finite, or no query with a match.
        """
        images = self._gathered()
        if images is None:
            return OrderedDict()
        if len(images.features) <= self._num_query or self._num_query == 0:
            raise ValueError(
                f"Evaluation needs query and gallery images, found {self._num_query} queries among "
                f"{len(images.features)} images. Check the folders of the dataset in DATASETS.TESTS."
            )
        paths = images.paths if len(images.paths) == len(images.features) else None
        images.features.check_finite(paths, self._num_query)
        with torch.no_grad():
            return self._score(self._prepared(images), self._sides(images))

    def _gathered(self) -> _Images | None:
        """The images of all processes on the first one, None on the others."""
        own = _Images(self._features, _concatenated(self._identities), _concatenated(self._cameras), self._paths)
        if comm.get_world_size() == 1:
            return own
        comm.synchronize()
        parts = [part.cpu() for part in own.features.parts()]
        gathered = comm.gather((parts, *own[1:]), dst=0)
        if not comm.is_main_process():
            return None
        features = FeatureRows()
        for parts, *_ in gathered:
            for part in parts:
                features.append(part.to(own.features.device))
        identities, cameras = (torch.cat([process[i] for process in gathered]) for i in (1, 2))
        return _Images(features, identities, cameras, [path for process in gathered for path in process[3]])

    def _sides(self, images: _Images) -> Identities:
        split = self._num_query
        return Identities(
            images.identities[:split], images.identities[split:], images.cameras[:split], images.cameras[split:]
        )

    def _prepared(self, images: _Images) -> FeatureRows:
        """Features as they are compared: normalised per camera, expanded, of unit length, as the config says."""
        test, features = self.cfg.TEST, images.features
        if test.get("CAMERA_NORMALIZATION", False):
            logger.info("Test with features normalised per camera")
            features.normalize_cameras(images.cameras)
        if test.AQE.ENABLED:
            logger.info("Test with AQE setting")
            expanded = expand_queries(features.matrix(), test.AQE.QE_TIME, test.AQE.QE_K, test.AQE.ALPHA)
            features = FeatureRows.of(expanded)
        if test.METRIC != "euclidean":
            features.normalize()
        return features

    def _similarities(self, features: FeatureRows) -> Similarities | RerankedSimilarities:
        test = self.cfg.TEST
        plain = Similarities(features, self._num_query, test.METRIC) if test.METRIC in PLAIN_METRICS else None
        if plain is not None and not test.RERANK.ENABLED:
            return plain
        logger.info("Test with rerank setting")
        rerank = test.RERANK
        return RerankedSimilarities(
            features.matrix(), self._num_query, plain, test.METRIC, rerank.K1, rerank.K2, rerank.LAMBDA
        )

    def _score(self, features: FeatureRows, identities: Identities) -> OrderedDict[str, float]:
        similarities = self._similarities(features)
        at_once = similarities.queries_at_once
        ranking = rank_queries(similarities, identities, at_once)
        results = OrderedDict((f"Rank-{r}", float(ranking.cmc[r - 1]) * 100) for r in (1, 5, 10))
        results["mAP"] = ranking.mean_average_precision * 100
        results["mINP"] = ranking.mean_inverse_negative_penalty * 100
        results["metric"] = (results["mAP"] + results["Rank-1"]) / 2
        if self.cfg.TEST.ROC.ENABLED:
            found = true_positive_rates(similarities.distances, identities, max(1, at_once // ROC_SHARE))
            for rate, value in zip(RATES, found):
                results[f"TPR@FPR={rate:.0e}"] = value
        return results


def _concatenated(labels: list[Tensor]) -> Tensor:
    """Labels of all batches on the CPU; a process may have seen none."""
    return torch.cat(labels).cpu() if labels else torch.empty(0, dtype=torch.int64)
