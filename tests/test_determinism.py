"""SOLVER.DETERMINISTIC: what it sets, where, and that it is put back."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.determinism import WORKSPACE, deterministic
from tests.conftest import ice_config


def switches():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    new = hasattr(cudnn, "conv")
    tf32 = (cudnn.conv.fp32_precision, matmul.fp32_precision) if new else (cudnn.allow_tf32, matmul.allow_tf32)
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, *tf32


def test_set_within_and_put_back(monkeypatch):
    monkeypatch.delenv(WORKSPACE[0], raising=False)
    before = switches()
    with pytest.raises(KeyError), deterministic(True):
        assert switches()[:3] == (True, True, False)
        assert switches()[3:] in (("ieee", "ieee"), (False, False))
        raise KeyError
    assert switches() == before


def test_off_changes_nothing():
    before = switches()
    with deterministic(False):
        assert switches() == before


@pytest.mark.usefixtures("tiny_dataset")
@pytest.mark.parametrize("enabled", [True, False])
def test_the_whole_training_runs_so(tmp_path, enabled, monkeypatch):
    monkeypatch.delenv(WORKSPACE[0], raising=False)
    seen = []
    cfg = ice_config(OUTPUT_DIR=str(tmp_path), SOLVER__DETERMINISTIC=enabled, SOLVER__MAX_EPOCH=1, DATASETS__TESTS=())
    trainer = ICETrainer(cfg)
    step = trainer.training_step.run_step
    monkeypatch.setattr(trainer.training_step, "run_step", lambda: (seen.append(switches()[0]), step())[1])
    trainer.train()
    assert seen and set(seen) == {enabled}
    assert not torch.are_deterministic_algorithms_enabled()
