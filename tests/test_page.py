"""The report of a run: what it says, that it is whole in one file, and what a browser makes of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.report import page
from fastreid_ice.report.cluster_charts import cluster_panels, cluster_sizes
from fastreid_ice.report.embedding_map import embedding_map, map_figure, project, sample_rows
from fastreid_ice.report.page_charts import curve_figures, single
from fastreid_ice.report.page_data import RankingExample, ReportData
from fastreid_ice.report.page_files import read_run
from fastreid_ice.report.page_html import chart
from fastreid_ice.report.page_images import split_identities
from tests.browser import BROWSER, look

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, -1, 2, 2, -1, 1])
TRUTH = np.array([5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 5])
RECORDS = [
    {"epoch": 0, "mAP": 10.0, "Rank-1": 20.0},
    {"epoch": 1, "clusters": 4.0, "outliers": 1.0, "nmi": 0.5, "loss_agnostic": 3.0, "seconds_search": 2.0},
    {"epoch": 2, "mAP": 30.5, "Rank-1": 40.25, "clusters": 3.0, "seconds_search": 1.0, "best": True},
]
MANIFEST = {
    "name": "ICE",
    "status": "finished",
    "images": 12,
    "epochs": 2,
    "epochs_done": 2,
    "steps_per_epoch": 40,
    "steps_done": 80,
    "hours": 0.5,
    "device": "cpu",
    "processes": 1,
    "seed": 7,
    "machine": {"cpu": "A processor", "cores": 2, "threads": 2, "gpus": []},
    "versions": {"torch": "9.9", "faiss": None},
    "commit": {"hash": "0123456789abcdef", "dirty": True},
    "differences": {"CLUSTERING.EPS": 0.42},
    "config": {"SEED": 7, "CLUSTERING": {"EPS": 0.42}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ReportData:
    """Twelve images, three clusters, two outliers, all that a report can show."""
    tmp_path = tmp_path_factory.mktemp("people")
    generator = np.random.default_rng(0)
    paths = []
    for number in range(12):
        paths.append(str(tmp_path / f"person_{number}.png"))
        Image.fromarray(generator.integers(0, 255, (64, 32, 3), dtype=np.uint8)).save(paths[-1])
    lists = [
        RankingExample(
            "Test", paths[0], 1, paths[1:4], [2, 3, 4], [0.9, 0.5, 0.1], ["right", "wrong", "wrong"], 2, 0.75
        ),
        RankingExample("Test", paths[4], 1, paths[5:7], [2, 3], [0.8, 0.7], ["wrong", "wrong"]),
    ]
    return ReportData(
        title="ICE on <Test>",
        records=RECORDS,
        paths=paths,
        labels=LABELS,
        cameras=np.arange(12) % 3,
        identities=TRUTH,
        features=generator.normal(size=(12, 8)).astype(np.float32),
        rankings=lists,
        tests=("Test",),
        config=MANIFEST["config"],
        manifest=MANIFEST,
    )


@pytest.fixture(scope="module")
def text(data) -> str:
    return page.build_page(data)


class Reader(HTMLParser):
    """Text of each section, all tags with their attributes, and whether every tag is closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._section = "header"
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attributes)["id"]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        self.sections[self._section] = self.sections.get(self._section, "") + text + " "

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def shots(text: str) -> list[tuple[str, str]]:
    """(kind, caption) of each thumbnail."""
    return re.findall(r'<figure class="shot (\w*)">.*?<figcaption>(.*?)</figcaption>', text)


def section(text: str, name: str) -> str:
    return text[text.index(f'<section id="{name}"') :].split("</section>")[0]


def test_clusters_and_mistakes(text):
    assert shots(section(text, "clusters")) == [
        # cluster 0: three of identity 5, one of 6; cluster 1: three of 6, one of 5; cluster 2: pure
        *[("", "c0"), ("", "c1"), ("", "c2"), ("wrong", "✗ c0 id 6")],
        *[("", "c0"), ("", "c1"), ("", "c2"), ("wrong", "✗ c2 id 5")],
        *[("", "c0"), ("", "c2")],
    ]
    assert "2 of 3 clusters hold more than one identity; 2 images of 12" in section(text, "mixed-clusters")
    assert len(shots(section(text, "mixed-clusters"))) == 8
    assert "2 of 3 identities lie in several clusters" in section(text, "split-identities")
    assert "cluster 1 (3), cluster 0 (1), outliers (1)" in section(text, "split-identities")
    assert "2 of 12 images (16.7%) belong to no cluster" in section(text, "outliers")
    assert shots(section(text, "outliers")) == [("", "c1"), ("", "c1")]


def test_ranking_lists(text):
    text = section(text, "ranking-lists")
    assert shots(text) == [
        *[("", "query c1"), ("right", "✓ 0.90 c2"), ("wrong", "✗ 0.50 c3"), ("wrong", "✗ 0.10 c4")],
        *[("", "query c1"), ("wrong", "✗ 0.80 c2"), ("wrong", "✗ 0.70 c3")],
    ]
    assert "2 right images in the gallery; AP 75.0" in text and "0 right images in the gallery; AP –" in text


def test_numbers(text):
    sections = Reader(text).sections
    assert "30.5 / 40.2" in sections["header"] and "16.7%" in sections["header"]
    assert re.search(r"before training \(epoch 0\) +10.0 +20.0", sections["scores"])
    assert re.search(r"best \(epoch 2\) +30.5 +40.2", sections["scores"])
    assert re.search(r"steps +80 of 80", sections["cost"]) and re.search(r"search +3.0 +1.5", sections["cost"])
    assert re.search(r"all else +1,797.0", sections["cost"])  # half an hour without the three seconds
    assert re.search(r"CLUSTERING.EPS +0.42", sections["config"]) and "The whole config (2 keys)" in sections["config"]
    machine = sections["versions-and-machine"]
    assert "A processor" in machine and "0123456789ab with changes" in machine and "not installed" in machine


def test_without_pictures(data):
    nowhere = dataclasses.replace(data, paths=[path.replace("person", "nobody") for path in data.paths])
    text = page.build_page(nowhere, pictures=False)
    reader = Reader(text)
    assert reader.of("img") == [] and "image/jpeg" not in text and "no pictures of people" in reader.sections["header"]
    assert "nobody" not in text
    few = Reader(page.build_page(nowhere, pictures=False, max_clusters=1)).sections["clusters"]
    assert few.count("1 of 3 clusters") == 2  # above the table, and as its caption
    assert re.search(r"0 +4 +3 +2 +75.0", reader.sections["clusters"])  # cluster, images, cameras, identities, purity
    assert "✓ ✗ ✗" in reader.sections["ranking-lists"]


def test_one_file(text):
    reader = Reader(text)
    for tag, attributes in reader.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                assert value.startswith(("data:image/", "#")), (tag, name, value[:60])
            assert "url(" not in (value or "") or "url(#" in value
    assert "default-src 'none'" in reader.of("meta")[1]["content"]
    assert "@import" not in text and "url(" not in reader.sections["header"]


def test_is_accessible(text):
    reader = Reader(text)
    assert all(attributes["alt"] for attributes in reader.of("img")) and len(reader.of("img")) > 20
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in reader.of("svg"))
    assert reader.of("html")[0]["lang"] == "en"
    names = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(names) == len(set(names))  # the charts' own, too
    for attributes in reader.of("section"):
        assert attributes["aria-labelledby"] in names
    assert all(attributes.get("scope") for attributes in reader.of("th"))


def test_text_is_escaped(data):
    text = page.build_page(dataclasses.replace(data, notes={"ranking": "<script>"}, rankings=()))
    assert "<title>ICE on &lt;Test&gt;</title>" in text and "&lt;script&gt;" in text and "<script" not in text


def test_the_same_data_give_the_same_page(data, text):
    assert page.build_page(data) == text


def test_a_large_run_stays_small(data):
    labels = np.repeat(np.arange(60), 20)
    many = dataclasses.replace(
        data,
        paths=[data.paths[i % 12] for i in range(1200)],
        labels=labels,
        cameras=labels % 5,
        identities=None,
        features=None,
        rankings=(),
    )
    text = page.build_page(many, max_clusters=7, per_cluster=3)
    assert len(shots(text)) == 21 and "7 of 60 clusters, the largest first, at most 3 images of each" in text
    assert text.count("true identities of the training images are not known") == 2


def test_a_run_of_which_little_is_known():
    text = page.build_page(ReportData(title="A run"))
    sections = Reader(text).sections
    assert "clusters.csv is missing" in sections["clusters"] and "was not evaluated" in sections["ranking-lists"]
    assert "Nothing was recorded" in sections["curves"] and "no run.json" in sections["cost"]
    only_outliers = ReportData(title="A run", paths=["a", "b"], labels=np.array([-1, -1]))
    assert "all 2 images are outliers" in page.build_page(only_outliers, pictures=False)


def test_two_test_sets(data):
    records = [{"epoch": 1, "A/mAP": 1.5, "A/Rank-1": 2.5, "B/mAP": 3.5, "B/Rank-1": 4.5}]
    reader = Reader(page.build_page(dataclasses.replace(data, records=records, tests=("A", "B")), pictures=False))
    assert "1.5 / 2.5" in reader.sections["header"] and "on B, best and last" in reader.sections["header"]
    assert "A, in percent" in reader.sections["scores"] and "3.5" in reader.sections["scores"]


def test_it_is_logged_that_people_are_shown(data, tmp_path, caplog):
    data = dataclasses.replace(data, features=None, records=())
    with caplog.at_level(logging.INFO):
        page.write_page(data, tmp_path / "with.html")
        page.write_page(data, tmp_path / "without.html", pictures=False)
    amount = len(shots((tmp_path / "with.html").read_text()))
    first, second = (record.getMessage() for record in caplog.records)
    assert f"{amount} pictures of people" in first and "no pictures of people" in second


def test_errors(data, tmp_path):
    broken = dataclasses.replace(
        data, paths=[*data.paths[:11], str(tmp_path / "person.png")], features=None, records=()
    )
    with pytest.raises(FileNotFoundError, match="person.png: the report needs this image.*without pictures"):
        page.write_page(broken, tmp_path / "report.html")
    (tmp_path / "person.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="person.png cannot be read as an image"):
        page.write_page(broken, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="identities of these images are not known"):
        page.build_page(dataclasses.replace(data, identities=None), pictures=False, order="mixed")
    for wrong in ({"labels": LABELS[:3]}, {"cameras": [1]}, {"features": np.zeros((3, 8))}, {"records": [{}]}):
        with pytest.raises(ValueError, match=r"has 3 entries|has 1 entries|12 rows are needed|needs 'epoch'"):
            dataclasses.replace(data, **wrong)
    with pytest.raises(ValueError, match="There is no mark 'perhaps'"):
        RankingExample("Test", "q", 0, ["a"], [0], [0.5], ["perhaps"])
    with pytest.raises(ValueError, match="cameras has 0 entries, but 1 were found"):
        RankingExample("Test", "q", 0, ["a"], [], [0.5], ["right"])


def test_split_identities_by_hand():
    found = split_identities(LABELS, TRUTH)
    # 6 lies in clusters 1 (three images) and 0 (one) and among the outliers; 5 in 0 (three) and 1 (one).
    assert [(split.identity, split.pieces, split.images) for split in found] == [(6, 2, 5), (5, 2, 4)]
    assert {label: images.tolist() for label, images in found[0].clusters.items()} == {1: [4, 5, 6], 0: [3], -1: [7]}
    assert list(found[0].clusters) == [1, 0, -1]


def heights(draw) -> list[int]:
    """Bars of a histogram that are there, from left to right."""
    figure = single(draw)
    return [int(patch.get_height()) for patch in figure.axes[0].patches if patch.get_height() > 0]


def test_histograms_by_hand():
    panels = cluster_panels(LABELS, np.array([0, 0, 0, 0, 0, 1, 2, 0, 1, 1, 2, 2]), TRUTH)
    assert heights(panels["Images per cluster"]) == [1, 2]  # one of 2 images, two of 4
    assert heights(panels["Cameras per cluster"]) == [2, 1]  # clusters 0 and 2: one camera; 1: three
    assert heights(panels["Purity of the clusters"]) == [2, 1]  # 75 % twice, 100 % once
    assert list(cluster_panels(LABELS, np.zeros(12))) == ["Images per cluster"]
    # each cluster is counted once, however wide the bars become
    sizes = np.random.default_rng(0).integers(1, 500, 80)
    assert sum(heights(cluster_panels(np.repeat(np.arange(80), sizes))["Images per cluster"])) == 80


def test_errors_of_the_sizes(tmp_path):
    with pytest.raises(ValueError, match="no cluster to draw: all 3 images are outliers"):
        cluster_sizes([-1, -1, -1], tmp_path / "sizes.png")
    with pytest.raises(ValueError, match="cameras has 1 entries, but there are 2 labels"):
        cluster_sizes([0, 0], tmp_path / "sizes.png", cameras=[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_a_map_keeps_groups_together(projection):
    generator = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 16), 20, axis=0)
    points = project(centres + 0.05 * generator.normal(size=(60, 16)), projection)
    assert points.shape == (60, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 20 == np.arange(60) // 20).all()


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 1), (4, 1), (5, 2), (6, 300)])
@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_maps_of_few_images(shape, projection):
    points = project(np.random.default_rng(0).normal(size=shape), projection)
    assert points.shape == (shape[0], 2) and np.isfinite(points).all()
    assert np.isfinite(project(np.ones(shape), projection)).all()  # all images the same


def test_umap():
    features = np.random.default_rng(0).normal(size=(30, 8))
    if importlib.util.find_spec("umap") is None:
        with pytest.raises(RuntimeError, match="pip install umap-learn"):
            project(features, "umap")
    else:
        assert project(features, "umap").shape == (30, 2)


def test_errors_of_the_map(tmp_path):
    with pytest.raises(ValueError, match="choose one of tsne, pca, umap"):
        project(np.ones((3, 2)), "mds")
    for broken in (np.zeros((0, 4)), np.array([[np.nan, 1.0]]), np.zeros(3)):
        with pytest.raises(ValueError, match="finite features of shape"):
            project(broken)
    with pytest.raises(ValueError, match="Clusters of 2 images, but features of 3"):
        embedding_map(np.ones((3, 2)), tmp_path / "map.png", labels=[0, 1])
    with pytest.raises(ValueError, match="to colour by"):
        embedding_map(np.ones((3, 2)), tmp_path / "map.png")


def test_the_map_tells_groups_apart():
    groups = np.array([-1, 0, 0, 7, 8, 47])
    axes = map_figure(np.arange(12.0).reshape(6, 2), groups, "Clusters").axes[0]
    assert axes.get_title(loc="left") == "Clusters: 4, grey: outliers"
    looks = [(tuple(drawn.get_facecolor()[0]), drawn.get_paths()[0].vertices.shape) for drawn in axes.collections]
    assert len(axes.collections) == 5 and len(set(looks)) == 5
    assert [len(drawn.get_offsets()) for drawn in axes.collections] == [1, 2, 1, 1, 1]


def test_samples():
    assert sample_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_rows(1000, 10)
    assert len(set(drawn)) == 10 and (np.diff(drawn) > 0).all() and (drawn == sample_rows(1000, 10)).all()


def test_curves_alone_are_the_panels():
    figures = curve_figures(RECORDS, 3)
    assert [len(figure.axes) for figure in figures.values()] == [1] * 4
    drawn = {name: [line.get_label() for line in figure.axes[0].get_lines()] for name, figure in figures.items()}
    assert drawn["Retrieval"] == ["mAP", "Rank-1"] and "true identities" in drawn["Clusters"]
    text = chart(figures["Retrieval"], "first", "Scores")
    assert '<svg viewBox="' in text and "mAP" in text and "#ffffff" not in text and "currentColor" in text


def test_read_run(tmp_path):
    (tmp_path / "clusters.csv").write_text("path,label,camera\na.jpg,0,3\nb.jpg,-1,3\n")
    data = read_run(tmp_path)
    assert data.paths == ("a.jpg", "b.jpg") and data.labels.tolist() == [0, -1]
    assert data.cameras is None and data.identities is None  # one camera says nothing
    (tmp_path / "results.json").write_text(json.dumps(RECORDS))
    (tmp_path / "config.yaml").write_text("DATASETS: {NAMES: [A, B], TESTS: [C]}\nOUTPUT_DIR: /somewhere/else/run\n")
    data = read_run(tmp_path)
    assert data.title == "ICE on A, B" and data.tests == ("C",) and data.records == RECORDS
    assert data.config["OUTPUT_DIR"] == "run"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("clusters.csv", "path,camera\na,0\n", "has no column 'label'"),
        ("clusters.csv", "path,label,camera\na,0,0\nb,two,0\n", "line 3: label is 'two'"),
        ("clusters.csv", "path,label,camera\na,0\n", "line 2: camera is None"),
        ("clusters.csv", "", "has no column 'path'"),
        ("results.json", "{}", "holds a dict, but results are a list"),
        ("results.json", '[{"epoch": null}]', "row 1 has no 'epoch'"),
        ("results.json", "[", "not valid json"),
        ("config.yaml", "a: [", "not valid yaml"),
        ("config.yaml", "[1]", "holds a list"),
        ("run.json", "{}", "format is None"),
    ],
)
def test_broken_files_of_a_run(name, content, message, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RECORDS))
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_run(tmp_path)
    assert str(tmp_path / name) in str(error.value)


browser = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")


@browser
def test_in_a_browser(data, text, tmp_path):
    pages = [text, page.build_page(data, pictures=False), page.build_page(ReportData(title="A run"))]
    seen = look(pages, tmp_path)
    assert seen.console == []
    assert [frame["width"] for frame in seen.frames] == [400, 1400] * 3
    for frame in seen.frames:
        assert frame["needed"] <= frame["width"] and frame["requests"] == []
    assert [frame["images"] for frame in seen.frames[::2]] == [len(shots(pages[0])), 0, 0]
    assert seen.frames[0]["height"] > 2000


@browser
def test_a_browser_would_tell(tmp_path):
    wrong = '<body><div style="width:600px">wide</div><img src="http://127.0.0.1:9/a.png"><script>console.warn("oh")</script>'
    seen = look([wrong], tmp_path)
    assert [frame["needed"] > frame["width"] for frame in seen.frames] == [True, False]
    assert all(frame["requests"] == ["http://127.0.0.1:9/a.png"] for frame in seen.frames)
    assert any('"oh"' in line for line in seen.console)
