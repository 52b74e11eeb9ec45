"""Kill a training again and again, resume it, and compare its final weights with those of a run that nobody killed.

    python benchmarks/kill_resume.py --kills 100
    python benchmarks/kill_resume.py --kills 20 --processes 2

The demo's dataset, OSNet x0.25 at 32 x 16, six epochs of three steps, on the CPU with one thread. SIGKILL goes to the
whole process group, every second time as soon as a checkpoint is being written under its temporary name, else at a
random moment of the run. A run that reaches its end is compared bit for bit, weights, optimizer and results.json, and
the next one starts in an empty folder. Prints a Markdown table; the exit code is 1 if a run could not be resumed or
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
POLL = 0.0005  # seconds between two looks for a checkpoint that is being written
OPTIONS = """
    MODEL.DEVICE cpu INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] INPUT.PADDING.SIZE 2 SOLVER.MAX_EPOCH 6
    SOLVER.ITERS_PER_EPOCH 3 SOLVER.IMS_PER_BATCH 16 CLUSTERING.EPS 0.6 CLUSTERING.MIN_SAMPLES 2 CLUSTERING.K1 10
    TEST.EVAL_START False TEST.EVAL_PERIOD 2 DATALOADER.NUM_WORKERS 0 REPORT.ENABLED False
""".split()


def start(folder: Path, processes: int, log: Path) -> subprocess.Popen:
    """Start the training, or resume what is in the folder, as a process group of its own."""
    command = [
        sys.executable,
        str(ROOT / "tools" / "train_net.py"),
        "--config-file",
        "configs/ICE/demo.yml",
        "--resume",
    ]
    command += ["--num-gpus", str(processes), "--dist-url", "auto", *OPTIONS, "OUTPUT_DIR", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(log, "ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def is_writing(folder: Path) -> bool:
    return any(folder.glob(".*.model_*.pth"))


def kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def disturb(process: subprocess.Popen, folder: Path, wait: float, in_writing: bool) -> tuple[bool, bool]:
    """Kill after ``wait`` seconds, or in the next writing from then on: (was killed, was killed in a writing)."""
    begin = time.monotonic()
    while process.poll() is None:
        late = time.monotonic() - begin >= wait
        writing = is_writing(folder)
        if late and (writing or not in_writing):
            kill(process)
            return True, is_writing(folder)
        time.sleep(POLL)
    return False, False


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last checkpoint, and the rows of results.json without what is timed."""
    rows = json.loads((folder / "results.json").read_text())
    timed = ("seconds", "process_peak")
    rows = [{key: value for key, value in row.items() if not key.startswith(timed)} for row in rows]
    return torch.load(folder / "model_final.pth", weights_only=True), rows


def same(first: Any, second: Any) -> bool:
    """Whether two nested containers hold the same numbers, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built.add_argument("--kills", type=int, default=20)
    built.add_argument("--processes", type=int, default=1)
    built.add_argument("--seed", type=int, default=1, help="of the moments")
    return built


def main() -> int:
    args = parser().parse_args()
    moments = random.Random(args.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        log = base / "log.txt"
        begin = time.monotonic()
        if start(base / "unbroken", args.processes, log).wait():
            sys.exit(log.read_text()[-3000:])
        whole = time.monotonic() - begin
        expected = outcome(base / "unbroken")
        folder = base / "run0"
        while counts["kills"] < args.kills or folder.exists():
            process = start(folder, args.processes, log)
            if counts["kills"] < args.kills:
                in_writing = counts["kills"] % 2 == 1
                killed, hit = disturb(
                    process, folder, moments.uniform(0, whole * (0.5 if in_writing else 1)), in_writing
                )
                counts["kills"] += killed
                counts["in a writing"] += hit
                if killed:
                    print(f"\r{counts['kills']} kills, {counts['runs']} runs", end="", file=sys.stderr, flush=True)
                    continue
            if process.wait():
                counts["lost"] += 1
                print(f"\nlost: {log.read_text()[-2000:]}", file=sys.stderr)
            elif same(expected, outcome(folder)):
                counts["equal"] += 1
            counts["runs"] += 1
            folder = base / f"run{counts['runs']}"
    print(f"\n{whole:.1f} s for the unbroken run, {args.processes} processes\n", file=sys.stderr)
    print("| processes | kills | of them while a checkpoint was written | runs finished | lost | bit-equal |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {args.processes} | {counts['kills']} | {counts['in a writing']} | {counts['runs']} | {counts['lost']} "
        f"| {counts['equal']} |"
    )
    return int(counts["lost"] > 0 or counts["equal"] < counts["runs"])


if __name__ == "__main__":
    sys.exit(main())
