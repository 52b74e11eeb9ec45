"""A report of a run as one html file that needs nothing else: no network, no other file, no script."""

from __future__ import annotations

import logging
import os
from importlib import resources
from pathlib import Path
from typing import Any

from fastreid_ice.files import replacing
from fastreid_ice.report import page_images, page_run
from fastreid_ice.report.page_data import RankingExample, ReportData
from fastreid_ice.report.page_html import SHOT, Pictures, safe
from fastreid_ice.report.wording import count

__all__ = ["RankingExample", "ReportData", "build_page", "write_page"]

logger = logging.getLogger(__name__)

# The browser is told to load nothing and to run nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def build_page(
    run_data: ReportData,
    pictures: bool = True,
    *,
    order: str = "largest",
    max_clusters: int = 40,
    per_cluster: int = 8,
    projection: str = "tsne",
) -> str:
    """The report of a run.

    Args:
        run_data: what is known of it; a section whose data are missing says so.
        pictures: show thumbnails of the images; without them the clusters are tables.
        order: of the clusters, "largest" or "mixed" first.
        max_clusters, per_cluster: how many clusters, and images of each, are shown at most.
        projection: of the embedding map, see :func:`fastreid_ice.report.embedding_map.project`.

    Returns:
        Html. The same data give the same page.

    Raises:
        FileNotFoundError, ValueError: an image that is to be shown is missing or cannot be read, or "mixed" without
            identities; and as :func:`fastreid_ice.report.contact_sheet.choose_rows` and
            :func:`fastreid_ice.report.embedding_map.project`.
    """
    shown = Pictures(pictures)
    sections = {
        "Scores": page_run.scores(run_data),
        "Curves": page_run.curves(run_data),
        "Clusters": page_images.clusters(run_data, shown, order, max_clusters, per_cluster),
        "Mixed clusters": page_images.mixed_clusters(run_data, shown, per_cluster),
        "Split identities": page_images.split_section(run_data, shown, per_cluster),
        "Outliers": page_images.outliers(run_data, shown),
        "Ranking lists": page_images.ranking(run_data, shown),
        "Embedding map": page_run.map_section(run_data, projection),
        "Cost": page_run.cost(run_data),
        "Config": page_run.config(run_data),
        "Versions and machine": page_run.versions(run_data),
    }
    style = resources.files("fastreid_ice.report").joinpath("page.css").read_text(encoding="utf-8")
    title = safe(run_data.title)
    names = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<li><a href="#{names[name]}">{name}</a></li>' for name in sections)
    content = "".join(
        f'<section id="{names[name]}" aria-labelledby="{names[name]}-title">'
        f'<h2 id="{names[name]}-title">{name}</h2>{text}</section>'
        for name, text in sections.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{style}</style></head><body>"
        f'<header><h1>{title}</h1><p class="notice">{notice(shown.amount)}</p>{page_run.summary(run_data)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{content}</main></body></html>\n'
    )


def write_page(run_data: ReportData, out_path: str | os.PathLike, pictures: bool = True, **options: Any) -> Path:
    """Write :func:`build_page` with its options into a file, and log that it holds people's pictures if it does.

    Returns:
        ``out_path``.
    """
    text = build_page(run_data, pictures, **options)
    with replacing(out_path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    logger.info("Wrote the report to %s (%.1f MB). %s", out_path, len(text) / 1e6, notice(text.count(SHOT)))
    return Path(out_path)


def notice(pictures: int) -> str:
    """What whoever has the file must know about it."""
    if pictures == 0:
        return "It holds no pictures of people."
    return f"It holds {count(pictures, 'picture')} of people, from the images of the run: share it only where you may."
