"""Train ICE on the embedded dataset without labels, and beside it with the true ones; print the scores.

Both trainings run at once, each on half of the processor's cores. Writes the clusters found and the curves as pictures
into logs/demo. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np

from fastreid_ice.config_files import load_config
from fastreid_ice.cores import usable_cores
from fastreid_ice.data.datasets import load_training_images
from fastreid_ice.engine.resuming import RUN_FILES
from fastreid_ice.errors import ending_on_sigterm, told_in_one_line
from fastreid_ice.files import claim_folder
from fastreid_ice.model_zoo import get_config_file
from fastreid_ice.report.contact_sheet import contact_sheet
from fastreid_ice.report.curves import training_curves
from fastreid_ice.report.run_files import CLUSTERS_FILE, RECORDS_FILE, read_clusters
from fastreid_ice.report.tables import benchmark_table

CONFIG = "ICE/demo.yml"
# Folder of a training, its name, and the keys in which it differs.
TRAININGS = (("ice", "ICE", ()), ("true_labels", "true labels", ("CLUSTERING.METHOD", "ground_truth")))
POLL = 0.5  # seconds between two looks at the trainings


@dataclass
class Training:
    """One of the two trainings, as a process of its own."""

    name: str
    folder: Path
    process: subprocess.Popen

    @property
    def console(self) -> Path:
        """What the process prints."""
        return self.folder / "console.txt"

    def records(self) -> list[dict]:
        """The rows of its results.json so far."""
        path = self.folder / RECORDS_FILE
        return json.loads(path.read_text()) if path.is_file() else []

    def epochs_done(self) -> int:
        return max((record["epoch"] for record in self.records()), default=0)

    def check(self) -> None:
        """Raise RuntimeError, with the last line that it has printed, where the process has failed."""
        if self.process.poll():
            lines = [line for line in self.console.read_text(errors="replace").splitlines() if line.strip()]
            last = lines[-1].removeprefix("error: ") if lines else f"exit code {self.process.returncode}"
            raise RuntimeError(f"the training {self.name} failed ({self.console} has more): {last}")


def start(name: str, folder: Path, opts: Sequence[str]) -> Training:
    """Start a training with half of the cores; one that is in the folder already is replaced."""
    claim_folder(folder).close()  # one that another demo is training in is not touched
    for pattern in RUN_FILES:
        for old in folder.glob(pattern):
            old.unlink()
    command = [sys.executable, "-m", "fastreid_ice.cli.train", "--config-file", str(get_config_file(CONFIG))]
    command += [*opts, "REPORT.ENABLED", "False", "OUTPUT_DIR", str(folder)]
    with open(folder / "console.txt", "w", encoding="utf-8") as console:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads_each())}
        process = subprocess.Popen(command, env=environment, stdout=console, stderr=subprocess.STDOUT)
    return Training(name, folder, process)


def threads_each(trainings: int = 2) -> int:
    """Threads of each of so many trainings: its share of the cores, or fewer where ``OMP_NUM_THREADS`` asks for fewer.

    More threads than cores wait for each other in a busy loop: two each on two cores took the demo ten times as long.
    """
    share = max(1, usable_cores() // trainings)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share


def follow(trainings: Sequence[Training], epochs: int) -> None:
    """Wait for all, with a line that says how far they are and how much time is left.

    Raises:
        RuntimeError: one of them has failed; the others are ended then.
    """
    begin, shown = time.monotonic(), ""
    try:
        while any(training.process.poll() is None for training in trainings):
            for training in trainings:
                training.check()
            done = [training.epochs_done() for training in trainings]
            text = ", ".join(f"{training.name} epoch {n} of {epochs}" for training, n in zip(trainings, done))
            line = f"{text}; {_left(time.monotonic() - begin, min(done), epochs)}"
            if line != shown:
                _show(line, len(shown))
                shown = line
            time.sleep(POLL)
        for training in trainings:
            training.check()
    finally:
        for training in trainings:
            training.process.kill()
            training.process.wait()
        if shown and sys.stderr.isatty():
            sys.stderr.write("\n")


def _show(line: str, before: int) -> None:
    """On a terminal a line takes the place of the one before it."""
    sys.stderr.write(f"\r{line:{before}}" if sys.stderr.isatty() else line + "\n")
    sys.stderr.flush()


def _left(seconds: float, done: int, epochs: int) -> str:
    """The time left, if the epochs to come take as long as those before.

    Example:
        >>> _left(60, 2, 8), _left(10, 0, 8), _left(57, 19, 20)
        ('about 3 min left', 'the first epoch', 'less than a minute left')
    """
    if done == 0:
        return "the first epoch"
    left = seconds / done * (epochs - done)
    return "less than a minute left" if left < 60 else f"about {left / 60:.0f} min left"


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=__doc__)
    built.add_argument("--output-dir", type=Path, default=Path("logs") / "demo")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    built.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return built


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with told_in_one_line(args.debug), ending_on_sigterm():
        sys.stdout.write(run(args.output_dir, args.opts))


def run(output_dir: Path, opts: Sequence[str] = ()) -> str:
    """Train twice, draw, and return the table and where the pictures are.

    Raises:
        ValueError: OUTPUT_DIR among the options.
        RuntimeError: another training is writing into one of the folders, or a training has failed.
    """
    if "OUTPUT_DIR" in opts[::2]:
        raise ValueError("OUTPUT_DIR is set by the demo itself, for each of its trainings: see --output-dir")
    cfg = load_config(get_config_file(CONFIG), opts)
    load_training_images(cfg)  # the dataset is rendered on first use: once, not by both at the same time
    trainings = [start(name, output_dir / folder, [*keys, *opts]) for folder, name, keys in TRAININGS]
    follow(trainings, cfg.SOLVER.MAX_EPOCH)
    table = benchmark_table([training.folder for training in trainings], epochs=("start", "best", "last"))
    return f"\n{table}\n{draw(trainings[0], output_dir)}\n"


def draw(training: Training, output_dir: Path) -> str:
    """Draw what a training has found, and say where."""
    found = read_clusters(training.folder / CLUSTERS_FILE)
    labels, identities = found["labels"], found["identities"]
    true = len(np.unique(identities))
    sheet, curves = output_dir / "clusters.png", output_dir / "curves.png"
    contact_sheet(found["paths"], labels, identities, found["cameras"], out_path=sheet)
    training_curves(training.records(), curves, true_identities=true, title="ICE on SyntheticReID")
    said = f"{labels.max() + 1} clusters for {true} people, {(labels < 0).sum()} outliers of {len(labels)} images"
    return f"ICE found {said} before its last epoch.\n\nClusters: {sheet}\nCurves: {curves}"
