"""Time and memory of the clustering, stage by stage, beside a faiss flat search and a plain dense implementation.

    python benchmarks/clustering.py                              # synthetic, 2,000 to 100,000 images
    python benchmarks/clustering.py --features a.npy b.npy       # real features, (N, D) float, one file each
    python benchmarks/clustering.py --million                    # 1,000,000 images, neighbours from an index

Runs of ours and of faiss alternate and medians are printed, so that other work on the machine meets both. "cpu" is the
processor time of all threads: it hardly depends on other work. Memory is the highest resident memory of the stage
less that before the clustering, the features already loaded (Linux only).
"""

import argparse
import contextlib
import ctypes
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import dense_clusters
from benchmarks.timing import resident
from fastreid_ice.clustering import (
    approximate_neighbors,
    dbscan,
    jaccard_distances,
    k_reciprocal_encoding,
    nearest_neighbors,
    prepare_features,
)

K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.55, 4
STAGES = ("search", "reciprocal", "jaccard", "dbscan")


def synthetic_features(images, dimensions, seed=0):
    """Identities of about 25 images that vary along 8 directions of their own and a little in all; unit rows."""
    rng = np.random.default_rng(seed)
    identities = max(1, images // 25)
    owner = np.sort(rng.integers(0, identities, images))
    features = np.empty((images, dimensions), np.float32)
    for first in range(0, identities, 2000):
        block = slice(*np.searchsorted(owner, [first, first + 2000]))
        centers = rng.normal(size=(2000, dimensions)).astype(np.float32)
        directions = rng.normal(size=(2000, 8, dimensions)).astype(np.float32)
        mine = owner[block] - first
        for part in np.array_split(np.arange(block.start, block.stop), 16):
            who = mine[part - block.start]
            weights = 0.35 * rng.normal(size=(len(part), 8)).astype(np.float32)
            rows = centers[who] + np.einsum("nk,nkd->nd", weights, directions[who])
            features[part] = rows + 0.2 * rng.normal(size=rows.shape).astype(np.float32)
    return prepare_features(features)


class Meter:
    """Wall time, processor time and peak memory of named pieces of work."""

    def __init__(self):
        self.wall, self.cpu, self.memory = {}, {}, {}
        self.sums = 0  # minima that the Jaccard stage adds up
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what making the features left behind is not ours
        self.base = resident("VmRSS")

    def __call__(self, name, function, *arguments):
        _reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        self.memory[name] = max(self.memory.get(name, 0.0), resident("VmHWM") - self.base)
        return result


def _reset_peak():
    with contextlib.suppress(OSError):  # not Linux, or not permitted: the peak is then that of the process
        Path("/proc/self/clear_refs").write_text("5")


def flat_search(features):
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features.numpy())
    return index.search(features.numpy(), K1)


def cluster_stages(meter, features, neighbors=None):
    """Run our stages under the meter; returns labels."""
    similarities, ranks = neighbors or meter("search", nearest_neighbors, features, K1)
    encoding = meter("reciprocal", k_reciprocal_encoding, features, ranks, similarities, K1, K2)
    columns = np.bincount(encoding.indices).astype(np.int64)
    meter.sums = int((columns * (columns + 1) // 2).sum())
    graph = meter("jaccard", jaccard_distances, encoding, EPS)
    return meter("dbscan", dbscan, graph, MIN_SAMPLES)


def in_fresh_process(function, *arguments):
    """Call in a process of its own, so that memory which an earlier run left behind does not hide a peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def prepare_process(threads):
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    cluster_stages(Meter(), synthetic_features(1500, 32))  # loads the compiled kernels


def measure(source, dimensions, args):
    """Measure the features of a file, or synthetic ones if ``source`` is a number; returns (images, meter)."""
    prepare_process(args.threads)
    synthetic = isinstance(source, int)
    features = synthetic_features(source, dimensions) if synthetic else prepare_features(np.load(source))
    meter = Meter()
    for _ in range(args.repeats if len(features) <= 50_000 else 1):
        if len(features) <= 20_000:
            meter("faiss flat", flat_search, features)
        labels = cluster_stages(meter, features)
    if len(features) <= args.dense_up_to:
        expected = meter("dense", dense_clusters, features.numpy(), K1, K2, EPS, MIN_SAMPLES)
        assert np.array_equal(expected, labels.numpy()), "the labels differ from the dense definition"
    title = "synthetic" if synthetic else source.stem
    report(title, features, labels, meter)
    return len(features), meter


def report(title, features, labels, meter):
    """Print a row per stage with its ratio to the flat search, then the total of all stages but the search."""
    print(f"\n{title}: {len(features):,} x {features.shape[1]}, {int(labels.max()) + 1} clusters, "
          f"{int((labels < 0).sum())} outliers, {meter.sums / len(features):,.0f} minima summed per image, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    wall = {stage: median(times) for stage, times in meter.wall.items()}
    cpu = {stage: median(times) for stage, times in meter.cpu.items()}
    memory = dict(meter.memory)
    rest = [stage for stage in STAGES[1:] if stage in wall]
    for each in (wall, cpu):
        each["without search"] = sum(each[stage] for stage in rest)
    memory["without search"] = max(memory[stage] for stage in rest)
    print("| stage | wall s | cpu s | cpu / faiss flat cpu | peak memory MB |\n| --- | --- | --- | --- | --- |")
    for stage, seconds in wall.items():
        ratio = f"{cpu[stage] / cpu['faiss flat']:.3f}" if "faiss flat" in cpu else ""
        print(f"| {stage} | {seconds:.3f} | {cpu[stage]:.3f} | {ratio} | {memory[stage]:.0f} |")


def growth(sizes, seconds):
    """Exponent b of the least-squares fit seconds = a * size^b."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def totals(runs):
    """Of each run: images, cpu seconds of the search and of the rest, peak memory of the rest, minima summed."""
    rows = []
    for images, meter in runs:
        rest = sum(median(meter.cpu[stage]) for stage in STAGES[1:])
        memory = max(meter.memory[stage] for stage in STAGES[1:])
        rows.append((images, median(meter.cpu["search"]), rest, memory, meter.sums))
    return np.array(rows).T


def draw(runs, path):
    """Log-log figure of time and memory over the number of images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images, search, rest, memory, _ = totals(runs)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.loglog(images, search, "o-", label="exact neighbour search")
    left.loglog(images, rest, "s-", label="reciprocal + Jaccard + DBSCAN")
    flat = [(n, median(m.cpu["faiss flat"])) for n, m in runs if "faiss flat" in m.cpu]
    left.loglog(*np.array(flat).T, "^--", label="faiss flat search")
    dense = [(n, median(m.cpu["dense"])) for n, m in runs if "dense" in m.cpu]
    if dense:
        left.loglog(*np.array(dense).T, "x", markersize=9, label="plain dense definition (float64)")
    left.set(xlabel="images", ylabel="processor time, s", title="Time")
    right.loglog(images, np.maximum(memory, 1), "C1s-", label="reciprocal + Jaccard + DBSCAN")
    right.loglog(images, images**2 * 4 / 2**20, "k:", label="one dense float32 matrix")
    right.set(xlabel="images", ylabel="peak memory over the features, MiB", title="Memory")
    for axes in (left, right):
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0.05, 1))
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def search_in_blocks(features, k, size=10_000):
    """Exact lists within blocks of consecutive images: a cheap index for synthetic features, whose identities follow
    one another. Returns similarities, ranks and no recall."""
    found = []
    for first in range(0, len(features), size):
        similarities, ranks = nearest_neighbors(features[first : first + size], k)
        found.append((similarities, ranks + first))
    return *(torch.cat(parts) for parts in zip(*found)), float("nan")


def million(args):
    """One million synthetic images with neighbours from an approximate index."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_process(args.threads)
    features = synthetic_features(1_000_000, 64)
    meter = Meter()
    if args.index == "blocks":
        *neighbors, recall = meter("index", search_in_blocks, features, K1)
    else:
        search = partial(approximate_neighbors, target_recall=args.recall)
        *neighbors, recall = meter("index", search, features, K1, args.index)
    labels = cluster_stages(meter, features, neighbors)
    report(f"synthetic, {args.index}, recall {recall:.3f}", features, labels, meter)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2000, 5000, 10000, 20000, 50000, 100000])
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--features", type=Path, nargs="*", default=[], help=".npy files to measure as well")
    parser.add_argument("--dense-up-to", type=int, default=2000, help="largest size for the dense implementation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--recall", type=float, default=0.8, help="of the index, for --million")
    parser.add_argument("--index", choices=("hnsw", "ivf", "blocks"), default="hnsw", help="for --million")
    args = parser.parse_args()
    if args.million:
        return million(args)
    for path in args.features:
        in_fresh_process(measure, path, None, args)
    runs = [in_fresh_process(measure, size, args.dimensions, args) for size in args.sizes]
    if len(runs) > 1:
        images, _, rest, _, sums = totals(runs)
        print("\ngrowth without the search: exponent of the time, and of the minima to be summed")
        for least in (0, 10_000):
            large = images >= least
            if large.sum() > 1:
                print(f"from {images[large][0]:,.0f} on: {growth(images[large], rest[large]):.3f}, "
                      f"{growth(images[large], sums[large]):.3f}")  # fmt: skip
    if args.figure:
        draw(runs, args.figure)


if __name__ == "__main__":
    main()
