"""What holds for the package as a whole."""

import subprocess
import sys
import textwrap

import pytest
import torch

from tests.conftest import ROOT

PURE = (
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
    assert agnostic == ("CrossCameraLoss" not in cfg.MODEL.LOSSES.NAME) == path.stem.endswith("agnostic")
