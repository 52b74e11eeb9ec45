"""The sections of a report that show images: clusters, mistakes against the truth, outliers, ranking lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastreid_ice.report.cluster_charts import cluster_panels
from fastreid_ice.report.contact_sheet import OUTLIER, Row, choose_rows
from fastreid_ice.report.page_charts import single
from fastreid_ice.report.page_data import RankingExample, ReportData
from fastreid_ice.report.page_html import Pictures, chart, number, paragraph, safe, table
from fastreid_ice.report.wording import count, percent

MOST_MIXED = 8  # clusters, and identities, shown in the sections of mistakes
MOST_OUTLIERS = 24
MOST_ROWS = 200  # of a table of clusters
NO_CLUSTERING = "There is no clustering of this run: clusters.csv is missing."
UNKNOWN = "The true identities of the training images are not known, so nobody can say which clusters are wrong."


def clusters(data: ReportData, pictures: Pictures, order: str, most: int, per_cluster: int) -> str:
    """Sizes as charts, then a row of images for each of the clusters that are shown, cameras marked."""
    if len(data.paths) == 0:
        return paragraph(NO_CLUSTERING)
    if data.num_clusters == 0:
        return paragraph(f"There is no cluster: all {count(data.num_outliers, 'image')} are outliers.")
    panels = cluster_panels(data.labels, data.cameras, data.identities)
    charts = [chart(single(draw), f"sizes{i}", f"Histogram: {name}") for i, (name, draw) in enumerate(panels.items())]
    rows = _cluster_rows(data, order, most, per_cluster)
    which = "largest" if order == "largest" else "most mixed"
    text = f"{len(rows):,} of {count(data.num_clusters, 'cluster')}, the {which} first"
    text += f", at most {per_cluster} images of each. c = camera." if pictures.shown else "."
    parts = ['<div class="charts">', *charts, "</div>", paragraph(text)]
    if pictures.shown:
        parts.append(_groups(_cluster(data, pictures, row) for row in rows))
    else:
        parts.append(_table_of_clusters(data, rows))
    return "".join(parts)


def mixed_clusters(data: ReportData, pictures: Pictures, per_cluster: int) -> str:
    """The clusters with most images of other identities than their majority."""
    if data.identities is None or len(data.paths) == 0:
        return paragraph(UNKNOWN if len(data.paths) else NO_CLUSTERING)
    every = _cluster_rows(data, "mixed", max(data.num_clusters, 1), per_cluster)
    rows = [row for row in every if row.wrong]
    wrong = sum(row.wrong or 0 for row in rows)
    text = (
        f"{len(rows):,} of {count(data.num_clusters, 'cluster')} hold more than one identity; "
        f"{count(wrong, 'image')} of {len(data.paths):,} are not of their cluster's majority."
    )
    if not pictures.shown:
        return paragraph(text) + (_table_of_clusters(data, rows[:MOST_ROWS]) if rows else "")
    shown = _groups(_cluster(data, pictures, row) for row in rows[:MOST_MIXED])
    if rows:
        text += f" Shown: {min(MOST_MIXED, len(rows)):,}, those with most such images first."
    return paragraph(text) + shown


@dataclass(frozen=True)
class Split:
    """A true identity that lies in several clusters.

    Attributes:
        identity: its number.
        clusters: cluster -> indices of its images there, the largest share first; outliers (-1) last.
    """

    identity: int
    clusters: dict[int, np.ndarray]

    @property
    def pieces(self) -> int:
        """How many clusters it lies in."""
        return sum(label != OUTLIER for label in self.clusters)

    @property
    def images(self) -> int:
        return sum(map(len, self.clusters.values()))


def split_identities(labels: np.ndarray, identities: np.ndarray) -> list[Split]:
    """The identities in more than one cluster: those in most clusters first, then those with most images.

    Args:
        labels: (N,) pseudo labels, -1 = outlier; outliers are no cluster.
        identities: (N,) true identities.
    """
    found = []
    order = np.lexsort([labels, identities])
    for group in np.split(order, np.flatnonzero(np.diff(identities[order])) + 1):
        values = np.unique(labels[group])
        if (values != OUTLIER).sum() > 1:
            pieces = {int(label): np.sort(group[labels[group] == label]) for label in values}
            ordered = sorted(pieces, key=lambda label: (label == OUTLIER, -len(pieces[label]), label))
            found.append(Split(int(identities[group[0]]), {label: pieces[label] for label in ordered}))
    return sorted(found, key=lambda split: (-split.pieces, -split.images, split.identity))


def split_section(data: ReportData, pictures: Pictures, per_identity: int) -> str:
    """The identities that lie in several clusters, with images of each piece."""
    if data.identities is None or len(data.paths) == 0:
        return paragraph(UNKNOWN if len(data.paths) else NO_CLUSTERING)
    found = split_identities(data.labels, data.identities)
    text = (
        f"{len(found):,} of {count(len(np.unique(data.identities)), 'identity', 'identities')} lie in several clusters."
    )
    if not found:
        return paragraph(text)
    if not pictures.shown:
        rows = [[split.identity, split.images, split.pieces, _pieces(split)] for split in found[:MOST_ROWS]]
        return paragraph(text) + table("Split identities", ["identity", "images", "clusters", "where"], rows)
    text += f" Shown: {min(MOST_MIXED, len(found)):,}, those in most clusters first. # = cluster, out = outlier."
    groups = []
    for split in found[:MOST_MIXED]:
        shots = pictures.strip(
            _shot(data, pictures, index, tell_cluster=True) for index in _of_each(split, per_identity)
        )
        groups.append(_group(f"Identity {split.identity}", _pieces(split), shots))
    return paragraph(text) + _groups(groups)


def _pieces(split: Split) -> str:
    names = (("outliers" if label == OUTLIER else f"cluster {label}") for label in split.clusters)
    return ", ".join(f"{name} ({len(images):,})" for name, images in zip(names, split.clusters.values()))


def _of_each(split: Split, most: int) -> list[int]:
    """Images of a split identity: one of each piece, then a second of each, until there are enough; piece by piece."""
    taken = sorted(
        (position, piece) for piece, images in enumerate(split.clusters.values()) for position in range(len(images))
    )
    amounts = np.bincount([piece for _, piece in taken[:most]], minlength=len(split.clusters))
    return [int(index) for images, amount in zip(split.clusters.values(), amounts) for index in images[:amount]]


def outliers(data: ReportData, pictures: Pictures) -> str:
    """Images that belong to no cluster."""
    if len(data.paths) == 0:
        return paragraph(NO_CLUSTERING)
    if data.num_outliers == 0:
        return paragraph("Every image belongs to a cluster.")
    row = choose_rows(data.labels, data.identities, data.cameras, max_clusters=1, per_cluster=MOST_OUTLIERS)[-1]
    share = f"{data.num_outliers / len(data.paths):.1%}"
    text = f"{data.num_outliers:,} of {count(len(data.paths), 'image')} ({share}) belong to no cluster."
    if pictures.shown:
        text += f" Shown: {len(row.shown):,}."
    facts = paragraph(_cameras(data, row.members), "facts") if data.cameras is not None else ""
    return paragraph(text) + facts + pictures.strip(_shot(data, pictures, int(index)) for index in row.shown)


def ranking(data: ReportData, pictures: Pictures) -> str:
    """For a few queries what the model finds most similar, right and wrong marked."""
    if not data.rankings:
        return paragraph(data.notes.get("ranking", "There are no ranking lists: the run was not evaluated."))
    text = (
        f"{count(len(data.rankings), 'query', 'queries')}, evenly spaced over those of the test set, and what is most "
        "similar to them by cosine similarity. ✓ and ✗: right and wrong identity. Images of the query's identity from "
        "the query's own camera are left out, as the protocol does. AP: average precision over the whole gallery."
    )
    if pictures.shown:
        return paragraph(text) + _groups(_list(example, pictures) for example in data.rankings)
    signs = {"right": "✓", "wrong": "✗"}
    rows = [
        [f"{i + 1}", example.dataset, _precision(example), " ".join(signs.get(mark, "?") for mark in example.marks)]
        for i, example in enumerate(data.rankings)
    ]
    return paragraph(text) + table("Ranking lists", ["query", "test set", "AP", "found, most similar first"], rows)


def _list(example: RankingExample, pictures: Pictures) -> str:
    name = Path(example.query).name
    query = pictures.shot(
        example.query, f"query {name}, camera {example.query_camera}", f"query c{example.query_camera}"
    )
    shots = [query]
    for rank, path in enumerate(example.found):
        mark, camera = example.marks[rank], example.cameras[rank]
        alt = f"rank {rank + 1}: {Path(path).name}, {mark}, camera {camera}"
        shots.append(pictures.shot(path, alt, f"{example.similarities[rank]:.2f} c{camera}", mark))
    facts = f"{example.dataset}; {count(example.matches, 'right image')} in the gallery; AP {_precision(example)}"
    return _group(name, facts, pictures.strip(shots), "list")


def _group(title: str, facts: str, content: str, kind: str = "") -> str:
    return f'<div class="group {kind}"><h3>{safe(title)}</h3>{paragraph(facts, "facts")}{content}</div>'


def _groups(groups: Iterable[str]) -> str:
    return f'<div class="groups">{"".join(groups)}</div>'


def _precision(example: RankingExample) -> str:
    return number(None if example.average_precision is None else 100 * example.average_precision)


def _cluster_rows(data: ReportData, order: str, most: int, per_cluster: int) -> list[Row]:
    rows = choose_rows(
        data.labels, data.identities, data.cameras, max_clusters=most, per_cluster=per_cluster, order=order
    )
    return [row for row in rows if row.label != OUTLIER]


def _cluster(data: ReportData, pictures: Pictures, row: Row) -> str:
    facts = [count(len(row.members), "image")]
    if row.wrong is not None and data.identities is not None:
        facts.append(count(len(np.unique(data.identities[row.members])), "identity", "identities"))
        facts.append(f"{percent(1 - row.wrong / len(row.members))} pure")
    if data.cameras is not None:
        facts.append(_cameras(data, row.members))
    shots = pictures.strip(_shot(data, pictures, int(index), row.majority) for index in row.shown)
    return _group(f"Cluster {row.label}", "; ".join(facts), shots)


def _cameras(data: ReportData, members: np.ndarray) -> str:
    assert data.cameras is not None
    cameras, counts = np.unique(data.cameras[members], return_counts=True)
    return "cameras " + ", ".join(f"c{camera} ({amount:,})" for camera, amount in zip(cameras, counts))


def _shot(
    data: ReportData, pictures: Pictures, index: int, majority: int | None = None, tell_cluster: bool = False
) -> str:
    """A training image with its camera; of another identity than the majority, with its identity and a cross."""
    label = "outlier" if data.labels[index] == OUTLIER else f"cluster {data.labels[index]}"
    alt, caption, kind = [Path(data.paths[index]).name, label], [], ""
    if data.cameras is not None:
        alt.append(f"camera {data.cameras[index]}")
        caption.append(f"c{data.cameras[index]}")
    if tell_cluster:
        caption.append("out" if data.labels[index] == OUTLIER else f"#{data.labels[index]}")
    if data.identities is not None:
        alt.append(f"identity {data.identities[index]}")
        if majority is not None and data.identities[index] != majority:
            alt.append("not the identity of most of the cluster")
            caption.append(f"id {data.identities[index]}")
            kind = "wrong"
    return pictures.shot(data.paths[index], ", ".join(alt), " ".join(caption), kind)


def _table_of_clusters(data: ReportData, rows: list[Row]) -> str:
    header = ["cluster", "images"]
    header += ["cameras"] * (data.cameras is not None)
    header += ["identities", "% of the majority"] * (data.identities is not None)
    lines = []
    for row in rows:
        line: list = [row.label, len(row.members)]
        if data.cameras is not None:
            line.append(len(np.unique(data.cameras[row.members])))
        if data.identities is not None and row.wrong is not None:
            line += [len(np.unique(data.identities[row.members])), 100 * (1 - row.wrong / len(row.members))]
        lines.append(line)
    return table(f"{len(rows):,} of {count(data.num_clusters, 'cluster')}", header, lines)
