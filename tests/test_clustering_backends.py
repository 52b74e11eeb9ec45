"""Which backend runs, what it needs, and what it leaves as it was."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

from fastreid_ice import clustering
from fastreid_ice.clustering import (
    Clusterer,
    ClusteringConfig,
    dbscan,
    jaccard_distances,
    k_reciprocal_encoding,
    nearest_neighbors,
)
from fastreid_ice.clustering.torch_ops import faiss_gpu
from tests.clustering_features import BACKENDS, blobs

ROOT = Path(__file__).parent.parent
STAGES = {
    "search": "nearest_neighbors",
    "encoding": "k_reciprocal_encoding",
    "jaccard": "jaccard_distances",
    "dbscan": "dbscan",
}


def python(code: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_torch_path_needs_no_numba():
    python("""
        import sys
        sys.modules["numba"] = None  # importing it is an error
        import torch
        from fastreid_ice.clustering import Clusterer, ClusteringConfig
        features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0], [-1.0, -1.0]])
        options = {"k1": 2, "k2": 1, "min_samples": 2}
        labels = Clusterer(ClusteringConfig(backend="torch", **options))(features).labels
        assert labels.tolist() == [0, 0, 1, 1, -1]
        try:
            Clusterer(ClusteringConfig(backend="numba", **options))(features)
        except ImportError:
            pass
        else:
            raise AssertionError("the numba backend ran without numba")
    """)


def test_definitions_import_neither_numba_nor_torch():
    source = (ROOT / "fastreid_ice" / "clustering" / "definitions.py").read_text()
    assert "import" not in [line.split()[0] for line in source.splitlines() if line.strip()]


def test_no_public_name_hides_a_module():
    modules = {path.stem for path in (ROOT / "fastreid_ice" / "clustering").iterdir()}
    assert not modules & set(clustering.__all__)


@pytest.mark.parametrize("stage", STAGES)
def test_both_backends_have_the_same_functions(stage):
    found = [
        inspect.signature(
            getattr(importlib.import_module(f"fastreid_ice.clustering.{package}.{stage}"), STAGES[stage])
        ).parameters
        for package in ("numba_kernels", "torch_ops")
    ]
    assert list(found[0]) == list(found[1])


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_the_choice_decides(backend):
    features = blobs(4, 5)
    similarities, ranks = nearest_neighbors(features, 5, backend=backend)
    encoding = k_reciprocal_encoding(features, ranks, similarities, 5, 2, backend=backend)
    graph = jaccard_distances(encoding)
    kind = "SparseRows" if backend == "torch" else "csr_array"
    assert type(encoding).__name__ == type(graph).__name__ == kind
    assert dbscan(graph).tolist() == [image // 5 for image in range(20)]


class OnAccelerator(torch.Tensor):
    """A tensor that refuses to become an array, as those on an accelerator do, until it is copied to the CPU."""

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def to(self, *arguments, device=None):
        return self.as_subclass(torch.Tensor) if str(device) == "cpu" else self


def test_the_numba_backend_copies_to_the_cpu():
    features = blobs(4, 5).as_subclass(OnAccelerator)
    with pytest.raises(TypeError):
        features.numpy()
    similarities, ranks = nearest_neighbors(features, 5, backend="numba")
    similarities, ranks = similarities.as_subclass(OnAccelerator), ranks.as_subclass(OnAccelerator)
    encoding = k_reciprocal_encoding(features, ranks, similarities, 5, 2, backend="numba")
    assert dbscan(jaccard_distances(encoding)).tolist() == [image // 5 for image in range(20)]
    result = Clusterer(ClusteringConfig(k1=5, k2=2, backend="numba"))(features)
    assert type(result.labels) is torch.Tensor
    assert result.labels.tolist() == [image // 5 for image in range(20)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_features_on_a_gpu(backend):
    features = blobs(20, 11, spread=0.3)
    expected = nearest_neighbors(features, 10)
    found = nearest_neighbors(features.cuda(), 10, backend=backend)
    assert all(a.device.type == "cuda" and torch.equal(a.cpu(), b) for a, b in zip(found, expected))
    config = ClusteringConfig(k1=10, backend=backend)
    assert torch.equal(Clusterer(config)(features.cuda()).labels, Clusterer(config)(features).labels)


# torch's setting of TF32


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has only the older setting"
)
def test_the_newer_setting_is_used_and_put_back():
    python("""
        import torch
        from fastreid_ice.clustering import nearest_neighbors
        from fastreid_ice.clustering.torch_ops import search
        settings = torch.backends.cuda.matmul
        inside = []
        whole = search._search_chunk
        def observed(*arguments):
            inside.append(settings.fp32_precision)
            return whole(*arguments)
        search._search_chunk = observed
        for before in ("tf32", "ieee"):
            settings.fp32_precision = before
            for allowed in (True, False):
                nearest_neighbors(torch.eye(4), 2, backend="torch", allow_tf32=allowed)
                assert settings.fp32_precision == before
        assert inside == ["tf32", "ieee"] * 2, inside
    """)


def test_the_older_setting_is_put_back():
    python("""
        import torch
        from fastreid_ice.clustering import nearest_neighbors
        for before in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = before
            for allowed in (True, False):
                nearest_neighbors(torch.eye(4), 2, backend="torch", allow_tf32=allowed)
                assert torch.backends.cuda.matmul.allow_tf32 == before
    """)


@pytest.mark.parametrize("allowed", [True, False])
def test_torch_without_the_newer_setting(monkeypatch, allowed):
    from types import SimpleNamespace

    from fastreid_ice.precision import products_in_tf32

    settings = SimpleNamespace(allow_tf32=not allowed)
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings)
    with products_in_tf32(allowed):
        assert settings.allow_tf32 == allowed
    assert vars(settings) == {"allow_tf32": not allowed}


def test_faiss_gpu_gives_the_candidates_where_it_is_usable(monkeypatch):
    """No GPU here: faiss's search is stood in for by what it is documented to return."""
    calls = []

    def knn_gpu(resources, queries, features, k, metric, device):
        assert metric == faiss_gpu.faiss.METRIC_INNER_PRODUCT and resources == "resources" and device == 0
        calls.append(len(queries))
        return (queries @ features.t()).topk(k, dim=1)

    features = torch.nn.functional.normalize(torch.randn(90, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = nearest_neighbors(features, 12, backend="torch")
    assert not faiss_gpu.is_usable(features, 12)
    monkeypatch.setattr(faiss_gpu, "is_usable", lambda features, k: True)
    monkeypatch.setattr(faiss_gpu, "_resources", lambda device: "resources")
    monkeypatch.setattr(faiss_gpu.faiss, "knn_gpu", knn_gpu, raising=False)
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext())
    found = nearest_neighbors(features, 12, backend="torch")
    assert entered == [0] * len(calls)  # the stream is that of the features' device
    assert calls and all(torch.equal(a, b) for a, b in zip(found, expected))


def test_faiss_gpu_takes_tensors_from_the_first_search_on(monkeypatch):
    """What lets it take them replaces its search; that is looked up behind."""

    def lets_it_take_tensors(device):
        monkeypatch.setattr(faiss_gpu.faiss, "knn_gpu", lambda *args, **kwargs: "of tensors")
        return "resources"

    monkeypatch.setattr(faiss_gpu.faiss, "knn_gpu", lambda *args, **kwargs: "of arrays", raising=False)
    monkeypatch.setattr(faiss_gpu, "_resources", lets_it_take_tensors)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    assert faiss_gpu.largest_products(torch.eye(3), torch.eye(3), 2) == "of tensors"


def test_faiss_gpu_keeps_little_memory(monkeypatch):
    """Its resources are made within the features' device, once for each, with 256 MiB of scratch."""
    made, entered = [], []

    class Resources:
        def __init__(self):
            made.append((entered[-1], []))

        def setTempMemory(self, size):  # noqa: N802 (faiss's name)
            made[-1][1].append(size)

    monkeypatch.setitem(sys.modules, "faiss.contrib.torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setattr(faiss_gpu.faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext())
    faiss_gpu._resources.cache_clear()
    try:
        assert faiss_gpu._resources(1) is faiss_gpu._resources(1) is not faiss_gpu._resources(0)
    finally:
        faiss_gpu._resources.cache_clear()
    assert made == [(1, [256 << 20]), (0, [256 << 20])]
