"""End to end on a tiny rendering: training, logging, checkpoints, resume, evaluation, errors."""

import json
import logging
import math
import shutil
from argparse import Namespace
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import pytest
import torch
from fastreid.utils.checkpoint import Checkpointer
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  (slow to import: not within a test)

from fastreid_ice.clustering import METHODS, Clusterer, agreement, check_clusters
from fastreid_ice.clustering.methods import Method
from fastreid_ice.engine import EpochRecorder, ICETrainer, setup
from fastreid_ice.engine.checks import check_config
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.modeling import ICE
from fastreid_ice.report.manifest import read_manifest
from tests.conftest import ROOT, ice_config

pytestmark = pytest.mark.usefixtures("tiny_dataset")


def train(output_dir, resume=False, **overrides):
    cfg = ice_config(OUTPUT_DIR=str(output_dir), **overrides)
    trainer = ICETrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def records(output_dir) -> list[dict]:
    return json.loads((Path(output_dir) / "results.json").read_text())


def metrics(output_dir) -> list[dict]:
    return [json.loads(line) for line in (Path(output_dir) / "metrics.json").read_text().splitlines()]


WARM_UP = {"SOLVER__WARMUP_EPOCHS": 2}


@pytest.fixture(scope="module")
def two_epochs(tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = train(folder, **WARM_UP)
    return folder, trainer


class TestTwoEpochs:
    def test_weights_of_both_encoders_move(self, two_epochs):
        folder, trainer = two_epochs
        state = torch.load(folder / "model_0000.pth", weights_only=True)["model"]
        final = torch.load(folder / "model_final.pth", weights_only=True)["model"]
        parameters = {name for name, _ in trainer.model.named_parameters()} - {
            "heads.bottleneck.0.bias",
            "momentum_encoder.heads.bottleneck.0.bias",
        }
        assert [name for name in parameters if torch.equal(state[name], final[name])] == []

    def test_a_row_per_epoch(self, two_epochs):
        rows = records(two_epochs[0])
        assert [row["epoch"] for row in rows] == [0, 1, 2]
        assert "clusters" not in rows[0] and rows[0]["mAP"] > 0
        for row in rows[1:]:
            scalars = ("clusters", "outliers", "mean_cluster_size", "largest_cluster", "nmi", "ari", "mAP", "Rank-1")
            seconds = ("seconds_features", "seconds_search", "seconds_jaccard", "seconds_dbscan")
            losses = ("loss_agnostic", "loss_cross_camera", "loss_hard_instance", "loss_soft_instance")
            assert all(math.isfinite(row[name]) for name in scalars + seconds + losses)
        assert sum(row["best"] for row in rows) == 1

    def test_evaluation_and_clustering_reach_the_metrics_file(self, two_epochs):
        lines = metrics(two_epochs[0])
        assert len([line for line in lines if "mAP" in line]) == 3
        assert len([line for line in lines if "clustering/clusters" in line]) == 2
        assert [line["mAP"] for line in lines if "mAP" in line] == [row["mAP"] for row in records(two_epochs[0])]

    def test_checkpoints(self, two_epochs):
        folder, trainer = two_epochs
        names = sorted(path.name for path in folder.glob("*.pth"))
        assert names == ["model_0000.pth", "model_best.pth", "model_final.pth"]
        best = torch.load(folder / "model_best.pth", weights_only=True)
        rows = records(folder)
        assert best["metric"] == max(row["metric"] for row in rows[1:]) == trainer.run_state.best_metric
        state = {"seed": 1, "best_metric": best["metric"], "best_epoch": best["epoch"]}
        assert len(best["ice"].pop("labels")) == len(trainer.clustering.labels)
        assert best["ice"] == state
        assert any(name.startswith("momentum_encoder.") and "running_mean" in name for name in best["model"])

    def test_learning_rate(self, two_epochs):
        rates = [line["lr"] for line in metrics(two_epochs[0]) if "lr" in line]
        assert rates == pytest.approx([3.5e-5, 3.5e-4 * 0.55])

    def test_evaluating_the_checkpoint_gives_the_logged_scores(self, two_epochs):
        folder, trainer = two_epochs
        model = ICETrainer.build_model(trainer.cfg)
        Checkpointer(model).load(str(folder / "model_final.pth"))
        scores = ICETrainer.test(trainer.cfg, model)
        assert scores["mAP"] == pytest.approx(records(folder)[-1]["mAP"])

    def test_best_and_last_are_reported(self, two_epochs):
        _, trainer = two_epochs
        (recorder,) = (hook for hook in trainer._hooks if isinstance(hook, EpochRecorder))
        table = recorder.table()
        assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["start", "best", "last"]
        assert "mAP" in table and "Rank-1" in table


def test_the_manifest_of_a_finished_run(two_epochs):
    folder, trainer = two_epochs
    manifest = read_manifest(folder)
    rows = records(folder)
    assert manifest["status"] == "finished" and manifest["epochs_done"] == 2 and manifest["steps_done"] == 6
    assert manifest["images"] == len(trainer.data_loader.images) and manifest["identities"] == 8
    assert manifest["seed"] == 1 and manifest["hours"] > 0 and manifest["device"] == "cpu"
    assert manifest["clusters"] == rows[-1]["clusters"]
    assert manifest["scores"]["last"]["epoch"] == 2 and manifest["differences"]["SOLVER.MAX_EPOCH"] == 2
    assert str(folder) not in json.dumps(manifest)


def test_hooks_in_order(two_epochs):
    names = [type(hook).__name__ for hook in two_epochs[1]._hooks]
    assert names == [
        "IterationTimer",
        "LRScheduler",
        "ClusteringHook",
        "StepHook",
        "BufferSyncHook",
        "EvaluationHook",
        "BestEpochHook",
        "WriterHook",
        "EpochRecorder",
        "ManifestHook",
        "CheckpointHook",
    ]


def test_resume_equals_uninterrupted(two_epochs, tmp_path):
    """Bit for bit, after an interruption between the epochs."""

    class InterruptedError(Exception):
        pass

    cfg = ice_config(OUTPUT_DIR=str(tmp_path), **WARM_UP)
    trainer = ICETrainer(cfg)
    trainer.resume_or_load(resume=False)
    run_step = trainer.run_step

    def interrupt_in_second_epoch():
        if trainer.epoch == 1 and trainer.iter == 4:
            raise InterruptedError
        run_step()

    trainer.run_step = interrupt_in_second_epoch
    with pytest.raises(InterruptedError):
        trainer.train()
    interrupted = read_manifest(tmp_path)
    assert interrupted["status"] == "interrupted" and interrupted["epochs_done"] == 1
    torch.manual_seed(99)  # whatever the state of the generators was
    train(tmp_path, resume=True, **WARM_UP)
    whole = torch.load(two_epochs[0] / "model_final.pth", weights_only=True)
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])
    assert torch.equal(whole["ice"].pop("labels"), resumed["ice"].pop("labels"))
    assert whole["ice"] == resumed["ice"] and whole["lr_sched"] == resumed["lr_sched"]
    for name, state in whole["optimizer"]["state"].items():
        assert all(torch.equal(state[key], resumed["optimizer"]["state"][name][key]) for key in state)
    assert read_manifest(tmp_path)["status"] == "finished"
    assert read_manifest(tmp_path)["hours"] > interrupted["hours"]
    kept = ("epoch", "mAP", "clusters", "loss_agnostic", "best")
    rows, resumed_rows = records(two_epochs[0]), records(tmp_path)
    assert [[row.get(k) for k in kept] for row in rows] == [[row.get(k) for k in kept] for row in resumed_rows]


def test_resuming_a_finished_run_evaluates(two_epochs):
    folder, _ = two_epochs
    again = ICETrainer(ice_config(OUTPUT_DIR=str(folder), **WARM_UP))
    again.resume_or_load(resume=True)
    assert again.start_epoch == 2
    scores = again.train()
    assert scores["mAP"] == pytest.approx(records(folder)[-1]["mAP"])


def test_best_survives_a_resume(two_epochs):
    folder, trainer = two_epochs
    again = ICETrainer(ice_config(OUTPUT_DIR=str(folder), SOLVER__MAX_EPOCH=3, **WARM_UP))
    again.resume_or_load(resume=True)
    assert again.run_state == trainer.run_state and again.run_state.best_metric > 0


def test_drawn_seed_is_kept_by_a_resume(tmp_path):
    first = train(tmp_path, SEED=-1, SOLVER__MAX_EPOCH=1)
    again = ICETrainer(ice_config(OUTPUT_DIR=str(tmp_path), SEED=-1))
    again.resume_or_load(resume=True)
    assert again.run_state.seed == again.clustering.state.seed == first.run_state.seed


def test_stability_is_the_agreement_with_the_clustering_before(two_epochs, tmp_path, monkeypatch):
    """Known to a resumed run too; the first clustering has none before it."""
    folder, trainer = two_epochs
    rows = {row["epoch"]: row for row in records(folder)}
    assert "stability" not in rows[1] and -1 <= rows[2]["stability"] <= 1
    last = [int(line.rsplit(",", 3)[1]) for line in (folder / "clusters.csv").read_text().splitlines()[1:]]
    assert trainer.run_state.labels.tolist() == last
    shutil.copytree(folder, tmp_path / "run")
    again = ICETrainer(ice_config(OUTPUT_DIR=str(tmp_path / "run"), SOLVER__MAX_EPOCH=3, **WARM_UP))
    again.resume_or_load(resume=True)
    again.train()
    now = again.clustering.labels.numpy()
    assert records(tmp_path / "run")[-1]["stability"] == pytest.approx(agreement(np.array(last), now))


def test_ground_truth_labels(tmp_path):
    train(tmp_path, CLUSTERING__METHOD="ground_truth", SOLVER__MAX_EPOCH=1, TEST__EVAL_START=False)
    (row,) = records(tmp_path)
    assert row["clusters"] == 8 and row["outliers"] == 0 and row["nmi"] == row["ari"] == pytest.approx(1)


def test_camera_agnostic(tmp_path):
    losses = ("AgnosticLoss", "HardInstanceLoss", "SoftInstanceLoss")
    trainer = train(tmp_path, DATASETS__USE_CAMERAS=False, MODEL__LOSSES__NAME=losses, SOLVER__MAX_EPOCH=1)
    assert "loss_cross_camera" not in records(tmp_path)[-1]
    assert trainer.model.memory.proxy_camids.unique().tolist() == [0]


def test_evaluation_only_at_the_end(tmp_path):
    train(tmp_path, TEST__EVAL_PERIOD=0, TEST__EVAL_START=False, SOLVER__CHECKPOINT_PERIOD=0)
    rows = records(tmp_path)
    assert "mAP" not in rows[0] and rows[1]["mAP"] > 0 and rows[1]["best"]
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_best.pth", "model_final.pth"]


def test_old_checkpoints_make_room(tmp_path):
    keys = {"SOLVER__ITERS_PER_EPOCH": 1, "SOLVER__CHECKPOINT_KEEP": 2, "TEST__EVAL_PERIOD": 0}
    train(tmp_path, SOLVER__MAX_EPOCH=3, **keys)
    (tmp_path / "model_0030.pth").write_bytes(b"of an epoch that the resumed run has passed over")
    train(tmp_path, resume=True, SOLVER__MAX_EPOCH=5, **keys)
    periodic = sorted(path.name for path in tmp_path.glob("model_0*.pth"))
    assert periodic == ["model_0001.pth", "model_0003.pth", "model_0030.pth"]  # model_final.pth is of epochs 2 and 4


def test_period_of_the_clustering(tmp_path):
    train(tmp_path, CLUSTERING__PERIOD=2, SOLVER__MAX_EPOCH=3, SOLVER__ITERS_PER_EPOCH=1, TEST__EVAL_PERIOD=0)
    assert ["clusters" in row for row in records(tmp_path)[1:]] == [True, False, True]


@pytest.fixture
def nobody_knows(tiny_dataset):
    """A dataset ``Nobody``: the tiny one without identities; gone afterwards."""
    from fastreid.data.datasets import DATASET_REGISTRY

    from tests.tiny import TinyReID

    class Nobody(TinyReID):
        def __init__(self, root="datasets", **kwargs):
            super().__init__(root, **kwargs)
            self._train = [(path, None, camera) for path, _, camera in self.train]

    class NoCameras(Nobody):
        def __init__(self, root="datasets", **kwargs):
            super().__init__(root, **kwargs)
            self._train = [(path, None, None) for path, _, _ in self.train]

    DATASET_REGISTRY.register(Nobody)
    DATASET_REGISTRY.register(NoCameras)
    yield
    del DATASET_REGISTRY._obj_map["Nobody"], DATASET_REGISTRY._obj_map["NoCameras"]


@pytest.mark.usefixtures("nobody_knows")
class TestWithoutLabels:
    AGNOSTIC = {"MODEL__LOSSES__NAME": ("AgnosticLoss", "SoftInstanceLoss"), "DATASETS__USE_CAMERAS": False}

    def test_same_weights_no_scores(self, two_epochs, tmp_path):
        """Identities are only scored against: without them the same weights come out."""
        train(tmp_path, DATASETS__NAMES=("Nobody",), **WARM_UP)
        whole = torch.load(two_epochs[0] / "model_final.pth", weights_only=True)["model"]
        blind = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
        assert all(torch.equal(whole[name], blind[name]) for name in whole)
        assert not {"nmi", "ari"} & set(records(tmp_path)[-1]) and records(tmp_path)[-1]["mAP"] > 0
        assert read_manifest(tmp_path)["identities"] is None

    def test_no_evaluation_without_test_sets(self, tmp_path):
        trainer = train(tmp_path, DATASETS__NAMES=("Nobody",), DATASETS__TESTS=(), SOLVER__MAX_EPOCH=1)
        assert not any(type(hook).__name__ == "EvaluationHook" for hook in trainer._hooks)
        names = sorted(path.name for path in tmp_path.glob("*.pth"))
        assert names == ["model_final.pth"] and "mAP" not in records(tmp_path)[-1]
        again = ICETrainer(ice_config(OUTPUT_DIR=str(tmp_path), DATASETS__TESTS=(), SOLVER__MAX_EPOCH=1))
        again.resume_or_load(resume=True)
        assert again.train() is None

    def test_without_cameras(self, tmp_path):
        with pytest.raises(ValueError, match="NoCameras of DATASETS.NAMES has images without camera ids.*USE_CAMERAS"):
            train(tmp_path, DATASETS__NAMES=("NoCameras",))
        train(tmp_path, DATASETS__NAMES=("NoCameras",), DATASETS__TESTS=(), SOLVER__MAX_EPOCH=1, **self.AGNOSTIC)
        assert records(tmp_path)[-1]["clusters"] >= 2

    def test_true_labels_that_are_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="ground_truth needs the true identities"):
            train(tmp_path, DATASETS__NAMES=("Nobody",), CLUSTERING__METHOD="ground_truth", TEST__EVAL_START=False)


def test_precise_bn(tmp_path, monkeypatch):
    passes = []
    move = ICE._move_batch_statistics
    monkeypatch.setattr(ICE, "_move_batch_statistics", lambda model, batch: passes.append(1) or move(model, batch))
    overrides = {"ENABLED": True, "DATASET": "TinyReID", "NUM_ITER": 2}
    overrides = {f"TEST__PRECISE_BN__{key}": value for key, value in overrides.items()}
    train(tmp_path, SOLVER__MAX_EPOCH=1, **overrides)
    assert len(passes) == 2 and records(tmp_path)[-1]["mAP"] > 0


def test_warm_up_by_epoch(tmp_path):
    settings = {"SOLVER__WARMUP_EPOCHS": 2, "SOLVER__MAX_EPOCH": 4, "SOLVER__ITERS_PER_EPOCH": 1}
    trainer = train(tmp_path, SOLVER__STEPS=[3], TEST__EVAL_PERIOD=0, **settings)
    rates = [rate for rate, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([3.5e-5, 3.5e-4 * 0.55, 3.5e-4, 3.5e-5])


def test_too_few_clusters_names_the_keys(tmp_path):
    with pytest.raises(ValueError, match=r"no cluster.*CLUSTERING.EPS \(now 0.01\).*CLUSTERING.MIN_SAMPLES"):
        train(tmp_path, CLUSTERING__EPS=0.01, CLUSTERING__MIN_SAMPLES=30, TEST__EVAL_START=False)


def test_advice_fits_what_was_found():
    config = clustering_config(ice_config(), seed=1)
    with pytest.raises(ValueError, match="5 clusters and 100 outliers, but .*raise CLUSTERING.EPS"):
        check_clusters(5, 100, 8, config)
    with pytest.raises(ValueError, match="1 cluster and no outlier.*Lower CLUSTERING.EPS"):
        check_clusters(1, 0, 8, config)
    check_clusters(8, 0, 8, config)


@pytest.mark.parametrize(("epoch", "eps"), [(0, 0.55), (1, 0.5), (2, 0.45), (7, 0.45), (None, 0.45)])
def test_eps_of_an_epoch(epoch, eps):
    cfg = ice_config(CLUSTERING__EPS=0.55, CLUSTERING__EPS_END=0.45, SOLVER__MAX_EPOCH=3)
    config = clustering_config(cfg, 1, epoch)
    assert config.eps == pytest.approx(eps) and not config.extra
    assert clustering_config(ice_config(CLUSTERING__EPS=0.55), 1, epoch).eps == 0.55


def test_outliers_as_instances(tmp_path, monkeypatch):
    """The losses see classes behind the clusters, without cameras; reports keep to the clustering."""
    seen = []
    original = ICE._step_features
    monkeypatch.setattr(ICE, "_step_features", lambda *args: (seen.append(original(*args)), seen[-1])[1])
    trainer = train(
        tmp_path,
        CLUSTERING__OUTLIERS="instances",
        CLUSTERING__EPS=0.2,
        MODEL__ICE__MEMORY="MomentumMemory",
        SOLVER__MAX_EPOCH=1,
        SOLVER__ITERS_PER_EPOCH=20,
        TEST__EVAL_START=False,
    )
    row = records(tmp_path)[-1]
    clusters, outliers = int(row["clusters"]), int(row["outliers"])
    assert clusters >= 2 and outliers > 1
    written = [int(line.split(",")[1]) for line in (tmp_path / "clusters.csv").read_text().splitlines()[1:]]
    assert written.count(-1) == outliers and max(written) == clusters - 1
    memory = trainer.model.memory
    assert len(memory.centroids) == clusters + outliers and int(memory.proxy_labels.max()) == clusters - 1
    labels, camids = torch.cat([s.key_labels for s in seen]), torch.cat([s.key_camids for s in seen])
    assert torch.equal(labels >= clusters, camids < 0)
    assert 0 < (camids < 0).float().mean() <= 0.6  # DATALOADER.OUTLIER_SHARE 0.5, and the end of a pass
    losses = ("loss_agnostic", "loss_cross_camera", "loss_hard_instance", "loss_soft_instance")
    assert all(math.isfinite(row[name]) for name in losses)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"DATALOADER__OUTLIER_SHARE": 1.0}, None),
        ({"DATALOADER__OUTLIER_SHARE": 0.1}, "Clustering found 3 clusters and .* outliers, but a batch needs 8"),
        ({"CLUSTERING__OUTLIERS": "drop"}, "Clustering found 3 clusters and .* outliers, but a batch needs 8"),
        ({"CLUSTERING__METHOD": "none"}, "Clustering found no cluster"),
    ],
)
def test_outliers_fill_a_batch(tmp_path, monkeypatch, overrides, message):
    """Three clusters of two images, all others outliers; or no cluster."""
    few = Method(
        lambda features, *_: torch.where(torch.arange(len(features)) < 6, torch.arange(len(features)) // 2, -1)
    )
    monkeypatch.setitem(METHODS, "few", few)
    monkeypatch.setitem(METHODS, "none", Method(lambda features, *_: torch.full((len(features),), -1)))
    options = {
        "CLUSTERING__METHOD": "few",
        "CLUSTERING__OUTLIERS": "instances",
        "DATALOADER__OUTLIER_SHARE": 1.0,
        "DATALOADER__NUM_INSTANCE": 1,
        "SOLVER__MAX_EPOCH": 1,
        "SOLVER__ITERS_PER_EPOCH": 2,
        **overrides,
    }
    if message is None:
        assert train(tmp_path, **options).clustering.targets.max() == 50
        return
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)


def test_outliers_of_a_track_are_one_instance(tmp_path):
    trainer = train(
        tmp_path,
        DATASETS__NAMES=("TinyTracks",),
        CLUSTERING__TRACKS="must_link",
        CLUSTERING__OUTLIERS="instances",
        CLUSTERING__K1=3,
        CLUSTERING__K2=1,
        SOLVER__MAX_EPOCH=1,
        SOLVER__ITERS_PER_EPOCH=1,
        TEST__EVAL_START=False,
    )
    hook, tracks = trainer.clustering, trainer.clustering.images.tracks.ids
    outliers = hook.labels < 0
    assert len(tracks[outliers].unique()) < outliers.sum() and hook.labels.max() >= 1
    pairs = torch.stack([tracks, hook.targets])[:, outliers].unique(dim=1)
    assert len(pairs[0].unique()) == len(pairs[1].unique()) == pairs.shape[1]  # a label a track, a track a label
    assert sorted(pairs[1].tolist()) == list(range(int(hook.labels.max()) + 1, len(trainer.model.memory.centroids)))


def test_every_recipe_key_in_one_run(tmp_path, monkeypatch):
    """Camera-normalised clustering, a falling eps and a memory that moves reach the run."""
    clusterings = []
    original = Clusterer.__call__
    monkeypatch.setattr(
        Clusterer, "__call__", lambda self, *args: (clusterings.append(self.config), original(self, *args))[1]
    )
    trainer = train(
        tmp_path,
        CLUSTERING__CAMERA_NORMALIZATION=True,
        CLUSTERING__WCCN_ROUNDS=1,
        CLUSTERING__EPS_END=0.4,
        MODEL__ICE__MEMORY="MomentumMemory",
        TEST__EVAL_START=False,
    )
    assert [(c.camera_normalization, round(c.eps, 6)) for c in clusterings] == [(True, clusterings[0].eps), (True, 0.4)]
    memory = trainer.model.memory
    torch.testing.assert_close(memory.centroids.norm(dim=1), torch.ones(len(memory.centroids)))
    assert records(tmp_path)[-1]["seconds_cameras"] > 0 and records(tmp_path)[-1]["seconds_whitening"] > 0


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"SOLVER__IMS_PER_BATCH": 10}, "SOLVER.IMS_PER_BATCH"),
        ({"MODEL__ICE__BN_CHUNKS": 3}, "MODEL.ICE.BN_CHUNKS"),
        ({"MODEL__ICE__BN_CHUNKS": 8}, "at least 2"),
        ({"SOLVER__WARMUP_EPOCHS": 1, "SOLVER__WARMUP_ITERS": 1}, "SOLVER.WARMUP_EPOCHS"),
        ({"DATALOADER__SAMPLER_TRAIN": "NaiveIdentitySampler"}, "IdentityCameraSampler"),
        ({"SOLVER__ITERS_PER_EPOCH": 0}, "SOLVER.ITERS_PER_EPOCH"),
        ({"CLUSTERING__PERIOD": 0}, "CLUSTERING.PERIOD"),
        ({"CLUSTERING__OUTLIERS": "keep"}, "CLUSTERING.OUTLIERS is 'keep'; it must be one of drop, instances"),
        ({"DATALOADER__OUTLIER_SHARE": 0.0}, "DATALOADER.OUTLIER_SHARE is 0.0; it must be above 0"),
        ({"CLUSTERING__EPS_END": 1.0}, "CLUSTERING.EPS_END is 1.0"),
        (
            {"CLUSTERING__METHOD": "ca_jaccard_dbscan", "DATASETS__USE_CAMERAS": False}
            | {"MODEL__LOSSES__NAME": ("AgnosticLoss",)},
            "CLUSTERING.METHOD ca_jaccard_dbscan needs camera ids",
        ),
        (
            {"CLUSTERING__CAMERA_NORMALIZATION": True, "DATASETS__USE_CAMERAS": False}
            | {"MODEL__LOSSES__NAME": ("AgnosticLoss",)},
            "CLUSTERING.CAMERA_NORMALIZATION needs camera ids",
        ),
        ({"MODEL__ICE__MOMENTUM_MEMORY__UPDATE": "last", "MODEL__ICE__MEMORY": "MomentumMemory"}, "UPDATE is 'last'"),
        ({"MODEL__LOSSES__NAME": ("HardMeanLoss",)}, "needs MODEL.ICE.MEMORY HardMeanMemory, not MemoryBank"),
    ],
)
def test_contradictions_in_the_config(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_config(ice_config(**overrides))


def test_setup_moves_to_the_cpu_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    opts = ["OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_EPOCH", 3]
    cfg = setup(Namespace(config_file=str(ROOT / "configs/ICE/market.yml"), opts=opts, eval_only=False))
    for name in ("fastreid", "fastreid_ice"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()
    log = (tmp_path / "log.txt").read_text()
    assert cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.MAX_EPOCH == 3
    assert log.count("CUDA is not available: MODEL.DEVICE is cpu") == 1
    assert (tmp_path / "config.yaml").is_file() and cfg.is_frozen()
