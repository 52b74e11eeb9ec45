"""Labelled images of a source beside the unlabelled target: data, normalisation by domain, memory, losses, runs."""

import copy
import json
import math
import os
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
import torch.nn.functional as F
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.layers.batch_norm import GhostBatchNorm
from fastreid.modeling import build_model
from torch import nn
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  (slow to import: not within a test)

from fastreid_ice.data.datasets import TrainingImages, load_training_images
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.data.loaders import EpochLoader
from fastreid_ice.data.source import load_source_images, sample_by_class_and_camera
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.checks import check_config
from fastreid_ice.modeling import ICE, MemoryBank, MomentumMemory, set_bn_chunks
from fastreid_ice.modeling.domain_statistics import DomainStatistics
from fastreid_ice.modeling.memory_bank import HardMeanMemory
from fastreid_ice.report.manifest import read_manifest
from tests import reference_losses
from tests.conftest import ice_config
from tests.tiny import TinySource

SOURCE = {"DATASETS__SOURCE": ("TinySource",)}


@pytest.fixture(scope="module", autouse=True)
def both_datasets(tiny_dataset):
    TinySource(root=os.environ["FASTREID_DATASETS"])


def load(**overrides) -> tuple[TrainingImages, TrainingImages]:
    cfg = ice_config(**{**SOURCE, **overrides})
    target = load_training_images(cfg)
    source = load_source_images(cfg, target)
    assert source is not None
    return target, source


@pytest.fixture
def registered():
    """Registers datasets for one test."""
    names = []

    def register(kind):
        DATASET_REGISTRY.register(kind)
        names.append(kind.__name__)

    yield register
    for name in names:
        del DATASET_REGISTRY._obj_map[name]


class TestImages:
    def test_true_identities_and_cameras_behind_those_of_the_target(self):
        target, source = load()
        assert target.camids.unique().tolist() == [0, 1, 2] and source.camids.unique().tolist() == [3, 4]
        assert source.identities.unique().tolist() == list(range(6)) and source.tracks is None
        for path, identity, camera in zip(source.paths, source.identities, source.camids):
            assert Path(path).name.startswith(f"{identity + 1:04d}_c{camera - 2}_")

    def test_without_cameras(self):
        target, source = load(DATASETS__USE_CAMERAS=False)
        assert target.camids.unique().tolist() == [0] and source.camids.unique().tolist() == [1]

    def test_none(self):
        cfg = ice_config()
        assert load_source_images(cfg, load_training_images(cfg)) is None

    def test_two_sources_share_no_class_and_no_camera(self, registered):
        class SameNumbers(TinySource):
            def __init__(self, root="datasets", **kwargs):
                super().__init__(root, **kwargs)
                self._train = [(f"{path}.png", identity, camera) for path, identity, camera in self.train]

        registered(SameNumbers)
        _, one = load()
        _, two = load(DATASETS__SOURCE=("TinySource", "SameNumbers"))
        assert two.identities.unique().tolist() == list(range(12)) and two.camids.unique().tolist() == [3, 4, 5, 6]
        assert len(two) == 2 * len(one)

    def test_without_identities(self, registered):
        class NobodyKnows(TinySource):
            def __init__(self, root="datasets", **kwargs):
                super().__init__(root, **kwargs)
                self._train = [(path, None, camera) for path, _, camera in self.train]

        registered(NobodyKnows)
        with pytest.raises(ValueError, match="NobodyKnows of DATASETS.SOURCE has .* images without identity"):
            load(DATASETS__SOURCE=("NobodyKnows",))

    def test_a_folder_with_and_without_identities(self, tiny_dataset):
        keys = {"PATH": str(tiny_dataset.parent / "tiny_source" / "bounding_box_train"), "CAMERA_FROM": "pattern"}
        keys["PATTERN"] = r"(?P<identity>\d+)_c(?P<camera>\d)"
        keys = {f"DATASETS__FOLDER__{key}": value for key, value in keys.items()}
        with pytest.raises(ValueError, match="UnlabeledFolder of DATASETS.SOURCE.*DATASETS.FOLDER.IDENTITY_FROM"):
            load(DATASETS__SOURCE=("UnlabeledFolder",), **keys)
        keys["DATASETS__FOLDER__IDENTITY_FROM"] = "pattern"
        assert load(DATASETS__SOURCE=("UnlabeledFolder",), **keys)[1].identities.equal(load()[1].identities)

    def test_an_image_of_the_target(self, registered):
        class TheSameImages(TinySource):
            dataset_dir = "tiny_reid"

            def _render(self, folder):
                return folder

        registered(TheSameImages)
        with pytest.raises(ValueError, match="images, such as .*jpg, belong to DATASETS.SOURCE and to DATASETS.NAMES"):
            load(DATASETS__SOURCE=("TheSameImages",))

    def test_too_few_classes(self):
        with pytest.raises(ValueError, match=r"has 6 classes, but a batch needs 8 \(DATASETS.SOURCE_IMS_PER_BATCH 32"):
            load(DATASETS__SOURCE_IMS_PER_BATCH=32)

    @pytest.mark.parametrize("count", [1, 2, 100])
    def test_sample_by_loops(self, count):
        _, source = load()
        found = sample_by_class_and_camera(source, count, seed=3).tolist()
        assert found == sorted(set(found))
        for identity in range(6):
            for camera in (3, 4):
                group = ((source.identities == identity) & (source.camids == camera)).nonzero().flatten().tolist()
                assert len(set(group) & set(found)) == min(count, len(group))
        if count == 1:
            assert found != sample_by_class_and_camera(source, count, seed=4).tolist()
            assert found == sample_by_class_and_camera(source, count, seed=3).tolist()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"SOURCE": ("Market1510",)}, "DATASETS.SOURCE is 'Market1510'.*did you mean Market1501"),
        ({"SOURCE": ("TinyReID",)}, "TinyReID is in DATASETS.SOURCE and in DATASETS.NAMES"),
        ({"SOURCE_IMS_PER_BATCH": -4}, "DATASETS.SOURCE_IMS_PER_BATCH is -4; it must be at least 0"),
        ({"SOURCE_IMS_PER_BATCH": 6}, r"DATASETS.SOURCE_IMS_PER_BATCH \(6\) must be a multiple of DATALOADER.NUM_INS"),
        ({"SOURCE_SAMPLE": -1}, "DATASETS.SOURCE_SAMPLE is -1"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        check_config(ice_config(**{**SOURCE, **{f"DATASETS__{key}": value for key, value in keys.items()}}))


def test_wrong_sizes():
    with pytest.raises(ValueError, match=r"BN_CHUNKS \(4\) must divide the 4 images.*DATASETS.SOURCE_IMS_PER_BATCH /"):
        check_config(ice_config(**SOURCE, DATASETS__SOURCE_IMS_PER_BATCH=4, MODEL__ICE__BN_CHUNKS=4))
    with pytest.raises(ValueError, match="MODEL.LOSSES.SOURCE_SCALE is 0.0; it must be above 0"):
        check_config(ice_config(**SOURCE, MODEL__LOSSES__SOURCE_SCALE=0.0))
    check_config(ice_config(**SOURCE, DATASETS__SOURCE_IMS_PER_BATCH=4, MODEL__ICE__BN_CHUNKS=2))


def batches(cfg, target, source, first=20) -> list[dict]:
    loader = EpochLoader(cfg, target, source)
    loader.start_epoch(target.identities, 5, source_labels=None if source is None else source.identities + first)
    found = list(loader)
    loader.close()
    return found


class TestBatches:
    @pytest.mark.parametrize("cache", ["none", "ram"])
    def test_target_then_source(self, cache):
        target, source = load()
        cfg = ice_config(**SOURCE, DATASETS__SOURCE_IMS_PER_BATCH=4, DATALOADER__CACHE=cache)
        found = batches(cfg, target, source)
        assert len(found) == 3
        for batch in found:
            assert batch["images"].shape[0] == batch["images_weak"].shape[0] == 12
            for path, label, camera in list(zip(batch["img_paths"], batch["targets"], batch["camids"]))[8:]:
                image = source.paths.index(path)
                assert label == source.identities[image] + 20 and camera == source.camids[image]
            assert batch["targets"][8:].unique().numel() == 1  # one class of four images
            assert set(batch["img_paths"][:8]) <= set(target.paths)
        assert len({tuple(batch["img_paths"][8:]) for batch in found}) == 3

    def test_the_target_s_part_is_what_it_is_without_a_source(self):
        """Bit for bit: the same images, in the same views."""
        target, source = load()
        alone = batches(ice_config(), target, None)
        for batch, other in zip(alone, batches(ice_config(**SOURCE), target, source)):
            for key in ("images", "images_key", "images_weak", "targets", "camids"):
                assert torch.equal(batch[key], other[key][:8])

    def test_workers_do_not_change_them(self):
        target, source = load()
        alone = batches(ice_config(**SOURCE), target, source)
        for batch, other in zip(alone, batches(ice_config(**SOURCE, DATALOADER__NUM_WORKERS=2), target, source)):
            assert all(torch.equal(batch[key], other[key]) for key in ("images", "images_key", "images_weak"))

    def test_features_of_some_images(self):
        _, source = load()
        chosen = torch.tensor([7, 2])
        (batch,) = list(build_feature_loader(ice_config(), source, chosen=chosen))
        assert batch["img_paths"] == [source.paths[7], source.paths[2]]


def network(kind=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(3, 4, 3), kind(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5))


class TestDomainStatistics:
    """Against a second network with the same weights that has only seen the other domain."""

    @pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, GhostBatchNorm])
    @pytest.mark.parametrize("chunks", [1, 2])
    def test_equals_a_network_of_its_own(self, kind, chunks):
        if chunks > 1 and kind is nn.SyncBatchNorm:
            pytest.skip("not in chunks")
        both = network(kind)
        set_bn_chunks(both, chunks)
        other = copy.deepcopy(both)
        statistics = DomainStatistics(both)
        names = list(both.state_dict())
        for _ in range(3):
            own_images, other_images = torch.randn(8, 3, 6, 6), 2 + 3 * torch.randn(8, 3, 6, 6)
            untouched = copy.deepcopy(both)
            with statistics.in_place():
                torch.testing.assert_close(both(other_images), other(other_images))
            assert all(torch.equal(a, b) for a, b in zip(both.buffers(), untouched.buffers()))
            torch.testing.assert_close(both(own_images), untouched(own_images))
        assert list(both.state_dict()) == names
        for name, value in statistics.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name])
        both.eval(), other.eval()
        with statistics.in_place():
            torch.testing.assert_close(both(other_images), other(other_images))

    def test_gradients_of_both_passes(self):
        both, images = network(), torch.randn(2, 8, 3, 6, 6)
        alone = copy.deepcopy(both)
        statistics = DomainStatistics(both)
        first = both(images[0])
        with statistics.in_place():
            second = both(images[1])
        (first.square().sum() + second.square().sum()).backward()
        sum(alone(part).square().sum() for part in images).backward()
        for ours, theirs in zip(both.parameters(), alone.parameters()):
            torch.testing.assert_close(ours.grad, theirs.grad)

    def test_back_in_their_place_after_an_error(self):
        both = network()
        before = [id(value) for value in both.buffers()]
        with pytest.raises(ZeroDivisionError), DomainStatistics(both).in_place():
            raise ZeroDivisionError
        assert [id(value) for value in both.buffers()] == before

    def test_goes_on_with_a_state_that_fits(self):
        both = network()
        statistics = DomainStatistics(both)
        assert statistics.state_dict() == {}
        with statistics.in_place():
            both(torch.randn(8, 3, 6, 6))
        again = DomainStatistics(both)
        again.load_state_dict(copy.deepcopy(statistics.state_dict()))
        assert all(torch.equal(value, statistics.state_dict()[name]) for name, value in again.state_dict().items())
        again.load_state_dict({"1.running_mean": torch.zeros(7)})
        assert again.state_dict() == {}


def rows(classes=4, cameras=2, images=5, first=0, first_camera=0, seed=0):
    """Features, labels and cameras: each class under each camera."""
    features = F.normalize(torch.randn(images, 32, generator=torch.Generator().manual_seed(seed)), dim=1)
    labels = first + torch.arange(images) % classes
    return features, labels, first_camera + torch.arange(images) // classes % cameras


TARGET, CLASSES = rows(images=16), rows(classes=3, images=12, first=4, first_camera=2, seed=1)
JOINT = [torch.cat(pair) for pair in zip(TARGET, CLASSES)]


ROWS = ("centroids", "proxies", "proxy_labels", "proxy_camids")


class TestMemory:
    def test_proxies_by_domain(self):
        memory = MemoryBank()
        memory.rebuild(*JOINT)
        assert memory.proxies_of(False)[0] is not None and len(memory.proxies_of(True)[0]) == 0
        memory.mark_source(4)
        alone = MemoryBank()
        alone.rebuild(*TARGET)
        for part, expected in zip(memory.proxies_of(False), (alone.proxies, alone.proxy_labels, alone.proxy_camids)):
            torch.testing.assert_close(part, expected)
        proxies, labels, camids = memory.proxies_of(True)
        assert labels.tolist() == [4, 5, 6] * 2 and camids.tolist() == [2] * 3 + [3] * 3
        for proxy, label, camera in zip(proxies, labels, camids):
            mean = CLASSES[0][(CLASSES[1] == label) & (CLASSES[2] == camera)].mean(dim=0)
            torch.testing.assert_close(proxy, mean / mean.norm())
        for label in range(4, 7):
            torch.testing.assert_close(memory.centroids[label], CLASSES[0][CLASSES[1] == label].mean(dim=0))

    @pytest.mark.parametrize("kind", [MomentumMemory, HardMeanMemory])
    def test_what_is_kept_follows_other_clusters(self, kind):
        memory = kind(ice_config())
        assert memory.source_rows() == {}
        memory.rebuild(*JOINT)
        memory.mark_source(4)
        kept = memory.source_rows()
        clusters = rows(classes=6, images=24, seed=5)
        memory.rebuild(*clusters)
        memory.append_source(kept)
        memory.mark_source(6)
        joint = kind(ice_config())
        joint.rebuild(*(torch.cat(pair) for pair in zip(clusters, (CLASSES[0], CLASSES[1] + 2, CLASSES[2]))))
        for name in (*["hard_centroids"] * (kind is HardMeanMemory), *ROWS):
            torch.testing.assert_close(getattr(memory, name), getattr(joint, name))
        assert memory.source_begins == (6, 12)

    def test_hard_centroids_are_kept_as_they_have_moved(self):
        memory = HardMeanMemory(ice_config())
        memory.rebuild(*JOINT)
        memory.mark_source(4)
        memory.hard_centroids[5] = 7.0
        kept = memory.source_rows()
        memory.rebuild(*TARGET)
        memory.append_source(kept)
        assert (memory.hard_centroids[5] == 7).all() and not (memory.centroids[5] == 7).any()
        memory.rebuild(*TARGET)
        memory.append_source({name: value for name, value in kept.items() if name != "hard"})  # of a MomentumMemory
        assert torch.equal(memory.hard_centroids[4:], memory.centroids[4:])


VIEWS = ("images", "images_key", "images_weak")


def build(**overrides):
    torch.manual_seed(0)
    small = {"MODEL__BACKBONE__NAME": "build_two_convolutions", "MODEL__BACKBONE__FEAT_DIM": 32}
    model = build_model(ice_config(**small, **overrides)).train()
    model.memory.rebuild(*JOINT)
    model.memory.mark_source(4)
    return model


def batch(size, labels, camids, seed):
    generator = torch.Generator().manual_seed(seed)
    views = {view: 255 * torch.rand(size, 3, 16, 8, generator=generator) for view in VIEWS}
    return views | {"targets": labels, "camids": camids}


TARGET_BATCH = batch(8, torch.arange(8) // 2, torch.arange(8) % 2, 0)
SOURCE_BATCH = batch(8, 4 + torch.arange(8) // 4, 2 + torch.arange(8) % 2, 1)
BATCH = {key: torch.cat([TARGET_BATCH[key], SOURCE_BATCH[key]]) for key in TARGET_BATCH}
LOSSES = ("agnostic", "cross_camera", "hard_instance", "soft_instance")


class TestStep:
    @pytest.mark.parametrize(
        ("chunks", "names"), [(1, LOSSES), (2, LOSSES), (1, ("intra_camera", "online_association"))]
    )
    def test_each_domain_as_if_it_were_alone(self, chunks, names):
        """The losses of two models, one trained on each domain, over the same memory; the statistics of the first."""
        keys = {"MODEL__ICE__BN_CHUNKS": chunks, "MODEL__ICE__SHUFFLE_BN": False}
        keys["MODEL__LOSSES__NAME"] = tuple(f"{name.title().replace('_', '')}Loss" for name in names)
        both = build(**SOURCE, **keys, MODEL__LOSSES__SOURCE_SCALE=0.25)
        with both.source_statistics.in_place():
            pass  # they begin as the loaded ones; a run extracts features with them before its first step
        found = both(BATCH)
        assert list(found) == [f"loss_{name}" for name in names] + [f"loss_{name}_source" for name in names]
        target = build(**keys)
        for name, loss in target(TARGET_BATCH).items():
            torch.testing.assert_close(found[name], loss)
        for name, value in target.state_dict().items():
            torch.testing.assert_close(both.state_dict()[name], value)
        source = build(**keys)
        memory = source.memory
        memory.proxies, memory.proxy_labels, memory.proxy_camids = memory.proxies_of(True)
        memory.source_begins = None
        for name, loss in source(SOURCE_BATCH).items():
            torch.testing.assert_close(found[f"{name}_source"], 0.25 * loss)
        for name, value in both.source_statistics.state_dict().items():
            torch.testing.assert_close(value, source.state_dict()[name])

    def test_by_naive_formulas(self):
        """Agnostic over the clusters and classes of both domains; proxies, keys and weak views of one's own."""
        model = build(**SOURCE)
        found = model(BATCH)
        steps, memory = model._steps, model.memory
        assert [step.is_source for step in steps] == [False, True]
        for step, ending, mine in zip(steps, ("", "_source"), (memory.proxy_camids < 2, memory.proxy_camids >= 2)):
            proxies = (memory.proxies[mine], memory.proxy_labels[mine], memory.proxy_camids[mine])
            expected = {
                "agnostic": reference_losses.naive_agnostic(step.query, step.labels, memory.centroids, 0.5, 0.1),
                "cross_camera": 0.5
                * reference_losses.naive_cross_camera(
                    step.query, step.labels, step.camids, *proxies, 0.07, 50, "dimension", True
                ),
                "hard_instance": reference_losses.naive_hard_instance(step.query, step.keys, step.labels, 0.1),
                "soft_instance": 10 * reference_losses.naive_soft_instance(step.query, step.keys, step.weak_query, 0.4),
            }
            for name, loss in expected.items():
                assert found[f"loss_{name}{ending}"].item() == pytest.approx(loss, rel=1e-4), name + ending
            assert len(memory.centroids) == 7 and len(step.keys) == len(step.weak_keys) == 8

    def test_neither_domain_sees_the_other(self):
        keys = {"MODEL__ICE__BN_CHUNKS": 2}  # the momentum encoder's batch is permuted, within a domain
        found = build(**SOURCE, **keys)(BATCH)
        changed = {
            key: torch.cat([BATCH[key][:8], 255 - BATCH[key][8:]]) if key in VIEWS else BATCH[key] for key in BATCH
        }
        other = build(**SOURCE, **keys)(changed)
        for name in found:
            assert torch.equal(found[name], other[name]) != name.endswith("_source"), name

    def test_all_parameters_get_the_gradient_of_both(self):
        both, alone = build(**SOURCE), build(**SOURCE)
        sum(both(BATCH).values()).backward()
        losses = alone(BATCH)
        sum(value for name, value in losses.items() if not name.endswith("_source")).backward()
        for (name, one), two in zip(both.named_parameters(), alone.parameters()):
            assert (one.grad is None) == (two.grad is None)
            assert one.grad is None or not torch.equal(one.grad, two.grad), name

    def test_the_memory_is_shown_both(self):
        model = build(**SOURCE, MODEL__ICE__MEMORY="MomentumMemory")
        before = model.memory.centroids.clone()
        sum(model(BATCH).values()).backward()
        model.after_step()
        moved = (model.memory.centroids != before).any(dim=1)
        assert moved.tolist() == [True] * 4 + [True, True, False]  # class 6 is not in the batch

    def test_unused_passes_are_of_the_target(self, monkeypatch):
        model = build(**SOURCE, MODEL__ICE__UNUSED_PASSES=True)
        calls = []
        online = model._online
        monkeypatch.setattr(model, "_online", lambda images: calls.append(len(images)) or online(images))
        model(BATCH)
        assert calls == [8, 8, 8]


def train(output_dir, resume=False, **overrides):
    trainer = ICETrainer(ice_config(OUTPUT_DIR=str(output_dir), **{**SOURCE, **overrides}))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def results(folder) -> list[dict]:
    return json.loads((Path(folder) / "results.json").read_text())


MEMORIES = ("MemoryBank", "MomentumMemory")


@pytest.fixture(scope="module", params=MEMORIES)
def run(request, both_datasets, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, train(folder, MODEL__ICE__MEMORY=request.param), request.param


class TestRun:
    def test_losses_of_both_are_recorded(self, run):
        for row in results(run[0])[1:]:
            for name in LOSSES:
                assert row[f"loss_{name}"] > 0 and row[f"loss_{name}_source"] > 0
            assert row["total_loss"] == pytest.approx(sum(row[k] for k in row if k.startswith("loss_")), rel=1e-4)

    def test_what_is_told_is_told_of_the_target(self, run):
        folder, trainer, _ = run
        target, _ = load()
        manifest = read_manifest(folder)
        assert (manifest["images"], manifest["cameras"], manifest["identities"]) == (len(target), 3, 8)
        assert manifest["datasets"]["train"] == ["TinyReID"] and manifest["name"] == "ICE (source TinySource)"
        table = (folder / "clusters.csv").read_text().splitlines()
        assert len(table) == 1 + len(target) and not any("tiny_source" in line for line in table)
        assert results(folder)[-1]["clusters"] == int(trainer.clustering.labels.max()) + 1
        assert len(trainer.clustering.labels) == len(target)

    def test_the_memory_has_both(self, run):
        memory = run[1].model.memory
        clusters = int(run[1].clustering.labels.max()) + 1
        assert len(memory.centroids) == clusters + 6 and memory.source_begins[0] == clusters
        assert memory.proxies_of(True)[2].unique().tolist() == [3, 4]
        assert memory.proxies_of(False)[2].unique().tolist() == [0, 1, 2]

    def test_resume_equals_uninterrupted(self, run, tmp_path):
        folder, _, memory = run
        whole = torch.load(folder / "model_final.pth", weights_only=True)
        train(tmp_path, MODEL__ICE__MEMORY=memory, SOLVER__MAX_EPOCH=1)
        (tmp_path / "model_final.pth").unlink()  # of one epoch, with another schedule; the weights are the same
        (tmp_path / "last_checkpoint").write_text("model_best.pth")
        torch.manual_seed(99)
        train(tmp_path, resume=True, MODEL__ICE__MEMORY=memory)
        resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)
        for part in ("model", *(f"source.{name}" for name in whole["source"])):
            one, two = whole, resumed
            for key in part.split("."):
                one, two = one[key], two[key]
            assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one), part
        assert bool(whole["source"]["memory"]) == (memory == "MomentumMemory") and whole["source"]["statistics"]


def test_rows_that_are_kept_are_made_once(tmp_path, monkeypatch):
    """SpCL's: only the steps move them. The constant memory's are made anew before each epoch."""
    from fastreid_ice.engine.source import SourceClasses

    calls = []
    extract = SourceClasses._extract
    monkeypatch.setattr(SourceClasses, "_extract", lambda own, seed: calls.append(seed) or extract(own, seed))
    for memory, expected in (("MemoryBank", 2), ("MomentumMemory", 1)):
        calls.clear()
        train(tmp_path / memory, MODEL__ICE__MEMORY=memory, TEST__EVAL_PERIOD=0, DATASETS__SOURCE_SAMPLE=1)
        assert len(set(calls)) == expected, memory


@pytest.mark.parametrize("memory", MEMORIES)
def test_outliers_as_classes_of_their_own(memory, tmp_path, monkeypatch):
    """SpCL's: the classes of the source are behind those of the clusters and of the outliers."""
    seen = []
    features = ICE._step_features
    monkeypatch.setattr(ICE, "_step_features", lambda *args, **kw: seen.append(features(*args, **kw)) or seen[-1])
    keys = {"CLUSTERING__OUTLIERS": "instances", "DATALOADER__OUTLIER_SHARE": 1.0, "CLUSTERING__MIN_SAMPLES": 4}
    trainer = train(tmp_path, **keys, MODEL__ICE__MEMORY=memory, TEST__EVAL_PERIOD=0)
    labels, targets = trainer.clustering.labels, trainer.clustering.targets
    first, outliers = int(targets.max()) + 1, int((labels < 0).sum())
    assert outliers and first == int(labels.max()) + 1 + outliers
    bank = trainer.model.memory
    assert bank.source_begins[0] == first and len(bank.centroids) == first + 6
    assert (bank.proxies_of(False)[1] <= labels.max()).all() and (bank.proxies_of(True)[1] >= first).all()
    last = [step for step in seen if step.is_source][-3:], [step for step in seen if not step.is_source][-3:]
    for step in last[0]:
        assert (step.labels >= first).all() and (step.camids >= 3).all()
    for step in last[1]:
        assert (step.labels < first).all() and (step.camids[step.labels > labels.max()] == -1).all()
    assert any((step.camids == -1).any() for step in last[1])


@pytest.mark.parametrize("engine", ["torch", "folded"])
def test_rows_are_means_by_the_source_s_own_statistics(engine, tmp_path, monkeypatch):
    found = {}
    rebuild = MemoryBank.rebuild

    def noted(memory, features, labels, camids):
        rebuild(memory, features, labels, camids)
        found["centroids"], found["model"] = memory.centroids.clone(), copy.deepcopy(trainer.model)

    trainer = ICETrainer(ice_config(OUTPUT_DIR=str(tmp_path), **SOURCE, TEST__EVAL_PERIOD=0, TEST__ENGINE=engine))
    monkeypatch.setattr(MemoryBank, "rebuild", noted)
    trainer.resume_or_load(resume=False)
    trainer.train()
    model, source = found["model"].eval(), load()[1]  # before the last epoch
    with model.source_statistics.in_place(), torch.no_grad():
        loader = build_feature_loader(trainer.cfg, source)
        features = torch.cat([F.normalize(model(batch), dim=1) for batch in loader])
    for identity in range(6):
        mean = features[source.identities == identity].mean(dim=0)
        torch.testing.assert_close(found["centroids"][identity - 6], mean, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        other = torch.cat([F.normalize(model(batch), dim=1) for batch in loader])
    assert not torch.allclose(other, features, atol=1e-3)


@pytest.mark.parametrize(
    "keys",
    [
        {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16", "TEST__AMP": True},
        {"SOLVER__ACCUMULATION": 3, "MODEL__ICE__CHANNELS_LAST": True, "MODEL__ICE__BN_CHUNKS": 2},
        {"TEST__ENGINE": "folded", "DATALOADER__CACHE": "disk", "CLUSTERING__PERIOD": 2},
        {
            "MODEL__ICE__MEMORY": "HardMeanMemory",
            "MODEL__ICE__MOMENTUM_MEMORY__FEATURES": "queries",
            "MODEL__LOSSES__NAME": ("AgnosticLoss", "HardMeanLoss", "IntraCameraLoss", "OnlineAssociationLoss"),
            "MODEL__ICE__EVAL_ENCODER": "online",
        },
        {"MODEL__BACKBONE__NORM": "GhostBN", "MODEL__ICE__EVAL_ENCODER": "online"},
        {"TEST__PRECISE_BN__ENABLED": True, "TEST__PRECISE_BN__DATASET": "TinyReID", "TEST__PRECISE_BN__NUM_ITER": 2},
        {
            "DATASETS__USE_CAMERAS": False,
            "MODEL__LOSSES__NAME": ("AgnosticLoss", "SoftInstanceLoss"),
            "DATASETS__SOURCE_IMS_PER_BATCH": 16,
        },
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_beside_other_keys(keys, tmp_path):
    train(tmp_path, **{"TEST__EVAL_PERIOD": 0, "TEST__EVAL_START": False, **keys})
    losses = {name for name in results(tmp_path)[-1] if name.startswith("loss_") and not name.endswith("_source")}
    for row in results(tmp_path):
        assert {f"{name}_source" for name in losses} == {name for name in row if name.endswith("_source")}
        assert len(losses) >= 2 and all(math.isfinite(row[f"{name}_source"]) for name in losses)


def test_the_labels_are_learnt(tmp_path, registered):
    """People of the source are told apart by their labels; by labels that mean nothing they are not."""

    class AnyLabels(TinySource):
        def __init__(self, root="datasets", **kwargs):
            super().__init__(root, **kwargs)
            order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0)).tolist()
            labels = [self.train[i][1] for i in order]
            self._train = [(path, label, camera) for (path, _, camera), label in zip(self.train, labels)]

    registered(AnyLabels)
    learnt = {
        "SOLVER__BASE_LR": 0.01,
        "SOLVER__MAX_EPOCH": 4,
        "SOLVER__ITERS_PER_EPOCH": 10,
        "MODEL__ICE__MOMENTUM": 0.5,
    }
    learnt |= {f"INPUT__{key}__ENABLED": False for key in ("REA", "BLUR")}
    losses = {}
    for name in ("TinySource", "AnyLabels"):
        train(tmp_path / name, **{**learnt, "DATASETS__SOURCE": (name,), "DATASETS__TESTS": ()})
        losses[name] = [row["loss_hard_instance_source"] for row in results(tmp_path / name)]
    assert losses["TinySource"][-1] < 0.5 * losses["TinySource"][0]
    assert losses["TinySource"][-1] < 0.5 * losses["AnyLabels"][-1]
