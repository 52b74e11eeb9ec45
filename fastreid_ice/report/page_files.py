"""What the folder of a run says about it, read for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastreid_ice.report.manifest import FILE_NAME, method_name, read_manifest
from fastreid_ice.report.page_data import ReportData
from fastreid_ice.report.run_files import (
    CLUSTERS_FILE,
    CONFIG_FILE,
    RECORDS_FILE,
    read_clusters,
    read_config,
    read_records,
)


def read_run(folder: str | Path) -> ReportData:
    """A run as its folder tells it, without embeddings and ranking lists. What is not there is left out.

    Raises:
        FileNotFoundError: there is no such folder, or neither ``results.json`` nor ``clusters.csv`` in it.
        ValueError: a file is not what it should be; names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder of a run")
    if not any((folder / name).is_file() for name in (RECORDS_FILE, CLUSTERS_FILE)):
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it has neither {RECORDS_FILE} nor {CLUSTERS_FILE}"
        )
    manifest = read_manifest(folder) if (folder / FILE_NAME).is_file() else None
    config = manifest["config"] if manifest is not None else read_config(folder / CONFIG_FILE)
    datasets = config.get("DATASETS", {})
    name = manifest["name"] if manifest is not None else method_name(config)
    trained = ", ".join(datasets.get("NAMES", ()))
    clusters: dict[str, Any] = read_clusters(folder / CLUSTERS_FILE) if (folder / CLUSTERS_FILE).is_file() else {}
    return ReportData(
        title=f"{name} on {trained}" if trained else folder.resolve().name,
        records=read_records(folder / RECORDS_FILE) if (folder / RECORDS_FILE).is_file() else [],
        tests=tuple(datasets.get("TESTS", ())),
        config=config,
        manifest=manifest,
        **clusters,
    )
