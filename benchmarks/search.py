"""Time, recall and memory of the search index over synthetic features, one query at a time.

    python benchmarks/search.py                                  # a million vectors of 256 dimensions
    python benchmarks/search.py --images 100000 --kind exact
    python benchmarks/search.py --features gallery.npy           # real features, (N, D) float

Queries are held out: other images of the identities in the index. The truth is faiss's exact search over the float32
features. Recall is the share of the true 10 nearest that are found. "cpu" is the processor time of all threads: it
hardly depends on other work on the machine. Memory is what the process has grown by (Linux only); the features, which
only this benchmark keeps, are not in it. --hnsw measures faiss's graph index too, which is not offered.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.clustering import synthetic_features
from benchmarks.timing import resident
from fastreid_ice.search import SearchIndex
from fastreid_ice.search.index import FileState, unit_rows

K = 10
HNSW_LINKS, HNSW_BUILD = 32, 64


def split(features: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out random rows: (gallery, queries)."""
    held_out = np.random.default_rng(1).choice(len(features), queries, replace=False)
    rest = np.ones(len(features), bool)
    rest[held_out] = False
    return features[rest], features[held_out]


def measure(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """Median and 95th percentile of the time of a query in ms, its mean processor time in ms, and the recall.

    ``search``: (1, D) -> (1, K) row numbers.
    """
    search(queries[:1])
    seconds, hits, cpu = [], 0, time.process_time()
    for query, nearest in zip(queries, truth):
        start = time.perf_counter()
        found = search(query[None])
        seconds.append(time.perf_counter() - start)
        hits += len(set(found[0].tolist()) & set(nearest.tolist()))
    cpu = time.process_time() - cpu
    p50, p95 = 1000 * np.percentile(seconds, [50, 95])
    return p50, p95, 1000 * cpu / len(queries), hits / truth.size


def row(name: str, built: tuple[float, float], size: float, memory: float, timing: tuple[float, ...]) -> None:
    p50, p95, cpu, recall = timing
    made = f"{built[0]:.1f} | {built[1]:.1f} | {size:,.0f} | {memory:,.0f}"
    print(f"| {name} | {made} | {p50:.2f} | {p95:.2f} | {cpu:.2f} | {recall:.3f} |", flush=True)


class Clock:
    """Wall and processor time in seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def measure_ours(gallery: np.ndarray, queries: np.ndarray, truth: np.ndarray, args: argparse.Namespace) -> None:
    before = resident()
    index = SearchIndex(kind=args.kind)
    clock = Clock()
    paths = [f"camera{i % 6}/{i:08d}.jpg" for i in range(len(gallery))]
    index.add(gallery, paths, [FileState(0, 0)] * len(gallery))
    built = clock()
    memory = resident() - before
    timing = measure(lambda query: index.search(query, K)[1], queries, truth)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index.save(Path(folder) / "index")
        saved = time.perf_counter() - start
        size = sum(path.stat().st_size for path in (Path(folder) / "index").iterdir()) / 2**20
        start = time.perf_counter()
        index = SearchIndex.open(Path(folder) / "index")
        opened = time.perf_counter() - start
    assert index.vectors is not None
    effort = (
        f", {index.vectors.cells_probed} of {index.vectors.index.nlist} cells" if index.vectors.kind == "ivf" else ""
    )
    row(f"{index.vectors.kind}{effort}", built, size, memory, timing)
    start = time.perf_counter()
    index.add(gallery[:1000], [f"new{i}.jpg" for i in range(1000)], [FileState(0, 0)] * 1000)
    added = time.perf_counter() - start
    start = time.perf_counter()
    index.remove([f"new{i}.jpg" for i in range(1000)])
    print(f"saved in {saved:.1f} s, opened in {opened:.1f} s, 1,000 images added in {added:.1f} s and removed in "
          f"{time.perf_counter() - start:.1f} s, peak of the process {resident('VmHWM'):,.0f} MB")  # fmt: skip


def measure_hnsw(gallery: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> None:
    index: Any = faiss.index_factory(gallery.shape[1], f"HNSW{HNSW_LINKS}_SQfp16", faiss.METRIC_INNER_PRODUCT)
    graph: Any = faiss.downcast_index(index)
    graph.hnsw.efConstruction = HNSW_BUILD
    clock = Clock()
    index.train(gallery)
    index.add(gallery)
    built, memory = clock(), len(faiss.serialize_index(index)) / 2**20
    for effort in (16, 32, 64, 128, 256, 512):
        graph.hnsw.efSearch = effort
        timing = measure(lambda query: index.search(query, K)[1], queries, truth)
        row(f"hnsw, {effort} candidates", built, memory, memory, timing)
        if timing[3] >= 0.97:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--features", type=Path, help=".npy file to measure instead")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kind", choices=("auto", "exact", "ivf"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hnsw", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    if args.features:
        features = unit_rows(np.load(args.features))
    else:
        features = synthetic_features(args.images + args.queries, args.dimensions).numpy()
    gallery, queries = split(features, args.queries)
    del features
    _, truth = faiss.knn(queries, gallery, K, metric=faiss.METRIC_INNER_PRODUCT)
    print(f"{len(gallery):,} x {gallery.shape[1]}, {gallery.nbytes / 2**20:,.0f} MB as float32, "
          f"{len(queries):,} queries, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print("| index | build wall s | cpu s | MB on disk | MB resident | p50 ms | p95 ms | cpu ms | recall@10 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    measure_ours(gallery, queries, truth, args)
    if args.hnsw:
        measure_hnsw(gallery, queries, truth)


if __name__ == "__main__":
    main()
