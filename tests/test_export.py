"""The fastreid format: files that stock fastreid reads as they are, and evaluates as we do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
import yaml
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer

from fastreid_ice.cli.export import main
from fastreid_ice.config_files import load_config
from fastreid_ice.engine.checkpoints import load_trained_model
from fastreid_ice.export import export_model
from fastreid_ice.export.card import labels_used, metrics, model_card, start_weights
from fastreid_ice.export.encoder import stock_encoder
from fastreid_ice.export.naming import (
    SPECIAL_WORDS,
    ZOO_DATASETS,
    tracker_backbone,
    tracker_name,
    zoo_backbone,
    zoo_names,
)
from fastreid_ice.export.staging import staged
from fastreid_ice.export.stock_config import differences, stock_config
from fastreid_ice.export.zoo import read_back
from fastreid_ice.files import sha256
from fastreid_ice.modeling.bn_chunks import ChunkedBatchNorm
from tests.conftest import ROOT
from tests.exported_runs import people, trained_run, untrained_run

pytestmark = pytest.mark.usefixtures("tiny_dataset")

NAME, CONFIG = "tinyreid_ice_osnet_x0_25", "configs/TinyReID/ice_osnet_x0_25.yml"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset):
    return trained_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def zoo(run):
    main([str(run), "--output", str(run.parent / "zoo")])
    return run.parent / "zoo"


def test_stock_fastreid_reads_it_without_this_package(run, zoo):
    """Its config and its builder alone, weights loaded strictly, the same features."""
    images = people(4)
    torch.save(images, zoo.parent / "images.pt")
    code = f"""
        import sys
        sys.modules["fastreid_ice"] = None  # importing it is an error
        import torch
        from fastreid.config import get_cfg
        from fastreid.modeling import build_model
        cfg = get_cfg()
        cfg.merge_from_file({str(zoo / CONFIG)!r})
        assert cfg.MODEL.META_ARCHITECTURE == "Baseline" and cfg.MODEL.HEADS.NAME == "EmbeddingHead"
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg).eval()
        weights = torch.load({str(zoo / (NAME + ".pth"))!r}, weights_only=True)["model"]
        model.load_state_dict(weights, strict=True)
        with torch.no_grad():
            torch.save(model(torch.load({str(zoo.parent / "images.pt")!r})), {str(zoo.parent / "features.pt")!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    with torch.no_grad():
        expected = load_trained_model(run, device="cpu").model(images)
    assert torch.allclose(torch.load(zoo.parent / "features.pt"), expected, atol=1e-5, rtol=0)


def test_fastreids_evaluation_gives_the_same_scores(run, zoo):
    cfg = get_cfg()
    cfg.merge_from_file(str(zoo / CONFIG))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "DATASETS.TESTS", ("TinyReID",)])
    scores = DefaultTrainer.test(cfg, read_back(zoo / CONFIG, zoo / f"{NAME}.pth"))
    ours = json.loads((run / "results.json").read_text())[-1]
    for name in ("mAP", "Rank-1", "Rank-5", "mINP"):
        assert scores[name] / 100 == pytest.approx(ours[name] / 100, abs=1e-6)  # fastreid's ranks are float32


def test_the_config_holds_fastreids_keys_alone(zoo):
    settings = yaml.safe_load((zoo / CONFIG).read_text())
    assert settings["MODEL"] == {
        "BACKBONE": {"NAME": "build_osnet_backbone", "DEPTH": "x0_25", "FEAT_DIM": 128},
        "HEADS": {"NUM_CLASSES": 1, "WITH_BNNECK": True},
    }
    assert settings["DATASETS"] == {"NAMES": [], "TESTS": []}  # stock fastreid does not know TinyReID
    assert settings["INPUT"]["SIZE_TEST"] == [64, 32]
    assert settings["OUTPUT_DIR"] == "logs/tinyreid/ice_osnet_x0_25"


def test_the_encoder_that_evaluates_is_exported(run, tmp_path):
    for encoder, prefix in (("momentum", "momentum_encoder."), ("online", "")):
        export_model(run, output=tmp_path / encoder, opts=["MODEL.ICE.EVAL_ENCODER", encoder])
        weights = torch.load(tmp_path / encoder / f"{NAME}.pth", weights_only=True)["model"]
        stored = torch.load(run / "model_final.pth", weights_only=True)["model"]
        for name in ("backbone.conv1.conv.weight", "heads.bottleneck.0.running_mean"):
            assert torch.equal(weights[name], stored[prefix + name])
    assert weights["heads.weight"].shape == (1, 128)


def test_the_card_tells_where_the_weights_are_from(run, zoo):
    text = (zoo / f"{NAME}.json").read_text()
    card = json.loads(text)
    rows = json.loads((run / "results.json").read_text())
    assert card["sha256"] == sha256(zoo / f"{NAME}.pth")
    assert card["metrics"]["exported"]["TinyReID"]["mAP"] == pytest.approx(rows[-1]["mAP"])
    assert card["metrics"]["last"]["epoch"] == 1
    assert card["images"] == json.loads((run / "run.json").read_text())["images"]
    assert card["clusters"] == rows[-1]["clusters"] and card["seed"] == 1
    assert card["labels"] == "no identity labels were used for training"
    assert card["selected_by"] == "best evaluation on the labelled test set"
    assert len(card["left_out"]) == 2 and "TinyReID" in card["left_out"][0]
    assert card["ice_config"]["CLUSTERING"]["K1"] == 6 and "BACKBONE" not in card["ice_config"]["MODEL"]
    assert str(run.parent) not in text


def test_the_row_is_the_zoos(run, zoo):
    head, _, row = (zoo / f"{NAME}.md").read_text().splitlines()
    scores = json.loads((run / "results.json").read_text())[-1]
    assert head == "| Method | Pretrained | Rank@1 | mAP | mINP | download |"
    assert row == (
        f"| [ICE(osnet_x0_25)]({CONFIG}) | random | {scores['Rank-1']:.1f}% | {scores['mAP']:.1f}% | "
        f"{scores['mINP']:.1f}% | [model]({NAME}.pth) |"
    )


def test_camera_normalised_scores_are_not_in_the_row(run, tmp_path):
    """Stock fastreid could not give them."""
    result = export_model(run, output=tmp_path, opts=["TEST.CAMERA_NORMALIZATION", True])
    assert any(note.startswith("TEST.CAMERA_NORMALIZATION") for note in result.notes)
    row = (tmp_path / f"{NAME}.md").read_text().splitlines()[-1]
    assert not re.search(r"\d\d\.\d", row)


def test_scores_are_those_of_the_run_or_none(run, tmp_path):
    """Keys after the options change what is exported, not what was measured."""
    scores = json.loads((run / "results.json").read_text())[-1]
    result = export_model(run, output=tmp_path / "named", opts=["DATASETS.TESTS", ("Market1501",)])
    card = json.loads((tmp_path / "named" / f"{NAME}.json").read_text())
    assert card["metrics"]["exported"]["TinyReID"]["mAP"] == pytest.approx(scores["mAP"])
    assert card["datasets"]["tests"] == ["TinyReID"] and f"| {scores['mAP']:.1f}% |" in result.table_row
    for key, value in (("MODEL.ICE.EVAL_ENCODER", "online"), ("INPUT.SIZE_TEST", (32, 16)), ("TEST.METRIC", "jaccard")):
        result = export_model(run, output=tmp_path / "other", opts=[key, value])
        card = json.loads((tmp_path / "other" / f"{NAME}.json").read_text())
        assert card["metrics"]["exported"] is None and card["metrics"]["last"]["TinyReID"]["mAP"] > 0
        assert "| random | - | - | - |" in result.table_row
        assert any(note.startswith(f"{key}: the run was evaluated with another value") for note in result.notes)
    assert "METRIC" not in (tmp_path / "other" / CONFIG).read_text()  # stock fastreid could not rank by it


def test_reranked_scores_are_called_so(run, tmp_path):
    for name in ("model_final.pth", "results.json", "run.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = (run / "config.yaml").read_text()
    assert config.count("  RERANK:\n    ENABLED: false\n") == 1
    (tmp_path / "config.yaml").write_text(
        config.replace("  RERANK:\n    ENABLED: false\n", "  RERANK:\n    ENABLED: true\n")
    )
    result = export_model(tmp_path, output=tmp_path / "zoo")
    assert result.table_row.startswith("| [ICE(osnet_x0_25), re-ranked](")
    assert json.loads((tmp_path / "zoo" / f"{NAME}.json").read_text())["protocol"] == "re-ranked"


def test_a_row_names_a_test_set_that_is_not_the_training_sets(run, tmp_path):
    for name in ("model_final.pth", "config.yaml"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = (tmp_path / "config.yaml").read_text()
    assert config.count("TESTS:\n  - TinyReID\n") == 1
    (tmp_path / "config.yaml").write_text(config.replace("TESTS:\n", "TESTS:\n  - DukeMTMC\n"))
    scores = {"DukeMTMC/mAP": 30.0, "DukeMTMC/Rank-1": 40.0, "TinyReID/mAP": 50.0, "TinyReID/Rank-1": 60.0}
    (tmp_path / "results.json").write_text(json.dumps([{"epoch": 1, **scores}]))
    export_model(tmp_path, output=tmp_path / "zoo")
    rows = (tmp_path / "zoo" / f"{NAME}.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] + "|" + row.split(" | ")[3] for row in rows] == [
        f"| [ICE(osnet_x0_25), tested on DukeMTMC-reID]({CONFIG})|30.0%",
        f"| [ICE(osnet_x0_25)]({CONFIG})|50.0%",
    ]


def test_another_method_has_its_own_name(run, tmp_path):
    losses = ["MODEL.LOSSES.NAME", ("AgnosticLoss", "IntraCameraLoss")]
    assert any("--name names the method" in note for note in export_model(run, output=tmp_path, opts=losses).notes)
    result = export_model(run, output=tmp_path / "cap", name="CAP v2", opts=losses)
    assert not any("--name" in note for note in result.notes)
    assert "[CAP v2(osnet_x0_25)](configs/TinyReID/cap_v2_osnet_x0_25.yml)" in result.table_row
    assert {path.name for path in result.files} >= {"tinyreid_cap_v2_osnet_x0_25.pth", "cap_v2_osnet_x0_25.yml"}
    (graph, beside) = export_model(run, format="torchscript", output=tmp_path, name="CAP", raw_output=True).files
    assert graph.name == "osnet_x0_25_tinyreid_cap_raw.torchscript"
    assert json.loads(beside.read_text())["method"] == "CAP"
    with pytest.raises(ValueError, match="--name is '--'"):
        export_model(run, output=tmp_path, name="--")


def test_files_of_another_checkpoint_are_not_replaced_silently(run, tmp_path):
    assert not any("replaced" in note for _ in range(2) for note in export_model(run, output=tmp_path).notes)
    other = tmp_path / "other" / "model_final.pth"
    other.parent.mkdir()
    state = torch.load(run / "model_final.pth", weights_only=True)
    torch.save({**state, "epoch": 7}, other)
    (other.parent / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    notes = export_model(other, output=tmp_path).notes
    assert any(f"{NAME}.json was of another checkpoint" in note for note in notes)


def test_a_checkpoint_alone_is_enough(run, tmp_path):
    """Of an interrupted run, or taken out of its folder: what is not known is null."""
    alone = tmp_path / "alone" / "model_0000.pth"
    alone.parent.mkdir()
    alone.write_bytes((run / "model_final.pth").read_bytes())
    result = export_model(alone, config_file=run / "config.yaml", output=tmp_path / "out")
    card = json.loads((tmp_path / "out" / f"{NAME}.json").read_text())
    assert card["metrics"] == {"best": None, "last": None, "exported": None}
    assert card["images"] is None and card["clusters"] is None and card["epoch"] == 1
    assert result.table_row is not None and "| random | - | - | - |" in result.table_row
    assert result.max_difference < 1e-5


def test_damaged_files_of_the_run_are_left_out(run, tmp_path):
    for name in ("model_final.pth", "config.yaml"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "results.json").write_text("[{]")
    (tmp_path / "run.json").write_text('{"scores": 3, "clusters": "many"}')
    (tmp_path / "clusters.csv").write_text("path,label,camera\na.jpg,1,0\nb.jpg,1,0\n")
    cfg = load_config(tmp_path / "config.yaml")
    card = model_card(cfg, {}, tmp_path / "model_final.pth", {})
    assert card["metrics"]["best"] is None and card["clusters"] is None and card["images"] == 2


def test_metrics_of_several_test_sets():
    rows = [
        {"epoch": 1, "A/mAP": 50.0, "B/mAP": 30.0, "A/Rank-1": 60.0, "B/Rank-1": 40.0, "best": True},
        {"epoch": 2, "A/mAP": 40.0, "B/mAP": 31.0, "A/Rank-1": 50.0, "B/Rank-1": 41.0, "best": False},
        {"epoch": 3, "loss_agnostic": 1.0, "best": False},
    ]
    found = metrics(rows, ["A", "B"], epoch=1, manifest={})
    assert found["best"] == {"epoch": 1, "A": {"mAP": 50.0, "Rank-1": 60.0}, "B": {"mAP": 30.0, "Rank-1": 40.0}}
    assert found["last"] == found["exported"] and found["last"]["epoch"] == 2
    assert metrics(rows, ["A", "B"], epoch=2, manifest={})["exported"] is None
    assert metrics([], ["A"], epoch=None, manifest={"scores": {"best": {"epoch": 7}}})["best"] == {"epoch": 7}


def test_labels_and_start_weights_are_told():
    cfg = load_config(ROOT / "configs" / "ICE" / "market.yml")
    assert start_weights(cfg) == "ImageNet" and labels_used(cfg) == "no identity labels were used for training"
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = "/home/somebody/osnet_msmt17.pth"
    assert start_weights(cfg) == "osnet_msmt17.pth"
    assert "may have been trained with labels" in labels_used(cfg) and "somebody" not in labels_used(cfg)
    cfg.DATASETS.SOURCE = ("DukeMTMC",)
    assert labels_used(cfg).startswith(
        "no identity labels were used for training but those of DukeMTMC (DATASETS.SOURCE)"
    )
    assert zoo_names(cfg)[0] == "market_ice_source_R50"
    cfg.CLUSTERING.METHOD = "ground_truth"
    assert labels_used(cfg).startswith("identity labels of the training set were used")


@pytest.mark.parametrize(
    "file, weights, config, onnx",
    [
        ("market", "market_ice_R50", "configs/Market1501/ice_R50.yml", "resnet50_market1501_ice"),
        ("market_ibn", "market_ice_R50-ibn", "configs/Market1501/ice_R50-ibn.yml", "resnet50_ibn_market1501_ice"),
        (
            "duke_agnostic",
            "duke_ice_agnostic_R50",
            "configs/DukeMTMC/ice_agnostic_R50.yml",
            "resnet50_dukemtmc_ice_agnostic",
        ),
        ("msmt17", "msmt_ice_R50", "configs/MSMT17/ice_R50.yml", "resnet50_msmt17_ice"),
        ("veri", "veri_ice_R50", "configs/VeRi/ice_R50.yml", "resnet50_ve_ri_ice"),
        (
            "market_cpu",
            "market_ice_osnet_x0_25",
            "configs/Market1501/ice_osnet_x0_25.yml",
            "osnet_x0_25_market1501_ice",
        ),
    ],
)
def test_names(file, weights, config, onnx):
    cfg = load_config(ROOT / "configs" / "ICE" / f"{file}.yml")
    assert zoo_names(cfg) == (weights, config)
    assert tracker_name(cfg) == onnx and tracker_name(cfg, "raw255") == f"{onnx}_raw255"


@pytest.mark.parametrize("dataset", [*ZOO_DATASETS, "VeRiClips", "VehicleID"])
def test_trackers_are_not_misled_by_a_name(dataset):
    cfg = load_config(ROOT / "configs" / "ICE" / "market.yml", ["DATASETS.NAMES", (dataset,)])
    assert not any(word in tracker_name(cfg) for word in SPECIAL_WORDS)


@pytest.mark.parametrize(
    "name, depth, zoo, tracker",
    [
        ("build_resnest_backbone", "50x", "S50", "resnest50"),
        ("build_resnext_backbone", "101x", "X101", "resnext101"),
        ("build_mobilenetv2_backbone", "0.25x", "mobilenetv2_x0_25", "mobilenetv2_x0_25"),
        ("build_mobilenetv3_backbone", "Large", "mobilenetv3_Large", "mobilenetv3_large"),
        ("build_repvgg_backbone", "B1g2", "repvgg_B1g2", "repvgg_b1g2"),
        ("my net/v2", "", "my_net_v2", "my_net_v2"),
    ],
)
def test_names_of_backbones(name, depth, zoo, tracker):
    backbone = {"NAME": name, "DEPTH": depth}
    assert (zoo_backbone(backbone), tracker_backbone(backbone)) == (zoo, tracker)


def test_stock_datasets_stay_in_the_config():
    cfg = load_config(ROOT / "configs" / "ICE" / "msmt17.yml", ["TEST.EVAL_PERIOD", 0, "MODEL.DEVICE", "cpu"])
    stock, notes = stock_config(cfg, "logs/a")
    found = differences(stock)
    assert found["DATASETS"] == {"NAMES": [], "TESTS": ["MSMT17"]} and "MSMT17TrainVal" in notes[0] and len(notes) == 1
    assert "DEVICE" not in found["MODEL"] and "PRETRAIN" not in found["MODEL"].get("BACKBONE", {})
    assert stock.TEST.EVAL_PERIOD > 0 and stock.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"
    assert stock.MODEL.LOSSES.NAME == ("CrossEntropyLoss",)


def test_the_exported_modules_are_ordinary(run):
    model = load_trained_model(run, device="cpu").model
    assert any(isinstance(layer, ChunkedBatchNorm) for layer in model.modules())
    encoder = stock_encoder(model)
    assert not any(isinstance(layer, ChunkedBatchNorm) for layer in encoder.modules())
    assert any(isinstance(layer, ChunkedBatchNorm) for layer in model.momentum_encoder.modules())  # it is a copy
    packages = {type(layer).__module__.split(".")[0] for layer in encoder.modules()}
    assert packages == {"torch", "fastreid", "fastreid_ice"}
    ours = {type(layer).__name__ for layer in encoder.modules() if type(layer).__module__.startswith("fastreid_ice")}
    assert ours == {"Encoder", "MemoryBankHead"}


def test_learnt_pooling_is_exported(tmp_path):
    more = {"MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPoolingP", "MODEL.HEADS.EMBEDDING_DIM": 16}
    run = untrained_run(tmp_path / "run", "osnet", "x0_25", 128, **more)
    export_model(run, output=tmp_path / "out")
    weights = torch.load(tmp_path / "out" / f"{NAME}.pth", weights_only=True)["model"]
    assert weights["heads.pool_layer.p"].item() == pytest.approx(3.15)  # 5 % above its start, as all of that encoder
    assert weights["heads.weight"].shape == (1, 16)


def test_staged_files_appear_together(tmp_path):
    output = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError, match="stop"), staged(output) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with staged(output) as folder:
            (folder / "c").mkdir()
            (folder / "c" / "file").write_text(text)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "a",
        "a/b",
        "a/b/c",
        "a/b/c/file",
    ]
    assert (output / "c" / "file").read_text() == "two"
