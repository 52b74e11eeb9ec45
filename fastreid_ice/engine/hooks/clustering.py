"""The hook that clusters before an epoch, and hands the epoch its labels."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import Tensor

from fastreid_ice.clustering import (
    Clusterer,
    ClusteringConfig,
    ClusteringResult,
    agreement,
    check_clusters,
    instance_labels,
    summarize,
)
from fastreid_ice.clustering.outliers import INSTANCES
from fastreid_ice.clustering.tracks import NONE, track_rows
from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.data.image_cache import ImageCache
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.data.randomness import derive_seed
from fastreid_ice.data.samplers import outlier_slots
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.engine.extraction import FeatureExtractor
from fastreid_ice.engine.hooks.checkpointing import RunState
from fastreid_ice.engine.hooks.training import unwrap
from fastreid_ice.engine.source import SourceClasses
from fastreid_ice.files import write_csv
from fastreid_ice.report.run_files import CLUSTERS_FILE

logger = logging.getLogger(__name__)

# What the seeds of an epoch are for: the third part of derive_seed(seed, epoch, purpose).
SHUFFLE, LOADER, GLOBAL, SOURCE = 0, 1, 2, 3


class ClusteringHook(HookBase):
    """Cluster the training images before an epoch and train that epoch on the clusters.

    Executed before every ``CLUSTERING.PERIOD``-th epoch and before the first epoch of every run, so a resumed run
    clusters with the weights it has just loaded: with a period of 1, as an uninterrupted run would. Every epoch starts
    from a seed of its own, so that a resumed epoch draws what an uninterrupted one would have drawn. The main process
    writes the last clustering to ``<OUTPUT_DIR>/clusters.csv``.

    Note:
        Register it in all workers or in none: it is a collective.
    """

    def __init__(
        self,
        cfg: CfgNode,
        images: TrainingImages,
        state: RunState,
        cache: ImageCache | None = None,
        source: SourceClasses | None = None,
    ):
        """
        Args:
            cfg: the config, with the keys of :func:`fastreid_ice.config.add_ice_config`.
            images: the training images; their true identities, where they are known, are only scored against, unless
                ``CLUSTERING.METHOD`` asks for them.
            state: of the run: its seed, the same on every process, and the clustering before, to compare with.
            cache: of the training images.
            source: the classes of DATASETS.SOURCE, which are not clustered: they only follow the clusters.
        """
        self.cfg = cfg
        self.images = images
        self.state = state
        self._cache = cache
        self.source = source
        self._source_labels: Tensor | None = None
        self.labels: Tensor | None = None  # (N,) int64, of the last clustering
        self.targets: Tensor | None = None  # (N,) int64, with labels for the outliers too, if these are to have any
        self._extract = FeatureExtractor(len(images), cfg.TEST.ENGINE)

    def before_epoch(self) -> None:
        epoch = self.trainer.epoch
        self.trainer.storage.iter = self.trainer.iter  # else fastreid files the scalars under the epoch before
        if self.labels is None or epoch % self.cfg.CLUSTERING.PERIOD == 0:
            self._cluster()
            _return_cached_memory(unwrap(self.trainer.model).device)
        seed_all_rng(derive_seed(self.state.seed, epoch, GLOBAL, comm.get_rank()))
        unwrap(self.trainer.model).seed_shuffle(derive_seed(self.state.seed, epoch, SHUFFLE))
        seed = derive_seed(self.state.seed, epoch, LOADER)
        self.trainer.data_loader.start_epoch(self.labels, seed, self.targets, self._source_labels)

    def after_train(self) -> None:
        self.trainer.data_loader.close()

    def _cluster(self) -> None:
        model = unwrap(self.trainer.model)
        start = time.perf_counter()
        features = self._extract(model, build_feature_loader(self.cfg, self.images, self._cache))
        extraction = time.perf_counter() - start
        images = self.images
        cameras = images.camids if self.cfg.DATASETS.USE_CAMERAS else None
        config = clustering_config(self.cfg, self.state.seed, self.trainer.epoch)
        result = Clusterer(config)(features, cameras, images.paths, images.identities, images.tracks)
        self._check_enough(result, config)
        self.labels = result.labels
        labels, camids = result.labels, images.camids
        if self.cfg.CLUSTERING.OUTLIERS == INSTANCES:
            linked = None if config.tracks == NONE else images.tracks  # the images of a track are one instance
            self.targets = instance_labels(labels, None if linked is None else track_rows(linked.ids).of_image)
            labels, camids = self.targets, torch.where(labels < 0, -1, camids)
        if self.source is None:
            model.memory.rebuild(features, labels, camids)
        else:
            seed = derive_seed(self.state.seed, self.trainer.epoch, SOURCE)
            self._source_labels = self.source.rebuild(features, labels, camids, seed)
        self._report(result, extraction, time.perf_counter() - start)
        self.state.labels = result.labels.int()
        if comm.is_main_process():
            write_clusters(Path(self.cfg.OUTPUT_DIR) / CLUSTERS_FILE, self.images, result.labels)

    def _check_enough(self, result: ClusteringResult, config: ClusteringConfig) -> None:
        """Raise ValueError unless the clusters, with the outliers that are drawn, fill a batch."""
        loader = self.cfg.DATALOADER
        needed = self.cfg.SOLVER.IMS_PER_BATCH // loader.NUM_INSTANCE
        clusters, outliers, slots = result.num_clusters, result.num_outliers, 0
        if self.cfg.CLUSTERING.OUTLIERS == INSTANCES and clusters > 0:  # camera proxies need at least one
            slots = outlier_slots(clusters, outliers, loader.NUM_INSTANCE, loader.OUTLIER_SHARE)
        if clusters + slots < needed:
            check_clusters(clusters, outliers, needed, config)

    def _report(self, result: ClusteringResult, extraction: float, total: float) -> None:
        scalars = summarize(result.labels, self.images.identities)
        if self.state.labels is not None and len(self.state.labels) == len(result.labels):
            scalars["stability"] = agreement(self.state.labels.numpy(), result.labels.numpy())
        scalars["seconds_features"] = extraction
        scalars.update({f"seconds_{stage}": seconds for stage, seconds in result.seconds.items()})
        scalars.update({f"process_peak_mb_{stage}": memory for stage, memory in result.process_peak_mb.items()})
        if result.knn_recall is not None:
            scalars["knn_recall"] = result.knn_recall
        for name, value in scalars.items():
            self.trainer.storage.put_scalar(f"clustering/{name}", value, smoothing_hint=False)
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.seconds.items()) or "none"
        said = f"; stability {scalars['stability']:.3f}" if "stability" in scalars else ""
        said += f"; NMI {scalars['nmi']:.3f}, ARI {scalars['ari']:.3f}" if "ari" in scalars else ""
        logger.info(
            "Epoch %d: %d clusters, %d outliers of %d images, in %.1f s (features %.1f, %s)%s",
            self.trainer.epoch + 1,
            result.num_clusters,
            result.num_outliers,
            len(self.images),
            total,
            extraction,
            stages,
            said,
        )


def _return_cached_memory(device: torch.device) -> None:
    """Give what features and clustering took back to a GPU.

    torch would keep it, and cut what the training allocates from it, so that the next epoch's features, one piece of
    gigabytes, might find no room.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


def write_clusters(path: Path, images: TrainingImages, labels: Tensor) -> None:
    """Write a row per image: path, cluster (-1 = outlier), camera, and the true identity where it is known."""
    columns: list[list] = [list(images.paths), labels.tolist(), images.camids.tolist()]
    names = ["path", "label", "camera"]
    if images.identities is not None:
        names.append("identity")
        columns.append(images.identities.tolist())
    write_csv(path, names, zip(*columns))
