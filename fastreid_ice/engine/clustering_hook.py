"""The hook that clusters before an epoch, and hands the epoch its labels."""

from __future__ import annotations

import logging
import time

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from fastreid_ice.clustering import Clusterer, ClusteringConfig, ClusteringResult
from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.loaders import build_feature_loader
from fastreid_ice.data.randomness import derive_seed
from fastreid_ice.engine.features import FeatureExtractor
from fastreid_ice.engine.hooks import unwrap

logger = logging.getLogger(__name__)

GROUND_TRUTH = "ground_truth"


class ClusteringHook(HookBase):
    """Cluster the training images before an epoch and train that epoch on the clusters.

    Executed before every ``CLUSTERING.PERIOD``-th epoch and before the first epoch of every run, so a resumed run
    clusters with the weights it has just loaded: with a period of 1, as an uninterrupted run would. Every epoch starts
    from a seed of its own, so that a resumed epoch draws what an uninterrupted one would have drawn.

    Note:
        Register it in all workers or in none: it is a collective.
    """

    def __init__(self, cfg, images: TrainingImages, seed: int):
        """
        Args:
            cfg: the config, with the keys of :func:`fastreid_ice.config.add_ice_config`.
            images: the training images; their true identities are only scored against, unless
                ``CLUSTERING.METHOD`` asks for them.
            seed: of the run, the same on every process.

        Raises:
            ValueError: a key of CLUSTERING is out of range.
        """
        self.cfg = cfg
        self.images = images
        self.seed = seed
        self.labels: Tensor | None = None  # (N,) int64, of the last clustering
        self._extract = FeatureExtractor(len(images))
        self._clusterer: Clusterer | None = None
        if cfg.CLUSTERING.METHOD != GROUND_TRUTH:
            clustering_config(cfg, seed)  # a wrong key is an error now, not after the model is built

    def before_train(self):
        if self.cfg.CLUSTERING.METHOD != GROUND_TRUTH:
            self._clusterer = Clusterer(clustering_config(self.cfg, self.seed))

    def before_epoch(self):
        epoch = self.trainer.epoch
        self.trainer.storage.iter = self.trainer.iter  # else fastreid files the scalars under the epoch before
        if self.labels is None or epoch % self.cfg.CLUSTERING.PERIOD == 0:
            self._cluster()
        seed_all_rng(derive_seed(self.seed, epoch, comm.get_rank()))
        unwrap(self.trainer.model).seed_shuffle(derive_seed(self.seed, epoch, 0))
        self.trainer.data_loader.start_epoch(self.labels, derive_seed(self.seed, epoch, 1))

    def after_train(self):
        self.trainer.data_loader.close()

    def _cluster(self) -> None:
        model = unwrap(self.trainer.model)
        start = time.perf_counter()
        features = self._extract(model, build_feature_loader(self.cfg, self.images))
        extraction = time.perf_counter() - start
        result = self._labels_of(features)
        check_clusters(result.num_clusters, result.num_outliers, self.cfg)
        self.labels = result.labels
        model.memory.rebuild(features, result.labels, self.images.camids)
        self._report(result, extraction, time.perf_counter() - start)

    def _labels_of(self, features: Tensor) -> ClusteringResult:
        if self._clusterer is None:
            identities = self.images.identities
            return ClusteringResult(labels=identities, num_clusters=int(identities.max()) + 1, num_outliers=0)
        camids = self.images.camids if self.cfg.DATASETS.USE_CAMERAS else None
        return self._clusterer(features, camids=camids, names=self.images.paths)

    def _report(self, result: ClusteringResult, extraction: float, total: float) -> None:
        scalars = summarize(result.labels, self.images.identities)
        scalars["seconds_features"] = extraction
        scalars.update({f"seconds_{stage}": seconds for stage, seconds in result.seconds.items()})
        scalars.update({f"peak_memory_mb_{stage}": memory for stage, memory in result.peak_memory_mb.items()})
        if result.knn_recall is not None:
            scalars["knn_recall"] = result.knn_recall
        for name, value in scalars.items():
            self.trainer.storage.put_scalar(f"clustering/{name}", value, smoothing_hint=False)
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.seconds.items()) or "none"
        logger.info(
            "Epoch %d: %d clusters, %d outliers of %d images, in %.1f s (features %.1f, %s); NMI %.3f, ARI %.3f",
            self.trainer.epoch + 1,
            result.num_clusters,
            result.num_outliers,
            len(self.images),
            total,
            extraction,
            stages,
            scalars["nmi"],
            scalars["ari"],
        )


def clustering_config(cfg, seed: int) -> ClusteringConfig:
    """The config's CLUSTERING node as the clustering package wants it; ``seed`` is that of the run."""
    keys = {key.lower(): value for key, value in cfg.CLUSTERING.items() if key != "PERIOD"}
    return ClusteringConfig(**keys, seed=seed)


def check_clusters(num_clusters: int, num_outliers: int, cfg) -> None:
    """Raise ValueError when the clusters do not fill a batch, with the keys to turn."""
    needed = cfg.SOLVER.IMS_PER_BATCH // cfg.DATALOADER.NUM_INSTANCE
    if num_clusters >= needed:
        return
    node = cfg.CLUSTERING
    if node.METHOD != "jaccard_dbscan":
        origin = {"kmeans": f"CLUSTERING.NUM_CLUSTERS is {node.NUM_CLUSTERS}"}
        origin = origin.get(node.METHOD, f"the training set has {num_clusters} identities")
        raise ValueError(
            f"A batch needs {needed} clusters (SOLVER.IMS_PER_BATCH / DATALOADER.NUM_INSTANCE), but {origin}. "
            "Use a smaller batch, or more clusters."
        )
    eps, min_samples = f"CLUSTERING.EPS (now {node.EPS})", f"CLUSTERING.MIN_SAMPLES (now {node.MIN_SAMPLES})"
    if num_clusters == 0:
        found, advice = f"no cluster: all {num_outliers} images are outliers", f"Raise {eps} or lower {min_samples}"
    elif num_outliers == 0:
        found, advice = f"{num_clusters} clusters and no outlier", f"Lower {eps}"
    else:
        found, advice = f"{num_clusters} clusters", f"Raise {eps}, lower {min_samples}"
    raise ValueError(
        f"Clustering found {found}, but a batch needs {needed} clusters (SOLVER.IMS_PER_BATCH / "
        f"DATALOADER.NUM_INSTANCE). {advice}, or use a smaller batch."
    )


def summarize(labels: Tensor, identities: Tensor) -> dict[str, float]:
    """Size and quality of a clustering.

    Args:
        labels: (N,) int64 pseudo labels, -1 = outlier.
        identities: (N,) int64 true identities.

    Returns:
        clusters, outliers, mean_cluster_size, largest_cluster, and nmi and ari against the true identities over all
        images, each outlier counted as a cluster of its own.

    Example:
        >>> summary = summarize(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 0, 1, 1]))
        >>> summary["clusters"], summary["outliers"], summary["largest_cluster"]
        (2, 1, 2)
    """
    labels, identities = labels.cpu(), identities.cpu()
    outliers = labels < 0
    num_clusters = int(labels.max()) + 1
    sizes = torch.bincount(labels[~outliers], minlength=1)
    singletons = labels.clone()
    singletons[outliers] = num_clusters + torch.arange(int(outliers.sum()))
    return {
        "clusters": num_clusters,
        "outliers": int(outliers.sum()),
        "mean_cluster_size": sizes.float().mean().item(),
        "largest_cluster": int(sizes.max()),
        "nmi": float(normalized_mutual_info_score(identities.numpy(), singletons.numpy())),
        "ari": float(adjusted_rand_score(identities.numpy(), singletons.numpy())),
    }
