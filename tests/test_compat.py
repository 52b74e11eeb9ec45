"""Each repair of fastreid: the thing that failed upstream works."""

import importlib.metadata
import os
import queue
import sys

import numpy as np
import pytest
import torch

from fastreid_ice import compat
from tests.conftest import ice_config

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="repairs for machines without CUDA")


def test_missing_fastreid_names_the_command(monkeypatch):
    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    with pytest.raises(ImportError, match="pip install --no-deps fastreid==1.4.0"):
        compat.require_fastreid()


def test_other_version_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.3.0")
    with pytest.raises(ImportError, match="found 1.3.0(.|\n)*pip install --no-deps fastreid==1.4.0"):
        compat.require_fastreid()


def test_applying_again_changes_nothing():
    from fastreid.engine import defaults
    from fastreid.utils import checkpoint, compute_dist

    def repaired():
        data, ranks = sys.modules["fastreid.data.data_utils"], sys.modules["fastreid.evaluation.reid_evaluation"]
        return (
            defaults.build_optimizer,
            defaults.DistributedDataParallel,
            compute_dist.compute_jaccard_distance,
            checkpoint.Checkpointer.save,
            data.DataLoaderX,
            data.BackgroundGenerator.run,
            ranks.compile_helper,
        )

    before = repaired()
    compat.apply()
    assert repaired() == before


def test_imports_leave_no_global_patch():
    import collections

    assert not hasattr(collections, "Mapping") and "torch._six" not in sys.modules


def test_weights_move_under_stock_step():
    """fastreid's SimpleTrainer and build_optimizer, unmodified callers: with torch 2 nothing moved."""
    from fastreid.engine.defaults import build_optimizer
    from fastreid.engine.train_loop import SimpleTrainer
    from fastreid.utils.events import EventStorage

    class Model(torch.nn.Linear):
        def forward(self, batch):
            return {"loss": super().forward(batch).square().mean()}

    model = Model(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = SimpleTrainer(model, [torch.randn(4, 3)], *build_optimizer(ice_config(), model))
    with EventStorage(0):
        trainer.run_step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


@without_cuda
def test_loader_without_cuda():
    from fastreid.data import build

    assert build.DataLoaderX is compat.CpuDataLoader
    loader = build.DataLoaderX(0, dataset=range(5), batch_size=2, pin_memory=True, num_workers=64)
    assert loader.num_workers == min(64, os.cpu_count()) and not loader.pin_memory
    assert [batch.tolist() for batch in compat.CpuDataLoader(0, dataset=range(3), batch_size=2)] == [[0, 1], [2]]
    loader.shutdown()


def test_an_error_in_the_loader_thread_is_raised(monkeypatch):
    from fastreid.data.data_utils import BackgroundGenerator

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def batches():
        yield 1
        raise OSError("cannot read 7.jpg")

    generator = BackgroundGenerator(batches(), local_rank=0)
    monkeypatch.setattr(generator.queue, "get", lambda: queue.Queue.get(generator.queue, timeout=10))
    assert next(generator) == 1
    with pytest.raises(OSError, match="7.jpg"):
        next(generator)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(generator)
    assert list(BackgroundGenerator(iter([1, 2]), local_rank=0)) == [1, 2]


def test_failed_compilation_is_survived(monkeypatch, tmp_path):
    from fastreid.evaluation import rank_cylib, reid_evaluation

    assert reid_evaluation.compile_helper is compat.compile_rank_evaluation
    (tmp_path / "setup.py").write_text("raise RuntimeError('no compiler')")
    monkeypatch.setattr(rank_cylib, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: object())
    assert compat.compile_rank_evaluation() is False


def test_python_ranking_of_a_small_gallery():
    from fastreid.evaluation import rank

    compat._repair_python_ranking()
    # The first query finds its person second (the closest image is removed: same person, same camera), the other first.
    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    query, gallery = np.array([1, 2]), np.array([1, 3, 1, 2])
    cmc, precisions, _ = rank.evaluate_py(distances, query, gallery, np.zeros(2), np.array([0, 1, 1, 1]), 50, False)
    assert cmc.tolist() == [0.5] + [1.0] * 49
    assert precisions == pytest.approx([0.5, 1.0])


@without_cuda
def test_rerank_without_gpu():
    from fastreid.utils.compute_dist import build_dist

    features = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    distance = build_dist(features[:10], features[10:], metric="jaccard", k1=6, k2=3)
    assert distance.shape == (10, 30) and np.isfinite(distance).all()


def test_affine():
    from fastreid.data.transforms import build_transforms
    from PIL import Image

    view = build_transforms(ice_config(INPUT__AFFINE__ENABLED=True), is_train=True)
    assert view(Image.new("RGB", (32, 64), "white")).shape == (3, 64, 32)


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_to_tensor_equals_torchvision(mode):
    from fastreid.data.transforms import ToTensor
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    tensor = ToTensor()(picture)
    assert tensor.dtype == torch.float32 and torch.equal(
        tensor, pil_to_tensor(picture.convert("RGB" if mode == "RGB" else "L")).float()
    )
    if mode != "1":
        assert torch.equal(ToTensor()(np.asarray(picture)), tensor)


class TestCheckpointer:
    def checkpointer(self, folder):
        from fastreid.utils.checkpoint import Checkpointer

        return Checkpointer(torch.nn.Linear(2, 2), str(folder))

    def test_round_trip(self, tmp_path):
        checkpointer = self.checkpointer(tmp_path)
        checkpointer.save("model_0001", epoch=1)
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0001.pth")
        assert checkpointer.load(checkpointer.get_checkpoint_file()) == {"epoch": 1}

    def test_a_bare_state_dict_is_a_model(self, tmp_path):
        weights = torch.nn.Linear(2, 2).state_dict()
        torch.save(weights, tmp_path / "bare.pth")
        checkpointer = self.checkpointer(tmp_path)
        checkpointer.load(str(tmp_path / "bare.pth"))
        assert torch.equal(checkpointer.model.weight, weights["weight"])

    def test_a_crash_leaves_the_old_file(self, tmp_path, monkeypatch):
        checkpointer = self.checkpointer(tmp_path)
        checkpointer.save("model_best")
        before = (tmp_path / "model_best.pth").read_bytes()

        def crash(data, path):
            path.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(torch, "save", crash)
        with pytest.raises(OSError, match="disk full"):
            checkpointer.save("model_best")
        assert (tmp_path / "model_best.pth").read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_best.pth"]

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path):
        import pickle

        torch.save({"model": {"weight": pytest.approx(1)}}, tmp_path / "bad.pth")
        with pytest.raises(pickle.UnpicklingError):
            self.checkpointer(tmp_path).load(str(tmp_path / "bad.pth"))
