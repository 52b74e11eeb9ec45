#!/usr/bin/env python
"""Train a grid of config overrides x seeds, one run after another, and print their table.

tools/run_grid.py --config-file configs/ICE/demo.yml --output logs/grid --seeds 1 2 3 --grid CLUSTERING.EPS=0.5,0.55
tools/run_grid.py --config-file configs/ICE/demo.yml --output logs/losses \\
    --grid "MODEL.LOSSES.NAME=('AgnosticLoss',);('AgnosticLoss','HardInstanceLoss')" -- SOLVER.MAX_EPOCH 6

The same command again goes on: finished runs are skipped, interrupted ones resumed, failed ones tried again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastreid_ice.report.grid import (
    Runner,
    State,
    claim,
    expand,
    parse_axes,
    read_grid,
    run_grid,
    state_of,
    subprocess_runner,
)
from fastreid_ice.report.tables import benchmark_table


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="each run gets a folder of its own in it")
    parser.add_argument("--seeds", nargs="+", type=int, help="one run per seed (default: 1)")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=VALUE,...", help="repeat for more keys")
    parser.add_argument("--grid-file", metavar="FILE", help="yaml with 'grid' (KEY: [VALUE, ...]) and 'seeds'")
    parser.add_argument("--num-gpus", type=int, default=1, help="of each run, as for train_net.py")
    parser.add_argument("--status", action="store_true", help="only say how the runs stand")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="for all runs, behind --")
    return parser.parse_args(argv)


def grid(args: argparse.Namespace, runner: Runner | None = None) -> list[State]:
    """Run the grid of the arguments, printing a line per state; return how the runs stand.

    Raises:
        ValueError, FileNotFoundError: arguments that make no grid.
    """
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"--config-file {args.config_file}: there is no such file")
    if len(args.opts) % 2:
        raise ValueError(f"The options behind -- are {' '.join(args.opts)}: they must be KEY VALUE pairs")
    if taken := {"SEED", "OUTPUT_DIR"} & set(args.opts[::2]):
        raise ValueError(f"{min(taken)} cannot be among the options: --seeds and --output set it")
    axes, seeds = read_grid(args.grid_file) if args.grid_file else ({}, [])
    axes = {**axes, **parse_axes(args.grid)}
    if twice := set(axes) & set(args.opts[::2]):
        raise ValueError(f"{min(twice)} is an axis of the grid and among the options for all runs: choose one")
    runs = expand(axes, args.seeds or seeds or [1], args.output)
    if args.status:
        states = [state_of(run) for run in runs]
        for state in states:
            print(state.line())
        return states
    claim(args.output, {"config file": args.config_file, "options": args.opts})
    if runner is None:
        train = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", args.config_file]
        runner = subprocess_runner([*train, "--num-gpus", str(args.num_gpus)], args.opts)
    return run_grid(runs, runner, lambda line: print(line, flush=True))


def main(argv: Sequence[str] | None = None, runner: Runner | None = None) -> None:
    args = parse(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        states = grid(args, runner)
        if args.status:
            return
        tested = [s.run.folder for s in states if s.state == "finished" and s.manifest["datasets"]["tests"]]
        if tested:
            print("\n" + benchmark_table(tested, ablation=None), end="")
    except (ValueError, OSError) as error:
        sys.exit(f"run_grid: {error}")
    failed = [state for state in states if state.state != "finished"]
    if failed:
        sys.exit("\n".join(["", f"{len(failed)} of {len(states)} runs failed:", *(state.line() for state in failed)]))


if __name__ == "__main__":
    main()
