"""What one training step has computed: the input of every loss and of the memory's update."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.modeling.losses.utils import concat_all_gather
from fastreid.utils import comm
from torch import Tensor


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the processes' tensors along the first dimension, without gradient. A collective."""
    return concat_all_gather(tensor.contiguous()) if comm.get_world_size() > 1 else tensor


@dataclass(frozen=True)
class StepFeatures:
    """Embeddings and labels of a step. b images are this process's, B = b x number of processes the whole batch's.

    With labelled images of another domain (``DATASETS.SOURCE``) a step has two of them, one for each domain: the losses
    are computed of each and added up. Source classes have the labels behind the target's, their cameras those behind
    the target's, so that both index the same memory.

    Momentum embeddings are (0, D) where nothing uses them, see ``LOSS_REGISTRY``; those of the weak view also with
    ``MODEL.ICE.WEAK_PASS False``.

    Attributes:
        query: (b, D) online embeddings of the first strong view; the only tensor with a gradient.
        weak_query: (b, D) momentum embeddings of the weak view of the same images.
        labels: (b,) int64 pseudo labels.
        camids: (b,) int64 camera ids; -1 for an outlier that is a class of its own, which has no proxy.
        keys: (B, D) momentum embeddings of the second strong view.
        weak_keys: (B, D) momentum embeddings of the weak view.
        key_labels: (B,) int64 pseudo labels.
        key_camids: (B,) int64 camera ids, likewise.
        num_processes: B / b. A loss that sums over the batch multiplies by it, since the gradients of the
            processes are averaged.
        is_source: whether the images are the source's, with true labels.
    """

    query: Tensor
    weak_query: Tensor
    labels: Tensor
    camids: Tensor
    keys: Tensor
    weak_keys: Tensor
    key_labels: Tensor
    key_camids: Tensor
    num_processes: int = 1
    is_source: bool = False

    def all_queries(self) -> Tensor:
        """(B, D) online embeddings of the whole batch, without gradient, in the order of ``key_labels``.

        They are gathered when asked for: a collective, which all processes must call.
        """
        return gather(self.query.detach())

    def detached(self) -> StepFeatures:
        """The same tensors without their graph, so that they may outlive the backward pass."""
        tensors = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        return replace(self, **{name: getattr(self, name).detach() for name in tensors})
