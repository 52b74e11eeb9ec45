"""The losses of ICE and of other methods as pure functions on tensors; their weights are config keys, not here."""

from fastreid_ice.losses.agnostic import agnostic_loss
from fastreid_ice.losses.camera_contrast import intra_camera_loss, online_association_loss
from fastreid_ice.losses.cross_camera import cross_camera_loss
from fastreid_ice.losses.instance import hard_instance_loss, soft_instance_loss

__all__ = [
    "agnostic_loss",
    "cross_camera_loss",
    "hard_instance_loss",
    "intra_camera_loss",
    "online_association_loss",
    "soft_instance_loss",
]
