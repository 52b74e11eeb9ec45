"""``fastreid-ice COMMAND ...``: the programs of tools/ as one command, for an installed package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fastreid_ice.errors import closest

# Command, its module in fastreid_ice.cli, and what it does.
COMMANDS = {
    "train": ("train", "train or evaluate (tools/train_net.py)"),
    "export": ("export", "a model for others: fastreid's zoo, ONNX, TorchScript, safetensors (tools/export_model.py)"),
    "table": ("table", "tables from the results of runs (tools/benchmark_table.py)"),
    "reproduce": ("reproduce", "train what was published and compare (tools/reproduce.py)"),
    "grid": ("grid", "train a grid of settings and seeds (tools/run_grid.py)"),
    "search": ("search", "find the images of a folder that are most similar to a query (tools/search.py)"),
    "check": ("check_dataset", "look at a folder of images before training on it (tools/check_dataset.py)"),
    "sweep": ("sweep_eps", "try values of eps and min_samples on the features of a run (tools/sweep_eps.py)"),
    "label": ("label_images", "write down the identities that a run has found (tools/label_images.py)"),
    "whiten": ("whiten", "whiten the embedding of a run by its clusters (tools/whiten.py)"),
    "visualize": ("visualize", "the report of a run, or one of its pictures (tools/visualize.py)"),
    "demo": ("demo", "train on the embedded dataset and show what came out (tools/demo.py)"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Hand the command line behind the command to its module. An unknown command ends with exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"error: there is no command {argv[0]}{closest(argv[0], COMMANDS)}\n{usage()}")
        raise SystemExit(2)
    sys.argv[0] = f"fastreid-ice {argv[0]}"
    importlib.import_module(f"fastreid_ice.cli.{COMMANDS[argv[0]][0]}").main(argv[1:])


def usage() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {command:{width}}  {text}" for command, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: fastreid-ice COMMAND ... (COMMAND --help says more)", "", *lines, ""])
