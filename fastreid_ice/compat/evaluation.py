"""Repairs of the evaluation."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

from fastreid_ice.compat.device import device_in_use
from fastreid_ice.compat.rebinding import after_import, replace, upstream, wrap

import torch


def repair_compilation() -> None:
    """evaluation/reid_evaluation.py:127-143: the first evaluation compiles into fastreid's folder.

    It ran PATH's ``python3``, and when that failed it called ``sys.exit(1)``, in mid-training and before any checkpoint
    (evaluation/rank_cylib/__init__.py:15-20). Nothing is compiled now, and nothing written there.
    """
    comm = upstream("utils.comm")

    @wrap(upstream("evaluation.reid_evaluation").ReidEvaluator, "_compile_dependencies")
    def compile_dependencies(original, self):
        comm.synchronize()


def repair_ranking() -> None:
    """evaluation/rank.py:115-155: the ranking in Python takes a quarter of a second per query of a large gallery.

    That of :mod:`fastreid_ice.evaluation` takes its place: the same numbers, and small galleries work, where upstream's
    curves have different lengths. Only CUHK03's old protocol, which draws gallery images at random, stays upstream's.
    """

    @wrap(_ranking(), "evaluate_rank")
    def evaluate_rank(
        original,
        distmat,
        q_pids,
        g_pids,
        q_camids,
        g_camids,
        max_rank=50,
        use_metric_cuhk03=False,
        use_cython=True,
    ):
        if use_metric_cuhk03:
            return original(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03, use_cython)
        from fastreid_ice.evaluation import evaluate_rank as without_sorting  # loads its compiled kernels

        return without_sorting(distmat, q_pids, g_pids, q_camids, g_camids, max_rank)


def repair_evaluation_names() -> None:
    """evaluation/__init__.py: demo/visualize_result.py:18 imports ``evaluate_rank`` from there, where it is not."""
    package = upstream("evaluation")
    if not hasattr(package, "evaluate_rank"):
        package.evaluate_rank = _ranking().evaluate_rank


def repair_visualizer() -> None:
    """utils/visualizer.py:56: demo/visualize_result.py:89 gives ``--max-rank`` as text, and a list has a number."""

    def repair() -> None:
        @wrap(upstream("utils.visualizer").Visualizer, "vis_rank_list")
        def vis_rank_list(
            original,
            self,
            output,
            vis_label,
            num_vis=100,
            rank_sort="ascending",
            label_sort="ascending",
            max_rank=5,
            actmap=False,
        ):
            original(self, output, vis_label, int(num_vis), rank_sort, label_sort, int(max_rank), actmap)

    after_import("utils.visualizer", repair)


class _Torch:
    """torch, but ``torch.cuda.is_available()`` says whether this run is on a GPU, not whether the machine has one."""

    class cuda:  # noqa: N801
        @staticmethod
        def is_available() -> bool:
            return device_in_use().type == "cuda"

        @staticmethod
        def synchronize() -> None:
            torch.cuda.synchronize()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def repair_synchronization() -> None:
    """evaluation/evaluator.py:123: a run on the CPU waits for the machine's GPU, and so opens a context on it."""
    replace(upstream("evaluation.evaluator"), "torch", lambda original: _Torch())


def _ranking() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing has been compiled
        return upstream("evaluation.rank")


def repair_rerank() -> None:
    """utils/compute_dist.py:53,68: ``TEST.RERANK`` needs CUDA and a faiss-gpu of its time.

    ``cast_integer_to_long_ptr`` (utils/faiss_utils.py:38), which it calls, is gone from today's. The search on the CPU
    of the same function is always asked for.
    """

    @wrap(upstream("utils.compute_dist"), "compute_jaccard_distance")
    def compute_jaccard_distance(original, features, k1=20, k2=6, search_option=3, fp16=False):
        return original(features, k1, k2, 3, fp16)
