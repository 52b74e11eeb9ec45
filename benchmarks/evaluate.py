"""Time and memory of ranking without sorting, beside the bare matrix product and fastreid's Python path.

    python benchmarks/evaluate.py                              # all of it: some minutes on two cores
    python benchmarks/evaluate.py --only counting whole        # parts of it
    python benchmarks/evaluate.py --queries 11659              # every query of MSMT17 instead of a sample

Runs of the two things compared alternate; medians are printed, and the quartiles of the pairs' ratios, so that other
work on the machine meets both. "cpu" is the processor time of all threads: it hardly depends on other work. Features
are synthetic, of identities that a network tells apart now and then; the gallery is always whole. Each part runs in a
process of its own. Memory is the highest resident memory less that before, the features already loaded (Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.timing import alternate, ratios, resident, run_parts, timed
from fastreid_ice.evaluation import FeatureRows, Identities, Similarities, rank_queries
from fastreid_ice.evaluation.counting import ranks_of_matches

BATCH = 64  # rows appended at once, as inference does


class Size(NamedTuple):
    queries: int
    gallery: int
    people: int
    cameras: int


MSMT17 = Size(11_659, 82_161, 3_060, 15)
MARKET = Size(3_368, 15_913, 750, 6)


Labels = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def problem(size: Size, queries: int, dimensions: int, seed: int = 0) -> tuple[FeatureRows, Labels]:
    """Raw features of the first ``queries`` queries and the whole gallery, and what Identities takes.

    mAP is about 0.4 at any dimension.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    total = queries + size.gallery
    people, cameras = rng.integers(0, size.people, total), rng.integers(0, size.cameras, total)
    centers = torch.randn(size.people, dimensions, generator=generator)
    noise = 1.6 * (dimensions / 128) ** 0.25  # strangers' similarities narrow with the dimension
    rows = FeatureRows()
    for start in range(0, total, BATCH):
        batch = centers[people[start : start + BATCH]]
        rows.append(batch + noise * torch.randn(batch.shape, generator=generator))
    return rows, (people[:queries], people[queries:], cameras[:queries], cameras[queries:])


def scores(similarities: Similarities, identities: Identities) -> str:
    ranking = rank_queries(similarities, identities, similarities.queries_at_once)
    return f"mAP {100 * ranking.mean_average_precision:.1f}, Rank-1 {100 * ranking.cmc[0]:.1f}"


def counting(args: argparse.Namespace) -> None:
    """Counting of one chunk of MSMT17's size, without the product that made it."""
    print("\n| dimensions | counting, ns a pair: wall | cpu | mAP, Rank-1 |\n| --- | --- | --- | --- |")
    for dimensions in args.dimensions:
        features, labels = problem(MSMT17, args.sample, dimensions)
        identities = Identities(*labels)
        features.normalize()
        similarities = Similarities(features, args.sample, "cosine")
        stop = similarities.queries_at_once
        rows, relevant = similarities(0, stop).numpy(), identities.relevant(0, stop)
        ranks_of_matches(rows, relevant)
        runs = np.array([timed(lambda: ranks_of_matches(rows, relevant)) for _ in range(args.pairs)])  # noqa: B023
        wall, cpu = np.median(runs, axis=0) / rows.size * 1e9
        print(f"| {dimensions} | {wall:.2f} | {cpu:.2f} | {scores(similarities, identities)} |")


def whole(args: argparse.Namespace) -> None:
    """Product and counting of MSMT17's size, beside the bare product of matrices; normalising, done once, apart."""
    queries = min(args.queries, MSMT17.queries)
    scale = MSMT17.queries / queries
    print(f"\nranking / bare product, {queries:,} x {MSMT17.gallery:,}, seconds scaled to {MSMT17.queries:,} queries")
    print("| dimensions | product: wall, cpu s | ranking: wall, cpu s | ratio: wall | cpu | normalising: wall, cpu s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dimensions in args.dimensions:
        features, labels = problem(MSMT17, queries, dimensions)
        identities = Identities(*labels)
        normalising = timed(features.normalize)
        matrix = torch.cat(features.parts())
        similarities = Similarities(features, queries, "cosine")
        at_once = similarities.queries_at_once
        memory = torch.empty(at_once, MSMT17.gallery)

        def product():
            for part in matrix[:queries].split(at_once):  # noqa: B023
                torch.mm(part, matrix[queries:].t(), out=memory[: len(part)])  # noqa: B023

        def rank():
            rank_queries(similarities, identities, at_once)  # noqa: B023

        seconds = alternate(product, rank, args.pairs)
        bare, ranked = np.median(seconds, axis=0) * scale
        print(f"| {dimensions} | {bare[0]:.1f}, {bare[1]:.1f} | {ranked[0]:.1f}, {ranked[1]:.1f} | {ratios(seconds)} | "
              f"{normalising.wall:.2f}, {normalising.cpu:.2f} |")  # fmt: skip


def market(args: argparse.Namespace) -> None:
    """Market-1501's size, beside fastreid's distances and Python ranking of some queries."""
    import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastreid.evaluation.rank import evaluate_py
        from fastreid.utils.compute_dist import build_dist

    queries, sample = MARKET.queries, args.upstream_queries
    scale = queries / sample
    print(f"\nMarket-1501's size, {queries:,} x {MARKET.gallery:,}; fastreid's ranking of {sample} queries, scaled")
    print("| dimensions | ours: wall, cpu s | fastreid: distances, wall s | its ranking: wall, cpu s | mAP, Rank-1 |")
    print("| --- | --- | --- | --- | --- |")
    for dimensions in args.dimensions:
        features, labels = problem(MARKET, queries, dimensions)
        identities = Identities(*labels)
        matrix = torch.cat(features.parts())
        distances = build_dist(matrix[:queries], matrix[queries:], "cosine")
        few = (labels[0][:sample], labels[1], labels[2][:sample], labels[3])

        def ours():
            features.normalize()  # noqa: B023
            similarities = Similarities(features, queries, "cosine")  # noqa: B023
            rank_queries(similarities, identities, similarities.queries_at_once)  # noqa: B023

        def upstream():
            evaluate_py(distances[:sample], *few, 50, False)  # noqa: B023

        seconds = np.median(alternate(ours, upstream, args.pairs), axis=0)
        built = timed(lambda: build_dist(matrix[:queries], matrix[queries:], "cosine")).wall  # noqa: B023
        found = scores(Similarities(features, queries, "cosine"), identities)
        print(f"| {dimensions} | {seconds[0, 0]:.2f}, {seconds[0, 1]:.2f} | {built:.2f} | "
              f"{seconds[1, 0] * scale:.0f}, {seconds[1, 1] * scale:.0f} | {found} |")  # fmt: skip


def memory(args: argparse.Namespace) -> None:
    """Peak over the features while MSMT17's gallery is ranked, normalising included."""
    print("\n| dimensions | features, MiB | peak over them, MiB |\n| --- | --- | --- |")
    queries = min(args.queries, MSMT17.queries)
    for dimensions in args.dimensions:
        features, labels = problem(MSMT17, queries, dimensions)
        identities = Identities(*labels)
        small = FeatureRows.of(F.normalize(torch.randn(60, 8), dim=1))
        some = Identities(np.arange(30) % 5, np.arange(30) % 5, np.zeros(30), np.ones(30))
        rank_queries(Similarities(small, 30, "cosine"), some, 30)  # compiles
        with contextlib.suppress(OSError):  # not permitted: the peak is then that of the process
            Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        features.check_finite()
        features.normalize()
        similarities = Similarities(features, queries, "cosine")
        rank_queries(similarities, identities, similarities.queries_at_once)
        size = 4 * len(features) * dimensions / 2**20
        print(f"| {dimensions} | {size:.0f} | {resident('VmHWM') - before:.0f} |")
        del features, similarities


PARTS = {part.__name__: part for part in (counting, whole, market, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--dimensions", type=int, nargs="*", default=[128, 512, 2048])
    parser.add_argument("--queries", type=int, default=1024, help="of MSMT17's 11,659, for whole and memory")
    parser.add_argument("--sample", type=int, default=256, help="queries for counting")
    parser.add_argument("--upstream-queries", type=int, default=32, help="queries that fastreid ranks, for market")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
    run_parts([PARTS[name] for name in args.only], args)


if __name__ == "__main__":
    main()
