"""The picture of ranking lists: what is drawn where, in which frame."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from fastreid_ice.report.contact_sheet import FRAME, GAP, HEADER, PAPER, WRONG
from fastreid_ice.report.ranking_sheet import (
    CAPTION,
    FRAMES,
    HEIGHT,
    LEAST_COLUMN,
    MARGIN,
    QUERY_FRAME,
    RIGHT,
    name_lines,
    ranking_marks,
    ranking_sheet,
)

COLUMN, ROW = LEAST_COLUMN + 2 * GAP, HEIGHT + 2 * FRAME + CAPTION + GAP


@pytest.fixture
def images(tmp_path):
    """Eight plain pictures, 32 x 64; number i has the grey value 25 * i."""
    paths = []
    for number in range(8):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (32, 64), (25 * number,) * 3).save(paths[-1])
    return paths


def corner(row, column):
    """Of the frame in a row; column 0 is the query."""
    return GAP + column * COLUMN + (MARGIN if column else 0), HEADER + row * ROW


def frame(sheet, row, column):
    return sheet.getpixel(tuple(x + 1 for x in corner(row, column)))


def shown(sheet, row, column):
    left, top = corner(row, column)
    pixel = sheet.getpixel((left + FRAME + 32, top + FRAME + 100))
    return None if pixel == PAPER else pixel[0] / 25


def draw(out, queries, found, similarities=None, **options):
    with Image.open(ranking_sheet(queries, found, similarities, out_path=out, **options)) as sheet:
        return sheet.copy()


def test_query_left_then_what_was_found(images, tmp_path):
    lists = [[images[3], images[2]], [images[4], images[5], images[6]]]
    sheet = draw(tmp_path / "deep" / "sheet.png", images[:2], lists)
    assert [[shown(sheet, row, column) for column in range(4)] for row in range(2)] == [[0, 3, 2, None], [1, 4, 5, 6]]
    assert sheet.size == (GAP + 4 * COLUMN + MARGIN, HEADER + 2 * ROW + GAP)
    assert [frame(sheet, 0, column) for column in range(3)] == [QUERY_FRAME, FRAMES["unknown"], FRAMES["unknown"]]


def test_frames_and_crosses(images, tmp_path):
    marks = [["right", "wrong", "junk", "unknown"]]
    sheet = draw(tmp_path / "sheet.png", images[:1], [images[1:5]], [[0.9, 0.8, 0.7, 0.6]], marks=marks)
    assert [frame(sheet, 0, column) for column in range(1, 5)] == [RIGHT, WRONG, FRAMES["junk"], FRAMES["unknown"]]
    crosses = []
    for column in range(1, 5):
        left, top = corner(0, column)
        inside = np.asarray(sheet)[top + FRAME : top + FRAME + 20, left + FRAME : left + FRAME + 64]
        crosses.append(bool((inside == WRONG).all(axis=2).any()))
    assert crosses == [False, True, False, False]
    assert [shown(sheet, 0, column) for column in (1, 2, 4)] == [1, 2, 4]
    assert shown(sheet, 0, 3) > 5  # pale


def test_similarities_are_written(images, tmp_path):
    plain, numbered = (
        np.asarray(draw(tmp_path / "sheet.png", images[:1], [images[1:3]], values))
        for values in (None, np.array([[0.5, 0.25]]))
    )
    below = slice(HEADER + HEIGHT + 2 * FRAME, HEADER + HEIGHT + 2 * FRAME + 18)
    second = GAP + MARGIN + 2 * COLUMN
    assert (plain[below, :COLUMN] == numbered[below, :COLUMN]).all()
    assert (plain[below, second:] != numbered[below, second:]).any()


def test_other_shapes_are_padded_not_stretched(images, tmp_path):
    Image.new("RGB", (128, 64), (0, 0, 200)).save(tmp_path / "wide.png")
    sheet = draw(tmp_path / "sheet.png", images[:1], [[tmp_path / "wide.png"]])
    left, top = corner(0, 1)
    blue = (np.asarray(sheet)[top + FRAME : top + FRAME + HEIGHT, left + FRAME : left + FRAME + 64] == (0, 0, 200)).all(
        2
    )
    assert blue.any(axis=0).sum() == 64 and blue.any(axis=1).sum() == 32
    wide = draw(tmp_path / "sheet.png", [tmp_path / "wide.png"], [[tmp_path / "wide.png"]])
    assert wide.getpixel((GAP + FRAME + 220, HEADER + FRAME + 64)) == (0, 0, 200)


def test_marks_of_the_protocol():
    # Query 0 is identity 5 in camera 1: its own camera and identity -1 are left out; a distractor (0) is wrong.
    ids, cams = [[5, 5, 0, -1, 9], [9, 5, 9, 9, -1]], [[1, 2, 1, 1, 1], [3, 3, 4, 3, 4]]
    assert ranking_marks([5, 9], ids, [1, 3], cams) == [
        ["junk", "right", "wrong", "junk", "wrong"],
        ["junk", "wrong", "right", "junk", "junk"],
    ]
    assert ranking_marks([5], [[5, 5, 0, -1]]) == [["right", "right", "wrong", "junk"]]


def test_long_names_lose_their_middle():
    font = ImageFont.load_default(11)
    assert name_lines("0001_c1.jpg", 112, font) == ["0001_c1.jpg"]
    first, second = name_lines("begin_" + "x" * 200 + "_end.jpg", 112, font)
    assert first.startswith("begin_") and second.startswith("...") and second.endswith("_end.jpg")
    assert max(font.getlength(first), font.getlength(second)) <= 112
    first, second = name_lines("0001_c1s1_000151_00_x.jpg", 112, font)
    assert first + second == "0001_c1s1_000151_00_x.jpg"


def test_mistakes(images, tmp_path):
    out = tmp_path / "sheet.png"
    with pytest.raises(ValueError, match="queries is empty"):
        ranking_sheet([], [], out_path=out)
    with pytest.raises(ValueError, match="found has 2 entries, 1 are needed"):
        ranking_sheet(images[:1], [images[:2], images[:2]], out_path=out)
    with pytest.raises(ValueError, match=r"similarities\[0\] has 1 entries, 2 are needed"):
        ranking_sheet(images[:1], [images[:2]], [[0.5]], out_path=out)
    with pytest.raises(ValueError, match="no mark 'good'; choose among right, wrong, junk, unknown"):
        ranking_sheet(images[:1], [images[:2]], marks=[["right", "good"]], out_path=out)
    with pytest.raises(FileNotFoundError):
        ranking_sheet(images[:1], [[tmp_path / "missing.png"]], out_path=out)
    with pytest.raises(ValueError, match="its format ends at 16383: write a .png, or show fewer"):
        ranking_sheet(images[:1] * 90, [images[:1]] * 90, out_path=tmp_path / "sheet.webp")
    with pytest.raises(ValueError, match="both sides"):
        ranking_marks([1], [[1]], [1])
    assert not out.exists()
