"""ICE's trainer: fastreid's DefaultTrainer and train loop, with other parts plugged in."""

from __future__ import annotations

import logging
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.engine import DefaultTrainer, hooks
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR

import fastreid_ice.modeling  # noqa: F401  (registers the ICE meta-architecture and its head)
from fastreid_ice.data.datasets import load_training_images
from fastreid_ice.data.loaders import EpochLoader
from fastreid_ice.engine.clustering_hook import ClusteringHook
from fastreid_ice.engine.hooks import BufferSyncHook, CheckpointHook, EvaluationHook, MomentumHook, RunState
from fastreid_ice.engine.recorder import EpochRecorder
from fastreid_ice.engine.setup import check_config
from fastreid_ice.engine.writers import JSONWriter, MetricPrinter, TensorboardWriter, WriterHook

logger = logging.getLogger(__name__)


class ICETrainer(DefaultTrainer):
    """Trains ICE with fastreid's unmodified loop and step.

    Example::

        trainer = ICETrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
    """

    def __init__(self, cfg):
        check_config(cfg)
        self.run_state = RunState(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
        logger.info("Seed %d", self.run_state.seed)
        seed_all_rng(self.run_state.seed)
        super().__init__(cfg)
        self.checkpointer.checkpointables["ice"] = self.run_state
        if self.grad_scaler is not None:
            self.checkpointer.checkpointables["grad_scaler"] = self.grad_scaler

    def resume_or_load(self, resume: bool = True):
        """As upstream; a resumed run goes on with the seed it was started with."""
        super().resume_or_load(resume=resume)
        self.clustering.seed = self.run_state.seed

    def train(self):
        """Train and return the last evaluation; a run that is finished already is only evaluated."""
        if self.start_epoch >= self.max_epoch:
            logger.info(
                "Epoch %d of %d was reached before: nothing to train. Raise SOLVER.MAX_EPOCH to go on.",
                self.start_epoch,
                self.max_epoch,
            )
            return self.test(self.cfg, self.model)
        return super().train()

    def build_hooks(self) -> list:
        """fastreid's hooks, with ICE's evaluation and checkpoints in place of its own, and ICE's in between."""

        def evaluate():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        solver = self.cfg.SOLVER
        self.clustering = ClusteringHook(self.cfg, self.data_loader.images, self.run_state.seed)
        built = []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                built += [BufferSyncHook(), EvaluationHook(self.cfg, evaluate)]
            elif isinstance(hook, hooks.PeriodicCheckpointer):
                period, keep = solver.CHECKPOINT_PERIOD, solver.CHECKPOINT_KEEP
                built.append(CheckpointHook(self.checkpointer, period, keep, self.run_state))
            elif isinstance(hook, hooks.PeriodicWriter):
                built.append(WriterHook(hook._writers, hook._period))
            else:
                built.append(hook)
        built[2:2] = [self.clustering, MomentumHook()]  # behind the timer and the learning rate
        if comm.is_main_process():
            built.append(EpochRecorder(self.cfg.OUTPUT_DIR, self.run_state))
        return built

    def build_writers(self) -> list:
        output_dir = self.cfg.OUTPUT_DIR
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        return [
            MetricPrinter(self.max_iter),
            JSONWriter(f"{output_dir}/metrics.json"),
            TensorboardWriter(output_dir),
        ]

    @classmethod
    def build_train_loader(cls, cfg) -> EpochLoader:
        return EpochLoader(cfg, load_training_images(cfg))

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer, iters_per_epoch) -> dict:
        """fastreid's schedule, multiplied by a warm-up over SOLVER.WARMUP_EPOCHS that is constant within an epoch."""
        schedulers = super().build_lr_scheduler(cfg, optimizer, iters_per_epoch)
        if cfg.SOLVER.WARMUP_EPOCHS > 0:
            warmup = LinearLR(optimizer, start_factor=cfg.SOLVER.WARMUP_FACTOR, total_iters=cfg.SOLVER.WARMUP_EPOCHS)
            schedulers["lr_sched"] = ChainedScheduler([warmup, schedulers["lr_sched"]])
        return schedulers

    @staticmethod
    def auto_scale_hyperparams(cfg, num_classes):
        """Nothing to scale. fastreid would write the true number of identities into the config."""
        return cfg
