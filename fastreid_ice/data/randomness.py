"""Random numbers that depend on what is drawn, not on which worker draws it."""

from __future__ import annotations

import random
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """One 32-bit seed from several numbers (seed, epoch, draw, ...), each >= 0.

    Example:
        >>> derive_seed(1, 2) == derive_seed(1, 2), derive_seed(1, 2) == derive_seed(2, 1)
        (True, False)
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextmanager
def seeded(seed: int):
    """Run a block with torch, numpy and Python seeded, and put their states back behind it.

    fastreid's transforms draw from all three.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
