"""What :func:`fastreid_ice.data.folder_report.check_folder` found, in words, and as a config to begin with.

Needs numpy and Pillow only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fastreid_ice.data.folder_report import FolderReport
from fastreid_ice.data.folder_scan import FolderScan

SHOWN = 10  # files or cameras in a list
K2 = 6
LOSSES = '("AgnosticLoss", "CrossCameraLoss", "HardInstanceLoss", "SoftInstanceLoss")'
CPU_LOSSES = '("AgnosticLoss", "CrossCameraLoss", "HardInstanceLoss")'
CPU_SIDE = 128  # longest side of an image on a CPU
CPU_K1 = 20  # configs/ICE/own_cpu.yml
EPS_FALLS = 0.05  # configs/ICE/own_cpu.yml: EPS_END below EPS
TRACKED = {"MIN_SAMPLES": 2, "K1": 10, "K2": 3}  # configs/ICE/own_tracks.yml
KEYS = {
    "input_size": "INPUT.SIZE_TRAIN and SIZE_TEST",
    "padding": "INPUT.PADDING.SIZE",
    "eps": "CLUSTERING.EPS",
    "min_samples": "CLUSTERING.MIN_SAMPLES",
    "k1": "CLUSTERING.K1",
}


@dataclass(frozen=True)
class Sources:
    """Where the facts about the images are from, as the keys of ``DATASETS.FOLDER`` have it."""

    camera_from: str = "none"
    identity_from: str = "none"
    track_from: str = "none"
    pattern: str | None = None
    csv: str | None = None


def describe(scan: FolderScan, report: FolderReport) -> str:
    """Images, cameras, sizes, unreadable and duplicate files, and the settings with their reasons, in Markdown."""
    return "\n".join(
        [f"# {report.images:,} images in {scan.folder}", "", *_facts(report), "", *_settings(scan, report)]
    )


def _facts(report: FolderReport) -> list[str]:
    cameras = report.per_camera
    lines = [
        "median (5th to 95th percentile)",
        "",
        f"- width {report.width}, height {report.height} pixels, height / width {report.aspect}",
        "- cameras: " + ("not known" if cameras is None else f"{len(cameras)}: {_counts(cameras)}"),
    ]
    if report.per_identity is not None:
        lines.append(f"- images of an identity: {report.per_identity}")
    if report.per_track is not None:
        lines.append(f"- images of a track: {report.per_track}")
    lines.append(f"- files that cannot be read: {len(report.unreadable)}")
    lines += [f"    - {path}: {why}" for path, why in report.unreadable[:SHOWN]]
    lines += ["    - ..."] * (len(report.unreadable) > SHOWN)
    copies = sum(len(group) - 1 for group in report.duplicates)
    lines.append(f"- files that show the same as another: {copies}")
    lines += [
        f"    - {' = '.join(group[:3])}{' = ...' if len(group) > 3 else ''}" for group in report.duplicates[:SHOWN]
    ]
    lines += ["    - ..."] * (len(report.duplicates) > SHOWN)
    return lines


def _counts(cameras: Mapping[str, int]) -> str:
    first = [f"{name} {count:,}" for name, count in list(cameras.items())[:SHOWN]]
    return ", ".join(first) + (", ..." if len(cameras) > SHOWN else "")


def _settings(scan: FolderScan, report: FolderReport) -> list[str]:
    found = report.recommendation
    values = {
        "input_size": list(found.input_size),
        "padding": found.padding,
        "eps": found.eps,
        "min_samples": found.min_samples,
        "k1": found.k1,
    }
    lines = ["## Settings to begin with", ""]
    for name, value in values.items():
        if scan.tracks is not None and name in ("min_samples", "k1"):
            continue
        lines.append(f"- {KEYS[name]}: {value}. {found.reasons[name]}")
    if scan.tracks is not None:
        lines.append(
            "- CLUSTERING.K1 and MIN_SAMPLES: those of configs/ICE/own_tracks.yml, since with tracks they count tracks."
        )
    if report.per_camera is not None and len(report.per_camera) > 1:
        lines.append("- CrossCameraLoss and DATASETS.USE_CAMERAS: on, since there are several cameras.")
    else:
        lines.append("- CrossCameraLoss and DATASETS.USE_CAMERAS: off, since no cameras can be told apart.")
    return lines


def for_a_cpu(report: FolderReport) -> FolderReport:
    """The report with half of the recommended pixels a side, where there are more than CPU_SIDE, and at most CPU_K1."""
    found = report.recommendation
    if max(found.input_size) > CPU_SIDE:
        height, width = (side // 2 for side in found.input_size)
        reasons = found.reasons | {"input_size": f"{found.reasons['input_size']} On a CPU half of it."}
        found = replace(found, input_size=(height, width), padding=found.padding // 2, reasons=reasons)
    if found.k1 > CPU_K1:
        why = f"{CPU_K1} is the value of configs/ICE/market_plus.yml; nothing here asks for fewer neighbours."
        found = replace(found, k1=CPU_K1, reasons=found.reasons | {"k1": why})
    return replace(report, recommendation=found)


def config_text(
    scan: FolderScan, report: FolderReport, sources: Sources, base: str, output_dir: str, cpu: bool = False
) -> str:
    """A config for these images, on top of a shipped one.

    Args:
        scan: of the folder.
        report: what it is like.
        sources: where the scan had its facts from.
        base: that config's path.
        output_dir: OUTPUT_DIR.
        cpu: that config is own_cpu.yml, which is completed by what helps where cameras are known.
    """
    found = report.recommendation
    tracked = scan.tracks is not None
    several = report.per_camera is not None and len(report.per_camera) > 1
    lines = [f"_BASE_: {_text(base)}", ""]
    if several:
        lines += ["MODEL:", "  LOSSES:", f"    NAME: {CPU_LOSSES if cpu else LOSSES}"]
        lines += ["    CROSS_CAMERA:", "      SCALE: 1.0"] * cpu + [""]
    height, width = found.input_size
    lines += ["INPUT:", f"  SIZE_TRAIN: [{height}, {width}]", f"  SIZE_TEST: [{height}, {width}]"]
    lines += ["  PADDING:", f"    SIZE: {found.padding}", "", "DATASETS:"]
    lines += ["  USE_CAMERAS: True"] * several + ["  FOLDER:", f"    PATH: {_text(scan.folder.absolute())}"]
    lines += [
        f"    CAMERA_FROM: {sources.camera_from}",
        f"    IDENTITY_FROM: {sources.identity_from}",
        f"    TRACK_FROM: {sources.track_from}",
        f"    PATTERN: {_text(sources.pattern or '')}",
        f"    CSV: {_text(Path(sources.csv).absolute() if sources.csv else '')}",
    ]
    if report.unreadable:
        lines.append(f"    SKIP_UNREADABLE: True # {len(report.unreadable)} of {report.images}")
    lines += ["", "CLUSTERING:", f"  EPS: {found.eps}"]
    if cpu:
        lines += [f"  EPS_END: {found.eps - EPS_FALLS:.4g}"] + ["  CAMERA_NORMALIZATION: True"] * several
    if tracked:
        both = scan.camera_names is not None and scan.frames is not None
        lines.append(f"  TRACKS: {'must_and_cannot_link' if both else 'must_link'}")
        lines += [f"  {key}: {value}" for key, value in TRACKED.items()] if cpu else []
    else:
        lines += [f"  MIN_SAMPLES: {found.min_samples}", f"  K1: {found.k1}", f"  K2: {min(K2, found.k1)}"]
    return "\n".join([*lines, "", f"OUTPUT_DIR: {_text(output_dir)}", ""])


def _text(value: object) -> str:
    """Quoted as JSON and YAML both have it."""
    return json.dumps(str(value), ensure_ascii=False)
