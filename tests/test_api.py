"""A trained model in Python, the configs that travel with the package, and the one command for all programs."""

import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import pytest
import torch
from PIL import Image

import fastreid_ice
from fastreid_ice import model_zoo
from fastreid_ice.cli.main import COMMANDS
from fastreid_ice.cli.main import main as command
from fastreid_ice.cli.train import run
from fastreid_ice.config_files import load_config
from fastreid_ice.data.datasets import load_training_images
from fastreid_ice.data.inference_loaders import build_feature_loader
from fastreid_ice.engine import find_checkpoint
from fastreid_ice.engine.extraction import FeatureExtractor
from tests import tiny  # noqa: F401  (registers the dataset and the backbone)
from tests.conftest import ROOT, SMALL, small_options


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("api") / "run"
    config = str(ROOT / "configs" / "ICE" / "demo.yml")
    opts = small_options({**SMALL, "OUTPUT_DIR": str(folder)})
    run(Namespace(config_file=config, opts=opts, eval_only=False, resume=False))
    return folder


@pytest.fixture(scope="module")
def model(trained):
    return fastreid_ice.load(trained)


@pytest.fixture(scope="module")
def paths(tiny_dataset):
    return sorted((tiny_dataset / "query").glob("*.jpg"))[:5]


def test_paths_pictures_and_arrays_give_the_same(model, paths):
    embeddings = model.embed(paths)
    assert embeddings.shape == (5, 32) and embeddings.dtype == np.float32
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    pictures = [Image.open(path).convert("RGB") for path in paths]
    arrays = [np.asarray(picture) for picture in pictures]
    mixed = [str(paths[0]), pictures[1], arrays[2], paths[3], pictures[4]]
    for images in (pictures, arrays, mixed):
        assert np.array_equal(model.embed(images), embeddings)
    assert np.allclose(model.embed(paths, batch_size=2), embeddings, atol=1e-6)


def test_tensors(model, paths):
    height, width = model.input_size
    resized = [Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for path in paths]
    tensor = torch.stack([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in resized])
    assert np.allclose(model.embed(tensor), model.embed(paths), atol=1e-6)
    assert np.allclose(model.embed(tensor.float()), model.embed(tensor))
    assert model.embed(torch.zeros(2, 3, 40, 30)).shape == (2, 32)
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4 * height, 4 * width, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(large).copy()).permute(2, 0, 1)[None]
    assert np.allclose(model.embed(pixels), model.embed([large]), atol=2e-3)  # PIL rounds to bytes


def test_embeddings_are_those_of_the_clustering(model, trained):
    images = load_training_images(model.cfg)
    features = FeatureExtractor(len(images))(model._model, build_feature_loader(model.cfg, images))
    assert np.allclose(model.embed(images.paths), features.numpy(), atol=1e-6)


def test_which_checkpoint(trained, model, tmp_path):
    assert model.checkpoint == find_checkpoint(trained) == trained / "model_best.pth"
    assert fastreid_ice.load(trained / "model_final.pth").checkpoint.name == "model_final.pth"
    for name in ("model_0002.pth", "model_0010.pth", "model_other.pth"):
        (tmp_path / name).write_bytes(b"")
    assert find_checkpoint(tmp_path).name == "model_0010.pth"
    assert len(model.sha256) == 64 and model.sha256 != fastreid_ice.load(trained / "model_final.pth").sha256
    assert model.sha256 == fastreid_ice.load(trained).sha256
    online = fastreid_ice.load(trained, opts=["MODEL.ICE.EVAL_ENCODER", "online"])
    assert online.checkpoint == model.checkpoint and online.sha256 != model.sha256  # other features of the same file


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "at least one image"),
        ("photo.jpg", "a list of images"),
        (["nowhere.jpg"], "nowhere.jpg cannot be read"),
        ([np.zeros((4, 4), np.uint8)], "Image 0 is a uint8 array of shape"),
        ([3], "Image 0 is a int"),
        (torch.zeros(3, 8, 8), r"\(N, 3, H, W\), found \(3, 8, 8\)"),
    ],
)
def test_what_is_no_image(model, images, message):
    with pytest.raises(ValueError, match=message):
        model.embed(images)


def test_what_is_no_run(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match="There is no run or checkpoint"):
        fastreid_ice.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        fastreid_ice.load(tmp_path)
    (tmp_path / "model_final.pth").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="There is no config .*config.yaml"):
        fastreid_ice.load(tmp_path)
    with pytest.raises(ValueError, match="model_final.pth is not a checkpoint"):
        fastreid_ice.load(tmp_path, config_file=trained / "config.yaml")
    with pytest.raises(ValueError, match="does not fit the config: heads.bottleneck.0"):
        fastreid_ice.load(trained, opts=["MODEL.HEADS.EMBEDDING_DIM", 16])
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        fastreid_ice.lode  # noqa: B018


def test_configs_travel_with_the_package():
    assert "ICE/market.yml" in model_zoo.config_files()
    path = Path(model_zoo.get_config_file("ICE/market.yml"))
    assert path.read_text() == (ROOT / "configs" / "ICE" / "market.yml").read_text()
    assert load_config("ICE/market.yml").OUTPUT_DIR == "logs/market1501/ice_R50"
    with pytest.raises(FileNotFoundError, match="did you mean ICE/market.yml"):
        model_zoo.get_config_file("ICE/markt.yml")


def test_the_example_of_the_readme(trained, paths, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "logs" / "demo").mkdir(parents=True)
    (tmp_path / "logs" / "demo" / "ice").symlink_to(trained)
    for name, path in zip(("a.jpg", "b.jpg"), paths):
        (tmp_path / name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["similarity"].shape == (2, 2) and names["similarity"][0, 0] == pytest.approx(1, abs=1e-5)
    assert names["config"].endswith("market.yml")


def test_published_table_of_the_readme():
    from fastreid_ice.report.tables import benchmark_table

    assert benchmark_table(published=True).strip() in (ROOT / "README.md").read_text()


def test_importing_the_package_imports_nothing():
    code = "import sys, fastreid_ice; assert not {'torch', 'numpy', 'fastreid', 'fastreid_ice.api'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_one_command_for_all_programs(capsys, tmp_path):
    command(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    with pytest.raises(SystemExit) as end:
        command(["trian"])
    assert end.value.code == 2 and "there is no command trian (did you mean train?)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        command(["train", "--config-file", str(tmp_path / "no.yml")])
    assert end.value.code == 1 and "error: --config-file: there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        command([name, "--help"])
    assert end.value.code == 0 and "usage: " in capsys.readouterr().out
