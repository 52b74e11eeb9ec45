"""Train a grid of config overrides, or named rows of them, x seeds, one run after another, and print their table.

tools/run_grid.py --config-file configs/ICE/demo.yml --output logs/grid --seeds 1 2 3 --grid CLUSTERING.EPS=0.5,0.55
tools/run_grid.py --config-file configs/ICE/demo.yml --output logs/losses \\
    --grid "MODEL.LOSSES.NAME=('AgnosticLoss',);('AgnosticLoss','HardInstanceLoss')" -- SOLVER.MAX_EPOCH 6
tools/run_grid.py --config-file configs/ICE/market_half.yml --output logs/losses --grid-file ICE/grids/losses.yml

The same command again goes on: finished runs are skipped, interrupted ones resumed, failed ones tried again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fastreid_ice.errors import ending_on_sigterm, told_in_one_line
from fastreid_ice.model_zoo import config_files, get_grid_file, grid_files
from fastreid_ice.report.grid import (
    Runner,
    State,
    check_claim,
    check_options,
    claim,
    expand,
    expand_rows,
    run_grid,
    state_of,
    subprocess_runner,
)
from fastreid_ice.report.grid_file import GridFile, parse_axes, read_grid
from fastreid_ice.report.tables import benchmark_table


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    built.add_argument("--config-file", required=True, metavar="FILE")
    built.add_argument("--output", required=True, metavar="FOLDER", help="each run gets a folder of its own in it")
    built.add_argument("--seeds", nargs="+", type=int, help="one run per seed (default: 1)")
    built.add_argument("--grid", action="append", default=[], metavar="KEY=VALUE,...", help="repeat for more keys")
    built.add_argument("--grid-file", metavar="FILE", help="yaml with 'grid' or named 'rows', and 'seeds'")
    built.add_argument("--num-gpus", type=int, default=1, help="of each run, as for train_net.py")
    built.add_argument("--status", action="store_true", help="only say how the runs stand")
    built.add_argument("opts", nargs="*", metavar="KEY VALUE", help="for all runs, behind --")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return built


def grid(args: argparse.Namespace, runner: Runner | None = None) -> list[State]:
    """Run the grid of the arguments, printing a line per state; return how the runs stand.

    Raises:
        ValueError, FileNotFoundError: arguments that make no grid.
    """
    check_options(args.opts)
    file = read_grid(_located(args.grid_file)) if args.grid_file else GridFile()
    axes = {**file.axes, **parse_axes(args.grid)}
    if axes and file.rows:
        raise ValueError(f"--grid {min(axes)}: {args.grid_file} has rows, which take no axes")
    seeds = args.seeds or file.seeds or [1]
    if file.rows:
        runs = expand_rows(file.rows, seeds, args.output, args.config_file)
    else:
        runs = expand(axes, seeds, args.output, args.config_file)
    opts = [*(text for pair in file.options.items() for text in pair), *args.opts]
    if twice := set(opts[::2]) & {key for run in runs for key in run.overrides}:
        raise ValueError(f"{min(twice)} is a key of the grid and among the options for all runs: choose one")
    for config_file in dict.fromkeys(run.config_file for run in runs):
        if not Path(config_file).is_file() and config_file not in config_files():
            named = "--config-file" if config_file == args.config_file else f"{args.grid_file}: config"
            raise FileNotFoundError(f"{named} {config_file}: there is no such file")
    settings = {"config file": args.config_file, "options": opts}
    if args.status:
        check_claim(args.output, settings, runs, file.rows)
        states = [state_of(run) for run in runs]
        for state in states:
            say(state.line())
        return states
    claim(args.output, settings, runs, file.rows)
    return run_grid(runs, runner or training_runner(args.num_gpus, opts), say)


def _located(grid_file: str) -> str:
    """A file, or the name of a grid that comes with the package."""
    return get_grid_file(grid_file) if grid_file in grid_files() and not Path(grid_file).is_file() else grid_file


def training_runner(num_gpus: int, opts: Sequence[str]) -> Runner:
    """A runner that trains with this package's program, in a process of its own."""
    return subprocess_runner([sys.executable, "-m", "fastreid_ice.cli.train", "--num-gpus", str(num_gpus)], opts)


def say(line: str) -> None:
    """Print a line at once, so that it is seen while a training runs."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None, runner: Runner | None = None) -> None:
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with told_in_one_line(args.debug), ending_on_sigterm():
        states = grid(args, runner)
        if args.status:
            return
        tested = [s.run for s in states if s.state == "finished" and s.manifest["datasets"]["tests"]]
        if tested:
            names = {str(run.folder): run.row for run in tested if run.row}
            folders = [run.folder for run in tested]
            sys.stdout.write("\n" + benchmark_table(folders, names=names, ablation=False if names else None))
    failed = [state for state in states if state.state != "finished"]
    if failed:
        sys.exit("\n".join(["", f"{len(failed)} of {len(states)} runs failed:", *(state.line() for state in failed)]))
