"""The search index in memory and on disk: what is found, what is kept, what is refused."""

import json

import numpy as np
import pytest
import torch

from fastreid_ice.search import FileState, Fingerprint, SearchIndex, vectors
from fastreid_ice.search.storage import read_folder
from fastreid_ice.search.vectors import build_vectors, choose_kind

MODEL = Fingerprint("ab" * 32, (64, 32))


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(images, dimensions=16, per_identity=20, seed=0):
    """Unit rows around common centres, in random order."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(images // per_identity, dimensions))
    return unit(centres[rng.integers(0, len(centres), images)] + 0.4 * rng.normal(size=(images, dimensions)))


def names(count, prefix="image"):
    return [f"{prefix}{number}.jpg" for number in range(count)]


def index_of(features, kind="auto", **options):
    index = SearchIndex(MODEL, kind=kind, **options)
    index.add(features, names(len(features)))
    return index


def naive(queries, features, k):
    """Positions of the most similar rows, from the whole matrix in float64."""
    similarities = queries.astype(np.float64) @ features.T.astype(np.float64)
    order = np.argsort(-similarities, axis=1)[:, :k]
    return np.take_along_axis(similarities, order, axis=1), order


def test_by_hand():
    # On the unit circle at 0, 60, 90 and 180 degrees; the query at 0.
    angles = np.deg2rad([180, 60, 0, 90])
    index = index_of(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    similarities, indices = index.search(torch.tensor([[2.0, 0.0]]), k=4)  # only the direction counts
    assert indices.tolist() == [[2, 1, 3, 0]]
    assert similarities[0] == pytest.approx([1, 0.5, 0, -1], abs=1e-6)
    assert similarities.dtype == np.float32 and indices.dtype == np.int64


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_finds_what_the_whole_matrix_says(kind):
    features, queries = clustered(2000), clustered(50, seed=1)
    found = build_vectors(features, np.arange(2000), kind, target_recall=1.0).search(queries, 10)
    similarities, positions = naive(queries, features, 10)
    assert found[0] == pytest.approx(similarities, abs=1e-6 if kind == "exact" else 1e-3)
    if kind == "exact":
        assert (found[1] == positions).all()
    else:  # half precision may exchange neighbours that are almost equally similar
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found[1], positions)]) > 0.98


@pytest.mark.parametrize("target", [0.5, 0.9, 0.97])
def test_lists_probe_as_many_cells_as_the_recall_needs(target):
    rows = unit(np.random.default_rng(0).normal(size=(4000, 16)))  # without clusters: the hardest case
    built = build_vectors(rows, np.arange(4000) * 3 + 1, "ivf", target_recall=target)
    queries = unit(np.random.default_rng(1).normal(size=(200, 16)))
    _, truth = naive(queries, rows, 10)
    found = (built.search(queries, 10)[1] - 1) // 3
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth)])
    assert built.recall >= target and recall >= target - 0.05
    assert built.cells_probed < built.index.nlist
    fewer = built._probe(queries, 10, built.cells_probed // 2)[1]
    assert np.mean([len(set((a - 1) // 3) & set(b)) / 10 for a, b in zip(fewer, truth)]) < recall


def test_the_kind_follows_the_size(monkeypatch):
    assert [choose_kind(n, d) for n, d in ((262_144, 256), (262_145, 256), (32_768, 2048), (32_769, 2048))] == [
        "exact",
        "ivf",
        "exact",
        "ivf",
    ]
    monkeypatch.setattr(vectors, "EXACT_UP_TO", 500 * 16)
    features = clustered(3000)
    index = SearchIndex()
    for first, kind in ((0, "exact"), (400, "ivf"), (800, "ivf"), (1200, "ivf")):
        part = slice(first, first + 400)
        index.add(features[part], [f"{number}" for number in range(first, first + 400)])
        assert index.vectors.kind == kind
    assert index.vectors.trained_on == 800  # 1600 are not more than twice as many
    index.add(features[1600:], [f"{number}" for number in range(1600, 3000)])
    assert index.vectors.trained_on == 3000
    kept, numbers = index.vectors.contents()
    assert (numbers == np.arange(3000)).all() and np.abs(kept - features).max() < 1e-3


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_adding_replaces_and_removing_keeps_the_order(kind):
    features = clustered(300)
    index = index_of(features, kind)
    index.remove(["image3.jpg", "image250.jpg"])
    assert len(index) == 298 and "image3.jpg" not in index.paths
    assert index.paths[:5] == ["image0.jpg", "image1.jpg", "image2.jpg", "image4.jpg", "image5.jpg"]
    _, found = index.search(features[[4, 299]], 1)
    assert [index.paths[i] for i in found[:, 0]] == ["image4.jpg", "image299.jpg"]
    index.add(-features[[7, 3]], ["image7.jpg", "image3.jpg"])  # one replaced, one new
    assert len(index) == 299
    similarities, found = index.search(-features[[7, 3]], 1)
    assert [index.paths[i] for i in found[:, 0]] == ["image7.jpg", "image3.jpg"]
    assert similarities == pytest.approx(np.ones((2, 1)), abs=1e-3)
    index.add(-features[[7, 3]], ["image7.jpg", "image3.jpg"])
    assert len(index) == len(index.vectors) == 299


def test_removing_all_and_adding_again():
    features = clustered(40)
    index = index_of(features)
    index.remove(index.paths)
    with pytest.raises(ValueError, match="holds no image"):
        index.search(features[:1], 1)
    index.add(features[:3], names(3))
    assert index.search(features[2:3], 5)[1].tolist()[0][0] == 2


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_more_than_there_are_gives_all(kind):
    features = clustered(120)
    _, found = index_of(features, kind).search(features[:2], 1000)
    assert found.shape == (2, 120) and all(sorted(row) == list(range(120)) for row in found.tolist())


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_equal_images_and_zero_vectors(kind):
    features = np.concatenate([np.tile(clustered(20)[:1], (300, 1)), np.zeros((2, 16), np.float32)])
    index = index_of(features, kind)
    similarities, found = index.search(features[:1], 300)
    assert similarities == pytest.approx(np.ones((1, 300)), abs=1e-3) and found.max() < 300
    assert index.search(features[-1:], 3)[0] == pytest.approx(np.zeros((1, 3)))


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_comes_back_from_disk(kind, tmp_path):
    features, queries = clustered(300), clustered(20, seed=1)
    index = index_of(features, kind, root=tmp_path)
    index.remove(["image5.jpg"])
    index.save(tmp_path / "deep" / "index")
    again = SearchIndex.open(tmp_path / "deep" / "index", MODEL)
    assert again.paths == index.paths and again.kind == kind and again.root == tmp_path
    for mine, its in zip(index.search(queries, 7), again.search(queries, 7)):
        assert (mine == its).all()
    again.add(features[5:6], ["image5.jpg"])
    assert again.paths[again.search(features[5:6], 1)[1][0, 0]] == "image5.jpg"
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["index"]


def test_odd_names_and_the_files_states_survive(tmp_path):
    odd = ['a, "b".jpg', "line\nbreak.jpg", "gr\u00fc\u00df.jpg", "b\udcff.jpg"]
    index = SearchIndex()
    index.add(np.eye(4), odd, [FileState(7, 123_456_789_012_345_678)] * 4)
    index.save(tmp_path / "index")
    again = SearchIndex.open(tmp_path / "index")
    assert again.paths == odd
    assert {(e.size, e.mtime_ns) for e in again.entries} == {(7, 123_456_789_012_345_678)}


def test_an_index_of_another_model_is_refused(tmp_path):
    index_of(clustered(20)).save(tmp_path / "index")
    for other in (Fingerprint("cd" * 32, (64, 32)), Fingerprint("ab" * 32, (128, 64))):
        with pytest.raises(ValueError, match="made with the model abababababab .input 64 x 32.*--index"):
            SearchIndex.open(tmp_path / "index", other)
    assert len(SearchIndex.open(tmp_path / "index")) == 20


def test_damage_is_named(tmp_path):
    folder = tmp_path / "index"

    def damaged(name, content):
        index_of(clustered(20)).save(folder)
        (folder / name).write_bytes(content((folder / name).read_bytes()))

    damaged("index.faiss", lambda old: old[:-100])
    with pytest.raises(ValueError, match=r"damaged: index.faiss has [\d,]+ bytes, [\d,]+ were written"):
        SearchIndex.open(folder)
    damaged("index.faiss", lambda old: bytes(len(old)))
    with pytest.raises(ValueError, match="is damaged"):
        SearchIndex.open(folder)
    damaged("images.csv", lambda old: old[:-30])
    with pytest.raises(ValueError, match="is damaged"):
        SearchIndex.open(folder)
    damaged("index.json", lambda old: old[:50])
    with pytest.raises(ValueError, match="is damaged: index.json"):
        SearchIndex.open(folder)
    damaged("index.json", lambda old: json.dumps({**json.loads(old), "format": 2}).encode())
    with pytest.raises(ValueError, match="has format 2, 1 is needed"):
        SearchIndex.open(folder)
    with pytest.raises(FileNotFoundError, match="no search index"):
        SearchIndex.open(tmp_path)


def test_nothing_of_the_users_is_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "index.json").write_text("mine")
    (tmp_path / "photos" / "holiday.jpg").write_text("mine")
    (tmp_path / "file").write_text("mine")
    index = index_of(clustered(20))
    with pytest.raises(ValueError, match="holds 'holiday.jpg', which would be lost"):
        index.save(tmp_path / "photos")
    with pytest.raises(ValueError, match="take the place of the file"):
        index.save(tmp_path / "file")
    assert (tmp_path / "photos" / "holiday.jpg").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_failed_write_keeps_the_older_index(tmp_path, monkeypatch):
    index = index_of(clustered(20))
    index.save(tmp_path / "index")
    index.add(clustered(5, per_identity=5), names(5, "new"))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("fastreid_ice.search.storage.csv.writer", full)
    with pytest.raises(OSError, match="No space left"):
        index.save(tmp_path / "index")
    monkeypatch.undo()
    assert len(read_folder(tmp_path / "index")[2]) == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_mistakes():
    features = clustered(20)
    index = index_of(features)
    with pytest.raises(ValueError, match="called 'hnsw'; choose one of auto, exact, ivf"):
        SearchIndex(kind="hnsw")
    with pytest.raises(ValueError, match="16 dimensions, found 8"):
        index.search(features[:, :8], 3)
    with pytest.raises(ValueError, match="16 dimensions, found 8"):
        index.add(features[:1, :8], ["new.jpg"])
    with pytest.raises(ValueError, match="twice.jpg occurs 2 times among the 3"):
        index.add(features[:3], ["twice.jpg", "once.jpg", "twice.jpg"])
    with pytest.raises(ValueError, match="2 rows of features for 1 paths"):
        index.add(features[:2], ["one.jpg"])
    with pytest.raises(ValueError, match="first of image bad.jpg"):
        index.add(np.full((1, 16), np.nan), ["bad.jpg"])
    with pytest.raises(ValueError, match="k = 0"):
        index.search(features, 0)
    with pytest.raises(KeyError, match="no image other.jpg"):
        index.remove(["image1.jpg", "other.jpg"])
    assert index.paths == names(20) and len(index.vectors) == 20
    with pytest.raises(ValueError, match="nothing to write"):
        SearchIndex().save("anywhere")
