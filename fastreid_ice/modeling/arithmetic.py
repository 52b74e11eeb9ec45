"""How much arithmetic a training is, counted on shapes alone."""

from __future__ import annotations

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import torch
from fastreid.config import CfgNode
from fastreid.modeling import build_backbone
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch.utils.flop_counter import FlopCounterMode

from fastreid_ice.config import source_ims_per_batch
from fastreid_ice.modeling.pretrained import untrained


def image_flops(cfg: CfgNode) -> int:
    """Floating-point operations of one test image's way through the backbone, a product and a sum counting as two.

    Convolutions and matrix products, as ``torch.utils.flop_counter`` counts them; no weights are loaded, nothing is
    computed.
    """
    backbone = build_backbone(untrained(cfg)).to("meta").eval()
    height, width = cfg.INPUT.SIZE_TEST
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        backbone(torch.empty(1, 3, height, width, device="meta"))
    return counter.get_total_flops()


def backbone_dimensions(cfg: CfgNode) -> int | None:
    """Channels of the backbone's output, on shapes alone; None where a backbone cannot be built or run so.

    Raises:
        ValueError: fastreid's builder knows no such MODEL.BACKBONE.DEPTH.
    """
    height, width = cfg.INPUT.SIZE_TEST
    name, depth = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH
    try:
        with torch.device("meta"), torch.no_grad():
            return int(build_backbone(untrained(cfg)).eval()(torch.empty(1, 3, height, width)).shape[1])
    except Exception as error:  # a backbone of the user's may do anything
        builder = BACKBONE_REGISTRY.get(name)
        if isinstance(error, KeyError) and error.args == (depth,) and builder.__module__.startswith("fastreid."):
            raise ValueError(
                f"MODEL.BACKBONE.DEPTH is {depth!r}, which {name} does not know. It is text such as 50x (ResNet), "
                "x0_25 (OSNet) or 1.0x (MobileNetV2)"
            ) from None
        return None


def training_flops(cfg: CfgNode, train_images: int, test_images: int) -> dict[str, float]:
    """Floating-point operations of a whole training, by stage.

    A step passes its images through the online encoder and back (a backward pass counts as two forward ones) and two
    views of them through the momentum encoder: five passes, one less without ``MODEL.ICE.WEAK_PASS``, two more with
    ``MODEL.ICE.UNUSED_PASSES`` (three where nothing looks at the momentum encoder's, as in the recipes; they are
    counted all the same). A clustering extracts all training images, an evaluation all test images. What is not a pass
    is left out, and so is the extraction of a source (``DATASETS.SOURCE``).

    Args:
        cfg: the config.
        train_images: of the training set.
        test_images: queries and gallery images.

    Returns:
        "steps", "clusterings" and "evaluations".
    """
    solver, image = cfg.SOLVER, image_flops(cfg)
    passes = 4 + cfg.MODEL.ICE.WEAK_PASS
    step = (passes + 2 * cfg.MODEL.ICE.UNUSED_PASSES) * solver.IMS_PER_BATCH + passes * source_ims_per_batch(cfg)
    clusterings = -(-solver.MAX_EPOCH // cfg.CLUSTERING.PERIOD)
    evaluations = 0
    if cfg.DATASETS.TESTS:
        after_epochs = -(-solver.MAX_EPOCH // cfg.TEST.EVAL_PERIOD) if cfg.TEST.EVAL_PERIOD > 0 else 1
        evaluations = after_epochs + bool(cfg.TEST.EVAL_START)
    return {
        "steps": float(image) * step * solver.MAX_EPOCH * solver.ITERS_PER_EPOCH,
        "clusterings": float(image) * clusterings * train_images,
        "evaluations": float(image) * evaluations * test_images,
    }
