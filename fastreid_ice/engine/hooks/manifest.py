"""``run.json`` of a run: what was run, how far it came and what it scored."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm

from fastreid_ice.config_files import BASE_CONFIG, load_config
from fastreid_ice.data.datasets import TrainingImages
from fastreid_ice.engine.hooks.checkpointing import RunState
from fastreid_ice.engine.hooks.recorder import EpochRecorder
from fastreid_ice.report.manifest import FILE_NAME, build_manifest, known_manifest, update_manifest, write_manifest

logger = logging.getLogger(__name__)


class ManifestHook(HookBase):
    """Write ``<OUTPUT_DIR>/run.json`` when the training starts, after each epoch and at the end, however it ends.

    Its status is "running", "finished" or "interrupted"; a killed run stays "running" in its file. A resumed run goes
    on with the hours of the one before. Runs in the main process only, behind the recorder, whose rows it reads, and
    before the checkpoint; a resume takes back what it claims beyond that.
    """

    def __init__(self, cfg: CfgNode, images: TrainingImages, state: RunState, recorder: EpochRecorder):
        self._cfg = cfg
        self._images = images
        self._state = state
        self._recorder = recorder
        self._path = Path(cfg.OUTPUT_DIR) / FILE_NAME
        self._manifest: dict[str, Any] | None = None
        self._epochs_done = 0

    def before_train(self) -> None:
        cfg, images = self._cfg, self._images
        self._epochs_done = self.trainer.start_epoch
        earlier = self._earlier()
        self._manifest = build_manifest(
            cfg,
            load_config(BASE_CONFIG),
            seed=self._state.seed,
            images=len(images),
            cameras=len(images.camids.unique()),
            identities=None if images.identities is None else len(images.identities.unique()),
            processes=comm.get_world_size(),
            gpus=_gpu_names(cfg),
            threads=torch.get_num_threads(),
            earlier=earlier,
        )
        changed = self._manifest["changed"]
        if earlier is not None and len(changed) > len(earlier.get("changed") or []):
            logger.warning(
                "%s changed behind epoch %d: run.json says so, and tables keep this run apart from others",
                " and ".join(changed[-1]["before"]),
                changed[-1]["until_epoch"],
            )
        self._since = time.monotonic()
        self._write("running")

    def after_epoch(self) -> None:
        self._epochs_done = self.trainer.epoch + 1
        self._write("running")

    def after_train(self) -> None:
        if self._manifest is not None:
            self._write("finished" if self._epochs_done >= self.trainer.max_epoch else "interrupted")

    def complete(self) -> None:
        """Say of a run that was killed between its last checkpoint and its last manifest that it is finished."""
        earlier = self._earlier()
        if earlier is None or earlier["status"] == "finished":
            return
        self._recorder.read_earlier()
        self._manifest, self._since = earlier, time.monotonic()
        self._epochs_done = self.trainer.start_epoch
        self._write("finished")

    def _earlier(self) -> dict[str, Any] | None:
        """The manifest of the run that this one goes on with, if it can be read."""
        return None if self.trainer.start_epoch == 0 else known_manifest(self._path)

    def _write(self, status: str) -> None:
        assert self._manifest is not None
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._manifest = update_manifest(
            self._manifest, self._recorder.records, epochs_done=self._epochs_done, seconds=seconds, status=status
        )
        write_manifest(self._path, self._manifest)


def _gpu_names(cfg: CfgNode) -> list[str]:
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return []
    return [torch.cuda.get_device_name(cfg.MODEL.DEVICE)] * comm.get_world_size()
