"""The dataset UnlabeledFolder: what is known of the images, and what a wrong key says."""

from __future__ import annotations

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import pytest
import torch
from fastreid.data.data_utils import read_image
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from PIL import Image

from fastreid_ice.config_files import load_config
from fastreid_ice.data.datasets import load_dataset, load_test_images, load_training_images
from fastreid_ice.data.image_cache import ImageCache
from fastreid_ice.data.inference_loaders import build_feature_loader, build_test_loader
from tests import own_images, tiny  # noqa: F401  (registers the dataset and the backbone)
from tests.conftest import ROOT

FRAME = r"(?P<frame>[0-9]+)[^/0-9]*$"
NAMES = r"(?P<identity>[0-9]+)_c(?P<camera>[0-9]+)_"


def config(name: str = "own", **folder):
    """A config with keys of DATASETS.FOLDER, or of anything as CLUSTERING__TRACKS."""
    opts: list = []
    for key, value in folder.items():
        opts += [key.replace("__", ".") if "__" in key else f"DATASETS.FOLDER.{key}", value]
    return load_config(ROOT / "configs" / "ICE" / f"{name}.yml", opts)


def images(folder, *names: str):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), (number, 7 * number % 256, 40)).save(path)
    return folder


def test_nothing_is_known(tmp_path):
    images(tmp_path, "b.jpg", "a/x.PNG", "a/y.webp", "c.bmp", "a/.hidden.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    found = load_training_images(config(PATH=str(tmp_path)))
    assert [path[len(str(tmp_path)) + 1 :] for path in found.paths] == ["a/x.PNG", "a/y.webp", "b.jpg", "c.bmp"]
    assert found.camids.tolist() == [0] * 4
    assert found.identities is None and found.tracks is None and found.camera_names is None


def test_cameras_from_folders(tmp_path):
    images(tmp_path, "cam10/1.jpg", "cam9/day/1.jpg", "cam9/2.jpg")
    agnostic = load_training_images(config(PATH=str(tmp_path), CAMERA_FROM="folder"))
    assert agnostic.camids.tolist() == [0, 0, 0] and agnostic.camera_names == ("cam10", "cam9", "cam9")
    aware = load_training_images(config(PATH=str(tmp_path), CAMERA_FROM="folder", DATASETS__USE_CAMERAS=True))
    assert aware.camids.tolist() == [1, 0, 0]


def test_a_csv_tells_everything(tmp_path):
    folder = images(tmp_path / "crops", "a.jpg", "b.jpg", "c.jpg")
    rows = [
        {"path": "c.jpg", "camera": "door", "identity": "Ann", "track": 1, "frame": 4, "score": 0.9},
        {"path": "a.jpg", "camera": "yard", "identity": "Bob", "track": 1, "frame": 9, "score": 0.4},
        {"path": "b.jpg", "camera": "yard", "identity": "Ann", "track": 1, "frame": 7, "score": 0.8},
    ]
    sources = {f"{what}_FROM": "csv" for what in ("CAMERA", "IDENTITY", "TRACK")}
    keys = {"PATH": str(folder), "CSV": str(own_images.table(tmp_path / "facts.csv", rows)), **sources}
    found = load_training_images(config(**keys))
    assert found.identities.tolist() == [1, 0, 0] and found.camera_names == ("yard", "yard", "door")
    # A track is of one camera: those of the same number at another camera are others.
    assert found.tracks.ids[0] == found.tracks.ids[1] != found.tracks.ids[2]
    assert found.tracks.frames.tolist() == [9, 7, 4] and found.tracks.cameras.tolist() == [1, 1, 0]
    certain = load_training_images(config(**keys, MIN_SCORE=0.5))
    assert [path[-5:] for path in certain.paths] == ["b.jpg", "c.jpg"] and certain.tracks.frames.tolist() == [7, 4]


def test_tracks_of_the_tracks_config(tmp_path):
    images(tmp_path, "cam1/t1/000005.jpg", "cam1/t1/000002.jpg", "cam2/t1/000002.jpg")
    tracks = load_training_images(config("own_tracks", PATH=str(tmp_path))).tracks
    assert tracks.frames.tolist() == [2, 5, 2] and tracks.ids.tolist() == [0, 0, 1]
    assert tracks.cameras.tolist() == [0, 0, 1]  # known, though the training does not use them


def test_beside_another_dataset(tmp_path, tiny_dataset):
    images(tmp_path, "cam1/t1/000005.jpg", "cam1/t1/000002.jpg")
    both = load_training_images(
        config("own_tracks", PATH=str(tmp_path), DATASETS__NAMES=("TinyReID", "UnlabeledFolder"))
    )
    ours = torch.tensor([path.startswith(str(tmp_path)) for path in both.paths])
    assert both.identities is None and int(ours.sum()) == 2
    assert bool((both.tracks.ids[ours] == 0).all()) and bool((both.tracks.ids[~ours] == -1).all())


def test_queries_and_gallery(tmp_path, tiny_dataset):
    own_images.labelled(tiny_dataset, tmp_path)
    keys = {"QUERY": str(tmp_path / "query"), "GALLERY": str(tmp_path / "gallery"), "TEST_PATTERN": NAMES}
    cfg = config(**keys, DATALOADER__NUM_WORKERS=0)
    found = load_test_images(cfg, "UnlabeledFolder")
    theirs = load_test_images(config(), "TinyReID")
    answers = [item for item in theirs.gallery if item[1] > 0]
    for own, original in ((found.query, theirs.query), (found.gallery, answers)):
        assert len(own) == len(original) > 0
        pairs = {(a[1], b[1], a[2], b[2]) for a, b in zip(own, sorted(original))}
        assert len({p[0] for p in pairs}) == len({p[:2] for p in pairs}) == len({p[1] for p in pairs})
        assert len({p[2] for p in pairs}) == len({p[2:] for p in pairs}) == len({p[3] for p in pairs})
    loader, queries = build_test_loader(cfg, "UnlabeledFolder")
    assert queries == len(found.query) and len(loader.dataset) == len(found.query) + len(found.gallery)
    # Without cameras no gallery image counts as taken by the query's camera.
    anywhere = load_test_images(config(**keys, TEST_CAMERA_FROM="none"), "UnlabeledFolder")
    assert {item[2] for item in anywhere.query} == {0} and {item[2] for item in anywhere.gallery} == {1}


@pytest.mark.parametrize(
    ("query", "gallery", "found"),
    [
        (("p9", "door"), ("p10", "yard"), [[(0, 0)], [(1, 1)]]),
        ((np.int64(3), 1), (3, np.int64(0)), [[(3, 1)], [(3, 0)]]),
        ((3, None), (3, 0), "the camera of q.jpg is None"),
        (("p9", 1), (3, 0), "the identity of q.jpg is 'p9'.* all as text"),
    ],
)
def test_queries_of_a_dataset_of_ones_own(monkeypatch, query, gallery, found):
    class Own(ImageDataset):
        def __init__(self, root="", **options):
            super().__init__([], [("q.jpg", *query)], [("g.jpg", *gallery)], **options)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Own", Own)
    if isinstance(found, str):
        with pytest.raises(ValueError, match=f"Own of DATASETS.TESTS: {found}"):
            load_test_images(config(), "Own")
        return
    dataset = load_test_images(config(), "Own")
    assert [[item[1:] for item in items] for items in (dataset.query, dataset.gallery)] == found
    assert all(type(number) is int for item in (*dataset.query, *dataset.gallery) for number in item[1:])


def test_two_datasets_of_ones_own_keep_their_cameras_and_identities_apart(monkeypatch):
    def own(letter):
        class Own(ImageDataset):
            def __init__(self, root="", **options):
                super().__init__([(f"{letter}{i}.jpg", i, i % 2) for i in range(4)], [], [], **options)

        return Own

    for name in ("MyA", "MyB"):
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, name, own(name))
    cfg = config(DATASETS__NAMES=("MyA", "MyB"), DATASETS__USE_CAMERAS=True)
    images = load_training_images(cfg)
    assert images.camids.tolist() == [0, 1, 0, 1, 2, 3, 2, 3] and images.identities.tolist() == list(range(8))


def test_unreadable_files(tmp_path, caplog):
    images(tmp_path, "good.jpg")
    for number in range(12):
        (tmp_path / f"bad_{number:02d}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError) as error:
        load_training_images(config(PATH=str(tmp_path)))
    message = str(error.value)
    assert "12 of 13 images" in message and "bad_09.jpg" in message and "bad_10.jpg" not in message
    with caplog.at_level("WARNING"):
        found = load_training_images(config(PATH=str(tmp_path), SKIP_UNREADABLE=True))
    assert len(found) == 1 and "Left out 12 of 13 images" in caplog.text


def test_what_is_not_known_does_not_count_in_the_table(tmp_path):
    images(tmp_path, "a.jpg", "b.jpg")
    dataset = load_dataset(config(PATH=str(tmp_path)), "UnlabeledFolder", "DATASETS.NAMES")
    assert dataset.parse_data(dataset.train) == (0, 0)


def test_fastreid_by_itself_is_told_what_is_missing():
    from fastreid.data.datasets import DATASET_REGISTRY

    with pytest.raises(ValueError, match="UnlabeledFolder needs DATASETS.FOLDER.PATH"):
        DATASET_REGISTRY.get("UnlabeledFolder")(root="datasets")


MISTAKES = {
    "no path": ({}, "DATASETS.FOLDER.PATH is empty"),
    "no folder": ({"PATH": "{}/nowhere"}, "no folder of images at"),
    "a file": ({"PATH": "{}/cam1/a.jpg"}, "is a file; a folder of images is needed"),
    "no image": ({"PATH": "{}/empty"}, "holds no image"),
    "cameras not known": ({"PATH": "{}", "DATASETS__USE_CAMERAS": True}, "images without camera ids.*own.yml"),
    "no pattern": ({"PATH": "{}", "CAMERA_FROM": "pattern"}, "no pattern: give one"),
    "wrong pattern": ({"PATH": "{}", "CAMERA_FROM": "pattern", "PATTERN": "(?P<camera>door)"}, "does not fit 2 of 2"),
    "pattern without group": ({"PATH": "{}", "CAMERA_FROM": "pattern", "PATTERN": "cam"}, "no group .*camera"),
    "no regular expression": ({"PATH": "{}", "CAMERA_FROM": "pattern", "PATTERN": "("}, "no regular expression"),
    "unknown source": ({"PATH": "{}", "CAMERA_FROM": "names"}, "camera_from is 'names'; choose one of none"),
    "no csv": ({"PATH": "{}", "CAMERA_FROM": "csv", "CSV": "{}/no.csv"}, "no csv file at"),
    "no scores": ({"PATH": "{}", "MIN_SCORE": 0.5}, "MIN_SCORE is 0.5, but the images have no scores"),
    "no tracks": ({"PATH": "{}", "CLUSTERING__TRACKS": "must_link"}, "DATASETS.FOLDER.TRACK_FROM"),
    "combined": ({"PATH": "{}", "DATASETS__COMBINEALL": True}, "DATASETS.COMBINEALL"),
}


@pytest.mark.parametrize("keys, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes(keys, message, tmp_path):
    images(tmp_path, "cam1/a.jpg", "cam2/b.jpg")
    (tmp_path / "empty").mkdir()
    filled = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in keys.items()}
    with pytest.raises((ValueError, OSError), match=message):
        load_training_images(config(**filled))


TEST_MISTAKES = {
    "no query": ({}, "DATASETS.FOLDER.QUERY is empty"),
    "no gallery": ({"QUERY": "{}/query"}, "DATASETS.FOLDER.GALLERY is empty"),
    "no identities": (
        {"QUERY": "{}/query", "GALLERY": "{}/gallery", "TEST_IDENTITY_FROM": "none"},
        "nothing can be scored without identities",
    ),
    "no pattern": (
        {"QUERY": "{}/query", "GALLERY": "{}/gallery", "TEST_PATTERN": "", "TEST_IDENTITY_FROM": "folder"},
        r"TEST_CAMERA_FROM is 'pattern', but DATASETS.FOLDER.TEST_PATTERN is empty.*\(PATTERN is that of the training",
    ),
    "no cameras to normalise": (
        {"QUERY": "{}/query", "GALLERY": "{}/gallery", "TEST_CAMERA_FROM": "none", "TEST__CAMERA_NORMALIZATION": True},
        "TEST.CAMERA_NORMALIZATION needs the cameras of the test images",
    ),
    "nobody in common": ({"QUERY": "{}/query", "GALLERY": "{}/others"}, "no identity of .* is in .*others"),
}


@pytest.mark.parametrize("keys, message", TEST_MISTAKES.values(), ids=TEST_MISTAKES)
def test_mistakes_of_queries_and_gallery(keys, message, tmp_path):
    images(tmp_path, "query/1_c1_a.jpg", "gallery/1_c2_b.jpg", "others/2_c2_b.jpg")
    filled = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in keys.items()}
    with pytest.raises(ValueError, match=message):
        load_test_images(config(**{"TEST_PATTERN": NAMES, **filled}), "UnlabeledFolder")


def test_every_kind_of_file_shows_the_same_picture(tmp_path):
    """Palettes are not read as their indices, and opacity is no fourth colour: in training, cache and Python."""
    picture = Image.new("RGB", (16, 32), (200, 0, 45))
    picture.save(tmp_path / "1.png")
    picture.convert("RGBA").save(tmp_path / "2.png")
    picture.quantize(8).save(tmp_path / "3.png")
    picture.quantize(8).save(tmp_path / "4.bmp")
    picture.convert("L").save(tmp_path / "5.png")
    picture.convert("1").save(tmp_path / "6.png")
    for cache in ("none", "ram"):
        cfg = config(PATH=str(tmp_path), DATALOADER__CACHE=cache, DATALOADER__NUM_WORKERS=0)
        found = load_training_images(cfg)
        (batch,) = build_feature_loader(cfg, found, ImageCache(cfg, found.paths))
        colours = batch["images"].float().mean(dim=(2, 3)).tolist()
        assert colours[:4] == [[200, 0, 45]] * 4
        assert colours[4] == [65, 65, 65] and len(set(colours[5])) == 1


def test_more_than_a_byte_a_colour_is_refused(tmp_path):
    """Pillow would cut it off at 255: a white picture."""
    Image.fromarray(np.full((32, 16), 30000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (16, 32)).save(tmp_path / "plain.png")
    said = "deep.png: its pixels are of Pillow's mode I;16, more than a byte each: convert it to 8 bits"
    with pytest.raises(ValueError, match=said):
        load_training_images(config(PATH=str(tmp_path)))
    with pytest.raises(ValueError, match="mode I;16"):
        read_image(str(tmp_path / "deep.png"))


def test_images_that_are_there_twice(tmp_path):
    """Each would be its twin's nearest neighbour."""
    images(tmp_path, "1.png", "2.png")
    cfg = config(PATH=str(tmp_path), DATASETS__NAMES=("UnlabeledFolder", "UnlabeledFolder"))
    with pytest.raises(ValueError, match=r"DATASETS.NAMES has .*1.png twice"):
        load_training_images(cfg)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "of_1.png").symlink_to(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"DATASETS.NAMES has .*of_1.png twice: .* a link is beside what it links to"):
        load_training_images(config(PATH=str(tmp_path)))
