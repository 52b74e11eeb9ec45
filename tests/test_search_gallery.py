"""A folder of images and its index: only what has changed is read again."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.cli.search import main
from fastreid_ice.files import check_output, write_csv
from fastreid_ice.search import (
    SearchIndex,
    default_index_folder,
    gallery,
    open_gallery,
    search_folder,
    update_index,
)


class MeanColours:
    """A stand-in for a trained model: the feature of an image is its mean colour. Counts what it reads."""

    sha256 = "12" * 32
    input_size = (8, 4)

    def __init__(self):
        self.read = []

    def embed(self, images):
        self.read += [os.path.basename(path) for path in images]
        return np.stack([self._one(path) for path in images])

    def _one(self, path):
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.float32).mean(axis=(0, 1)) + 1


COLOURS = {
    "red.png": (250, 0, 0),
    "green.png": (0, 250, 0),
    "cam1/blue.PNG": (0, 0, 250),
    "cam1/pink.png": (250, 0, 90),
}


def draw(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        draw(tmp_path / "gallery" / name, colour)
    (tmp_path / "gallery" / "notes.txt").write_text("not an image")
    (tmp_path / "gallery" / ".cache").mkdir()
    (tmp_path / "gallery" / ".cache" / "thumb.png").write_text("hidden")
    draw(tmp_path / "query.png", (240, 0, 20))
    return tmp_path / "gallery"


@pytest.fixture
def model():
    return MeanColours()


def found(result):
    return [[os.path.basename(path) for path in row] for row in result.paths]


def test_a_second_query_reads_the_query_only(folder, model, tmp_path):
    result = search_folder(model, [tmp_path / "query.png"], folder, k=2)
    assert found(result) == [["red.png", "pink.png"]]
    assert sorted(model.read) == ["blue.PNG", "green.png", "pink.png", "query.png", "red.png"]
    assert result.update.added == tuple(sorted(COLOURS))
    model.read.clear()
    again = search_folder(model, [tmp_path / "query.png", folder / "green.png"], folder, k=2)
    assert found(again)[0] == ["red.png", "pink.png"] and found(again)[1][0] == "green.png"
    assert model.read == ["query.png", "green.png"]
    assert str(again.update) == "nothing has changed"
    assert again.similarities[1, 0] == pytest.approx(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gallery", "gallery.search_index", "query.png"]


def test_only_what_has_changed_is_read(folder, model, tmp_path):
    open_gallery(model, folder)
    model.read.clear()
    draw(folder / "new" / "yellow.png", (250, 250, 0))
    draw(folder / "red.png", (0, 250, 250))
    os.utime(folder / "red.png", ns=(1, 1))
    (folder / "green.png").unlink()
    index, update = open_gallery(model, folder)
    assert sorted(model.read) == ["red.png", "yellow.png"]
    assert update == gallery.GalleryUpdate(("new/yellow.png",), ("red.png",), ("green.png",))
    assert sorted(index.paths) == ["cam1/blue.PNG", "cam1/pink.png", "new/yellow.png", "red.png"]
    stored = SearchIndex.open(default_index_folder(folder))
    assert found(search_folder(model, [folder / "red.png"], folder, k=1)) == [["red.png"]]
    assert stored.paths == index.paths


def test_the_folder_may_move(folder, model, tmp_path):
    open_gallery(model, folder, tmp_path / "index")
    model.read.clear()
    moved = folder.rename(tmp_path / "moved")
    result = search_folder(model, [tmp_path / "query.png"], moved, tmp_path / "index", k=1)
    assert model.read == ["query.png"] and result.paths == ((str(moved / "red.png"),),)


def test_an_index_of_another_folder_is_refused(folder, model, tmp_path):
    open_gallery(model, folder, tmp_path / "index")
    draw(tmp_path / "other" / "white.png", (250, 250, 250))
    with pytest.raises(ValueError, match="none of its 4 images is in .*other.*--index"):
        open_gallery(model, tmp_path / "other", tmp_path / "index")
    assert len(SearchIndex.open(tmp_path / "index")) == 4


def test_all_images_replaced_by_others(folder, model, tmp_path):
    open_gallery(model, folder, tmp_path / "index")
    for name in COLOURS:
        (folder / name).unlink()
    draw(folder / "white.png", (250, 250, 250))
    index, update = open_gallery(model, folder, tmp_path / "index")
    assert len(index) == 1 and update.added == ("white.png",) and len(update.removed) == len(COLOURS)


def test_a_query_that_is_a_folder(folder, model):
    with pytest.raises(IsADirectoryError, match="is a folder; name the images in it"):
        search_folder(model, [folder], folder)


def test_names_that_two_folders_share_do_not_mix_them(folder, model, tmp_path):
    """Images of the same names would take each other's places."""
    open_gallery(model, folder, tmp_path / "index")
    draw(tmp_path / "other" / "red.png", (0, 0, 200))
    with pytest.raises(ValueError, match="is of the folder .*not of .*other.*--index"):
        open_gallery(model, tmp_path / "other", tmp_path / "index")
    (tmp_path / "link").symlink_to(folder)
    open_gallery(model, tmp_path / "link", tmp_path / "index")  # the same folder


def test_the_default_index_lies_beside_the_gallery(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert default_index_folder(".") == folder.with_name(f"{folder.name}.search_index")
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    assert default_index_folder("..") == folder.with_name(f"{folder.name}.search_index")


def test_unreadable_images_are_named_or_skipped(folder, model, tmp_path):
    (folder / "cam1" / "torn.jpg").write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(ValueError, match=r"1 image\(s\) cannot be read: .*torn.jpg: not an image.*--skip-unreadable"):
        open_gallery(model, folder)
    assert not default_index_folder(folder).exists()
    index, update = open_gallery(model, folder, skip_unreadable=True)
    assert update.skipped == (("cam1/torn.jpg", "not an image that can be read"),)
    assert sorted(index.paths) == sorted(COLOURS)
    (folder / "red.png").write_bytes(b"torn as well")  # what the index knows of it is no longer true
    index, update = open_gallery(model, folder, skip_unreadable=True)
    assert "red.png" not in index.paths and len(update.skipped) == 2
    assert len(SearchIndex.open(default_index_folder(folder))) == 3


def test_an_image_that_cannot_be_read_loses_nothing(folder, model, tmp_path, monkeypatch):
    (folder / "red.png").write_bytes(b"no image")  # the last by name
    kept = []

    def update():
        index = SearchIndex.open(place) if place.exists() else SearchIndex()
        update_index(index, folder, model.embed, batch=1, save=lambda: kept.append(index.paths) or index.save(place))

    place = tmp_path / "index"
    with pytest.raises(ValueError, match="red.png"):
        update()
    assert [sorted(paths) for paths in kept] == [["cam1/blue.PNG", "cam1/pink.png", "green.png"]]
    model.read.clear()
    draw(folder / "red.png", COLOURS["red.png"])
    update()
    assert model.read == ["red.png"] and len(kept[-1]) == 4


def test_an_index_that_cannot_be_written(folder, model, tmp_path, monkeypatch):
    """What is up to date needs no place to write."""

    def refuse(place, option):
        raise PermissionError(f"{option} {place} cannot be written")

    open_gallery(model, folder)
    model.read.clear()
    monkeypatch.setattr(gallery, "check_folder_for_output", refuse)
    assert len(open_gallery(model, folder)[0]) == 4
    (folder / "green.png").unlink()
    with pytest.raises(PermissionError, match=r"The search index \(--index\) in .* cannot be written"):
        open_gallery(model, folder)
    draw(folder / "new.png", (1, 2, 3))
    with pytest.raises(PermissionError):
        open_gallery(model, folder)
    assert model.read == []


def test_an_index_behind_a_link(folder, model, tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "store" / "index")  # leads nowhere yet
    open_gallery(model, folder, link)
    (folder / "green.png").unlink()
    open_gallery(model, folder, link)
    assert link.is_symlink() and len(SearchIndex.open(tmp_path / "store" / "index").paths) == 3
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["index"]


def test_a_mount_point_is_refused_before_the_work(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "disk"))
    (tmp_path / "disk").mkdir()
    with pytest.raises(ValueError, match=r"where a disk is mounted.*--index .*disk/index"):
        open_gallery(model, folder, tmp_path / "disk")
    assert model.read == []
    open_gallery(model, folder, tmp_path / "disk" / "index")


def test_what_a_killed_writer_left_is_removed_a_day_later(folder, model, tmp_path):
    def leave(name, content, age):
        path = tmp_path / name
        path.mkdir()
        (path / content).write_text("half")
        for each in (path / content, path):
            os.utime(each, (time.time() - age, time.time() - age))
        return path

    old = leave(".0123abcd.gallery.search_index", "index.faiss", 90_000)
    kept = [
        leave(".0123abce.gallery.search_index", "index.faiss", 60),  # may be at work
        leave(".0123abcf.gallery.search_index", "notes.txt", 90_000),  # somebody else's
        leave(".0123abcd.other.search_index", "index.faiss", 90_000),
    ]
    open_gallery(model, folder)
    assert not old.exists() and all(path.exists() for path in kept)


def test_a_folder_of_unreadable_images(tmp_path, model):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "a.jpg").write_text("torn")
    with pytest.raises(ValueError, match="None of the 1 images in .* can be read; first: a.jpg"):
        open_gallery(model, tmp_path / "gallery", skip_unreadable=True)


def test_the_last_image_becomes_unreadable(tmp_path, model):
    (tmp_path / "gallery").mkdir()
    draw(tmp_path / "gallery" / "a.png", (200, 0, 0))
    open_gallery(model, tmp_path / "gallery")
    (tmp_path / "gallery" / "a.png").write_text("torn")
    with pytest.raises(ValueError, match="None of the 1 images in .* can be read; first: a.png"):
        open_gallery(model, tmp_path / "gallery", skip_unreadable=True)


def test_what_file_managers_leave_is_no_obstacle(folder, model):
    open_gallery(model, folder)
    (default_index_folder(folder) / ".DS_Store").write_text("x")
    draw(folder / "another.png", (1, 2, 3))
    assert open_gallery(model, folder)[1].added == ("another.png",)
    (default_index_folder(folder) / "mine.txt").write_text("x")
    draw(folder / "third.png", (3, 2, 1))
    read = len(model.read)
    with pytest.raises(ValueError, match="holds 'mine.txt'"):
        open_gallery(model, folder)
    assert len(model.read) == read  # before the work


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8(tmp_path, model, caplog):
    caplog.set_level("INFO")
    gallery = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gal\xe9"))
    gallery.mkdir()
    draw(gallery / os.fsdecode(b"caf\xe9.png"), (200, 0, 0))
    index, _ = open_gallery(model, gallery)
    assert len(SearchIndex.open(default_index_folder(gallery))) == len(index) == 1
    caplog.text.encode()  # neither a log file nor a terminal takes it otherwise
    assert r"gal\xe9" in caplog.text
    write_csv(tmp_path / "found.csv", ["path"], [[index.full_path(0)]])
    assert b"caf\xe9.png" in (tmp_path / "found.csv").read_bytes()


def test_an_error_of_the_model_stays_what_it_is(folder):
    def out_of_memory(paths):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        update_index(SearchIndex(), folder, out_of_memory)


def test_an_interruption_loses_the_last_part_only(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "SAVE_EVERY", 2)
    embed = model.embed

    def interrupted(paths):
        if len(model.read) >= 2:
            raise KeyboardInterrupt
        return embed(paths)

    monkeypatch.setattr(model, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_gallery(model, folder, tmp_path / "index")
    monkeypatch.undo()
    kept = SearchIndex.open(tmp_path / "index").paths
    model.read.clear()
    open_gallery(model, folder, tmp_path / "index")
    assert len(kept) == len(model.read) == 2


def test_other_mistakes(folder, model, tmp_path):
    with pytest.raises(FileNotFoundError, match="query image .*nobody.png does not exist"):
        search_folder(model, [tmp_path / "nobody.png"], folder)
    with pytest.raises(ValueError, match="query image .*notes.txt cannot be read: not an image"):
        search_folder(model, [folder / "notes.txt"], folder)
    with pytest.raises(ValueError, match="--top-k.*found 0"):
        search_folder(model, [tmp_path / "query.png"], folder, k=0)
    with pytest.raises(FileNotFoundError, match="no folder of images at .*nowhere"):
        search_folder(model, [tmp_path / "query.png"], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no image .jpg, jpeg"):
        search_folder(model, [tmp_path / "query.png"], tmp_path / "empty")
    with pytest.raises(ValueError, match="which would be lost"):
        search_folder(model, [tmp_path / "query.png"], folder, tmp_path)
    assert model.read == []
    open_gallery(model, folder)
    model.input_size = (16, 8)
    with pytest.raises(ValueError, match="was made with the model 121212121212"):
        open_gallery(model, folder)
    model.input_size = (8, 4)
    with pytest.raises(ValueError, match="is of kind 'auto', asked for is 'ivf'"):
        open_gallery(model, folder, kind="ivf")


def test_rows_and_csv(folder, model, tmp_path):
    result = search_folder(model, [tmp_path / "query.png"], folder, k=10)
    rows = result.rows()
    assert [row[1] for row in rows] == [1, 2, 3, 4]
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    result.write_csv(tmp_path / "deep" / "found.csv")
    lines = (tmp_path / "deep" / "found.csv").read_text().splitlines()
    assert lines[0] == "query,rank,similarity,path"
    assert lines[1] == f"{tmp_path / 'query.png'},1,{rows[0][2]:.6f},{folder / 'red.png'}"
    assert len(lines) == 5


def test_outputs_are_checked_first(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_output(tmp_path / "new" / "deep" / "found.png", {".png"})
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="found.xyz cannot be written: its name must end in one of .jpg, .png"):
        check_output(tmp_path / "found.xyz", {".png", ".jpg"})
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_output(tmp_path)
    with pytest.raises(NotADirectoryError, match="file is a file"):
        check_output(tmp_path / "file" / "found.csv")


def test_the_tool(folder, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastreid_ice.load", lambda path: model, raising=False)
    arguments = ["--model", "run", "--query", str(tmp_path / "query.png"), "--gallery", str(folder), "--top-k", "3"]
    picture, table = tmp_path / "out" / "found.png", tmp_path / "out" / "found.csv"
    main([*arguments, "--output", str(picture), "--csv", str(table)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["query", "rank", "similarity", "path"]
    assert [line.split()[1] for line in printed[2:]] == ["1", "2", "3"]
    assert printed[2].endswith("red.png") and printed[3].endswith("pink.png")
    with Image.open(picture) as sheet:
        assert sheet.getpixel((10 + 32, 68 + 64)) == (240, 0, 20)  # the query
    assert len(table.read_text().splitlines()) == 4
    model.read.clear()
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--output", "found"])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 1 and line.startswith("error: ") and "must end in one of" in line
    assert model.read == []
