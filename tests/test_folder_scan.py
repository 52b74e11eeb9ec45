"""Somebody's own images: what is found, what names and csv files say, and what is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.data.folder_report import check_folder, recommend
from fastreid_ice.data.folder_scan import find_unreadable, number_names, scan_folder
from fastreid_ice.image_files import inspect_images, same_pixels

PATTERN = r"(?P<identity>\d+)_c(?P<camera>\d+)_f(?P<frame>\d+)"


def draw(path, shade=0, size=(4, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path):
    """crops/cam2/t1/.., crops/cam10/t1/.. with names that a pattern understands."""
    names = ["cam2/t1/7_c2_f1.jpg", "cam2/t1/7_c2_f2.JPG", "cam2/t3/8_c2_f2.png", "cam10/t1/7_c10_f9.webp"]
    for shade, name in enumerate(names):
        draw(tmp_path / "crops" / name, 50 * shade)
    return tmp_path / "crops"


# Sorted as text: cam10 before cam2.
NAMES = ("cam10/t1/7_c10_f9.webp", "cam2/t1/7_c2_f1.jpg", "cam2/t1/7_c2_f2.JPG", "cam2/t3/8_c2_f2.png")


def table(path, rows, header="path,camera"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_any_depth_hidden_and_links(folder, tmp_path):
    draw(folder / ".trash" / "gone.jpg")
    draw(folder / ".hidden.jpg")
    draw(folder / "top.bmp")
    (folder / "notes.txt").write_text("no image")
    draw(tmp_path / "elsewhere" / "far.jpeg")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "far.jpeg")
    (folder / "cam2" / "circle").symlink_to(folder)
    scan = scan_folder(folder)
    assert scan.names == tuple(sorted([*NAMES, "link/far.jpeg", "linked.jpg", "top.bmp"]))
    assert scan.paths == tuple(os.path.join(folder, name) for name in scan.names)
    assert scan.cameras is scan.identities is scan.tracks is scan.frames is scan.scores is None
    assert len(scan) == 7 and not scan.skipped
    assert scan_folder(folder, extensions=("PNG", ".bmp")).names == ("cam2/t3/8_c2_f2.png", "top.bmp")


def test_from_folders(folder):
    scan = scan_folder(folder, camera_from="folder", track_from="folder")
    assert scan.names == NAMES
    assert scan.camera_names == ("cam10", "cam2", "cam2", "cam2")
    assert scan.cameras.tolist() == [1, 0, 0, 0] and scan.cameras.dtype == np.int64  # cam2 before cam10
    assert scan.track_names == ("cam10/t1", "cam2/t1", "cam2/t1", "cam2/t3")
    assert scan.tracks.tolist() == [2, 0, 0, 1]
    assert scan_folder(folder, identity_from="folder").identity_names == ("t1", "t1", "t1", "t3")
    assert len(scan) == 4 and (scan.cameras.max(), scan.tracks.max()) == (1, 2) and not scan.skipped


def test_from_a_pattern(folder):
    scan = scan_folder(folder, camera_from="pattern", identity_from="pattern", pattern=PATTERN)
    assert scan.camera_names == ("10", "2", "2", "2") and scan.cameras.tolist() == [1, 0, 0, 0]
    assert scan.identities.tolist() == [0, 0, 0, 1]
    assert scan.frames.tolist() == [9, 1, 2, 2] and scan.scores is None
    # Tracks of the same name under different cameras are different ones.
    both = scan_folder(folder, camera_from="folder", track_from="pattern", pattern="/t(?P<track>[0-9])/")
    assert both.track_names == ("1", "1", "1", "3") and both.tracks.tolist() == [2, 0, 0, 1]
    alone = scan_folder(folder, track_from="pattern", pattern="/t(?P<track>[0-9])/")
    assert alone.tracks.tolist() == [0, 0, 0, 1]


def test_from_a_csv(folder, tmp_path):
    rows = [f"{name},{camera},{track},{frame},0.{frame}" for name, camera, track, frame in (
        (NAMES[3], "yard", 3, 5), (NAMES[1], "yard", 1, 6), (NAMES[0], "door", 1, 7), (NAMES[2], "yard", 1, 8),
    )]  # fmt: skip
    csv = table(tmp_path / "tracks.csv", rows, "path,camera,track,frame,score")
    scan = scan_folder(folder, camera_from="csv", track_from="csv", csv=csv)
    assert scan.camera_names == ("door", "yard", "yard", "yard")
    assert scan.tracks.tolist() == [0, 1, 1, 2]
    assert scan.frames.tolist() == [7, 6, 8, 5]
    assert scan.scores == pytest.approx([0.7, 0.6, 0.8, 0.5])
    assert scan.identities is None
    assert scan_folder(folder, camera_from="csv", csv=csv).tracks is None


def test_paths_of_a_csv(folder, tmp_path):
    """Relative to the images, to the csv's folder, or absolute; quotes, spaces and a byte order mark are no trouble."""
    rows = [f"{NAMES[0]},a", f"crops/{NAMES[1]},b", f"{folder / NAMES[2]}, b", f'"./{NAMES[3]}","a"']
    csv = table(tmp_path / "list.csv", rows, "\ufeffpath, camera")
    assert scan_folder(folder, camera_from="csv", csv=csv).camera_names == ("a", "b", "b", "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere"}, "no folder of images at .*nowhere"),
        ({"path": "crops/cam2/t3/8_c2_f2.png"}, "is a file"),
        ({"extensions": ("gif",)}, "holds no image .gif."),
        ({"camera_from": "name"}, "camera_from is 'name'; choose one of none, folder, pattern, csv"),
        ({"camera_from": "pattern"}, "camera_from is 'pattern', but there is no pattern"),
        ({"track_from": "csv"}, "track_from is 'csv', but there is no csv"),
        ({"identity_from": "folder", "track_from": "folder"}, "both 'folder'"),
        ({"camera_from": "pattern", "pattern": "(?P<camera>["}, "no regular expression"),
        ({"camera_from": "pattern", "pattern": r"c(\d)"}, r"no group .\?P<camera>...., which camera_from needs"),
        ({"pattern": r"(?P<cam>\d)"}, "has a group 'cam'; known are camera, identity"),
        (
            {"camera_from": "pattern", "pattern": "f2(?P<camera>.)"},
            "does not fit 2 of 4 images: cam10/t1/7_c10_f9.webp, cam2/t1/7_c2_f1.jpg",
        ),
        (
            {"track_from": "folder", "pattern": r"(?P<frame>c\d+)"},
            "The frame of cam10/t1/7_c10_f9.webp is 'c10'; a whole number is needed",
        ),
        ({"csv": "nowhere.csv", "camera_from": "csv"}, "no csv file at .*nowhere.csv"),
    ],
)
def test_mistakes(change, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        scan_folder(**{"path": "crops", **change})


def test_a_frame_of_too_many_digits(tmp_path):
    draw(tmp_path / "20240131120000123456.png")
    with pytest.raises(ValueError, match="frame of 20240131120000123456.png is '20240131120000123456', more than"):
        scan_folder(tmp_path, track_from="pattern", pattern="(?P<track>(?P<frame>[0-9]+))")
    assert scan_folder(tmp_path, pattern="(?P<frame>[0-9]+)").frames is None  # of no track
    assert scan_folder(tmp_path, pattern="(?P<frame>[0-9]{18})[.]").frames.tolist() == [240131120000123456]


def test_a_folder_that_cannot_be_listed_is_an_error(folder, monkeypatch):
    """Its images would be left out without a word, and taken for gone by a search index."""
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("t3"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="t3"):
        scan_folder(folder, verify=False)


def test_images_outside_of_folders(folder):
    for number in range(5):
        draw(folder / f"{number}.jpg")
    with pytest.raises(ValueError, match="no folder below .*crops holds 5 of 9 images: 0.jpg, 1.jpg, 2.jpg, ..."):
        scan_folder(folder, camera_from="folder")
    draw(folder / "cam2" / "x.jpg")
    with pytest.raises(ValueError, match="track_from is 'folder'.*below its camera's folder .* 1 of 5 .* cam2/x.jpg"):
        for number in range(5):
            (folder / f"{number}.jpg").unlink()
        scan_folder(folder, camera_from="folder", track_from="folder")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([f"{name},1" for name in NAMES], "path,cam", "has the columns path, cam; it lacks camera"),
        ([f"{name},1" for name in NAMES[:3]], "path,camera", "no row for 1 of 4 images: cam2/t3/8_c2_f2.png"),
        ([f"{name},1" for name in (*NAMES, "a.jpg", "b.jpg")], "path,camera", "not in .*, 2 of 6 images: a.jpg, b.jpg"),
        ([f"{name},1" for name in (*NAMES, NAMES[1])], "path,camera", "line 6: the image .*f1.jpg has a row already"),
        ([f"{name},1" for name in NAMES[:3]] + [NAMES[3] + ","], "path,camera", "no camera for 1 of 4 images"),
        ([f"{name},1,x" for name in NAMES], "path,camera,frame", "frame of cam10.* is 'x'; a whole number"),
        ([f"{name},1,x" for name in NAMES], "path,camera,score", "score of cam10.* is 'x'; a number"),
        ([f"{name},1" for name in NAMES[:3]] + [NAMES[3]], "path,camera", "line 5: not as many fields"),
        ([f"{name},1,2" for name in NAMES], "path,camera", "line 2: not as many fields"),
        ([], "path,camera", "a header, but no row"),
        ([], "", r"has the columns .none.; it lacks path, camera"),
    ],
)
def test_mistakes_of_a_csv(rows, header, message, folder, tmp_path):
    csv = table(tmp_path / "list.csv", rows, header)
    with pytest.raises(ValueError, match=message):
        scan_folder(folder, camera_from="csv", track_from="folder", csv=csv, with_scores=True)


def test_numbers_of_a_table_with_gaps(folder, tmp_path):
    """Gaps where nobody needs the numbers are no matter; whole numbers beside gaps are often written with a point."""
    rows = [f"{name},1,{frame},{score}" for name, frame, score in zip(NAMES, ("12.0", "", "3", "4."), "1234")]
    csv = table(tmp_path / "list.csv", rows, "path,camera,frame,score")
    scan = scan_folder(folder, camera_from="csv", csv=csv)
    assert scan.frames is None and scan.scores.tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="The frame of cam2/t1.* is ''; a whole number is needed .*list.csv"):
        scan_folder(folder, camera_from="csv", track_from="folder", csv=csv)
    filled = table(tmp_path / "filled.csv", [row.replace(",,", ",5,") for row in rows], "path,camera,frame,score")
    assert scan_folder(folder, camera_from="csv", track_from="folder", csv=filled).frames.tolist() == [12, 5, 3, 4]
    for bad in ("1.5", "nan"):
        other = table(tmp_path / "bad.csv", [f"{name},1,{bad},{bad}" for name in NAMES], "path,camera,frame,score")
        with pytest.raises(ValueError, match=f"The frame .* is '{bad}'"):
            scan_folder(folder, camera_from="csv", track_from="folder", csv=other)


def test_a_table_as_a_spreadsheet_leaves_it(folder, tmp_path):
    rows = [f"{name},1,a,{i}" for i, name in enumerate(NAMES)] + [",,,", "   ", " , ,,"]
    scan = scan_folder(folder, camera_from="csv", csv=table(tmp_path / "list.csv", rows, "path,camera,track,frame"))
    assert scan.camera_names == ("1",) * 4


def test_a_detection_of_no_track_is_one_by_itself(folder, tmp_path):
    rows = [f"{NAMES[0]},1,t2,7", f"{NAMES[1]},1,,", f"{NAMES[2]},1,t10,", f"{NAMES[3]},1,t2,9"]
    sources = {"camera_from": "csv", "track_from": "csv"}
    with pytest.raises(ValueError, match="The frame of cam2/t1.* is ''"):  # of a track it is needed
        scan_folder(folder, **sources, csv=table(tmp_path / "gap.csv", rows, "path,camera,track,frame"))
    rows[2] += "8"
    scan = scan_folder(folder, **sources, csv=table(tmp_path / "list.csv", rows, "path,camera,track,frame"))
    assert scan.tracks.tolist() == [0, -1, 1, 0] and scan.frames.tolist() == [7, 0, 8, 9]
    assert check_folder(scan).per_track.median == 1.5
    nothing = table(tmp_path / "none.csv", [f"{name},1,,1" for name in NAMES], "path,camera,track,frame")
    with pytest.raises(ValueError, match="no track for 4 of 4 images"):
        scan_folder(folder, **sources, csv=nothing)


def test_a_csv_in_another_encoding(folder, tmp_path):
    (tmp_path / "list.csv").write_bytes("path,camera\n\u00e4.jpg,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="no csv file in UTF-8"):
        scan_folder(folder, camera_from="csv", csv=tmp_path / "list.csv")


def test_unreadable_images(folder, tmp_path):
    whole = (folder / NAMES[1]).read_bytes()
    (folder / "cam2" / "empty.jpg").touch()
    (folder / "cam2" / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cam2" / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="3 of 7 images .*dangling.png: there is no such file; .*empty.jpg.*torn.jpg"):
        scan_folder(folder)
    csv = table(tmp_path / "list.csv", [f"{name},1" for name in (*NAMES, "cam2/torn.jpg")])
    scan = scan_folder(folder, skip_unreadable=True, camera_from="csv", csv=csv)
    assert scan.names == NAMES and len(scan.skipped) == 3
    assert [os.path.basename(path) for path, _ in scan.skipped] == ["dangling.png", "empty.jpg", "torn.jpg"]
    loose = scan_folder(folder, verify=False)
    assert len(loose) == 7 and [path for path, _ in find_unreadable(loose.paths)] == [path for path, _ in scan.skipped]
    for name in NAMES:
        (folder / name).write_text("torn")
    with pytest.raises(ValueError, match="None of the 7 images"):
        scan_folder(folder, skip_unreadable=True)


def test_duplicates_are_the_same_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for name in ("a.png", "same_in_other_format.bmp", "z.jpg"):
        image.save(tmp_path / name)
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "z.jpg").read_bytes())
    noise[0, 0, 0] ^= 1
    Image.fromarray(noise).save(tmp_path / "one_bit.png")
    Image.fromarray(noise.reshape(8, 16, 3)).save(tmp_path / "other_shape.png")
    (tmp_path / "torn1.jpg").touch()
    (tmp_path / "torn2.jpg").touch()
    groups = same_pixels(inspect_images(sorted(tmp_path.iterdir()), workers=2))
    names = [tuple(os.path.basename(path) for path in group) for group in groups]
    assert names == [("a.png", "same_in_other_format.bmp"), ("copy.jpg", "z.jpg")]


def test_numbers_within_names_count_by_size():
    assert number_names(["c10", "c9", "c010", "x", "c9"]).tolist() == [2, 0, 1, 3, 0]
    assert number_names(["door2", "door", "2", "door10", ""]).tolist() == [3, 2, 1, 4, 0]


def test_report(folder):
    draw(folder / "cam2" / "t3" / "9_c2_f3.png", 100, size=(4, 8))  # the same pixels as cam2/t3/8_c2_f2.png
    draw(folder / "cam2" / "t3" / "9_c2_f4.png", 7, size=(10, 5))
    (folder / "cam2" / "torn.jpg").touch()
    report = check_folder(scan_folder(folder, camera_from="folder", verify=False))
    assert report.images == 7 and report.per_camera == {"cam2": 6, "cam10": 1}
    assert report.per_identity is None and report.per_track is None
    assert (report.width.median, report.height.median, report.aspect.median) == (4, 8, 2)
    assert report.aspect.low == pytest.approx(np.percentile([2] * 5 + [0.5], 5))
    assert [os.path.basename(path) for path, _ in report.unreadable] == ["torn.jpg"]
    assert [[os.path.basename(path) for path in group] for group in report.duplicates] == [
        ["8_c2_f2.png", "9_c2_f3.png"]
    ]
    assert report.recommendation.input_size == (256, 128)
    tracked = check_folder(scan_folder(folder, track_from="folder", verify=False))
    assert (tracked.per_track.low, tracked.per_track.high) == pytest.approx((1, 2.85))  # 1, 1, 2, 3 images
    for path in folder.rglob("*.*"):
        path.write_text("torn")
    with pytest.raises(ValueError, match="None of the 7 images"):
        check_folder(scan_folder(folder, verify=False))


@pytest.mark.parametrize(
    ("aspect", "longest", "size"),
    [
        (2.0, 128, (256, 128)),  # people, also small ones
        (2.9, 400, (256, 128)),
        (1.0, 300, (256, 256)),  # vehicles
        (1.1, 300, (256, 240)),
        (1.0, 100, (128, 128)),  # no more pixels than there are
        (0.75, 300, (192, 256)),
        (0.5, 90, (64, 128)),
        (0.1, 300, (64, 256)),
        (5.0, 300, (256, 64)),
    ],
)
def test_recommended_input_size(aspect, longest, size):
    found = recommend(10_000, aspect=aspect, longest_side=longest)
    assert found.input_size == size and not any(side % 16 for side in size)
    assert found.padding == {256: 10, 128: 5}[max(size)]


@pytest.mark.parametrize(
    ("images", "per_identity", "per_track", "k1", "min_samples"),
    [
        (12_936, None, None, 30, 4),
        (12_936, 17, None, 30, 4),
        (400, None, None, 20, 4),
        (20, None, None, 5, 4),
        (12_936, 6, None, 12, 3),
        (12_936, 2, None, 5, 2),
        (400, None, 14, 28, 4),  # an identity has as many images as its track, if not more
        (400, None, 3, 20, 4),
    ],
)
def test_recommended_clustering(images, per_identity, per_track, k1, min_samples):
    found = recommend(images, aspect=2, longest_side=128, per_identity=per_identity, per_track=per_track)
    assert (found.k1, found.min_samples, found.eps) == (k1, min_samples, 0.55)
    assert set(found.reasons) == {"input_size", "padding", "eps", "min_samples", "k1"}
    assert "sweep_eps" in found.reasons["eps"]
