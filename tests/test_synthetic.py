"""The embedded dataset: what lies on disk, that it is reproducible, and that it appears at once or not at all."""

import json
import re
import threading

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.synthetic import dataset as synthetic
from fastreid_ice.synthetic.dataset import GALLERY, MARKER, QUERY, TRAIN, render_synthetic_reid
from fastreid_ice.synthetic.figures import paint_person
from fastreid_ice.synthetic.people import Appearance, Pose, sample_look_alike, sample_people
from fastreid_ice.synthetic.scenes import SceneDifficulty

TINY = {
    "train_identities": 3,
    "test_identities": 2,
    "cameras": 3,
    "train_images": (2, 3),
    "gallery_images": (1, 2),
    "distractors": 2,
}
NAME = re.compile(r"(\d{4})_c([1-6])_(\d{6})\.jpg")
LOOK = Appearance(
    skin=(230, 190, 160),
    hair=(30, 20, 20),
    hairstyle="short",
    top=(30, 60, 200),
    second=(250, 250, 0),
    pattern="logo",
    long_sleeves=True,
    coat=False,
    lower="trousers",
    lower_colour=(90, 90, 90),
    shoes=(10, 10, 10),
    carried="none",
    bag=(0, 200, 0),
    build=1.0,
    stature=1.0,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return render_synthetic_reid(tmp_path_factory.mktemp("data") / "tiny", **TINY)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def items(root, folder):
    """(identity, camera) of every file, in the order of their names."""
    matches = [NAME.fullmatch(path.name) for path in sorted((root / folder).iterdir())]
    return [(int(match[1]), int(match[2])) for match in matches]


def colour_share(image, colour, tolerance=12):
    """Share of the image's pixels that have a colour."""
    pixels = np.asarray(image).astype(int)
    return float((np.abs(pixels[..., :3] - colour).max(axis=2) <= tolerance).mean())


def paint(look, turn):
    pose = Pose(turn=turn, phase=1.0, stride=0.3, swing=0.3, lean=0.0)
    return paint_person(look, pose, (64, 128), centre=32, feet=122, height=112)


def test_same_parameters_give_the_same_bytes(tiny, tmp_path):
    assert contents(render_synthetic_reid(tmp_path / "again", **TINY)) == contents(tiny)


def test_another_seed_gives_other_people(tiny, tmp_path):
    other = render_synthetic_reid(tmp_path / "other", seed=1, **TINY)
    images, others = set(contents(tiny).values()), set(contents(other).values())
    assert not images & others


def test_layout_of_market1501(tiny):
    files = [path for folder in (TRAIN, QUERY, GALLERY) for path in sorted((tiny / folder).iterdir())]
    assert sorted(path.name for path in tiny.iterdir()) == sorted([TRAIN, QUERY, GALLERY, MARKER])
    assert all(NAME.fullmatch(path.name) for path in files)
    # Nobody shall take these files for the real Market-1501.
    assert not any(re.search(r"_c[1-6]s[1-6]_[0-9]{6}_[0-9]{2}\.jpg", path.name) for path in files)
    assert len({NAME.fullmatch(path.name)[3] for path in files}) == len(files)
    for path in files:
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")


def test_identities_and_cameras(tiny):
    train, query, gallery = (items(tiny, folder) for folder in (TRAIN, QUERY, GALLERY))
    assert {identity for identity, _ in train} == {1, 2, 3}
    assert {identity for identity, _ in query} == {4, 5}
    assert {identity for identity, _ in gallery} == {0, 4, 5}
    assert sum(identity == 0 for identity, _ in gallery) == TINY["distractors"]
    assert {camera for _, camera in train} <= {1, 2, 3}
    assert all(2 <= train.count(item) <= 3 for item in set(train))
    assert all(1 <= gallery.count(item) <= 2 for item in set(gallery) if item[0])
    assert len(set(query)) == len(query)


def test_every_query_has_a_match_in_another_camera(tmp_path):
    # Everybody is absent from every camera that can be spared: the hardest case.
    lonely = {**TINY, "cameras": 6, "test_identities": 6, "difficulty": SceneDifficulty(absence=1.0)}
    root = render_synthetic_reid(tmp_path / "lonely", **lonely)
    gallery = items(root, GALLERY)
    for identity, camera in items(root, QUERY):
        assert any(other == identity and place != camera for other, place in gallery)


def test_a_complete_folder_is_left_alone(tiny, monkeypatch):
    monkeypatch.setattr(synthetic, "_render", lambda *_: pytest.fail("rendered again"))
    assert render_synthetic_reid(tiny, **TINY) == tiny


def test_another_version_is_rendered_again(tmp_path):
    root = render_synthetic_reid(tmp_path / "data", **TINY)
    before = contents(root)
    marker = json.loads(before[MARKER])
    (root / MARKER).write_text(json.dumps({**marker, "version": -1}))
    (root / TRAIN / "left_over.jpg").write_bytes(b"from an older version")
    render_synthetic_reid(root, **TINY)
    assert contents(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    expose, calls = synthetic.expose, []

    def fails_at_the_fifth_image(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise OSError("No space left on device")
        return expose(*arguments)

    monkeypatch.setattr(synthetic, "expose", fails_at_the_fifth_image)
    with pytest.raises(OSError, match="No space left"):
        render_synthetic_reid(tmp_path / "data", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_older_version(tmp_path, monkeypatch):
    root = render_synthetic_reid(tmp_path / "data", **TINY)
    before = contents(root)
    monkeypatch.setattr(synthetic, "expose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        render_synthetic_reid(root, seed=5, **TINY)
    assert contents(root) == before


def test_two_at_once(tmp_path, tiny):
    barrier, failures = threading.Barrier(2), []

    def work():
        try:
            barrier.wait()
            render_synthetic_reid(tmp_path / "data", **TINY)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contents(tmp_path / "data") == contents(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_foreign_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(FileExistsError, match="synthetic_reid.json"):
        render_synthetic_reid(tmp_path, **TINY)
    assert (tmp_path / "thesis.tex").read_text() == "three years of work"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cameras": 7}, "cameras is 7"),
        ({"train_identities": 0}, "train_identities is 0"),
        ({"gallery_images": (3, 2)}, "gallery_images is"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_parameters_out_of_range(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        render_synthetic_reid(tmp_path / "data", **{**TINY, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_difficulty_out_of_range():
    with pytest.raises(ValueError, match="occlusion is 1.5"):
        SceneDifficulty(occlusion=1.5)
    with pytest.raises(ValueError, match="cast is -1"):
        SceneDifficulty(cast=-1)


def test_back_hides_the_logo_and_shows_the_backpack():
    front, back = paint(LOOK, 0.0), paint(LOOK, np.pi)
    assert colour_share(front, LOOK.second) > 0.01
    assert colour_share(back, LOOK.second) == 0
    with_bag = Appearance(**{**vars(LOOK), "carried": "backpack"})
    assert colour_share(paint(with_bag, np.pi), LOOK.bag) > 4 * colour_share(paint(with_bag, 0.0), LOOK.bag) > 0


def test_the_face_is_seen_from_the_front_only():
    assert colour_share(paint(LOOK, 0.0), LOOK.skin) > 2 * colour_share(paint(LOOK, np.pi), LOOK.skin)


def test_a_look_alike_differs_in_one_detail():
    rng = np.random.default_rng(0)
    for person in sample_people(rng, 40, 0.0):
        other = sample_look_alike(rng, person)
        assert sum(vars(person)[name] != vars(other)[name] for name in vars(person)) == 1


def test_share_of_look_alikes():
    people = sample_people(np.random.default_rng(3), 20, 0.5)
    pairs = sum(
        sum(vars(one)[name] != vars(two)[name] for name in vars(one)) == 1 for one, two in zip(people, people[1:])
    )
    assert pairs == 5


def test_the_cast_separates_the_cameras(tmp_path):
    def spread(cast):
        flat = SceneDifficulty(cast=cast, background=0, light=0, degradation=0, occlusion=0, absence=0)
        root = render_synthetic_reid(tmp_path / f"cast{cast}", **{**TINY, "difficulty": flat})
        corners = {}
        for path in sorted((root / TRAIN).iterdir()):
            pixels = np.asarray(Image.open(path), dtype=float)
            corners.setdefault(int(NAME.fullmatch(path.name)[2]), []).append(pixels[:8, :8].mean(axis=(0, 1)))
        return np.ptp([np.mean(values, axis=0) for values in corners.values()], axis=0).max()

    assert spread(0.0) < 3
    assert spread(1.0) > 30
