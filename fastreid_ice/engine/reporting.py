"""What a report shows, collected from the folder of a run, with the model from there or from the running trainer."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Union

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.data.build import fast_batch_collator
from fastreid.data.transforms import build_transforms
from fastreid.evaluation.evaluator import inference_context
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastreid_ice.data.datasets import load_test_images
from fastreid_ice.data.readable_images import ReadableImages
from fastreid_ice.engine.checkpoints import load_trained_model
from fastreid_ice.engine.hooks.training import unwrap
from fastreid_ice.errors import one_line
from fastreid_ice.report.embedding_map import sample_rows
from fastreid_ice.report.page import write_page
from fastreid_ice.report.page_data import RankingExample, ReportData
from fastreid_ice.report.page_files import read_run
from fastreid_ice.report.ranking_sheet import ranking_marks
from fastreid_ice.report.run_files import PAGE_FILE

if TYPE_CHECKING:
    from fastreid_ice.engine.trainer import ICETrainer

logger = logging.getLogger(__name__)


Run = Union[str, Path]
Encoder = tuple[nn.Module, CfgNode]


def write_report(trainer: ICETrainer, pictures: bool = True) -> Path | None:
    """Write ``<OUTPUT_DIR>/report.html`` at the end of a run, with the model that the trainer holds.

    It costs the features of at most 1,000 training images and of the test sets once. No collective: call it in the
    main process, after ``results.json``, ``clusters.csv`` and ``run.json`` were written for the last time.

    Args:
        trainer: that has ended its training.
        pictures: whether the report shows images.

    Returns:
        The file; None if it could not be made, which is logged and fails nothing.
    """
    try:
        return write_page(collect(trainer), Path(trainer.cfg.OUTPUT_DIR) / PAGE_FILE, pictures)
    except Exception as error:
        logger.warning("There is no report: %s. The run is whole; tools/visualize.py makes it later.", one_line(error))
        logger.debug("Why there is no report", exc_info=True)
        return None


def collect(
    source: Run | ICETrainer,
    *,
    embeddings: bool = True,
    rankings: bool = True,
    max_points: int = 1000,
    queries: int = 8,
    top_k: int = 10,
    config_file: Run | None = None,
    device: str | None = None,
) -> ReportData:
    """What is known of a run.

    Args:
        source: folder of a run, a checkpoint in it, or a trainer, whose ``OUTPUT_DIR`` is read and whose model is used.
        embeddings: extract features of at most ``max_points`` training images, drawn at random.
        rankings: rank the gallery of each of ``DATASETS.TESTS`` for ``queries`` of its queries, and keep the first
            ``top_k`` images of each list; see :func:`rank_examples`.
        config_file: of the model; default ``config.yaml`` beside the checkpoint.
        device: to extract on; default that of the config, or the CPU where there is no CUDA.

    Returns:
        Where a checkpoint, the images or a test set are not there, the features or the rankings are missing, and
        ``notes`` and the log say why.

    Raises:
        FileNotFoundError: there is no such folder, or it is not that of a run.
        ValueError: one of its files is not what it should be; and as :func:`load_trained_model`.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        data = read_run(path.parent if path.is_file() else path)
    else:
        data = read_run(source.cfg.OUTPUT_DIR)
    notes: dict[str, str] = {}
    found: dict[str, Any] = {}
    wanted = {"map": embeddings and len(data.paths) > 0, "ranking": rankings and len(data.tests) > 0}
    encoder = None
    if any(wanted.values()):
        with _noting(notes, *wanted):
            encoder = _encoder(source, config_file, device)
    if encoder is not None and wanted["map"]:
        with _noting(notes, "map"):
            found["featured"] = sample_rows(len(data.paths), max_points)
            found["features"] = extract_images(*encoder, [data.paths[i] for i in found["featured"]]).numpy()
    if encoder is not None and wanted["ranking"]:
        with _noting(notes, "ranking"):
            lists = [rank_examples(*encoder, test, queries, top_k) for test in data.tests]
            found["rankings"] = [example for examples in lists for example in examples]
    return dataclasses.replace(data, notes=notes, **found)


@contextmanager
def _noting(notes: dict[str, str], *parts: str) -> Iterator[None]:
    """Note of each of these parts, and log, that a file is not there, or is not to be read by this user."""
    try:
        yield
    except OSError as error:
        message = one_line(error)
        logger.warning("Without %s: %s", " and ".join(parts), message)
        notes.update(dict.fromkeys(parts, message))


def _encoder(source: Run | ICETrainer, config_file: Run | None, device: str | None) -> Encoder:
    if isinstance(source, (str, Path)):
        trained = load_trained_model(source, config_file=config_file, device=device)
        return trained.model, trained.cfg
    return unwrap(source.model), source.cfg


def extract_images(
    model: nn.Module, cfg: CfgNode, paths: Sequence[str], reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Features of image files in this process alone, whatever others do.

    Args:
        model: in any mode, which is restored.
        cfg: its config.
        paths: N files.
        reduce: (b, D) -> (b, k), done with each batch, so that what is kept is small; default: nothing.

    Returns:
        (N, D) float32 on the CPU, L2-normalised; or (N, k), reduced.

    Raises:
        FileNotFoundError: an image is not there; names it.
        RuntimeError: an image cannot be read; names it.
    """
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(paths):,} images are not there, the first: {missing[0]}. "
            "Paths that do not begin with / count from the folder in which the run was started."
        )
    images = ReadableImages([(path, 0, 0) for path in paths], build_transforms(cfg, is_train=False), relabel=False)
    loader: DataLoader = DataLoader(
        images,
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=fast_batch_collator,
    )
    parts = []
    with inference_context(model), torch.no_grad():
        for batch in loader:
            features = F.normalize(model(batch).float(), dim=1)
            parts.append((features if reduce is None else reduce(features)).cpu())
    return torch.cat(parts)


def rank_examples(model: nn.Module, cfg: CfgNode, test: str, queries: int = 8, top_k: int = 10) -> list[RankingExample]:
    """Rank the whole gallery of a test set for a few queries, by cosine similarity.

    Args:
        model: in any mode, which is restored.
        cfg: its config.
        test: name of the test set.
        queries: how many, evenly spaced over all, so that none is chosen for its result.
        top_k: images of each list to keep. Those of the query's identity and camera are left out.

    Raises:
        FileNotFoundError, ValueError: as :func:`fastreid_ice.data.datasets.load_test_images`.
    """
    dataset = load_test_images(cfg, test)
    picks = np.linspace(0, len(dataset.query) - 1, min(queries, len(dataset.query))).round().astype(int)
    chosen = [dataset.query[i] for i in picks]
    wanted = extract_images(model, cfg, [path for path, _, _ in chosen])  # (Q, D)
    gallery = [path for path, _, _ in dataset.gallery]
    similar = extract_images(model, cfg, gallery, lambda found: found @ wanted.to(found.device).t())  # (G, Q)
    return [_example(test, query, dataset.gallery, similar[:, i].numpy(), top_k) for i, query in enumerate(chosen)]


def _example(test: str, query: Sequence, gallery: Sequence, similar: np.ndarray, top_k: int) -> RankingExample:
    """The list of a query (path, identity, camera), from its (G,) similarities to the gallery."""
    path, identity, camera = query
    ids, cameras = (np.array([item[part] for item in gallery]) for part in (1, 2))
    marks: np.ndarray = np.array(ranking_marks([identity], ids[None], [camera], cameras[None])[0], dtype=str)
    order = np.argsort(-similar, kind="stable")
    order = order[marks[order] != "junk"]
    ranks = np.flatnonzero(marks[order] == "right") + 1  # of the right images, from 1
    precisions = np.arange(1, len(ranks) + 1) / ranks
    first = order[:top_k]
    return RankingExample(
        dataset=test,
        query=path,
        query_camera=camera,
        found=[gallery[i][0] for i in first],
        cameras=cameras[first].tolist(),
        similarities=similar[first].tolist(),
        marks=marks[first].tolist(),
        matches=len(ranks),
        average_precision=float(precisions.mean()) if len(ranks) else None,
    )
