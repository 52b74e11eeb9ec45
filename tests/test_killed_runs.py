"""What a run leaves behind when it is killed, and how --resume goes on from it."""

import json
import logging
import shutil

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch

from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.checkpoints import newest_readable
from fastreid_ice.engine.hooks.checkpointing import CheckpointHook
from fastreid_ice.engine.hooks.writers import JSONWriter
from fastreid_ice.report.manifest import read_manifest
from tests.conftest import ice_config

pytestmark = pytest.mark.usefixtures("tiny_dataset")
EPOCHS = 3


def config(folder):
    return ice_config(OUTPUT_DIR=str(folder), SOLVER__MAX_EPOCH=EPOCHS, SOLVER__ITERS_PER_EPOCH=2)


def run(folder, resume):
    trainer = ICETrainer(config(folder))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def unbroken(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder, resume=False)
    return folder


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def rows(folder):
    """results.json without what differs from run to run."""
    found = json.loads((folder / "results.json").read_text())
    timed = ("seconds", "process_peak")
    return [{key: value for key, value in row.items() if not key.startswith(timed)} for row in found]


def assert_equal(folder, unbroken):
    expected = weights(unbroken)
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder).items())
    assert rows(folder) == rows(unbroken)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it, and hooks of the end do not write."""


@pytest.mark.parametrize("moment", ["before the best", "before the periodic", "behind the checkpoint"])
def test_killed_around_a_checkpoint(moment, unbroken, tmp_path, monkeypatch):
    trainer = ICETrainer(config(tmp_path))
    trainer.resume_or_load(resume=False)
    save = trainer.checkpointer.save

    def killed_save(name, **extra):
        if trainer.epoch == 1:
            if moment == "before the best" or (moment == "before the periodic" and name != "model_best"):
                raise Killed
            save(name, **extra)
            if name != "model_best":
                raise Killed
        save(name, **extra)

    monkeypatch.setattr(trainer.checkpointer, "save", killed_save)
    monkeypatch.setattr(trainer, "after_train", lambda: None)
    with pytest.raises(Killed):
        trainer.train()
    trainer.data_loader.close()
    run(tmp_path, resume=True)
    assert_equal(tmp_path, unbroken)


def test_killed_behind_the_last_checkpoint(unbroken, tmp_path, monkeypatch):
    """Only the manifest's last word is missing then."""
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    manifest = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**manifest, "status": "running"}))
    run(tmp_path, resume=True)
    assert read_manifest(tmp_path / "run.json")["status"] == "finished"
    assert_equal(tmp_path, unbroken)


def test_a_truncated_checkpoint_falls_back(unbroken, tmp_path, caplog):
    trainer = ICETrainer(config(tmp_path))
    trainer.resume_or_load(resume=False)
    hook = next(hook for hook in trainer._hooks if isinstance(hook, CheckpointHook))
    trainer.register_hooks([_Stop(after=2)])
    with pytest.raises(Killed):
        trainer.train()
    assert hook._keep == 2 and (tmp_path / "last_checkpoint").read_text() == "model_0001.pth"
    for name in ("model_0001.pth", "model_best.pth"):
        newest = tmp_path / name
        newest.write_bytes(newest.read_bytes()[:1000])
    (tmp_path / ".0123abcd.model_0002.pth").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        run(tmp_path, resume=True)
    assert "model_0001.pth is not a checkpoint, or is damaged" in caplog.text
    assert f"Resuming from {tmp_path / 'model_0000.pth'}, which was written before" in caplog.text
    assert not list(tmp_path.glob(".*.pth"))
    assert_equal(tmp_path, unbroken)


class _Stop(CheckpointHook):
    def __init__(self, after):
        self.after = after

    def before_train(self):
        pass

    def after_epoch(self):
        if self.trainer.epoch + 1 == self.after:
            raise Killed


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0003.pth")
    (tmp_path / "model_0002.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be read: There is no checkpoint .*model_0003.*0002"):
        newest_readable(tmp_path)


def test_nothing_to_resume_from(tmp_path):
    (tmp_path / "model_0002.pth").write_bytes(b"of another program")
    assert newest_readable(tmp_path) is None


def test_half_a_line_of_metrics(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"itera')
    writer = JSONWriter(str(path))
    monkeypatch.setattr(writer, "_new_scalars", lambda window: iter([("loss", 1.0, 7)]))
    writer.write()
    assert path.read_text().splitlines() == ['{"iteration": 1}', '{"itera', '{"iteration": 7, "loss": 1.0}']
