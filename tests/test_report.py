"""Pictures of a run: what is drawn where, and that a reader never meets half a file."""

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.files import replacing
from fastreid_ice.report.contact_sheet import (
    COLUMN,
    FRAME,
    GAP,
    HEADER,
    LEFT,
    PAPER,
    ROW,
    THUMBNAIL,
    UNKNOWN_FRAME,
    WRONG,
    choose_rows,
    contact_sheet,
    identity_colour,
)
from fastreid_ice.report.curves import COLOURS as LINE_COLOURS
from fastreid_ice.report.curves import build_figure, training_curves


@pytest.fixture
def images(tmp_path):
    """Ten plain pictures; number i has the grey value 20 * i."""
    paths = []
    for number in range(10):
        paths.append(tmp_path / "images" / f"{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 64), (20 * number,) * 3).save(paths[-1])
    return paths


def shown(sheet, row, column):
    """Number of the picture at a place of the sheet (see ``images``), or None where there is paper."""
    middle = (LEFT + column * COLUMN + FRAME + THUMBNAIL[0] // 2, HEADER + row * ROW + FRAME + THUMBNAIL[1] // 2)
    pixel = sheet.getpixel(middle)
    return None if pixel == PAPER else pixel[0] // 20


def frame(sheet, row, column):
    return sheet.getpixel((LEFT + column * COLUMN + 1, HEADER + row * ROW + 1))


def has_cross(sheet, row, column):
    left, top = LEFT + column * COLUMN + FRAME, HEADER + row * ROW + FRAME
    corner = np.asarray(sheet)[top : top + 20, left + THUMBNAIL[0] // 2 : left + THUMBNAIL[0]]
    return bool((corner == WRONG).all(axis=2).any())


def draw(images, out, labels, **options):
    with Image.open(contact_sheet(images, labels, out_path=out, **options)) as sheet:
        return sheet.copy()


def test_rows_are_clusters_largest_first_and_outliers_last(images, tmp_path):
    sheet = draw(images, tmp_path / "sheet.png", [-1, 5, 2, 2, 5, 5, 5, -1, 2, 0])
    found = [[shown(sheet, row, column) for column in range(5)] for row in range(4)]
    assert found == [[1, 4, 5, 6, None], [2, 3, 8, None, None], [9, None, None, None, None], [0, 7, None, None, None]]
    assert sheet.size == (LEFT + 8 * COLUMN + GAP, HEADER + 4 * ROW + GAP)


def test_equal_clusters_come_by_label(images, tmp_path):
    sheet = draw(images, tmp_path / "sheet.png", [3, 1, 3, 1, 2, 2, 0, 0, 4, 4], max_clusters=3)
    assert [shown(sheet, row, 0) for row in range(3)] == [6, 1, 4]
    assert sheet.height == HEADER + 3 * ROW + GAP


def test_most_mixed_first(images, tmp_path):
    # Cluster 4: three of identity 1. Cluster 2: two of 1, two of 2 (2 wrong). Cluster 0: one of 5, one of 6 (1 wrong).
    labels, truth = [4, 4, 4, 2, 2, 2, 2, 0, 0, -1], [1, 1, 1, 1, 2, 2, 1, 5, 6, 9]
    sheet = draw(images, tmp_path / "sheet.png", labels, true_ids=truth, order="mixed")
    assert [shown(sheet, row, 0) for row in range(4)] == [3, 7, 0, 9]
    largest = draw(images, tmp_path / "sheet.png", labels, true_ids=truth)
    assert [shown(largest, row, 0) for row in range(4)] == [3, 0, 7, 9]


def test_equally_many_wrong_images_weigh_more_in_a_small_cluster():
    labels = np.array([3, 3, 3, 3, 1, 1, 1, 0, 0, 2, 2])
    rows = choose_rows(
        labels, np.array([1, 1, 1, 2, 7, 7, 8, 5, 5, 4, 4]), max_clusters=4, per_cluster=2, order="mixed"
    )
    assert [(row.label, row.majority, row.wrong) for row in rows] == [(1, 7, 1), (3, 1, 1), (0, 5, 0), (2, 4, 0)]
    assert [row.shown.tolist() for row in rows[:2]] == [[4, 6], [0, 3]]
    assert rows[1].members.tolist() == [0, 1, 2, 3]


def test_mixed_needs_identities(images, tmp_path):
    with pytest.raises(ValueError, match="true identities of these images are not known"):
        contact_sheet(images, [0] * 10, out_path=tmp_path / "sheet.png", order="mixed")
    with pytest.raises(ValueError, match="order is 'smallest'; choose one of largest, mixed"):
        contact_sheet(images, [0] * 10, out_path=tmp_path / "sheet.png", order="smallest")
    assert not (tmp_path / "sheet.png").exists()


def test_frames_crosses_and_order_by_identity(images, tmp_path):
    truth = [7, 8, 7, 7, 8, 9, 9, 9, 9, 7]
    sheet = draw(images, tmp_path / "sheet.png", [0, 0, 0, 0, 0, 1, 1, 1, 1, -1], true_ids=truth)
    # Cluster 0 is mostly identity 7: its members come first, then the two wrong ones.
    assert [shown(sheet, 0, column) for column in range(5)] == [0, 2, 3, 1, 4]
    assert [frame(sheet, 0, column) for column in range(5)] == [identity_colour(7)] * 3 + [identity_colour(8)] * 2
    assert [has_cross(sheet, 0, column) for column in range(5)] == [False, False, False, True, True]
    assert not any(has_cross(sheet, 1, column) for column in range(4))
    # An outlier has no cluster to be wrong in.
    assert frame(sheet, 2, 0) == identity_colour(7) and not has_cross(sheet, 2, 0)


def test_unknown_identities(images, tmp_path):
    sheet = draw(images, tmp_path / "sheet.png", [0] * 10)
    assert frame(sheet, 0, 0) == UNKNOWN_FRAME
    assert not any(has_cross(sheet, 0, column) for column in range(8))


def test_a_row_samples_the_whole_cluster(images, tmp_path):
    # Nine right members and a wrong one: the wrong one, sorted last, is still seen.
    sheet = draw(images, tmp_path / "sheet.png", [0] * 10, true_ids=[3, 4] + [3] * 8, per_cluster=4)
    assert [shown(sheet, 0, column) for column in range(4)] == [0, 4, 7, 1]
    assert has_cross(sheet, 0, 3)


def test_camera_tags(images, tmp_path):
    plain = draw(images, tmp_path / "plain.png", [0] * 10)
    tagged = draw(images, tmp_path / "tagged.png", [0] * 10, camids=[3] * 10)
    rows, columns = np.nonzero((np.asarray(plain) != np.asarray(tagged)).any(axis=2))
    first = columns < LEFT + COLUMN
    # The tag lies in the lower left corner of the thumbnail and nowhere else.
    assert first.any() and columns[first].max() < LEFT + FRAME + THUMBNAIL[0] // 2
    assert rows[first].min() > HEADER + THUMBNAIL[1] - 20


def test_only_outliers(images, tmp_path):
    sheet = draw(images, tmp_path / "sheet.png", [-1] * 10)
    assert sheet.height == HEADER + ROW + GAP and shown(sheet, 0, 0) == 0


def test_neighbouring_identities_have_different_colours():
    colours = np.array([identity_colour(identity) for identity in range(8)], dtype=int)
    distances = np.abs(colours[:, None] - colours[None]).max(axis=2)
    assert distances[~np.eye(8, dtype=bool)].min() > 60


def test_errors_of_the_contact_sheet(images, tmp_path):
    with pytest.raises(ValueError, match="labels has 3 entries, but there are 10"):
        contact_sheet(images, [0, 0, 0], out_path=tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="camids has 1 entries"):
        contact_sheet(images, [0] * 10, camids=[1], out_path=tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="image_paths is empty"):
        contact_sheet([], [], out_path=tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="per_cluster"):
        contact_sheet(images, [0] * 10, out_path=tmp_path / "sheet.png", per_cluster=0)
    with pytest.raises(ValueError, match="its format ends at 16383: write a .png, or show fewer clusters"):
        contact_sheet(images, [0] * 10, out_path=tmp_path / "sheet.webp", per_cluster=300)
    with pytest.raises(FileNotFoundError):
        contact_sheet([tmp_path / "missing.jpg"], [0], out_path=tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_a_failed_write_keeps_the_older_picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"older")

    with pytest.raises(OSError, match="No space left"), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("No space left on device")
    assert path.read_bytes() == b"older"
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


RECORDS = [
    {"epoch": 2, "mAP": 30.0, "clusters": 9, "loss_agnostic": 1.0},
    {"epoch": 0, "mAP": 10.0, "clusters": 4, "outliers": 7, "nmi": float("nan")},
    {"epoch": 1, "clusters": 6, "outliers": None, "loss_agnostic": 2.0},
]


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_curves_show_what_was_recorded():
    retrieval, clusters, agreement, losses = build_figure(RECORDS, true_identities=5).axes
    assert lines(retrieval) == {"mAP": ([0, 2], [10.0, 30.0])}
    drawn = lines(clusters)
    assert drawn.pop("true identities")[1] == [5, 5]
    assert drawn == {"clusters": ([0, 1, 2], [4.0, 6.0, 9.0]), "outliers": ([0], [7.0])}
    assert lines(agreement) == {}
    assert [text.get_text() for text in agreement.texts] == ["not recorded"]
    assert lines(losses) == {"agnostic": ([1, 2], [2.0, 1.0])}


def test_losses_of_a_user_are_drawn_behind_the_four():
    records = [
        {"epoch": e, "loss_mine": 3.0 - e, "loss_agnostic": 1.0, **{f"loss_{i}": i for i in range(9)}} for e in (1, 2)
    ]
    losses = build_figure(records).axes[3]
    drawn = lines(losses)
    assert list(drawn) == ["agnostic", "mine", *map(str, range(9))]
    assert drawn["mine"] == ([1, 2], [2.0, 1.0])
    styles = [(line.get_color(), line.get_linestyle()) for line in losses.get_lines()]
    assert len(set(styles)) == 11 and styles[0] == (LINE_COLOURS[0], "-")
    assert "total_loss" not in lines(build_figure([{"epoch": 1, "total_loss": 1.0}]).axes[3])


def test_panel_of_the_agreement_says_why_it_is_empty():
    def text(records, **options):
        return [text.get_text() for text in build_figure(records, **options).axes[2].texts]

    assert text([{"epoch": 1, "clusters": 5}]) == ["identities unknown"]
    assert text([{"epoch": 1, "clusters": 5}], true_identities=7) == ["not recorded"]
    assert text([{"epoch": 1, "mAP": 5.0}]) == ["not recorded"]
    assert text([{"epoch": 1, "clusters": 5, "nmi": 0.5}]) == []


def test_curves_are_drawn(tmp_path):
    path = training_curves(RECORDS, tmp_path / "deep" / "curves.png", title="A run")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.shape == (728, 1170, 3)
    blue = (np.abs(pixels - (0x25, 0x63, 0xA8)).max(axis=2) < 10).mean(axis=1)
    assert blue[:364].any() and blue[364:].any()  # mAP and clusters above, the agnostic loss below
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]


def test_errors_of_the_curves(tmp_path):
    with pytest.raises(ValueError, match="records is empty"):
        training_curves([], tmp_path / "curves.png")
    with pytest.raises(ValueError, match="'epoch'"):
        training_curves([{"mAP": 1.0}], tmp_path / "curves.png")


def test_no_pyplot(tmp_path):
    import subprocess
    import sys

    modules = "fastreid_ice.report.curves, fastreid_ice.report.contact_sheet"
    code = f"import sys, {modules}; assert not {{'matplotlib.pyplot', 'fastreid', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
