"""What the benchmarks compare computes the same."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from benchmarks.plain_step import PlainStep
from benchmarks.step import our_step, random_batch
from tests.conftest import ice_config
from tests.test_step import BACKBONE, build


def test_the_plain_step_is_ours():
    """Three steps in one chunk: the sum of the losses, and the weights of both encoders."""
    size = {"INPUT__SIZE_TRAIN": [32, 16], "MODEL__ICE__BN_CHUNKS": 1, **BACKBONE}
    cfg = ice_config(**size)
    plain, model = PlainStep(cfg, build(**size), 1), build(**size)
    batch = random_batch(cfg)
    run = our_step(cfg, model)
    for _ in range(3):
        assert sum(plain(batch)) == pytest.approx(run(batch), rel=1e-5)
    for ours, others in ((model.backbone, plain.online[0]), (model.momentum_encoder, plain.momentum)):
        for first, second in zip(ours.parameters(), others.parameters()):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
