"""Look at a folder of images before training on it."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from fastreid_ice.data.folder_report import FolderReport, check_folder
from fastreid_ice.data.folder_scan import SOURCES, FolderScan, scan_folder
from fastreid_ice.data.folder_summary import Sources, config_text, describe, for_a_cpu
from fastreid_ice.data.folder_table import columns
from fastreid_ice.errors import told_in_one_line
from fastreid_ice.files import check_folder_for_output, check_output, check_outside, printable, write_text
from fastreid_ice.image_files import first_of_twins
from fastreid_ice.model_zoo import get_config_file
from fastreid_ice.report.dataset_sheet import dataset_sheet

REPORT, SHEET = "dataset.md", "dataset.png"


def parser() -> ArgumentParser:
    """The command line."""
    built = ArgumentParser(description=__doc__)
    built.add_argument("folder", help="folder of images, at any depth")
    for what in ("camera", "identity", "track"):
        built.add_argument(
            f"--{what}-from", choices=SOURCES, default="none", help=f"DATASETS.FOLDER.{what.upper()}_FROM"
        )
    built.add_argument("--pattern", help="DATASETS.FOLDER.PATTERN, such as '(?P<camera>c[0-9]+)_'")
    built.add_argument("--csv", help="DATASETS.FOLDER.CSV")
    built.add_argument("--output", type=Path, help=f"folder for {REPORT} and {SHEET}, a picture of the images")
    built.add_argument("--write-config", type=Path, help="config to write, such as my.yml")
    built.add_argument("--cpu", action="store_true", help="a config that trains on a machine without GPU")
    built.add_argument("--force", action="store_true", help="overwrite the config")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return built


def run(args: Namespace) -> FolderReport:
    """Check the folder, print what it is like, and write what was asked for."""
    if args.output is not None:
        check_folder_for_output(args.output, "--output")
        check_outside(args.output / SHEET, [args.folder], "--output")
    if args.write_config is not None:
        _check_config_file(args.write_config, args.force)
    sources = Sources(args.camera_from, args.identity_from, args.track_from, args.pattern, args.csv)
    scan = scan_folder(args.folder, **vars(sources), verify=False)
    report = check_folder(scan)
    report = for_a_cpu(report) if args.cpu else report
    text = printable(describe(scan, report))
    name = args.write_config.stem if args.write_config is not None else "own"
    base = "own_cpu" if args.cpu else "own" if scan.tracks is None else "own_tracks"
    config = config_text(scan, report, sources, get_config_file(f"ICE/{base}.yml"), f"logs/{name}", args.cpu)
    for note in [*_unused(sources), *_twins(scan)]:
        sys.stdout.write(f"note: {printable(note)}\n")
    sys.stdout.write(f"{text}\n\n## Config\n\n```yaml\n{config}```\n")
    if args.output is not None:
        _draw(scan, report, args.output / SHEET)
        write_text(args.output / REPORT, f"{text}\n\n## Config\n\n```yaml\n{config}```\n")
        sys.stdout.write(f"\nWrote {args.output / REPORT} and {args.output / SHEET}, which shows the images.\n")
    if args.write_config is not None:
        write_text(args.write_config, config)
        named = shlex.quote(str(args.write_config))
        sys.stdout.write(f"\nWrote {args.write_config}. Train: tools/train_net.py --config-file {named}\n")
    return report


def _unused(sources: Sources) -> list[str]:
    """What a pattern or a csv file says about the images, and nobody has asked for."""
    said = []
    groups = re.compile(sources.pattern).groupindex if sources.pattern else {}
    header = columns(sources.csv) if sources.csv else []
    for what in ("camera", "identity", "track"):
        source = getattr(sources, f"{what}_from")
        if what in groups and source != "pattern":
            said.append(f"the group {what} of --pattern is not used: add --{what}-from pattern")
        if what in header and source not in ("csv", "pattern"):
            said.append(f"the column {what} of {sources.csv} is not used: add --{what}-from csv")
    return said


def _twins(scan: FolderScan) -> list[str]:
    """That a training will not take a link beside what it links to."""
    twin = first_of_twins(scan.paths)
    if twin is None:
        return []
    return [f"{twin} is, through a link, an image that is there already: a training refuses it. Take the link away"]


def _check_config_file(path: Path, force: bool) -> None:
    if path.suffix not in (".yml", ".yaml"):
        raise ValueError(f"--write-config is {path}; a config ends in .yml")
    if path.is_dir():
        raise IsADirectoryError(f"--write-config is {path}, which is a folder; name a file")
    check_output(path)
    if path.exists() and not force:
        raise FileExistsError(f"--write-config: {path} is there already; name another file, or add --force")


def _draw(scan: FolderScan, report: FolderReport, path: Path) -> None:
    """The picture of the images that can be read."""
    refused = {file for file, _ in report.unreadable}
    names = scan.camera_names or ("all images",) * len(scan)
    order = report.per_camera or {"all images": len(scan)}
    groups: dict[str, list[str]] = {name: [] for name in order}
    for name, file in zip(names, scan.paths):
        if file not in refused:
            groups[name].append(file)
    shown = {name: files for name, files in groups.items() if files}
    several = f" of {len(order)} cameras" if scan.camera_names is not None else ""
    title = f"{report.images:,} images{several}, {len(report.unreadable):,} unreadable"
    dataset_sheet(shown, title, out_path=path, aspect=report.aspect.median)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse a command line (default: the program's) and run it."""
    args = parser().parse_args(argv)
    with told_in_one_line(args.debug):
        run(args)
