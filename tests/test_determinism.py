"""SOLVER.DETERMINISTIC: what it sets, from where to where, and that it changes nothing on the CPU."""

import os
import subprocess
import sys
import textwrap

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.checks import check_config
from fastreid_ice.engine.determinism import WORKSPACE, determinism
from tests.conftest import ice_config
from tests.test_step import BACKBONE

CUDNN = torch.backends.cudnn
NEWER = hasattr(CUDNN, "conv") and hasattr(CUDNN.conv, "fp32_precision")


def settings():
    return {
        "algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (CUDNN.deterministic, CUDNN.benchmark),
        "workspace": os.environ.get(WORKSPACE),
        "tf32": (
            (torch.backends.cuda.matmul.fp32_precision, CUDNN.conv.fp32_precision)
            if NEWER
            else (torch.backends.cuda.matmul.allow_tf32, CUDNN.allow_tf32)
        ),
    }


WITHIN = {
    "algorithms": (True, False),
    "cudnn": (True, False),
    "workspace": ":4096:8",
    "tf32": ("ieee", "ieee") if NEWER else (False, False),
}


class TestContext:
    def test_sets_all_and_puts_it_back(self, monkeypatch):
        monkeypatch.delenv(WORKSPACE, raising=False)
        before = settings()
        with determinism(True):
            assert settings() == WITHIN
        assert settings() == before != WITHIN

    def test_puts_back_what_the_user_chose(self, monkeypatch):
        monkeypatch.setenv(WORKSPACE, ":0:0")
        monkeypatch.setattr(CUDNN, "benchmark", True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            before = settings()
            with pytest.raises(KeyError), determinism(True):
                assert settings() == WITHIN
                raise KeyError
            assert settings() == before
        finally:
            torch.use_deterministic_algorithms(False)

    def test_a_fixed_workspace_stays(self, monkeypatch):
        monkeypatch.setenv(WORKSPACE, ":16:8")
        with determinism(True):
            assert os.environ[WORKSPACE] == ":16:8"

    def test_off_changes_nothing(self, monkeypatch):
        monkeypatch.delenv(WORKSPACE, raising=False)
        before = settings()
        with determinism(False):
            assert settings() == before

    def test_the_older_setting_can_still_be_read(self):
        """In a process of its own: torch remembers which of its two settings was used."""
        code = """
            import torch
            from fastreid_ice.engine.determinism import determinism
            for before in (True, False):
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = before
                with determinism(True):
                    pass
                assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == before
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_not_with_a_race_of_algorithms():
    with pytest.raises(ValueError, match="SOLVER.DETERMINISTIC and CUDNN_BENCHMARK"):
        check_config(ice_config(SOLVER__DETERMINISTIC=True, CUDNN_BENCHMARK=True))


@pytest.mark.usefixtures("tiny_dataset")
class TestRun:
    def train(self, folder, wanted, fails=False):
        cfg = ice_config(OUTPUT_DIR=str(folder), SOLVER__DETERMINISTIC=wanted, DATASETS__TESTS=(), **BACKBONE)
        trainer = ICETrainer(cfg)
        seen = []

        def loss(step, memory, original=trainer.model.loss_functions["loss_agnostic"]):
            seen.append(settings())
            return original(step, memory) * (float("nan") if fails else 1.0)

        trainer.model.loss_functions["loss_agnostic"] = loss
        trainer.resume_or_load(resume=False)
        trainer.train()
        return seen, torch.load(folder / "model_final.pth", weights_only=True)["model"]

    def test_a_run_of_it_equals_one_without(self, tmp_path, monkeypatch):
        monkeypatch.delenv(WORKSPACE, raising=False)
        before = settings()
        (seen, weights), (_, plain) = (self.train(tmp_path / str(wanted), wanted) for wanted in (True, False))
        assert len(seen) == 6 and all(state == WITHIN for state in seen) and settings() == before
        assert all(torch.equal(weights[name], plain[name]) for name in weights)

    def test_a_run_that_fails_puts_it_back_too(self, tmp_path, monkeypatch):
        monkeypatch.delenv(WORKSPACE, raising=False)
        before = settings()
        with pytest.raises(FloatingPointError):
            self.train(tmp_path, True, fails=True)
        assert settings() == before
