"""The cache of decoded images: the same pixels, made once, shared, and made anew when a file changes."""

import json
import multiprocessing
import os
import pickle
import shutil

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import pytest
import torch
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from PIL import Image

from fastreid_ice.data import image_cache, inference_loaders
from fastreid_ice.data.datasets import TrainingImages, load_training_images
from fastreid_ice.data.image_cache import ImageCache
from fastreid_ice.data.inference_loaders import build_feature_loader, build_test_loader, keeping_test_images
from fastreid_ice.data.loaders import EpochLoader
from fastreid_ice.data.views import build_strong_view, build_weak_view, keep_bytes, resize_of
from fastreid_ice.engine import ICETrainer
from fastreid_ice.engine.checks import check_config
from fastreid_ice.modeling import ICE
from tests.conftest import ice_config

pytestmark = pytest.mark.usefixtures("tiny_dataset")

VIEWS = ("images", "images_key", "images_weak")


@pytest.fixture
def own(tiny_dataset, tmp_path):
    """Copies of the tiny training images, which a test may change."""
    found = load_training_images(ice_config())
    shutil.copytree(os.path.dirname(found.paths[0]), tmp_path / "own")
    paths = tuple(str(tmp_path / "own" / os.path.basename(path)) for path in found.paths)
    return TrainingImages(paths, found.camids, found.identities)


def config(tmp_path, kind, **overrides):
    return ice_config(DATALOADER__CACHE=kind, OUTPUT_DIR=str(tmp_path / "run"), **overrides)


def files(tmp_path) -> list:
    return sorted(path for path in (tmp_path / "run" / "image_cache").iterdir())


def epochs(cfg, images, seeds=(0, 1)) -> list[dict]:
    loader = EpochLoader(cfg, images)
    batches = []
    for seed in seeds:
        loader.start_epoch(images.identities, seed)
        batches += list(loader)
    loader.close()
    return batches


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches(own, tmp_path, kind, workers):
    plain = epochs(ice_config(), own)
    cached = epochs(config(tmp_path, kind, DATALOADER__NUM_WORKERS=workers), own)
    assert len(plain) == len(cached) == 6
    for a, b in zip(plain, cached):
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in (*VIEWS, "targets"))
        assert a["img_paths"] == b["img_paths"]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_the_same_images_to_cluster(own, tmp_path, kind):
    cfg = config(tmp_path, kind)
    plain, cached = (
        torch.cat([batch["images"] for batch in build_feature_loader(cfg, own, cache)])
        for cache in (None, ImageCache(cfg, own.paths))
    )
    assert torch.equal(plain, cached) and plain.dtype == cached.dtype == torch.uint8


def test_decoded_once_for_all_views(own, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(image_cache, "read_image", lambda path: opened.append(path) or read_image(path))
    monkeypatch.setattr("fastreid.data.common.read_image", None)
    cfg = config(tmp_path, "ram")
    loader = EpochLoader(cfg, own)
    loader.start_epoch(own.identities, 0)
    list(loader)
    list(build_feature_loader(cfg, own, loader.cache))
    assert sorted(opened) == sorted(own.paths)


def test_another_size_to_cluster_with_is_another_array(own, tmp_path):
    cfg = config(tmp_path, "disk", INPUT__SIZE_TEST=[32, 16])
    loader = EpochLoader(cfg, own)
    loader.start_epoch(own.identities, 0)
    assert next(loader)["images"].shape[2:] == (64, 32)
    assert next(iter(build_feature_loader(cfg, own, loader.cache)))["images"].shape[2:] == (32, 16)
    assert [path.name[:13] for path in files(tmp_path)] == ["images_32x16_", "images_64x32_"]
    loader.close()


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_test_images_are_decoded_once(tmp_path, monkeypatch, kind):
    """Each evaluation behind the first takes them from where ``kept`` has them; without a cache, from their files."""
    cfg = config(tmp_path, kind)
    plain = [batch["images"] for batch in build_test_loader(cfg, "TinyReID")[0]]
    kept: dict = {}
    with keeping_test_images(kept):
        first = [batch["images"] for batch in build_test_loader(cfg, "TinyReID")[0]]
    with monkeypatch.context() as patch:
        patch.setattr(inference_loaders, "load_test_images", None)  # it stays as it was listed
        if kind != "none":
            patch.setattr(image_cache, "read_image", None)
            patch.setattr("fastreid.data.common.read_image", None)
        with keeping_test_images(kept):
            loader, queries = build_test_loader(cfg, "TinyReID")
            again = list(loader)
    assert list(kept) == ["TinyReID"] and 0 < queries < len(loader.dataset)
    for a, b, c in zip(plain, first, again):
        assert torch.equal(a, b) and torch.equal(a, c["images"]) and c["images"].dtype == torch.uint8
    assert [path for batch in again for path in batch["img_paths"]] == [path for path, *_ in loader.dataset.img_items]
    with pytest.raises(RuntimeError, match="cannot be read"):  # outside, nothing is kept
        monkeypatch.setattr("fastreid.data.common.read_image", None)
        next(iter(build_test_loader(cfg, "TinyReID")[0]))


def test_each_process_keeps_its_share_of_the_test_images(tmp_path, monkeypatch):
    cfg = config(tmp_path, "ram")
    whole = torch.cat([batch["images"] for batch in build_test_loader(cfg, "TinyReID")[0]])
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(comm, "all_gather", lambda own: [own] * 3)  # the others list the same images
    shares, sizes = [], []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        kept: dict = {}
        with keeping_test_images(kept):
            loader, _ = build_test_loader(cfg, "TinyReID")
        shares += [batch["images"] for batch in loader]
        sizes.append(len(kept["TinyReID"].cache.resized(build_transforms(cfg, is_train=False))))
    assert torch.equal(torch.cat(shares), whole)
    assert sum(sizes) == len(whole) and max(sizes) == -(-len(whole) // 3)


@pytest.mark.parametrize("test, kept", [({"EVAL_START": True}, 1), ({"EVAL_PERIOD": 1}, 1), ({"EVAL_PERIOD": 2}, 0)])
def test_a_run_keeps_test_images_that_it_needs_again(tmp_path, test, kept):
    overrides = {f"TEST__{key}": value for key, value in {"EVAL_START": False, **test}.items()}
    trainer = ICETrainer(config(tmp_path, "ram", SOLVER__MAX_EPOCH=2, **overrides))
    trainer.test(trainer.cfg, trainer.model)
    assert not trainer._test_images  # an evaluation outside of the run
    plain = trainer._evaluate()
    assert len(trainer._test_images or ()) == kept and trainer._evaluate() == plain


def test_a_later_run_finds_the_file(own, tmp_path, monkeypatch):
    cfg = config(tmp_path, "disk")
    view = build_weak_view(cfg)
    first = ImageCache(cfg, own.paths).resized(view).pixels
    monkeypatch.setattr(image_cache, "read_image", None)
    again = ImageCache(cfg, own.paths).resized(view)
    assert np.array_equal(first, again.pixels) and isinstance(again.pixels, np.memmap)


def test_a_changed_file_makes_it_anew(own, tmp_path):
    cfg = config(tmp_path, "disk")
    view = build_weak_view(cfg)
    ImageCache(cfg, own.paths).resized(view)
    before = files(tmp_path)
    Image.new("RGB", (32, 64), (1, 2, 3)).save(own.paths[0])
    changed = ImageCache(cfg, own.paths).resized(view)
    assert (changed.pixels[0] == (1, 2, 3)).mean() > 0.3 and len(files(tmp_path)) == 1 and files(tmp_path) != before
    of_this_size = files(tmp_path)
    os.utime(own.paths[0], ns=(1, 1))  # the time alone
    ImageCache(cfg, own.paths).resized(view)
    assert len(files(tmp_path)) == 1 and files(tmp_path) != of_this_size
    ImageCache(cfg, own.paths[1:]).resized(view)  # other images have a file of their own
    assert len(files(tmp_path)) == 2


def test_half_a_file_is_made_anew(own, tmp_path, caplog):
    cfg = config(tmp_path, "disk")
    view = build_weak_view(cfg)
    whole = np.array(ImageCache(cfg, own.paths).resized(view).pixels)
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size - 10)
    assert np.array_equal(ImageCache(cfg, own.paths).resized(view).pixels, whole)
    assert "is damaged and made anew" in caplog.text


def test_what_a_killed_run_has_left(own, tmp_path):
    cfg = config(tmp_path, "disk")
    view = build_weak_view(cfg)
    ImageCache(cfg, own.paths).resized(view)
    (path,) = files(tmp_path)
    old, new = (path.with_name(f".{digits}.{path.name}") for digits in ("0" * 8, "1" * 8))
    for leftover in (old, new):
        leftover.write_bytes(b"half of it")
    os.utime(old, (0, 0))
    ImageCache(cfg, own.paths).resized(view)
    assert files(tmp_path) == sorted([new, path])  # the new one may be another run's, which is writing


def test_forked_workers_share_the_memory(own, tmp_path):
    """What a child writes below the read-only array, its parent sees: nothing was copied."""
    resized = ImageCache(config(tmp_path, "ram"), own.paths).resized(build_weak_view(ice_config()))
    with pytest.raises(ValueError, match="read-only"):
        resized.pixels[0] = 0

    def write():
        memory = resized.pixels.base
        while not isinstance(memory, memoryview) and hasattr(memory, "base"):
            memory = memory.base
        np.frombuffer(memory, np.uint8)[:7] = 7

    child = multiprocessing.get_context("fork").Process(target=write)
    child.start()
    child.join()
    assert child.exitcode == 0 and (resized.pixels.ravel()[:7] == 7).all()


def test_a_spawned_worker_maps_the_file(own, tmp_path):
    resized = ImageCache(config(tmp_path, "disk"), own.paths).resized(build_weak_view(ice_config()))
    pickled = pickle.dumps(resized)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert isinstance(copy.pixels, np.memmap) and np.array_equal(copy.pixels, resized.pixels) and len(copy) == len(own)


def test_errors_name_the_file(own, tmp_path):
    view = build_weak_view(ice_config())
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(RuntimeError, match="b.png cannot be read as an image"):
        ImageCache(config(tmp_path, "disk"), (str(tmp_path / "b.png"),)).resized(view)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        ({"CACHE": "tape"}, ValueError, "DATALOADER.CACHE is 'tape'; it must be one of none, ram, disk"),
        ({"CACHE_DIR": 3}, ValueError, "DATALOADER.CACHE_DIR is 3"),
        ({"CACHE": "disk", "CACHE_DIR": f"{__file__}/below"}, NotADirectoryError, "DATALOADER.CACHE_DIR"),
    ],
)
def test_keys(overrides, error, message):
    cfg = ice_config()
    for key, value in overrides.items():
        cfg.DATALOADER[key] = value
    with pytest.raises(error, match=message):
        check_config(cfg)


def test_a_view_that_works_on_whole_images():
    cfg = ice_config(DATALOADER__CACHE="ram", INPUT__AUTOAUG__ENABLED=True)
    with pytest.raises(ValueError, match="DATALOADER.CACHE is 'ram'.*INPUT.AUTOAUG"):
        check_config(cfg)
    with pytest.raises(ValueError, match="begins with RandomApply.*DATALOADER.CACHE none"):
        resize_of(build_strong_view(cfg))


def test_bytes_where_they_are_exact(own):
    """float32 only from views that compute with tensors; the model makes the same of both."""
    image = read_image(own.paths[0])
    off = {f"INPUT__{name}__ENABLED": False for name in ("PADDING", "FLIP", "BLUR", "REA")}
    plain = build_strong_view(ice_config(**off))
    kept = keep_bytes(plain)(image)
    assert kept.dtype == torch.uint8 and plain(image).dtype == torch.float32 and torch.equal(kept.float(), plain(image))
    patching = build_strong_view(ice_config(INPUT__RPT__ENABLED=True))
    assert keep_bytes(patching) is patching
    model = ICETrainer.build_model(ice_config())
    assert isinstance(model, ICE)
    bits = [model.preprocess_image(batch[None]) for batch in (kept, kept.float())]
    assert torch.equal(*bits) and bits[0].dtype == torch.float32


def test_workers_outlive_the_epoch(own, tmp_path):
    loader = EpochLoader(ice_config(DATALOADER__NUM_WORKERS=2), own)
    workers = []
    for seed in range(3):
        loader.start_epoch(own.identities + 10 * seed, seed)
        assert {int(label) // 10 for batch in loader for label in batch["targets"]} == {seed}
        workers.append(sorted(process.pid for process in multiprocessing.active_children()))
    assert len(workers[0]) == 2 and workers[0] == workers[1] == workers[2]
    loader.close()
    assert not multiprocessing.active_children()


def test_a_broken_epoch_leaves_nothing_behind(own):
    """Batches that workers had loaded ahead are not those of the next epoch."""
    cfg = ice_config(DATALOADER__NUM_WORKERS=2)
    loader = EpochLoader(cfg, own)
    loader.start_epoch(own.identities, 5)
    next(loader)
    loader.start_epoch(own.identities, 6)
    after = list(loader)
    loader.close()
    expected = epochs(ice_config(), own, seeds=(6,))
    assert all(torch.equal(a[view], b[view]) for a, b in zip(after, expected) for view in VIEWS)
    assert len(after) == len(expected)


def test_no_random_number_depends_on_the_workers(own):
    """What is drawn behind an epoch is the same, whether its workers are new, go on, or are none."""
    drawn = []
    for workers in (0, 2):
        torch.manual_seed(0)
        epochs(ice_config(DATALOADER__NUM_WORKERS=workers), own, seeds=(0, 1, 2))
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


def test_training_from_a_cache_gives_the_same_weights(tmp_path):
    states = []
    for kind in ("none", "disk"):
        cfg = ice_config(OUTPUT_DIR=str(tmp_path / kind), DATALOADER__CACHE=kind, DATALOADER__NUM_WORKERS=2)
        trainer = ICETrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        states.append(torch.load(tmp_path / kind / "model_final.pth", weights_only=True)["model"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    rows = [json.loads((tmp_path / kind / "results.json").read_text()) for kind in ("none", "disk")]
    assert [row["mAP"] for row in rows[0]] == [row["mAP"] for row in rows[1]]
