"""Kill a training at random moments, resume it, and compare what it leaves with an unbroken run.

    python benchmarks/kill_resume.py --kills 100                  # one process
    python benchmarks/kill_resume.py --kills 20 --processes 2     # two, on gloo
    python benchmarks/kill_resume.py --kills 10 --fresh           # an interpreter of its own for every start

A part of the embedded dataset, three convolutions, two steps an epoch, on the CPU with one thread. Every start but
the first of a run is a ``--resume``. About half of the kills come at a moment drawn uniformly from the duration of the
unbroken run, the others when the temporary file of a checkpoint is seen; all are ``kill -9``, of all processes at once.
A run that ends before its kill is compared and another is begun, until the kills are used up; the last one then runs
to its end. What counts as a kill during a write: a temporary file was left.

Starting Python and importing torch takes far longer than such a training, so that the trainings are forked from a
process that has imported all and computed nothing (``--fresh``: not). Behind the fork it is the command line as users
have it, and for two processes the environment that torchrun sets. Needs a system that can fork.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # a process with a pool of threads cannot be forked

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import fastreid_ice.compat  # noqa: F401, E402  (repairs fastreid before it is imported)

import torch  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: F401, E402  (imported before the fork)

from fastreid_ice.cli import train  # noqa: E402
from fastreid_ice.clustering import Clusterer, ClusteringConfig  # noqa: E402
from fastreid_ice.config_files import load_config  # noqa: E402
from fastreid_ice.data.datasets import load_test_images, load_training_images  # noqa: E402

EPOCHS = 3
OPTIONS = [
    "MODEL.ICE.IMPORTS", "('benchmarks.kill_resume_parts',)", "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.NAME", "build_three_convolutions", "MODEL.BACKBONE.FEAT_DIM", "256",
    "DATASETS.NAMES", "('FewSyntheticReID',)", "DATASETS.TESTS", "('FewSyntheticReID',)",
    "INPUT.BLUR.ENABLED", "True", "INPUT.REA.ENABLED", "True", "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.MAX_EPOCH", str(EPOCHS), "SOLVER.ITERS_PER_EPOCH", "2", "SOLVER.IMS_PER_BATCH", "16",
    "TEST.EVAL_PERIOD", "1", "REPORT.ENABLED", "False",
    "CLUSTERING.K1", "6", "CLUSTERING.EPS", "0.4", "CLUSTERING.MIN_SAMPLES", "2",
]  # fmt: skip
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.(.+)")


class Killed(NamedTuple):
    """How one start ended: exit codes (None: it was killed), and the final names of temporary files left."""

    codes: list[int] | None
    left: list[str]


class Trainings:
    """Starts trainings and kills them."""

    def __init__(self, processes: int, fresh: bool):
        self.processes = processes
        self.fresh = fresh
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(self, folder: Path, resume: bool) -> list[int]:
        """Process ids; with ``fresh`` of the one that starts the others."""
        line = ["--config-file", "ICE/demo.yml", *["--resume"] * resume, "--num-gpus", str(self.processes)]
        line += ["--dist-url", f"tcp://127.0.0.1:{_free_port()}", *OPTIONS, "OUTPUT_DIR", str(folder)]
        folder.mkdir(parents=True, exist_ok=True)
        if self.fresh:
            with open(folder / "console.txt", "ab") as console:
                command = [sys.executable, "-m", "fastreid_ice.cli.train", *line]
                self._started = subprocess.Popen(
                    command, stdout=console, stderr=console, start_new_session=True, cwd=ROOT, env=self._environment
                )
                return [self._started.pid]
        port = _free_port()
        return [self._fork(folder, line, rank, port) for rank in range(self.processes)]

    def _fork(self, folder: Path, line: list[str], rank: int, port: int) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            console = os.open(folder / "console.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(console, 1)
            os.dup2(console, 2)
            if self.processes > 1:
                group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes}
                os.environ.update({name: str(value) for name, value in group.items()})
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_WORLD_SIZE=str(self.processes))
            train.main(line)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, folder: Path, resume: bool, after: float | None, writes: int | None, delay: float = 0.0) -> Killed:
        """Start, and kill ``after`` seconds or ``delay`` seconds into the ``writes``-th checkpoint, or never."""
        alive = self.start(folder, resume)
        everyone, codes = list(alive), []
        began, seen = time.perf_counter(), set()
        while alive:
            if writes is not None:
                seen |= {name for name in os.listdir(folder) if name.startswith(".") and name.endswith(".pth")}
            written = writes is not None and len(seen) >= writes
            if written or (after is not None and time.perf_counter() - began >= after):
                time.sleep(delay if written else 0)
                self._kill(everyone)
                for pid in alive:
                    os.waitpid(pid, 0)
                return Killed(None, self._left(folder))
            for pid in list(alive):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    alive.remove(pid)
                    codes.append(os.waitstatus_to_exitcode(status))
            time.sleep(0.0005)
        return Killed(codes, self._left(folder))

    def _kill(self, pids: Sequence[int]) -> None:
        for pid in pids:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:  # a rank that has ended
                continue

    @staticmethod
    def _left(folder: Path) -> list[str]:
        return [match[1] for match in map(TEMPORARY.fullmatch, os.listdir(folder)) if match]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def half_files(folder: Path) -> list[str]:
    """Names under which something lies that is not whole; the last line of metrics.json may be half."""
    wrong = []
    for path in folder.iterdir():
        try:
            if TEMPORARY.fullmatch(path.name):
                continue
            if path.suffix == ".pth":
                assert torch.load(path, weights_only=True)["model"]
            elif path.name in ("run.json", "results.json"):
                json.loads(path.read_text())
            elif path.name == "metrics.json":
                [json.loads(line) for line in path.read_text().split("\n")[:-1]]
            elif path.name == "clusters.csv":
                assert len({len(row) for row in csv.reader(path.open())}) == 1
            elif path.name == "last_checkpoint":
                assert (folder / path.read_text()).is_file()
            elif path.name == "config.yaml":
                load_config(path)
        except Exception as error:  # whatever a damaged file makes of its reader
            wrong.append(f"{path.name} ({error})")
    return wrong


def state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last and the best checkpoint: both encoders, statistics, optimizer."""
    tensors = {}
    for name in ("model_final.pth", "model_best.pth"):
        stored = torch.load(folder / name, weights_only=True)
        tensors.update({f"{name} {key}": value for key, value in stored["model"].items()})
        for number, moments in stored["optimizer"]["state"].items():
            tensors.update({f"{name} {number} {key}": torch.as_tensor(value) for key, value in moments.items()})
    return tensors


def records(folder: Path) -> Any:
    """What the run has written down, without times."""

    def timeless(row: dict) -> dict:
        return {k: v for k, v in row.items() if not any(word in k for word in ("second", "time", "eta", "peak_mb"))}

    manifest = json.loads((folder / "run.json").read_text())
    return (
        [timeless(row) for row in json.loads((folder / "results.json").read_text())],
        [timeless(json.loads(line)) for line in (folder / "metrics.json").read_text().splitlines()],
        {key: manifest[key] for key in ("status", "epochs_done", "steps_done", "scores", "clusters", "outliers")},
        (folder / "clusters.csv").read_text(),
    )


class Comparison:
    """What was found, against the unbroken run."""

    def __init__(self, unbroken: Path):
        self.state, self.records = state(unbroken), records(unbroken)
        self.counts: Counter[str] = Counter()

    def killed(self, folder: Path, left: list[str]) -> None:
        self.counts["kills"] += 1
        self.counts["in a checkpoint"] += any(name.endswith(".pth") for name in left)
        self.counts["in another file"] += any(not name.endswith(".pth") for name in left)
        for problem in half_files(folder):
            print(f"HALF: {folder.name}/{problem}", flush=True)
            self.counts["half files"] += 1

    def finished(self, folder: Path, codes: list[int], left: list[str]) -> None:
        self.counts["runs"] += 1
        if any(codes) or left:
            print(f"LOST: {folder.name}, exit codes {codes}, {left}, see console.txt there", flush=True)
            self.counts["lost"] += 1
            return
        own = state(folder)
        same = own.keys() == self.state.keys() and all(torch.equal(own[k], v) for k, v in self.state.items())
        self.counts["weights equal"] += same
        self.counts["records equal"] += records(folder) == self.records


def warm_up(folder: Path) -> None:
    """Render the dataset and compile the kernels once, before anything is forked."""
    os.environ.setdefault("FASTREID_DATASETS", str(folder / "datasets"))
    import fastreid.data.build

    fastreid.data.build._root = os.environ["FASTREID_DATASETS"]
    cfg = load_config("ICE/demo.yml", OPTIONS)
    load_training_images(cfg)
    load_test_images(cfg, "FewSyntheticReID")
    features = torch.nn.functional.normalize(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    Clusterer(ClusteringConfig(seed=0))(features, None, [""] * 200, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="start a new interpreter every time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="for the runs; kept (default: a temporary one)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        warm_up(folder)
        kill_and_resume(folder, args)


def kill_and_resume(folder: Path, args: argparse.Namespace) -> None:
    trainings, rng = Trainings(args.processes, args.fresh), random.Random(args.seed)
    shutil.rmtree(folder / "unbroken", ignore_errors=True)
    began, cpu = time.perf_counter(), os.times()
    codes = trainings.run(folder / "unbroken", False, None, None).codes
    if any(codes or [1]):
        raise RuntimeError(f"The unbroken run failed: see {folder / 'unbroken' / 'console.txt'}")
    duration = time.perf_counter() - began
    print(f"unbroken: {duration:.1f} s, {EPOCHS} epochs, load {os.getloadavg()[0]:.1f}", flush=True)
    comparison, run, starts, resume = Comparison(folder / "unbroken"), folder / "run", 0, False
    shutil.rmtree(run, ignore_errors=True)
    while True:
        use = comparison.counts["kills"] < args.kills
        in_write = use and rng.random() < 0.5
        after = rng.uniform(0, duration) if use and not in_write else None
        writes, delay = (rng.randint(1, 2), rng.uniform(0, 0.01)) if in_write else (None, 0.0)
        ended = trainings.run(run, resume, after, writes, delay)
        starts += 1
        if ended.codes is None:
            comparison.killed(run, ended.left)
            resume = True
            continue
        comparison.finished(run, ended.codes, ended.left)
        if any(ended.codes):
            break
        if not use:
            break
        shutil.rmtree(run)
        resume = False
    c, spent = comparison.counts, os.times()
    used, wall = sum(spent[:4]) - sum(cpu[:4]), time.perf_counter() - began
    row = {
        "processes": args.processes,
        "kills": c["kills"],
        "while a checkpoint was written": c["in a checkpoint"],
        "while another file was": c["in another file"],
        "starts": starts,
        "runs": c["runs"],
        "lost": c["lost"],
        "half files": c["half files"],
        "weights bit-equal": c["weights equal"],
        "records equal": c["records equal"],
        "wall s": round(wall),
        "cpu s": round(used),
    }
    print(f"| {' | '.join(row)} |\n|{' --- |' * len(row)}\n| {' | '.join(map(str, row.values()))} |")
    if c["lost"] or c["half files"] or not c["runs"] == c["weights equal"] == c["records equal"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
