"""Batches: three views from one decoding, whatever the number of workers, and labels that change by epoch."""

import multiprocessing

import pytest
import torch

from fastreid_ice.data import loaders
from fastreid_ice.data.datasets import TrainingImages, _numbered, load_training_images
from fastreid_ice.data.inference_loaders import build_feature_loader, build_test_loader
from fastreid_ice.data.loaders import EpochLoader
from tests.conftest import ice_config

pytestmark = pytest.mark.usefixtures("tiny_dataset")


@pytest.fixture
def images():
    return load_training_images(ice_config())


def epoch(cfg, images, labels=None, seed=0) -> list[dict]:
    loader = EpochLoader(cfg, images)
    loader.start_epoch(images.identities if labels is None else labels, seed)
    batches = list(loader)
    loader.close()
    return batches


def test_training_images(images):
    assert images.identities.unique().tolist() == list(range(8))
    assert images.camids.unique().tolist() == [0, 1, 2]
    assert list(images.paths) == sorted(images.paths)
    assert load_training_images(ice_config(DATASETS__USE_CAMERAS=False)).camids.unique().tolist() == [0]


def test_cameras_are_numbered_in_natural_order():
    assert _numbered(["cam_10", "cam_9", "cam_10", "cam_1"]).tolist() == [2, 1, 2, 0]
    assert _numbered([7, -1, 7]).tolist() == [1, 0, 1]


def test_msmt17_trains_on_its_validation_images_too(tmp_path, monkeypatch):
    folder = tmp_path / "MSMT17_V2"
    for name in ("mask_train_v2", "mask_test_v2"):
        (folder / name).mkdir(parents=True)
    lists = {"train": ["0000/0000_000_01_a.jpg 0", "0001/0001_000_02_a.jpg 1"], "val": ["0001/0001_001_11_a.jpg 1"]}
    lists |= {"query": ["0000/0000_000_01_b.jpg 0"], "gallery": ["0000/0000_001_05_b.jpg 0"]}
    for name, lines in lists.items():
        (folder / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("fastreid.data.build._root", str(tmp_path))
    with_val = load_training_images(ice_config(DATASETS__NAMES=("MSMT17TrainVal",)))
    assert with_val.identities.tolist() == [0, 1, 1] and with_val.camids.tolist() == [0, 1, 2]
    assert len(load_training_images(ice_config(DATASETS__NAMES=("MSMT17",)))) == 2


def test_missing_dataset_names_the_folder_and_the_variable(monkeypatch, tmp_path):
    monkeypatch.setattr("fastreid.data.build._root", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Market1501 of DATASETS.NAMES.*FASTREID_DATASETS"):
        load_training_images(ice_config(DATASETS__NAMES=("Market1501",)))


def test_a_batch(images):
    batches = epoch(ice_config(), images)
    assert len(batches) == 3
    for batch in batches:
        for view in ("images", "images_key", "images_weak"):
            assert batch[view].shape == (8, 3, 64, 32)
            assert batch[view].dtype == (torch.uint8 if view == "images_weak" else torch.float32)
            assert 0 <= batch[view].min() and 1 < batch[view].max() <= 255
        assert not torch.equal(batch["images"], batch["images_key"])
        assert batch["targets"].dtype == batch["camids"].dtype == torch.int64
        for path, target, camid in zip(batch["img_paths"], batch["targets"], batch["camids"]):
            index = images.paths.index(path)
            assert images.identities[index] == target and images.camids[index] == camid


def test_without_weak_views_the_others_are_the_same(images):
    names = ("AgnosticLoss",)
    every = epoch(ice_config(MODEL__LOSSES__NAME=names), images)
    without = epoch(ice_config(MODEL__LOSSES__NAME=names, MODEL__ICE__WEAK_PASS=False), images)
    for a, b in zip(every, without):
        assert a.keys() - b.keys() == {"images_weak"}
        assert all(torch.equal(a[key], b[key]) for key in ("images", "images_key", "targets"))


def test_workers_send_bytes_and_the_batches_stay_the_same(images, monkeypatch):
    """A quarter of float32's memory on the way; erased where the batch arrives, bit for bit as in the worker."""
    sent = []
    erase_views = loaders.erase_views
    monkeypatch.setattr(loaders, "erase_views", lambda batch, value: sent.append(batch) or erase_views(batch, value))
    found = epoch(ice_config(), images)
    views = ("images", "images_key", "images_weak")
    assert len(sent) == 3 and {batch[view].dtype for batch in sent for view in views} == {torch.uint8}
    monkeypatch.setattr(loaders, "keep_bytes", lambda view: view)
    expected = epoch(ice_config(), images)
    for batch, other in zip(found, expected):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[view].float(), other[view]) for view in views)
    assert not torch.equal(found[0]["images"], sent[0]["images"].float())  # something was erased


def test_one_decoding_per_image(images, monkeypatch):
    from fastreid.data import common

    opened = []
    read_image = common.read_image
    monkeypatch.setattr(common, "read_image", lambda path: opened.append(path) or read_image(path))
    epoch(ice_config(), images)
    assert len(opened) == 3 * 8


def test_workers_do_not_change_the_batches(images):
    alone = epoch(ice_config(), images)
    together = epoch(ice_config(DATALOADER__NUM_WORKERS=2), images)
    assert len(alone) == len(together)
    for a, b in zip(alone, together):
        assert all(torch.equal(a[key], b[key]) for key in ("images", "images_key", "images_weak", "targets"))


def test_relabelling_takes_effect_at_once(images):
    cfg = ice_config()
    loader = EpochLoader(cfg, images)
    loader.start_epoch(images.identities, seed=0)
    next(loader)
    relabelled = torch.where(images.identities < 2, images.identities + 100, -1)
    loader.start_epoch(relabelled, seed=0)
    assert {int(label) for batch in loader for label in batch["targets"]} == {100, 101}


def test_relabelling_leaks_no_workers(images):
    loader = EpochLoader(ice_config(DATALOADER__NUM_WORKERS=2), images)
    alive = []
    for seed in range(4):
        loader.start_epoch(images.identities, seed)
        next(loader)
        alive.append(len(multiprocessing.active_children()))
    assert alive == [2, 2, 2, 2]
    loader.close()
    assert not multiprocessing.active_children()


def test_before_the_first_labels_it_gives_unlabelled_images(images):
    loader = EpochLoader(ice_config(), images)
    assert (next(loader)["targets"] == -1).all()
    loader.close()


def test_corrupt_image_is_named(images, tmp_path):
    broken = tmp_path / "0001_c1_000001.jpg"
    broken.write_bytes(b"not a picture")
    damaged = TrainingImages((str(broken), *images.paths[1:]), images.camids, images.identities)
    loader = build_feature_loader(ice_config(), damaged)
    with pytest.raises(RuntimeError, match="0001_c1_000001.jpg cannot be read as an image"):
        list(loader)


def test_feature_loader_gives_every_image_once_in_order(images):
    batches = list(build_feature_loader(ice_config(TEST__IMS_PER_BATCH=16), images))
    assert [path for batch in batches for path in batch["img_paths"]] == list(images.paths)


def test_fastreid_counts_the_steps_of_an_epoch(images):
    loader = EpochLoader(ice_config(), images)
    assert len(loader.dataset) // 8 == 3
    assert loaders.EpochLoader.num_classes == 0


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_loaders_have_the_workers_of_the_config(images, workers):
    """fastreid's loaders of features and test images have four, whatever the config says."""
    cfg = ice_config(DATALOADER__NUM_WORKERS=workers)
    assert build_test_loader(cfg, "TinyReID")[0].num_workers == workers
    assert build_feature_loader(cfg, images).num_workers == workers
