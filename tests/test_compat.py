"""Each repair of fastreid: the thing that failed upstream works."""

import inspect
import subprocess
import sys

from fastreid_ice.compat.rebinding import MARK
from fastreid_ice.compat.source import FINGERPRINTS

import numpy as np
import pytest
import torch

from fastreid_ice import compat
from tests.conftest import ice_config


def repaired() -> dict:
    """All that stands in the place of something of fastreid's: where it can be found, and what it says it replaces."""
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("fastreid.")]
    places = [(module.__name__, module) for module in modules]
    classes = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    places += [(f"{place.__module__}.{place.__qualname__}", place) for place in classes]
    found = {f"{place}.{name}": value for place, owner in places for name, value in vars(owner).items()}
    return {name: value for name, value in found.items() if MARK in getattr(value, "__dict__", ())}


def test_applying_again_changes_nothing():
    before = repaired()
    compat.apply()
    after = repaired()
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_what_is_repaired_is_what_is_recognised():
    """Every function and class of fastreid's that a repair takes the place of has a fingerprint, and no other has."""
    import fastreid.utils.visualizer  # noqa: F401  (repaired when it is imported)

    marks = {getattr(value, MARK) for value in repaired().values()}
    borrowed = {"engine.defaults.DistributedDataParallel", "data.transforms.build.T", "evaluation.evaluator.torch"}
    marks -= {f"fastreid.{name}" for name in borrowed}  # not its own
    marks |= {"fastreid.engine.launch._distributed_worker"}  # replaced at every launch
    names = [f"{file[:-3].replace('/', '.')}.{name}" for file, names in FINGERPRINTS.items() for name in names]
    for name in names:
        assert any(f"{mark}.".startswith(f"fastreid.{name}.") for mark in marks), name
    for mark in marks:  # itself, or the class that it is in
        assert any(f"{mark}.".startswith(f"fastreid.{name}.") for name in names), mark


@pytest.mark.parametrize("module", ["fastreid.engine", "fastreid.engine.defaults"])
def test_every_name_of_a_function_is_rebound(module):
    names = {"fastreid.engine": ["launch"], "fastreid.engine.defaults": ["build_optimizer", "build_model"]}
    for name in names[module]:
        assert MARK in vars(getattr(sys.modules[module], name))


def test_imports_leave_no_global_patch():
    import collections

    assert "Mapping" not in vars(collections) and "torch._six" not in sys.modules


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


def test_nothing_is_compiled(monkeypatch):
    from fastreid.evaluation import ReidEvaluator, rank_cylib

    monkeypatch.setattr(rank_cylib, "compile_helper", lambda: pytest.fail("compiles"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("runs a program"))
    ReidEvaluator(ice_config(), num_query=1)


def test_ranking_of_a_small_gallery():
    from fastreid.evaluation import rank

    # The first query finds its person second (the closest image is removed: same person, same camera), the other first.
    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    query, gallery = np.array([1, 2]), np.array([1, 3, 1, 2])
    cmc, precisions, _ = rank.evaluate_rank(distances, query, gallery, np.zeros(2), np.array([0, 1, 1, 1]), max_rank=50)
    assert cmc.tolist() == [0.5] + [1.0] * 49
    assert precisions == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(("named", "expected"), [("cpu", []), ("cuda", ["waited"])])
def test_an_evaluation_on_the_cpu_leaves_the_gpu_alone(monkeypatch, named, expected):
    from fastreid.evaluation import DatasetEvaluator, inference_on_dataset

    waits = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append("waited"))
    monkeypatch.setattr(compat.device, "_named", torch.device(named))

    class Evaluator(DatasetEvaluator):
        def process(self, inputs, outputs):
            self.outputs = outputs

        def evaluate(self):
            return {"sum": self.outputs.sum().item()}

    loader = torch.utils.data.DataLoader([1.0, 2.0], batch_size=2)
    assert inference_on_dataset(torch.nn.Identity(), loader, Evaluator()) == {"sum": 3.0}
    assert waits == expected


def test_ranks_are_a_name_of_the_package():
    from fastreid.evaluation import evaluate_rank
    from fastreid.evaluation.rank import evaluate_rank as original

    assert evaluate_rank is original


def test_rerank_never_asks_for_faiss_on_a_gpu(monkeypatch):
    """Not even where there are both CUDA and faiss-gpu, whose today's versions fastreid cannot call."""
    import faiss
    from fastreid.utils.compute_dist import build_dist

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: pytest.fail("asks for faiss-gpu"), raising=False)
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    distance = build_dist(features[:10], features[10:], metric="jaccard", k1=6, k2=3)
    assert distance.shape == (10, 30) and np.isfinite(distance).all()


def test_the_rank_list_takes_its_numbers_as_text():
    """As demo/visualize_result.py gives them."""
    from fastreid.utils.visualizer import Visualizer

    drawn = []
    visualizer = Visualizer(dataset=None)
    visualizer.all_ap = [0.3, 0.1, 0.2]
    visualizer.save_rank_result = lambda queries, output, max_rank, *_: drawn.append((queries.tolist(), max_rank))
    visualizer.vis_rank_list("folder", False, "2", "ascending", "ascending", "3")
    assert drawn == [([1, 2], 3)]


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


def test_random_patches_hold_no_images():
    """Upstream's are parts of images, which stay in memory whole, and change when another patch is laid over them."""
    from fastreid.data.transforms.transforms import RandomPatch

    patching = RandomPatch(min_sample_size=1, prob_happen=1.0)
    image = torch.rand(3, 64, 32)
    patching(image)
    (patch,) = patching.patchpool
    assert patch.untyped_storage().nbytes() == patch.numel() * 4 < image.numel() * 4
    assert patching.patchpool.maxlen == 1000
