"""Train what was published and say whether the numbers came out.

tools/reproduce.py                                  # Market-1501, DukeMTMC-reID, MSMT17, with and without cameras
tools/reproduce.py --configs market duke --seeds 1 2 3 --num-gpus 4
tools/reproduce.py --plan                           # the commands and an estimate of the hours; runs nothing
tools/reproduce.py --check                          # compares what is there; runs nothing

The same command again goes on where it was stopped. The exit code is 1 when a row is below, or scored otherwise than
what was published, or a run is not finished.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fastreid_ice.cli.grid import say, training_runner
from fastreid_ice.config_files import load_config
from fastreid_ice.errors import closest, ending_on_sigterm, told_in_one_line
from fastreid_ice.model_zoo import get_config_file
from fastreid_ice.modeling.arithmetic import training_flops
from fastreid_ice.report.grid import (
    GridRun,
    Runner,
    State,
    check_options,
    claim,
    expand,
    run_grid,
    state_of,
)
from fastreid_ice.report.reproduction import Comparison, compare, comparison_table

# Config, the method's name in published.yml, the test set, and the images of its training and test.
REPRODUCIBLE = {
    "market": ("ICE", "Market1501", 12_936, 19_281),
    "market_agnostic": ("ICE (agnostic)", "Market1501", 12_936, 19_281),
    "duke": ("ICE", "DukeMTMC", 16_522, 19_889),
    "duke_agnostic": ("ICE (agnostic)", "DukeMTMC", 16_522, 19_889),
    "msmt17": ("ICE", "MSMT17", 32_621, 93_820),
    "msmt17_agnostic": ("ICE (agnostic)", "MSMT17", 32_621, 93_820),
}


def parser() -> argparse.ArgumentParser:
    built = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    built.add_argument("--configs", nargs="+", default=list(REPRODUCIBLE), metavar="NAME", help=", ".join(REPRODUCIBLE))
    built.add_argument("--output", default="logs/reproduce", metavar="FOLDER")
    built.add_argument(
        "--seeds", nargs="+", type=int, default=[1], help="one training per config and seed (default: 1)"
    )
    built.add_argument("--num-gpus", type=int, default=1, help="of each training, as for train_net.py")
    built.add_argument(
        "--tolerance", type=float, default=1.0, help="points below the published mAP and Rank-1 that pass"
    )
    built.add_argument(
        "--tflops", type=float, default=10.0, help="for --plan: what a GPU reaches, in 10^12 operations/s"
    )
    kind = built.add_mutually_exclusive_group()
    kind.add_argument("--plan", action="store_true", help="print the commands and the hours they may take, run nothing")
    kind.add_argument("--check", action="store_true", help="compare the finished runs, run nothing")
    built.add_argument("opts", nargs="*", metavar="KEY VALUE", help="for all runs, behind --")
    built.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return built


def reproduce(args: argparse.Namespace, runner: Runner | None = None) -> tuple[list[Comparison], list[State]]:
    """Train what is not finished, and compare; also, how the runs stand.

    Raises:
        ValueError, FileNotFoundError: arguments that cannot be.
    """
    _check(args)
    comparisons, all_states = [], []
    for name in args.configs:
        runs = _runs(name, args)
        if args.check:
            states = [state_of(run) for run in runs]
        else:
            claim(runs[0].folder.parent, {"config file": f"ICE/{name}.yml", "options": args.opts}, runs)
            say(name)
            states = run_grid(runs, runner or training_runner(args.num_gpus, args.opts), say)
        finished = [state.run.folder for state in states if state.state == "finished"]
        method, dataset = REPRODUCIBLE[name][:2]
        comparisons.append(compare(method, dataset, finished, args.tolerance))
        all_states += states
    return comparisons, all_states


def plan(args: argparse.Namespace) -> str:
    """The commands, a line each, and a table of the arithmetic and the hours.

    Raises:
        ValueError: arguments that cannot be.
    """
    _check(args)
    lines, commands = ["| config | steps | clusterings | evaluations | hours |", "|:--|--:|--:|--:|--:|"], []
    for name in args.configs:
        cfg = load_config(get_config_file(f"ICE/{name}.yml"), args.opts)
        flops = training_flops(cfg, *REPRODUCIBLE[name][2:])
        hours = sum(flops.values()) / (args.tflops * 1e12 * args.num_gpus) / 3600
        lines.append(
            f"| {name} | " + " | ".join(f"{value / 1e15:.1f}" for value in flops.values()) + f" | {hours:.1f} |"
        )
        for run in _runs(name, args):
            commands.append(_command(name, run, args))
    note = (
        f"10^15 floating-point operations of a training, and its hours at {args.tflops:g} x 10^12 a second (--tflops) "
        f"on each of {args.num_gpus} GPUs. Counted, not measured: decoding, clustering and small kernels come on top."
    )
    return "\n".join([*commands, "", *lines, "", note, ""])


def _runs(name: str, args: argparse.Namespace) -> list[GridRun]:
    return expand({}, args.seeds, Path(args.output) / name, get_config_file(f"ICE/{name}.yml"))


def _command(name: str, run: GridRun, args: argparse.Namespace) -> str:
    gpus = f" --num-gpus {args.num_gpus}" if args.num_gpus > 1 else ""
    command = f"python tools/train_net.py --config-file configs/ICE/{name}.yml{gpus}"
    return f"{command} {shlex.join(map(str, [*args.opts, *run.opts]))}"


def _check(args: argparse.Namespace) -> None:
    for name in args.configs:
        if name not in REPRODUCIBLE:
            known = ", ".join(REPRODUCIBLE)
            raise ValueError(
                f"--configs {name}: nothing was published for it{closest(name, REPRODUCIBLE)}; choose {known}"
            )
    check_options(args.opts)
    if args.tolerance < 0:
        raise ValueError(f"--tolerance is {args.tolerance:g}; it must be at least 0")
    if args.tflops <= 0 or args.num_gpus < 1:
        raise ValueError(f"--tflops is {args.tflops:g} and --num-gpus {args.num_gpus}; they must be above 0")


def main(argv: Sequence[str] | None = None, runner: Runner | None = None) -> None:
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with told_in_one_line(args.debug), ending_on_sigterm():
        if args.plan:
            say(plan(args))
            return
        comparisons, states = reproduce(args, runner)
    say("\n" + comparison_table(comparisons))
    problems = []
    if short := [row for row in comparisons if row.verdict != "reproduced"]:
        problems.append(f"{len(short)} of {len(comparisons)} rows are not reproduced")
    if missing := [state for state in states if state.state != "finished"]:
        problems += [f"{len(missing)} of {len(states)} runs are not finished:", *(state.line() for state in missing)]
    if problems:
        sys.exit("\n".join(problems))
