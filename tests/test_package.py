"""What holds for the package as a whole."""

import subprocess
import sys
import textwrap
import types

import pytest
import torch

from tests.conftest import ROOT

PURE = (
    "camera_normalization",
    "clustering",
    "errors",
    "files",
    "losses",
    "model_zoo",
    "report",
    "report.tables",
    "report.grid",
    "report.manifest",
    "search",
    "evaluation",
    "image_files",
    "data.folder_scan",
    "data.folder_report",
    "data.numbering",
    "parallel",
    "synthetic",
    "data.samplers",
    "data.randomness",
)


def python(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_pure_modules_do_not_import_fastreid():
    imports = "; ".join(f"import fastreid_ice.{name}" for name in PURE)
    result = python(f"""
        import sys
        sys.modules["fastreid"] = None  # importing it is an error
        {imports}
        assert "matplotlib.pyplot" not in sys.modules
    """)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["engine", "modeling", "config", "data.loaders"])
def test_without_fastreid_the_message_is_a_command(module):
    result = python(f"""
        import sys
        sys.modules["fastreid"] = None  # as if it were not there
        import fastreid_ice.{module}
    """)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-2].strip() == "pip install --no-deps fastreid==1.4.0"


def test_no_print_in_the_package():
    import ast

    for path in (ROOT / "fastreid_ice").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [c for c in calls if getattr(c.func, "id", "") == "print"], path


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ICE").glob("*.yml")), ids=lambda path: path.name)
def test_every_config_builds(path):
    """Every key exists, the model builds (without downloading), and the checks pass."""
    import fastreid_ice.compat  # noqa: F401

    from fastreid.config import get_cfg
    from fastreid.data.datasets import DATASET_REGISTRY
    from fastreid.modeling import build_model

    import fastreid_ice.modeling  # noqa: F401
    from fastreid_ice.config import add_ice_config
    from fastreid_ice.engine.checks import check_config

    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.PRETRAIN = "cpu", False
    check_config(cfg)
    for name in (*cfg.DATASETS.NAMES, *cfg.DATASETS.TESTS):
        DATASET_REGISTRY.get(name)
    model = build_model(cfg).eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST))
    assert features.shape == (1, cfg.MODEL.BACKBONE.FEAT_DIM)
    agnostic = not cfg.DATASETS.USE_CAMERAS
    without_cameras = path.stem.endswith("agnostic") or path.stem.startswith("own")
    assert agnostic == ("CrossCameraLoss" not in cfg.MODEL.LOSSES.NAME) == without_cameras


# Rooms by layer: a room imports rooms of lower layers only.
LAYERS = {"compat": 0, "modeling": 2, "data": 2, "engine": 3, "export": 4, "cli": 5}
PURE_LAYER = 1
# Imports along a layer or up, each with its reason.
EXCEPTIONS = {
    ("evaluation", "clustering"),  # re-ranking takes its Jaccard distances
    ("compat", "evaluation"),  # within the function that stands in for fastreid's ranking
}


def test_imports_go_down():
    import ast

    package = ROOT / "fastreid_ice"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    up = set()
    for path in package.glob("*/**/*.py"):
        user = path.relative_to(package).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for used in {name.split(".")[1] for name in names if name.startswith("fastreid_ice.")} & rooms - {user}:
                if LAYERS.get(user, PURE_LAYER) <= LAYERS.get(used, PURE_LAYER) and (user, used) not in EXCEPTIONS:
                    up.add((user, used, path.name))
    assert up == set()


def test_the_picture_of_the_rooms_names_what_is_there():
    """docs/images/make_architecture.py draws rooms and stations by name."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "make_architecture", ROOT / "docs" / "images" / "make_architecture.py"
    )
    sys.path.insert(0, str(ROOT / "docs" / "images"))
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    package = ROOT / "fastreid_ice"
    drawn = {name for layer in module.LAYERS for name, _, _ in layer}
    assert drawn == {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert ("engine", "data") in module.imports_between() and ("data", "engine") not in module.imports_between()


def test_no_public_name_hides_a_module():
    """``from room import name`` means one thing: no function of a room's __init__ is called as one of its modules."""
    import importlib

    package = ROOT / "fastreid_ice"
    for path in sorted(package.rglob("__init__.py")):
        room = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
        modules = {entry.stem for entry in path.parent.iterdir() if entry.suffix == ".py" or entry.is_dir()}
        hidden = [n for n in modules & set(vars(room)) if not isinstance(getattr(room, n), types.ModuleType)]
        assert hidden == [], room.__name__


@pytest.fixture
def setup_arguments(monkeypatch):
    """What setup.py gives to setuptools."""
    import runpy

    import setuptools

    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_no_extra_takes_a_faiss_that_cannot_be_imported(setup_arguments):
    """faiss-gpu 1.7.2 has wheels up to Python 3.10, and an installer takes it where nothing newer fits the torch."""
    from packaging.requirements import Requirement

    for python in ("3.9", "3.10", "3.13"):
        extra = [Requirement(line) for line in setup_arguments["extras_require"]["gpu"]]
        (faiss,) = [each for each in extra if each.marker is None or each.marker.evaluate({"python_version": python})]
        assert faiss.name != "faiss-gpu" or "1.7.2" not in faiss.specifier


def test_no_torch_is_taken_for_which_numpy_2_is_not_available(setup_arguments):
    from packaging.requirements import Requirement

    (torch,) = [line for line in map(Requirement, setup_arguments["install_requires"]) if line.name == "torch"]
    assert [version in torch.specifier for version in ("2.2.2", "2.3.0", "2.15.0")] == [False, True, True]


def test_a_config_of_ones_own_beside_the_folders(tmp_path, monkeypatch):
    """As the check of own images writes one: configs/my.yml."""
    from fastreid_ice import model_zoo

    (tmp_path / "ICE" / "grids").mkdir(parents=True)
    for name in ("my.yml", "ICE/demo.yml", "ICE/grids/losses.yml"):
        (tmp_path / name).touch()
    monkeypatch.setattr(model_zoo, "_FOLDERS", (tmp_path,))
    assert model_zoo.config_files() == ["ICE/demo.yml", "my.yml"] and model_zoo.grid_files() == ["ICE/grids/losses.yml"]
