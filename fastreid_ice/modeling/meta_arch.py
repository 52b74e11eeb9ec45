"""ICE as a fastreid meta-architecture: an online and a momentum encoder, and the losses between their embeddings.

The file follows the method: what a step does (``forward``), the views' passes, then what moves between the steps.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY
from fastreid.modeling.meta_arch.baseline import Baseline
from fastreid.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastreid_ice.config import source_ims_per_batch
from fastreid_ice.modeling.bn_chunks import ChunkedPass, chunks_per_process, is_synchronized, set_bn_chunks
from fastreid_ice.modeling.cuda_graphs import GraphedPasses
from fastreid_ice.modeling.domain_statistics import DomainStatistics
from fastreid_ice.modeling.losses import Loss, build_losses
from fastreid_ice.modeling.memory_bank import MemoryBank
from fastreid_ice.modeling.pretrained import build_pretrained_backbone
from fastreid_ice.modeling.step import StepFeatures, gather

logger = logging.getLogger(__name__)

MOMENTUM_PREFIX = "momentum_encoder."
ENCODERS = ("momentum", "online")
VIEWS = ("images", "images_key", "images_weak")
AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # SOLVER.AMP.DTYPE

Batch = Mapping[str, Any]


class Encoder(nn.Module):
    """Backbone and head under fastreid's names (``backbone.*``, ``heads.*``)."""

    def __init__(self, backbone: nn.Module, heads: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.heads = heads

    def forward(self, images: Tensor) -> Tensor:
        return self.heads(self.backbone(images))


@META_ARCH_REGISTRY.register()
class ICE(Baseline):
    """Inter-instance Contrastive Encoding (Chen, Lagadec, Bremond, ICCV 2021, arXiv 2103.16364).

    The online encoder has the names of every fastreid model (``backbone.*``, ``heads.*``), so weights of the zoo load
    into it. The momentum encoder (``momentum_encoder.*``) starts as its copy, and is saved with it, buffers included.

    In training mode the input is a dict and the output the dict of losses:
        images: (b, 3, H, W) float or uint8, 0..255, first strong view, for the online encoder.
        images_key: (b, 3, H, W), second strong view, for the momentum encoder.
        images_weak: (b, 3, H, W), un-augmented view, for the momentum encoder; not looked at without ``weak_pass``.
        targets: (b,) int64 pseudo labels; camids: (b,) int64 camera ids, numbered over the whole training set.
    With a source the last ``source_images`` of the b are its: they pass the encoders by themselves, so that each domain
    is normalised with its own batch statistics, and have losses of their own (``loss_<name>_source``). The running
    statistics of the model are the target's.
    In evaluation mode it is ``images`` alone (or the tensor itself), and the output the (b, D) embedding.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        heads: nn.Module,
        pixel_mean: list[float],
        pixel_std: list[float],
        losses: dict[str, Loss],
        momentum: float = 0.999,
        bn_chunks: int = 0,
        bn_momentum: float = 0.1,
        shuffle_bn: bool = True,
        unused_passes: bool = False,
        weak_pass: bool = True,
        eval_encoder: str = "momentum",
        eval_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        cuda_graphs: bool = False,
        source_images: int = 0,
        source_scale: float = 1.0,
    ):
        """See ``MODEL.ICE`` in fastreid_ice/config.py for the meaning of the arguments.

        Args:
            source_images: this process's share of ``DATASETS.SOURCE_IMS_PER_BATCH``.
            source_scale: weight of their losses.

        Raises:
            ValueError: a momentum outside [0, 1), an unknown encoder, chunks that cannot be, or graphs with a source.
        """
        super().__init__(backbone=backbone, heads=heads, pixel_mean=pixel_mean, pixel_std=pixel_std)
        if not 0 <= momentum < 1:
            raise ValueError(f"MODEL.ICE.MOMENTUM is {momentum}; it must be in [0, 1)")
        if eval_encoder not in ENCODERS:
            raise ValueError(f"MODEL.ICE.EVAL_ENCODER is {eval_encoder!r}; choose one of {', '.join(ENCODERS)}")
        if cuda_graphs and source_images:
            raise ValueError("MODEL.ICE.CUDA_GRAPHS is True, which does not go with DATASETS.SOURCE. Set it to False")
        self.loss_functions = losses
        self.momentum = momentum
        self.unused_passes = unused_passes
        self.weak_pass = weak_pass
        self.eval_encoder = eval_encoder
        self.eval_dtype = eval_dtype
        chunks = chunks_per_process(bn_chunks, comm.get_world_size(), is_synchronized(self))
        set_bn_chunks(self, chunks)
        _set_bn_momentum(self, bn_momentum)
        shuffles = shuffle_bn and chunks * comm.get_world_size() > 1
        # None where the order changes nothing: torch 2.3 cannot copy a generator, nor a model that has one.
        self._shuffle_generator = torch.Generator() if shuffles else None
        self.momentum_encoder = _momentum_copy(backbone, heads)
        self._graphs = GraphedPasses() if cuda_graphs else None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self._online_pass, self._momentum_pass = ChunkedPass(backbone, heads), ChunkedPass(self.momentum_encoder)
        self.fast_encode: Callable[[Tensor], Tensor] | None = None  # in the place of the encoder that evaluates
        self._steps: list[StepFeatures] = []  # of the training steps since the last update, detached
        self.source_images = source_images
        self.source_scale = source_scale
        self.source_statistics = DomainStatistics(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "backbone": build_pretrained_backbone(cfg),
            "heads": build_heads(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "losses": build_losses(cfg),
            "momentum": cfg.MODEL.ICE.MOMENTUM,
            "bn_chunks": cfg.MODEL.ICE.BN_CHUNKS,
            "bn_momentum": cfg.MODEL.ICE.BN_MOMENTUM,
            "shuffle_bn": cfg.MODEL.ICE.SHUFFLE_BN,
            "unused_passes": cfg.MODEL.ICE.UNUSED_PASSES,
            "weak_pass": cfg.MODEL.ICE.WEAK_PASS,
            "eval_encoder": cfg.MODEL.ICE.EVAL_ENCODER,
            "eval_dtype": _eval_dtype(cfg),
            "channels_last": cfg.MODEL.ICE.CHANNELS_LAST,
            "cuda_graphs": cfg.MODEL.ICE.CUDA_GRAPHS,
            "source_images": source_ims_per_batch(cfg) // comm.get_world_size(),
            "source_scale": cfg.MODEL.LOSSES.SOURCE_SCALE,
        }

    @property
    def memory(self) -> MemoryBank:
        """The memory bank, in the online head."""
        return self.heads.memory

    def forward(self, batched_inputs: Batch | Tensor) -> Tensor | dict[str, Tensor]:
        if not self.training:
            images = self.preprocess_image(batched_inputs)
            if self.eval_dtype is None:
                return self.encode(images)
            with torch.autocast(images.device.type, dtype=self.eval_dtype):
                return self.encode(images).float()
        assert not isinstance(batched_inputs, Tensor)  # training needs views and labels
        if not torch.is_grad_enabled():
            return self._move_batch_statistics(batched_inputs)
        if self.memory.is_empty or _all_unlabelled(batched_inputs["targets"]):
            raise RuntimeError("ICE has no clusters yet: the ClusteringHook fills the memory bank before an epoch")
        if not self.source_images:
            return self._losses(self._step_features(batched_inputs))
        target, source = _split(batched_inputs, len(batched_inputs["targets"]) - self.source_images)
        losses = self._losses(self._step_features(target))
        with self.source_statistics.in_place():
            step = self._step_features(source, is_source=True)
        found = self._losses(step)
        return losses | {f"{name}_source": self.source_scale * loss for name, loss in found.items()}

    def _losses(self, step: StepFeatures) -> dict[str, Tensor]:
        """The losses of one domain's part of a step, which the memory is shown after the update."""
        self._steps.append(step.detached())
        with torch.autocast(step.query.device.type, enabled=False):
            return {name: loss(step, self.memory) for name, loss in self.loss_functions.items()}

    def encode(self, images: Tensor) -> Tensor:
        """(b, D) embeddings of normalised images by the encoder that evaluates (MODEL.ICE.EVAL_ENCODER)."""
        if self.fast_encode is not None:
            return self.fast_encode(images)
        return self.momentum_encoder(images) if self.eval_encoder == "momentum" else self._online(images)

    def evaluated_encoder(self) -> nn.Module:
        """The encoder of :meth:`encode` as a module of its own, with the weights of this model."""
        return self.momentum_encoder if self.eval_encoder == "momentum" else Encoder(self.backbone, self.heads).eval()

    def preprocess_image(self, batched_inputs: Batch | Tensor, view: str = "images") -> Tensor:
        """Normalise one view on the device. Not in place as upstream: a batch goes through the model more than once."""
        images = batched_inputs if isinstance(batched_inputs, Tensor) else batched_inputs[view]
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:  # the loaders' bytes: float32 as ToTensor would have made it
            images = images.float()
        return ((images - self.pixel_mean) / self.pixel_std).contiguous(memory_format=self.memory_format)

    def _online(self, images: Tensor) -> Tensor:
        """(b, D) online embeddings; in training mode each chunk is normalised by itself."""
        return self._online_pass(lambda views: self.heads(self.backbone(views)), images)

    def _step_features(self, batch: Batch, is_source: bool = False) -> StepFeatures:
        """Run the views of one domain through the encoders, in the reference code's order."""
        strong = self.preprocess_image(batch)
        query = self._online_in_a_step(strong).float()
        if self._needs_keys():
            keys, weak_keys = self._momentum_embeddings(batch, strong, self.unused_passes and not is_source)
        else:
            keys = weak_keys = query.new_empty(0, query.shape[1])
        labels, camids = (batch[name].to(self.device, non_blocking=True) for name in ("targets", "camids"))
        own = slice(comm.get_rank() * len(strong), (comm.get_rank() + 1) * len(strong))
        return StepFeatures(
            query=query,
            weak_query=weak_keys[own],
            labels=labels,
            camids=camids,
            keys=keys,
            weak_keys=weak_keys,
            key_labels=gather(labels),
            key_camids=gather(camids),
            num_processes=comm.get_world_size(),
            is_source=is_source,
        )

    def _needs_keys(self) -> bool:
        """Whether anything looks at the momentum encoder's embeddings, or at the statistics that its passes move."""
        moves = type(self.memory).update is not MemoryBank.update
        if self.unused_passes or self.eval_encoder == "momentum" or (moves and self.memory.uses_keys):
            return True
        return any(getattr(loss, "uses_keys", True) for loss in self.loss_functions.values())

    @torch.no_grad()
    def _momentum_embeddings(self, batch: Batch, strong: Tensor, unused_passes: bool) -> tuple[Tensor, Tensor]:
        """(B, D) momentum embeddings of the second strong and of the weak views of all processes."""
        strong_key = self.preprocess_image(batch, "images_key")
        order = self._permutation(len(strong) * comm.get_world_size())
        if unused_passes:
            self._online_in_a_step(strong_key)
            self._momentum(strong, order)
        keys = self._momentum(strong_key, order)
        if not self.weak_pass:
            return keys, keys.new_empty(0, keys.shape[1])
        return keys, self._momentum(self.preprocess_image(batch, "images_weak"), order)

    def _momentum(self, images: Tensor, order: Tensor | None) -> Tensor:
        """(B, D) momentum embeddings of all processes' images, normalised in chunks of the permuted batch."""
        if order is None:
            return gather(self._momentum_in_a_step(images).float())
        own = order.chunk(comm.get_world_size())[comm.get_rank()]
        images = gather(images)[own].contiguous(memory_format=self.memory_format)
        permuted = gather(self._momentum_in_a_step(images).float())
        features = torch.empty_like(permuted)
        features[order] = permuted
        return features

    def _online_in_a_step(self, images: Tensor) -> Tensor:
        if self._graphs is None:
            return self._online(images)
        return self._graphs("online", self._online, (self.backbone, self.heads), images)

    def _momentum_in_a_step(self, images: Tensor) -> Tensor:
        def run(images: Tensor) -> Tensor:
            return self._momentum_pass(self.momentum_encoder, images)

        if self._graphs is None:
            return run(images)
        return self._graphs("momentum", run, (self.momentum_encoder,), images)

    def _permutation(self, batch_size: int) -> Tensor | None:
        """The same permutation of the whole batch in every process; None where the order changes nothing."""
        if self._shuffle_generator is None:
            return None
        return torch.randperm(batch_size, generator=self._shuffle_generator).to(self.device, non_blocking=True)

    def seed_shuffle(self, seed: int) -> None:
        """Start the permutations of an epoch; all processes pass the same seed."""
        if self._shuffle_generator is not None:
            self._shuffle_generator.manual_seed(seed)

    def _move_batch_statistics(self, batch: Batch) -> dict[str, Tensor]:
        """Training mode without gradient is fastreid's PreciseBN: move the running statistics, nothing else."""
        if self._graphs is not None:
            self._graphs.forget()  # PreciseBN gives the layers other tensors
        images = self.preprocess_image(batch)
        self._online(images)
        self._momentum_pass(self.momentum_encoder, images)
        return {}

    @torch.no_grad()
    def update_momentum_encoder(self) -> None:
        """m <- a m + (1 - a) online, parameters only, in place; the running statistics are the encoder's own."""
        online: list[Tensor] = [*self.backbone.parameters(), *self.heads.parameters()]
        momentum: list[Tensor] = list(self.momentum_encoder.parameters())
        torch._foreach_mul_(momentum, self.momentum)
        torch._foreach_add_(momentum, online, alpha=1 - self.momentum)

    @torch.no_grad()
    def after_step(self) -> None:
        """What moves after an update: the momentum encoder, then the memory, which sees the features of each step."""
        self.update_momentum_encoder()
        steps, self._steps = self._steps, []
        for step in steps:
            self.memory.update(step)

    def _apply(self, *args: Any, **kwargs: Any) -> ICE:
        """To another device or type: the weights may lie elsewhere, and graphs know where they lay."""
        if self._graphs is not None:
            self._graphs.forget()
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those without a momentum encoder (a fastreid zoo file) go into both encoders.

        Raises:
            ValueError: not one tensor of the file belongs to this model, or all of those have another shape.
        """
        state_dict = dict(state_dict)
        own_names = self.state_dict().keys()
        if not own_names & state_dict.keys():
            raise ValueError(
                "None of the checkpoint's tensors belongs to this model: MODEL.WEIGHTS holds names such as "
                f"{', '.join(list(state_dict)[:3]) or '(nothing)'}, the model {', '.join(list(own_names)[:3])}. "
                "Weights of a bare backbone go into MODEL.BACKBONE.PRETRAIN_PATH, with MODEL.BACKBONE.PRETRAIN True."
            )
        if not any(name.startswith(MOMENTUM_PREFIX) for name in state_dict):
            logger.info("The checkpoint has no momentum encoder: it starts as a copy of the online encoder")
            copies = {MOMENTUM_PREFIX + name: value for name, value in state_dict.items()}
            state_dict.update({name: value for name, value in copies.items() if name in own_names})
        if self._graphs is not None:
            self._graphs.forget()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _eval_dtype(cfg: CfgNode) -> torch.dtype | None:
    """What the encoders compute in for TEST.AMP; None for float32."""
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    return (
        None if not cfg.TEST.AMP or (on_cpu and cfg.SOLVER.AMP.DTYPE == "float16") else AMP_DTYPES[cfg.SOLVER.AMP.DTYPE]
    )


def _momentum_copy(backbone: nn.Module, heads: nn.Module) -> Encoder:
    """A copy of the online encoder that gets no gradient and has no memory: there is one, in the online head."""
    encoder = Encoder(copy.deepcopy(backbone), copy.deepcopy(heads)).requires_grad_(False)
    encoder.heads.memory = None  # type: ignore[assignment]
    return encoder


def _set_bn_momentum(module: nn.Module, momentum: float) -> None:
    """Layers whose running statistics are a plain average (momentum None) keep it."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.momentum is not None:
            layer.momentum = momentum


def _split(batch: Batch, size: int) -> tuple[Batch, Batch]:
    """The first ``size`` images of a batch, and the others."""
    names = [name for name in (*VIEWS, "targets", "camids") if name in batch]
    return {name: batch[name][:size] for name in names}, {name: batch[name][size:] for name in names}


def _all_unlabelled(targets: Tensor) -> bool:
    """Whether no image has a label; on an accelerator, where asking would wait for it, taken to be false."""
    return targets.device.type == "cpu" and bool((targets < 0).all())
