"""Draws docs/images/architecture.png: the rooms with the imports between them, and the way of an image and of a label.

The arrows of the upper half are read from the sources. Usage: python docs/images/make_architecture.py [OUT]
"""

import ast
import sys
from pathlib import Path

from make_method import CLUSTER, DATA, ENCODER, FAINT, INK, LOSS, MEMORY, MOMENTUM, arrow, box
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastreid_ice"

# Rooms by layer, the ones that use others above; what each is for.
LAYERS = [
    [("cli", "programs", DATA)],
    [("engine", "trainer, hooks, checks,\ncheckpoints", ENCODER), ("export", "zoo, ONNX,\nTorchScript", ENCODER)],
    [("data", "datasets, views,\nsamplers, loaders", MOMENTUM), ("modeling", "ICE, memory,\nloss registry", MOMENTUM)],
    [
        ("clustering", "pseudo labels", CLUSTER),
        ("losses", "formulas", CLUSTER),
        ("evaluation", "ranking", CLUSTER),
        ("report", "tables, pictures", CLUSTER),
        ("search", "index", CLUSTER),
        ("synthetic", "renderer", CLUSTER),
    ],
    [("compat", "repairs of fastreid, imported before it is", LOSS)],
]

IMAGE = [
    ("data.datasets", "path, camera"),
    ("data.loaders", "decoded once"),
    ("data.views", "2 strong, 1 weak"),
    ("meta_arch", "online, momentum\nencoder"),
    ("StepFeatures", "query, keys"),
    ("losses", "gradient"),
    ("evaluation", "CMC, mAP"),
]
LABEL = [
    ("extraction", "features of all\nimages"),
    ("methods", "k-NN, Jaccard,\nDBSCAN"),
    ("clustering hook", "labels, -1 = outlier"),
    ("memory_bank", "centroids, proxies"),
    ("data.samplers", "clusters x images"),
    ("losses", "positives,\nnegatives"),
    ("report", "clusters.csv,\nresults.json"),
]


def imports_between() -> set[tuple[str, str]]:
    """Pairs (room, room it imports), read from the sources; what only type checkers see is left out."""
    found = set()
    for path in PACKAGE.glob("*/**/*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "fastreid_ice" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                    found.add((room, parts[1]))
    return {(user, used) for user, used in found if user != used}


def draw_rooms(axes):
    """The upper half. Returns nothing; compat is used by all rooms that import fastreid, so its arrows are left out."""
    axes.text(2, 76.5, "Rooms, and who imports whom", fontsize=12, weight="bold", color=INK, va="center")
    places = {}
    for level, rooms in enumerate(LAYERS):
        width = 13.2 if len(rooms) > 2 else 20
        gap = (96 - len(rooms) * width) / (len(rooms) + 1)
        for number, (name, detail, fill) in enumerate(rooms):
            x, y = 2 + gap + number * (width + gap), 67 - 9.2 * level
            wide = 92 if name == "compat" else width
            x = 4 if name == "compat" else x
            box(axes, x, y, wide, 6.2, name, detail, fill)
            places[name] = (x, y, wide, level)
    for user, used in sorted(imports_between()):
        if used in places and user in places and used != "compat" and places[used][3] > places[user][3]:
            draw_import(axes, places[user], places[used])
    axes.text(98, 25.9, "compat is imported by every module that imports fastreid", ha="right", fontsize=8, color=FAINT)


def draw_import(axes, user, used):
    start, end = (user[0] + user[2] / 2, user[1]), (used[0] + used[2] / 2, used[1] + 6.2)
    style = "arc3,rad=0.06"
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            color="#9aa1ad",
            linewidth=0.9,
            connectionstyle=style,
            zorder=0,
        )
    )


def draw_way(axes, title, stations, y, fill):
    axes.text(2, y + 8.4, title, fontsize=11, weight="bold", color=INK, va="center")
    width, gap = 12.4, 1.55
    for number, (name, detail) in enumerate(stations):
        x = 2 + number * (width + gap)
        box(axes, x, y, width, 6.6, name, detail, fill)
        if number:
            arrow(axes, [(x - gap, y + 3.3), (x, y + 3.3)])


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "architecture.png"
    figure = Figure(figsize=(13, 9.6), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, 79))
    axes.axis("off")
    draw_rooms(axes)
    draw_way(axes, "The way of an image (every step; evaluation)", IMAGE, 13.2, MEMORY)
    draw_way(axes, "The way of a label (before every epoch)", LABEL, 1.4, CLUSTER)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
