"""ICE's trainer: fastreid's DefaultTrainer and train loop, with other parts plugged in."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.engine import DefaultTrainer, hooks
from fastreid.engine.train_loop import HookBase, TrainerBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR

import fastreid_ice.modeling  # noqa: F401  (registers the ICE meta-architecture and its head)
from fastreid_ice.data.datasets import check_same_everywhere, load_test_images, load_training_images
from fastreid_ice.data.inference_loaders import KeptTestImages, build_test_loader, keeping_test_images
from fastreid_ice.data.loaders import EpochLoader
from fastreid_ice.data.source import load_source_images
from fastreid_ice.engine.amp import Precision
from fastreid_ice.engine.checkpoints import read_checkpoint
from fastreid_ice.engine.checks import check_config, check_start_weights
from fastreid_ice.engine.configure import write_config
from fastreid_ice.engine.determinism import determinism
from fastreid_ice.engine.hooks.checkpointing import BestEpochHook, CheckpointHook, RunState
from fastreid_ice.engine.hooks.clustering import ClusteringHook
from fastreid_ice.engine.hooks.evaluation import EvaluationHook, is_evaluated_again
from fastreid_ice.engine.hooks.manifest import ManifestHook
from fastreid_ice.engine.hooks.recorder import EpochRecorder
from fastreid_ice.engine.hooks.training import BufferSyncHook, FrozenLayersHook, LRScheduler, StepHook, unwrap
from fastreid_ice.engine.hooks.writers import JSONWriter, MetricPrinter, TensorboardWriter, WriterHook
from fastreid_ice.engine.inference import inference_engine
from fastreid_ice.engine.loss_log import LossLog
from fastreid_ice.engine.optimizer import adapt_checkpoint, build_optimizer
from fastreid_ice.engine.resuming import (
    RUN_FILES,
    agree_on_epoch,
    check_fits,
    check_same_run,
    load_newest,
    resumable_checkpoints,
    schedule_constants,
    set_aside_checkpoints,
    warn_of_other_schedule,
)
from fastreid_ice.engine.source import SourceClasses
from fastreid_ice.engine.step import TrainingStep
from fastreid_ice.errors import UnreadableCheckpointError
from fastreid_ice.evaluation.evaluator import ICEReidEvaluator
from fastreid_ice.files import Claim, claim_folder, remove_leftovers
from fastreid_ice.modeling.meta_arch import AMP_DTYPES
from fastreid_ice.modeling.pretrained import untrained

logger = logging.getLogger(__name__)

WRITER_PERIOD = 200  # steps, as upstream's


class ICETrainer(DefaultTrainer):
    """Trains ICE with fastreid's unmodified loop.

    Example::

        trainer = ICETrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    """

    def __init__(self, cfg: CfgNode, resume: bool = False):
        """
        Args:
            cfg: the config.
            resume: ``resume_or_load(resume=True)`` will follow: where there is a checkpoint the start weights of the
                backbone are not read, nor downloaded, since every tensor is the checkpoint's.
        """
        if resume and resumable_checkpoints(cfg.OUTPUT_DIR):
            check_config(untrained(cfg))
            self.__dict__["build_model"] = self._build_untrained  # in the place of the class's
        else:
            check_config(cfg)
        for name in cfg.DATASETS.TESTS:
            load_test_images(cfg, name)  # a missing one is an error now, not after the first epoch
        self.run_state = RunState(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
        logger.info("Seed %d", self.run_state.seed)
        seed_all_rng(self.run_state.seed)
        with warnings.catch_warnings():  # of the step in mixed precision that ours replaces
            warnings.filterwarnings("ignore", message=".*GradScaler")
            super().__init__(cfg)
        self.training_step = self._trainer = self._build_step(cfg)
        self._test_images: dict[str, KeptTestImages] | None = {} if is_evaluated_again(cfg) else None
        self._resuming = False
        self._claim: Claim | None = None  # of OUTPUT_DIR
        self.checkpointer._load_file = self._read_checkpoint
        self.checkpointer.checkpointables["ice"] = self.run_state
        if self.grad_scaler is not None:
            self.checkpointer.checkpointables["grad_scaler"] = self.grad_scaler
        if self.clustering.source is not None:
            self.checkpointer.checkpointables["source"] = self.clustering.source

    def _build_untrained(self, cfg: CfgNode) -> nn.Module:
        return type(self).build_model(untrained(cfg))

    def _build_step(self, cfg: CfgNode) -> TrainingStep:
        """Ours, around fastreid's parts. On the CPU the losses cost nothing to read, elsewhere it waits for them."""
        device = torch.device(cfg.MODEL.DEVICE)
        precision = Precision(device, AMP_DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None)
        log = LossLog(1 if device.type == "cpu" else WRITER_PERIOD, self._last_checkpoint)
        return TrainingStep(self.model, self.data_loader, self.optimizer, precision, log, cfg.SOLVER.ACCUMULATION)

    def _last_checkpoint(self) -> str:
        """The newest, or "" where there is none or its file is gone."""
        path = self.checkpointer.get_checkpoint_file()
        return path if Path(path).is_file() else ""

    def _read_checkpoint(self, path: str) -> dict[str, Any]:
        """With errors that name the file, and of whatever layout of groups and device."""
        stored = read_checkpoint(path)
        if self._resuming:
            check_fits(path, stored["model"], unwrap(self.model))
        return adapt_checkpoint(stored, self.optimizer, unwrap(self.model))

    def resume_or_load(self, resume: bool = True) -> None:
        """As upstream, but from the newest checkpoint that can be read; with the seed that the run was started with.

        Args:
            resume: go on behind the newest checkpoint in ``OUTPUT_DIR``; where there is none, or else, start with the
                weights of ``MODEL.WEIGHTS``, and move the checkpoints of a run before out of the way.

        Raises:
            FileNotFoundError, ValueError: there are checkpoints to resume from, but none can be read.
        """
        if comm.is_main_process():
            self._claim = claim_folder(self.cfg.OUTPUT_DIR)
            remove_leftovers(self.cfg.OUTPUT_DIR, RUN_FILES)
        if resume and self._resume():
            return
        check_start_weights(self.cfg)
        self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        comm.synchronize()  # the weights may be in the folder
        if comm.is_main_process():
            if earlier := set_aside_checkpoints(self.cfg.OUTPUT_DIR):
                logger.warning("%s holds a run before: moved to %s", self.cfg.OUTPUT_DIR, earlier)
            write_config(self.cfg)

    def _resume(self) -> bool:
        """Whether there is a checkpoint to go on from, which is then loaded; the same in all processes."""
        planned = schedule_constants(self.scheduler)
        stored, problem = None, None
        self._resuming = True
        try:
            if resumable_checkpoints(self.cfg.OUTPUT_DIR):
                check_same_run(self.cfg)
            stored = load_newest(self.cfg.OUTPUT_DIR, self.checkpointer.load)
        except (UnreadableCheckpointError, ValueError, OSError) as error:
            problem = error
        finally:
            self._resuming = False
        agree_on_epoch(stored, problem, self.cfg.OUTPUT_DIR)
        if stored is None:
            return False
        self.start_epoch = stored.get("epoch", -1) + 1
        if self.cfg.SEED >= 0 and self.cfg.SEED != self.run_state.seed:
            logger.warning("SEED is %d, but the run goes on with the seed of its checkpoint", self.cfg.SEED)
        logger.info("Seed %d", self.run_state.seed)
        warn_of_other_schedule(planned, schedule_constants(self.scheduler))
        if comm.is_main_process():
            write_config(self.cfg)
        return True

    def train(self) -> dict | None:
        """Train and return the last evaluation; a run that is finished already is only evaluated.

        Returns:
            Scores in percent, in the main process; None without ``DATASETS.TESTS``.
        """
        try:
            return self._train()
        finally:
            if self._claim is not None:
                self._claim.close()

    def _train(self) -> dict | None:
        if self.start_epoch >= self.max_epoch:
            falls = self.cfg.SOLVER.SCHED == "CosineAnnealingLR"  # planned to its end when the run began
            advice = "" if falls else " Raise SOLVER.MAX_EPOCH to go on."
            logger.info(
                "Epoch %d of %d was reached before: nothing to train.%s", self.start_epoch, self.max_epoch, advice
            )
            for hook in self._hooks:
                if isinstance(hook, ManifestHook):
                    hook.complete()
            return self.test(self.cfg, self.model) if self.cfg.DATASETS.TESTS else None
        self._last_eval_results: dict | None = None
        with determinism(self.cfg.SOLVER.DETERMINISTIC):
            TrainerBase.train(self, self.start_epoch, self.max_epoch, self.iters_per_epoch)
        return self._last_eval_results

    def build_hooks(self) -> list[HookBase]:
        """The hooks of a run, in the order in which they are called at every moment."""
        cfg, loader = self.cfg, self.data_loader
        source = None
        if loader.source is not None:
            source = SourceClasses(cfg, unwrap(self.model), loader.source, loader.source_cache)
        self.clustering = ClusteringHook(cfg, loader.images, self.run_state, loader.cache, source)
        built: list[HookBase] = [
            hooks.IterationTimer(),
            LRScheduler(self.optimizer, self.scheduler),
            self.clustering,  # before an epoch
            StepHook(),  # after a step: momentum encoder and memory
            *self._optional_hooks(),  # after the last epoch, before it is evaluated
            BufferSyncHook(),
        ]
        if cfg.DATASETS.TESTS:
            built.append(EvaluationHook(cfg, self._evaluate))
        if comm.is_main_process():
            period, keep = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP
            recorder = EpochRecorder(cfg.OUTPUT_DIR, self.run_state)
            best = BestEpochHook(self.run_state)
            built += [
                best,
                WriterHook(self.build_writers(), WRITER_PERIOD),
                recorder,
                ManifestHook(cfg, self.data_loader.images, self.run_state, recorder),
                CheckpointHook(self.checkpointer, period, keep, self.run_state, best),
            ]
        return built

    def _optional_hooks(self) -> list[HookBase]:
        """fastreid's PreciseBN, and frozen layers, where the config asks for them."""
        cfg = self.cfg
        built: list[HookBase] = []
        if cfg.TEST.PRECISE_BN.ENABLED and hooks.get_bn_modules(self.model):
            precise = cfg.clone()
            precise.defrost()
            precise.DATALOADER.NUM_WORKERS = 0
            precise.DATALOADER.CACHE = "none"
            precise.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
            precise.DATASETS.SOURCE = ()
            try:
                loader = self.build_train_loader(precise)  # of its own, so as not to affect the training's
            except (FileNotFoundError, ValueError) as error:
                raise type(error)(f"TEST.PRECISE_BN.DATASET {cfg.TEST.PRECISE_BN.DATASET}: {error}") from error
            built.append(hooks.PreciseBN(self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        if cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0:
            layers = cfg.MODEL.FREEZE_LAYERS
            built.append(FrozenLayersHook(self.model, self.optimizer, layers, cfg.SOLVER.FREEZE_ITERS))
        return built

    def _evaluate(self) -> dict:
        with keeping_test_images(self._test_images):
            results = self._last_eval_results = self.test(self.cfg, self.model)
        return results

    def build_writers(self) -> list:
        output_dir = self.cfg.OUTPUT_DIR
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        return [
            MetricPrinter(self.max_iter),
            JSONWriter(f"{output_dir}/metrics.json", self.iters_per_epoch),
            TensorboardWriter(output_dir, self.iters_per_epoch),
        ]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> EpochLoader:
        images = load_training_images(cfg)
        check_same_everywhere("DATASETS.NAMES", zip(images.paths, images.camids.tolist()))
        source = load_source_images(cfg, images)
        if source is not None:
            check_same_everywhere("DATASETS.SOURCE", zip(source.paths, source.camids.tolist()))
        return EpochLoader(cfg, images, source)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> tuple[Any, int]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None
    ) -> tuple[Any, ICEReidEvaluator]:
        loader, num_query = cls.build_test_loader(cfg, dataset_name)
        return loader, ICEReidEvaluator(cfg, num_query, output_dir)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """fastreid's evaluation on ``DATASETS.TESTS``, with what ``TEST.ENGINE`` names."""
        with inference_engine(unwrap(model), cfg.TEST.ENGINE):
            return super().test(cfg, model)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> tuple[Optimizer, None]:
        """In few groups; None is in the place of fastreid's ContiguousParams."""
        return build_optimizer(cfg, model), None

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer, iters_per_epoch: int) -> dict:
        """fastreid's schedule, multiplied by a warm-up over SOLVER.WARMUP_EPOCHS that is constant within an epoch."""
        schedulers = super().build_lr_scheduler(cfg, optimizer, iters_per_epoch)
        if cfg.SOLVER.WARMUP_EPOCHS > 0:
            warmup = LinearLR(optimizer, start_factor=cfg.SOLVER.WARMUP_FACTOR, total_iters=cfg.SOLVER.WARMUP_EPOCHS)
            schedulers["lr_sched"] = ChainedScheduler([warmup, schedulers["lr_sched"]])
        return schedulers

    @staticmethod
    def auto_scale_hyperparams(cfg: CfgNode, num_classes: int) -> CfgNode:
        """Nothing to scale. fastreid would write the true number of identities into the config."""
        return cfg
