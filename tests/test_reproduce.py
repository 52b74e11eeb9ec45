"""Reproducing what was published: the plan, the trainings, the comparison."""

from __future__ import annotations

import pytest
import torch

from fastreid_ice.cli.main import COMMANDS
from fastreid_ice.cli.reproduce import REPRODUCIBLE, main
from fastreid_ice.cli.train import main as train_main
from fastreid_ice.model_zoo import config_files
from fastreid_ice.modeling.arithmetic import image_flops, training_flops
from fastreid_ice.report.grid import GridRun
from fastreid_ice.report.reproduction import compare, published_row
from tests.conftest import ice_config
from tests.test_manifest import row, write_run
from tests.test_tables import change


def trained(mean_ap: float, rank1: float):
    """A runner that leaves a run with these scores, better with the seed."""

    def train(run: GridRun, resume: bool) -> str:
        better = run.seed - 1
        dataset = ("DukeMTMC",) if "duke" in run.folder.parent.name else ("Market1501",)
        rows = [row(1, mean_ap + better, rank1 + better), row(2, 20.0)]
        keys = {"DATASETS__USE_CAMERAS": "agnostic" not in run.folder.parent.name}
        write_run(run.folder, rows, seed=run.seed, DATASETS__NAMES=dataset, DATASETS__TESTS=dataset, **keys)
        return ""

    return train


def test_every_row_has_a_config_and_a_published_number():
    for name, (method, dataset, *_) in REPRODUCIBLE.items():
        assert f"ICE/{name}.yml" in config_files()
        assert published_row(method, dataset).scores["mAP"] > 20
    assert COMMANDS["reproduce"][0] == "reproduce" and callable(train_main)


def test_the_best_epochs_are_compared_with_what_was_published(tmp_path, capsys):
    # ICE on Market-1501: 82.3 mAP, 93.8 Rank-1
    main(["--configs", "market", "--seeds", "1", "2", "--output", str(tmp_path)], trained(81.0, 93.0))
    table = capsys.readouterr().out
    assert "| ICE | Market-1501 | 82.3 / 93.8 | checked | 81.5 ± 0.7 / 93.5 ± 0.7 | 2 | reproduced |" in table
    with pytest.raises(SystemExit, match="1 of 1 rows"):
        main(["--configs", "market", "--seeds", "1", "--output", str(tmp_path), "--check", "--tolerance", "1.2"])
    assert "| 81.0 / 93.0 | 1 | below by mAP 1.3 |" in capsys.readouterr().out


def test_what_was_not_run_is_not_reproduced(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2 of 2 rows"):
        main(["--configs", "market", "duke_agnostic", "--output", str(tmp_path), "--check"])
    table = capsys.readouterr().out
    assert table.count("| not run |") == 2 and not list(tmp_path.iterdir())


def test_missing_seeds_and_another_protocol_are_not_reproduced(tmp_path, capsys):
    command = ["--configs", "market", "--output", str(tmp_path)]
    main([*command, "--seeds", "1"], trained(90.0, 95.0))
    with pytest.raises(SystemExit, match="^1 of 2 runs are not finished:\nSEED-2  not started$"):
        main([*command, "--seeds", "1", "2", "--check"])
    assert "| 1 | reproduced |" in capsys.readouterr().out
    write_run(tmp_path / "market" / "SEED-1", [row(1, 90.0, 95.0)], TEST={"RERANK": {"ENABLED": True}})
    with pytest.raises(SystemExit, match="^1 of 1 rows are not reproduced$"):
        main([*command, "--check"])
    assert "| 1 | not comparable: re-ranked |" in capsys.readouterr().out


def test_it_goes_on_where_it_was_stopped(tmp_path, capsys):
    calls = []

    def train(run: GridRun, resume: bool) -> str:
        calls.append(run.folder)
        return trained(90.0, 95.0)(run, resume)

    for _ in range(2):
        main(["--configs", "duke", "duke_agnostic", "--output", str(tmp_path)], train)
    assert calls == [tmp_path / "duke" / "SEED-1", tmp_path / "duke_agnostic" / "SEED-1"]
    with pytest.raises(SystemExit):
        main(["--configs", "duke", "--output", str(tmp_path), "--", "SOLVER.BASE_LR", "0.1"], train)
    assert "use another --output" in capsys.readouterr().err


def test_a_failed_run_is_told_though_the_others_reach_the_number(tmp_path, capsys):
    def train(run: GridRun, resume: bool) -> str:
        return "exit code 1, CUDA out of memory" if run.seed == 2 else trained(90.0, 95.0)(run, resume)

    with pytest.raises(
        SystemExit, match="^1 of 2 runs are not finished:\nSEED-2  failed: exit code 1, CUDA out of memory"
    ):
        main(["--configs", "market", "--seeds", "1", "2", "--output", str(tmp_path)], train)
    assert "| 90.0 / 95.0 | 1 | reproduced |" in capsys.readouterr().out


def test_the_plan_is_commands_and_hours(tmp_path, capsys):
    main(
        ["--configs", "market", "--plan", "--seeds", "1", "2", "--num-gpus", "4", "--output", "there", "--tflops", "20"]
    )
    printed = capsys.readouterr().out
    commands = [line for line in printed.splitlines() if line.startswith("python")]
    assert commands[1] == (
        "python tools/train_net.py --config-file configs/ICE/market.yml --num-gpus 4 "
        "SEED 2 OUTPUT_DIR there/market/SEED-2"
    )
    # ResNet-50 with a last stride of 1 at 256 x 128: 4.06 G multiply-adds an image
    line = next(line for line in printed.splitlines() if line.startswith("| market |"))
    steps, clusterings, evaluations, hours = (float(cell) for cell in line.split("|")[2:6])
    image = 2 * 4.06e9
    assert steps == pytest.approx(40 * 400 * 32 * 5 * image / 1e15, abs=0.1)
    assert clusterings == pytest.approx(40 * 12_936 * image / 1e15, abs=0.1)
    assert evaluations == pytest.approx(40 * 19_281 * image / 1e15, abs=0.1)
    assert hours == pytest.approx((steps + clusterings + evaluations) * 1e15 / 80e12 / 3600, abs=0.06)


def test_operations_of_an_image_by_hand():
    """Two 3 x 3 convolutions of 3 to 8 and 8 to 32 channels."""
    cfg = ice_config(
        MODEL__BACKBONE__NAME="build_two_convolutions", MODEL__BACKBONE__FEAT_DIM=32, INPUT__SIZE_TEST=[16, 8]
    )
    layers = [layer for layer in _convolutions(cfg)]
    expected, (height, width) = 0, (16, 8)
    for layer in layers:
        height, width = (
            (size + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1 for size in (height, width)
        )
        expected += 2 * layer.weight.numel() * height * width
    assert image_flops(cfg) == expected
    few = training_flops(cfg, 10, 20)
    every = few["steps"] / (cfg.SOLVER.MAX_EPOCH * cfg.SOLVER.ITERS_PER_EPOCH * cfg.SOLVER.IMS_PER_BATCH)
    cfg.MODEL.ICE.WEAK_PASS = False
    assert training_flops(cfg, 10, 20)["steps"] == few["steps"] / 5 * 4
    cfg.MODEL.ICE.WEAK_PASS = True
    assert every == 5 * expected and few["clusterings"] == cfg.SOLVER.MAX_EPOCH * 10 * expected
    cfg.TEST.EVAL_START, cfg.TEST.EVAL_PERIOD = True, 0  # before the first epoch, and behind the last
    assert training_flops(cfg, 10, 20)["evaluations"] == 2 * 20 * expected
    cfg.TEST.EVAL_START, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_EPOCH = False, 2, 3  # behind the second and the third
    assert training_flops(cfg, 10, 20)["evaluations"] == 2 * 20 * expected
    few = training_flops(cfg, 10, 20)
    cfg.DATASETS.SOURCE, cfg.DATASETS.SOURCE_IMS_PER_BATCH = ("TinySource",), 4  # beside 8 of the target
    assert training_flops(cfg, 10, 20) == {**few, "steps": 1.5 * few["steps"]}


def _convolutions(cfg):
    from fastreid.modeling import build_backbone

    return [module for module in build_backbone(cfg).modules() if isinstance(module, torch.nn.Conv2d)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--configs", "markt"], "did you mean market"),
        (["--configs", "market", "--tolerance", "-1"], "--tolerance is -1"),
        (["--configs", "market", "--tflops", "0"], "--tflops is 0"),
        (["--configs", "market", "--", "SEED", "2"], "SEED cannot be among the options"),
        (["--configs", "market", "--", "SEED"], "KEY VALUE pairs"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), *arguments], trained(80.0, 90.0))
    assert said in capsys.readouterr().err


def test_a_run_without_the_test_set_is_named(tmp_path):
    folder = write_run(tmp_path / "run", DATASETS__TESTS=("MSMT17",))
    with pytest.raises(ValueError, match="run was never evaluated on Market1501"):
        compare("ICE", "Market1501", [folder], 1.0)


@pytest.mark.parametrize(
    ("keys", "changed", "said"),
    [
        ({"MODEL__BACKBONE__WITH_IBN": True}, [], "of ResNet-50-IBN"),
        ({"CLUSTERING__METHOD": "ground_truth"}, [], "trained as true labels"),
        ({}, [{"until_epoch": 1, "before": {"CLUSTERING.EPS": 0.6}}], "resumed with other keys"),
    ],
)
def test_another_model_or_method_reproduces_nothing(tmp_path, keys, changed, said):
    folder = write_run(tmp_path / "run", [row(1, 90.0, 95.0)], **keys)
    change(folder, changed=changed)
    assert compare("ICE", "Market1501", [folder], 1.0).verdict == f"not comparable: {said}"


def test_nothing_was_published_for_another_backbone():
    with pytest.raises(ValueError, match="No published numbers of ICE with OSNet on Market-1501"):
        compare("ICE", "Market1501", [], 1.0, backbone="OSNet")
