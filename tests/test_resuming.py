"""Killed runs: whatever file was being written, the next start goes on, and ends as if nothing had been."""

import json
import os
import re
import shutil

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.utils.events import get_event_storage
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  (slow to import: not within a test)

from fastreid_ice.config_files import read_settings
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.checkpoints import UnreadableCheckpointError, read_checkpoint
from fastreid_ice.engine.hooks.recorder import _is_loss
from fastreid_ice.engine.hooks.training import unwrap
from fastreid_ice.engine.hooks.writers import JSONWriter
from fastreid_ice.engine.resuming import (
    agree_on_epoch,
    load_newest,
    resumable_checkpoints,
    schedule_constants,
    set_aside_checkpoints,
)
from fastreid_ice.files import claim_folder, remove_leftovers, replacing
from fastreid_ice.report.manifest import read_manifest
from tests.conftest import ice_config

pytestmark = pytest.mark.usefixtures("tiny_dataset")

SETTINGS = {"SOLVER__MAX_EPOCH": 3, "SOLVER__ITERS_PER_EPOCH": 2}


def train(folder, resume=False, **overrides) -> None:
    trainer = ICETrainer(ice_config(OUTPUT_DIR=str(folder), **SETTINGS, **overrides))
    trainer.resume_or_load(resume=resume)
    trainer.train()


def in_a_child(work, *arguments) -> int:
    """Run in a forked process with one thread; 0, 1 after an error, or what it exits with."""
    if torch.cuda.is_available():
        pytest.skip("a process that has used CUDA cannot be forked; without FASTREID_ICE_TEST_CUDA it has not")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_until_rename(folder, number: int) -> None:
    """Train as if killed before the ``number``-th renaming: no handler runs."""
    rename, calls = os.replace, []

    def counted(source, target):
        calls.append(target)
        if len(calls) == number:
            os._exit(9)
        rename(source, target)

    os.replace = counted
    train(folder)


def without_times(row: dict) -> dict:
    """Of an epoch or a step: no times, no memory."""
    return {name: row[name] for name in row if not any(word in name for word in ("seconds", "time", "eta", "peak_mb"))}


def outcome(folder) -> dict:
    """All that a run leaves but times: equal for a run that was killed and one that was not."""
    lines = (folder / "metrics.json").read_text().splitlines()
    models = {path.name: torch.load(path, weights_only=True) for path in folder.glob("model_*.pth")}
    manifest = read_manifest(folder)
    return {
        "metrics": [without_times(json.loads(line)) for line in lines],
        "results": [without_times(row) for row in json.loads((folder / "results.json").read_text())],
        "clusters": (folder / "clusters.csv").read_text(),
        "manifest": {key: manifest[key] for key in ("status", "epochs_done", "steps_done", "clusters", "scores")},
        "hidden": [path.name for path in folder.glob(".*")],
        "last": (folder / "last_checkpoint").read_text(),
        "best": models["model_best.pth"]["epoch"],
        "models": {
            name: {key: value.tolist() for key, value in models[name]["model"].items()}
            for name in ("model_best.pth", "model_final.pth")
        },
    }


@pytest.fixture(scope="module")
def unbroken(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert in_a_child(train, folder) == 0
    return folder


def cut(path, size: int) -> None:
    os.truncate(path, size)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_renaming(tmp_path, monkeypatch):
    """Every file but metrics.json and the logs appears by a renaming: before each of them is any moment."""
    monkeypatch.setitem(SETTINGS, "SOLVER__MAX_EPOCH", 2)
    monkeypatch.setattr(ICETrainer, "test", staticmethod(_better_every_time))
    assert in_a_child(train, tmp_path / "unbroken") == 0
    expected, number = outcome(tmp_path / "unbroken"), 0
    assert expected["manifest"]["status"] == "finished" and expected["hidden"] == []
    assert [row["epoch"] for row in expected["results"]] == [0, 1, 2]
    while True:
        number += 1
        folder = tmp_path / str(number)
        code = in_a_child(train_until_rename, folder, number)
        if code == 0:
            break
        assert code == 9
        assert len(list(folder.glob(".*"))) == 1
        assert in_a_child(train, folder, True) == 0
        assert outcome(folder) == expected, f"killed at renaming {number}"
        shutil.rmtree(folder)
    assert number > 12


def _better_every_time(cfg, model) -> dict[str, float]:
    """Scores that make every epoch the best: each one writes all files that an epoch can write."""
    try:
        score = float(get_event_storage().iter + 10)
    except AssertionError:  # no storage: the run was finished already
        score = 0.0
    return {"mAP": score, "Rank-1": score, "metric": score}


class TestUnreadable:
    @pytest.fixture
    def run(self, unbroken, tmp_path):
        """After two of three epochs: model_0000, model_0001, model_best."""
        shutil.copytree(unbroken, tmp_path / "run")
        (tmp_path / "run" / "model_final.pth").unlink()
        (tmp_path / "run" / "last_checkpoint").write_text("model_0001.pth")
        if read_checkpoint(tmp_path / "run" / "model_best.pth")["epoch"] == 2:
            (tmp_path / "run" / "model_best.pth").unlink()
        return tmp_path / "run"

    @pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
    def test_falls_back_to_the_one_before(self, run, unbroken, caplog, share):
        newest = run / "model_0001.pth"
        cut(newest, int(newest.stat().st_size * share))
        os.utime(run / "model_0000.pth")  # the copy has not kept the order
        trainer = ICETrainer(ice_config(OUTPUT_DIR=str(run), **SETTINGS))
        trainer.resume_or_load(resume=True)
        assert trainer.start_epoch == 1
        (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "model_0000.pth instead" in message and "model_0001.pth is not a checkpoint, or is damaged" in message

    def test_ends_as_if_nothing_had_been(self, run, unbroken):
        cut(run / "model_0001.pth", 1000)
        os.utime(run / "model_0000.pth")
        assert in_a_child(train, run, True) == 0
        assert outcome(run) == outcome(unbroken)

    def test_none_can_be_read(self, run):
        names = sorted(path.name for path in run.glob("model_*.pth"))
        for name in names:
            cut(run / name, 1000)
        with pytest.raises(UnreadableCheckpointError, match="can be resumed from") as error:
            load_newest(run, lambda path: read_checkpoint(path))
        assert all(name in str(error.value) for name in names) and "\n" not in str(error.value)

    def test_weights_of_another_model_are_no_damage(self, run):
        """A mistake in the config must not train from an older checkpoint."""
        with pytest.raises(ValueError, match="^None of the checkpoint's tensors"):
            load_newest(run, _of_another_model)

    def test_without_last_checkpoint(self, run, caplog):
        (run / "last_checkpoint").unlink()
        os.utime(run / "model_0001.pth")
        assert load_newest(run, lambda path: read_checkpoint(path))["epoch"] == 1
        assert "no file last_checkpoint: resuming from" in caplog.text

    def test_last_checkpoint_names_a_file_that_is_gone(self, run, caplog):
        (run / "last_checkpoint").write_text("model_0007.pth")
        os.utime(run / "model_0001.pth")
        trainer = ICETrainer(ice_config(OUTPUT_DIR=str(run), **SETTINGS))  # fastreid's loader asserts that it is there
        assert load_newest(run, trainer.checkpointer.load)["epoch"] == 1
        assert "model_0001.pth instead: There is no checkpoint" in caplog.text and "model_0007.pth" in caplog.text

    def test_rows_that_cannot_be_read(self, run):
        (run / "results.json").write_text('[{"epoch": 0')
        assert in_a_child(train, run, True) == 0
        assert [row["epoch"] for row in json.loads((run / "results.json").read_text())] == [3]


def _of_another_model(path):
    raise ValueError("None of the checkpoint's tensors belongs to this model")


def test_no_checkpoint_is_no_error(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"weights of something else")
    assert load_newest(tmp_path, read_checkpoint) is None
    assert load_newest(tmp_path / "missing", read_checkpoint) is None


def test_a_new_run_in_the_folder_of_another(unbroken, tmp_path, caplog):
    """Killed before its first checkpoint it does not go on with the other run; the other's checkpoints are kept."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    old = {path.name: path.read_bytes() for path in run.glob("model_*.pth")}
    weights = run / "model_final.pth"
    cfg = ice_config(OUTPUT_DIR=str(run), **{**SETTINGS, "MODEL__WEIGHTS": str(weights)})
    trainer = ICETrainer(cfg)
    trainer.resume_or_load(resume=False)
    name, tensor = next(iter(unwrap(trainer.model).state_dict().items()))
    assert torch.equal(tensor, read_checkpoint(unbroken / "model_final.pth")["model"][name])  # read before it was moved
    assert trainer._last_checkpoint() == "" and f"moved to {run / 'earlier_run_1'}" in caplog.text
    assert {path.name: path.read_bytes() for path in (run / "earlier_run_1").glob("model_*.pth")} == old
    assert (run / "earlier_run_1" / "last_checkpoint").read_text() == "model_final.pth"
    for described in ("config.yaml", "run.json", "results.json", "clusters.csv", "metrics.json"):
        assert (run / "earlier_run_1" / described).read_bytes() == (unbroken / described).read_bytes()
    assert read_settings(run / "config.yaml")["MODEL"]["WEIGHTS"] == str(weights)
    again = ICETrainer(ice_config(OUTPUT_DIR=str(run), **SETTINGS))
    again.resume_or_load(resume=True)
    assert again.start_epoch == 0 and resumable_checkpoints(run) == []
    shutil.copy(unbroken / "model_0000.pth", run)
    assert set_aside_checkpoints(run) == run / "earlier_run_2"
    assert sorted(path.name for path in (run / "earlier_run_2").iterdir()) == ["config.yaml", "model_0000.pth"]


def test_checkpoints_in_the_order_of_their_writing(tmp_path):
    """Not of the epochs in their names."""
    for i, name in enumerate(("model_0030.pth", "model_0001.pth", "model_best.pth", "model_0002.pth")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(i, i))
    (tmp_path / "last_checkpoint").write_text("model_0002.pth\n")
    names = [path.name for path in resumable_checkpoints(tmp_path)]
    assert names == ["model_0002.pth", "model_best.pth", "model_0001.pth", "model_0030.pth"]


def test_other_bytes_in_a_checkpoint_are_told_as_damage(unbroken, tmp_path):
    """Whatever torch and pickle raise; weights that still can be read are read."""
    whole = (unbroken / "model_final.pth").read_bytes()
    told = 0
    for start in range(0, 4000, 200):
        damaged = tmp_path / "model.pth"
        damaged.write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
        try:
            read_checkpoint(damaged)
        except UnreadableCheckpointError:
            told += 1
    assert told > 5


def test_leftovers(tmp_path):
    with replacing(tmp_path / "model_0003.pth") as temporary:
        leftover = tmp_path / temporary.name
        temporary.write_bytes(b"x")
    leftover.write_bytes(b"half of it")
    others = [tmp_path / name for name in (".hidden", ".0123abcd.notes.txt", "model_0001.pth", ".0123.model_0001.pth")]
    for other in others:
        other.write_bytes(b"x")
    assert remove_leftovers(tmp_path, ("model_*.pth",)) == [leftover]
    assert not leftover.exists() and all(other.exists() for other in others)
    assert remove_leftovers(tmp_path / "missing", ("*",)) == []


def test_half_a_line_of_metrics(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": -1, "mAP": 3}\n{"iteration": 5, "lr": 1}\n{"iteration": 6}\n{"iterat')
    JSONWriter(str(path), steps_per_epoch=6).start(6)
    assert path.read_text() == '{"iteration": -1, "mAP": 3}\n{"iteration": 5, "lr": 1}\n'
    JSONWriter(str(path), steps_per_epoch=6).start(None)
    assert path.read_text() == ""


def test_tensorboard_forgets_what_is_trained_again(unbroken, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000.pth")
    assert in_a_child(train, tmp_path / "run", True) == 0
    steps = []
    for folder in (unbroken, tmp_path / "run"):
        events = EventAccumulator(str(folder))
        events.Reload()
        steps.append([event.step for event in events.Scalars("total_loss")])
    assert steps[0] == steps[1] and len(set(steps[0])) == len(steps[0])


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([(3, None)], None),
        ([(2, None)], r"process 0: 3, process 1: 2\. All machines"),
        ([(None, None)], "process 0: 3, process 1: none"),
        ([(None, "model_0002.pth is half a file")], "Another process cannot resume: model_0002.pth is half a file"),
    ],
)
def test_processes_go_on_from_the_same_epoch(others, said, monkeypatch):
    """Of two machines without a common folder one would begin anew, and both would wait for each other."""
    monkeypatch.setattr("fastreid_ice.engine.resuming.comm.all_gather", lambda mine: [mine, *others])
    if said is None:
        agree_on_epoch({"epoch": 2}, None, "run")
        return
    with pytest.raises((FileNotFoundError, RuntimeError), match=said):
        agree_on_epoch({"epoch": 2}, None, "run")


def test_another_schedule_is_not_taken_without_a_word(unbroken, tmp_path, caplog):
    """The rate of a cosine that was planned for three epochs would climb again."""
    run = tmp_path / "run"
    train(run, SOLVER__SCHED="CosineAnnealingLR")
    longer = {**SETTINGS, "SOLVER__MAX_EPOCH": 6, "SOLVER__SCHED": "CosineAnnealingLR", "SOLVER__BASE_LR": 1e-3}
    trainer = ICETrainer(ice_config(OUTPUT_DIR=str(run), **longer))
    assert schedule_constants(trainer.scheduler)["SOLVER.MAX_EPOCH"] == 6
    trainer.resume_or_load(resume=True)
    assert "SOLVER.MAX_EPOCH and SOLVER.BASE_LR changed since the checkpoint" in caplog.text
    caplog.clear()
    shutil.copytree(unbroken, tmp_path / "other")
    ICETrainer(ice_config(OUTPUT_DIR=str(tmp_path / "other"), **SETTINGS)).resume_or_load(resume=True)
    assert "changed since" not in caplog.text


def changed(folder, **overrides) -> ICETrainer:
    return ICETrainer(ice_config(**{"OUTPUT_DIR": str(folder), **SETTINGS, **overrides}))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"MODEL__HEADS__EMBEDDING_DIM": 8}, r"MODEL.HEADS.EMBEDDING_DIM is 8, but .*config.yaml has 0"),
        ({"SOLVER__OPT": "SGD"}, r"SOLVER.OPT is 'SGD', but .* has 'Adam'"),
        ({"SOLVER__SCHED": "CosineAnnealingLR"}, r"SOLVER.SCHED is 'CosineAnnealingLR', but .* has 'MultiStepLR'"),
        ({"SOLVER__WARMUP_EPOCHS": 2}, r"SOLVER.WARMUP_EPOCHS is 2, but .* has 0: checkpoints of that run do not fit"),
    ],
)
def test_a_resume_with_another_model_changes_nothing(unbroken, tmp_path, overrides, said):
    """fastreid would leave out the tensors that do not fit, and go on."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=said):
        changed(run, **overrides).resume_or_load(resume=True)
    (run / "config.yaml").unlink()  # what the checkpoint itself tells
    if "MODEL__HEADS__EMBEDDING_DIM" in overrides:
        with pytest.raises(ValueError, match=r"model_\w+.pth is not of this model: heads.bottleneck.0.* such tensors"):
            changed(run, **overrides).resume_or_load(resume=True)
    assert {name: (run / name).read_bytes() for name in before if name != "config.yaml"} == {
        name: content for name, content in before.items() if name != "config.yaml"
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"SOLVER__ITERS_PER_EPOCH": 4}, "SOLVER.ITERS_PER_EPOCH is 4, but .*config.yaml has 2"),
        ({"DATASETS__TESTS": ()}, "DATASETS.TESTS is .*scores of the epochs to come"),
        ({"TEST__FLIP__ENABLED": True}, "TEST.FLIP.ENABLED is True, but .* has False: the scores"),
    ],
)
def test_epochs_of_two_kinds_are_not_mixed(unbroken, tmp_path, overrides, said):
    shutil.copytree(unbroken, tmp_path / "run")
    with pytest.raises(ValueError, match=said):
        changed(tmp_path / "run", **overrides).resume_or_load(resume=True)


def test_a_resume_needs_no_start_weights(unbroken, tmp_path, monkeypatch):
    """Every tensor is the checkpoint's: their file may be gone, and nothing is downloaded."""
    shutil.copytree(unbroken, tmp_path / "run")
    start = {"MODEL__BACKBONE__PRETRAIN": True, "MODEL__BACKBONE__PRETRAIN_PATH": str(tmp_path / "gone.pth")}
    cfg = ice_config(**{"OUTPUT_DIR": str(tmp_path / "run"), **SETTINGS, **start})
    trainer = ICETrainer(cfg, resume=True)
    trainer.resume_or_load(resume=True)
    assert trainer.start_epoch > 0 and trainer.cfg.MODEL.BACKBONE.PRETRAIN
    with pytest.raises(FileNotFoundError, match="PRETRAIN_PATH: there is no file .*gone.pth"):
        ICETrainer(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "other")  # without a checkpoint
    with pytest.raises(FileNotFoundError, match="PRETRAIN_PATH"):
        ICETrainer(cfg, resume=True)


def test_a_key_that_changes_on_the_way_is_told(unbroken, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    trainer = changed(run, SOLVER__MAX_EPOCH=4, MODEL__LOSSES__CROSS_CAMERA__SCALE=0.7)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert "MODEL.LOSSES.CROSS_CAMERA.SCALE changed behind epoch 3" in caplog.text
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["changed"] == [{"until_epoch": 3, "before": {"MODEL.LOSSES.CROSS_CAMERA.SCALE": 0.5}}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_folder_that_another_training_writes_into(unbroken, tmp_path):
    """Until that ends, however it ends; the same process may begin anew."""
    shutil.copytree(unbroken, tmp_path / "run")
    trainer = changed(tmp_path / "run")
    trainer.resume_or_load(resume=True)
    changed(tmp_path / "run").resume_or_load(resume=True)
    held = claim_folder(tmp_path / "run")

    def refused():
        with pytest.raises(RuntimeError, match=r"Another training is writing into .*run \(OUTPUT_DIR\)"):
            claim_folder(tmp_path / "run")

    def killed():
        claim_folder(tmp_path / "other")
        os._exit(9)

    assert in_a_child(refused) == 0
    held.close()
    assert in_a_child(claim_folder, tmp_path / "run") == 0
    assert in_a_child(killed) == 9
    claim_folder(tmp_path / "other").close()


def test_curves_of_another_run_are_moved_too(tmp_path):
    (tmp_path / "model_final.pth").touch()
    for name in ("events.out.tfevents.1.host.4711.0", f"events.out.tfevents.2.host.{os.getpid()}.0"):
        (tmp_path / name).touch()
    moved = set_aside_checkpoints(tmp_path)
    assert sorted(path.name for path in moved.iterdir()) == ["events.out.tfevents.1.host.4711.0", "model_final.pth"]


def test_weights_of_another_model_still_start_a_run(unbroken, tmp_path):
    """What fits of them, as in stock fastreid."""
    weights = str(unbroken / "model_final.pth")
    trainer = changed(tmp_path / "new", MODEL__HEADS__EMBEDDING_DIM=8, MODEL__WEIGHTS=weights)
    trainer.resume_or_load(resume=False)
    stored = torch.load(weights, weights_only=True)["model"]
    name = next(name for name in stored if name.startswith("backbone."))
    assert torch.equal(unwrap(trainer.model).state_dict()[name], stored[name])


def test_a_resume_does_not_need_the_weights_of_the_start(unbroken, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    gone = str(tmp_path / "gone.pth")
    changed(run, MODEL__WEIGHTS=gone).resume_or_load(resume=True)
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS: there is no file .*gone.pth"):
        changed(run, MODEL__WEIGHTS=gone).resume_or_load(resume=False)
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS: there is no file .*gone.pth"):
        changed(tmp_path / "new", MODEL__WEIGHTS=gone)


@pytest.mark.parametrize(
    "settings",
    [{"SOLVER__WEIGHT_DECAY": 0.1}, {"SOLVER__HEADS_LR_FACTOR": 2.0}, {"SOLVER__MOMENTUM": 0.5, "SOLVER__OPT": "SGD"}],
)
def test_keys_that_the_optimizer_has_in_its_state(unbroken, tmp_path, settings):
    """Another value would have no effect, or make other groups of parameters."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    if "SOLVER__OPT" in settings:
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(re.sub("OPT: .*", "OPT: SGD", config))
    before = (run / "config.yaml").read_bytes()
    key = next(iter(settings)).replace("__", ".")
    with pytest.raises(ValueError, match=f"{key} is .*, but .*config.yaml has .*: its optimizer would go on with that"):
        changed(run, **settings).resume_or_load(resume=True)
    assert (run / "config.yaml").read_bytes() == before


def test_a_seed_that_has_no_effect_is_told(unbroken, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    changed(run, SEED=7).resume_or_load(resume=True)
    assert "SEED is 7, but the run goes on with the seed of its checkpoint" in caplog.text


def test_losses_are_known_by_their_names():
    """A test set's name may have the word in it."""
    names = ("total_loss", "loss_soft", "Gloss/mAP", "loss_x/mAP", "mAP")
    assert [name for name in names if _is_loss(name)] == ["total_loss", "loss_soft"]


def test_an_eps_that_jumps_back_is_told(tmp_path, caplog):
    run = tmp_path / "run"
    train(run, CLUSTERING__EPS_END=0.3)
    changed(run, CLUSTERING__EPS_END=0.3).resume_or_load(resume=True)
    assert "eps jumps" not in caplog.text
    changed(run, CLUSTERING__EPS_END=0.3, SOLVER__MAX_EPOCH=6).resume_or_load(resume=True)
    assert "SOLVER.MAX_EPOCH was 3 and is 6" in caplog.text and "eps jumps back" in caplog.text
