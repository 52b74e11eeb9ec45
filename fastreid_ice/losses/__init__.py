"""The four losses of ICE as pure functions on tensors; the weights of the reference are config keys, not here."""

from fastreid_ice.losses.agnostic import agnostic_loss
from fastreid_ice.losses.cross_camera import cross_camera_loss
from fastreid_ice.losses.instance import hard_instance_loss, soft_instance_loss

__all__ = ["agnostic_loss", "cross_camera_loss", "hard_instance_loss", "soft_instance_loss"]
