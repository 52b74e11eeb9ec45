"""The files that docs/extending.md shows, run as they stand there."""

import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest

from fastreid_ice.cli.train import run
from tests.conftest import ROOT, SMALL, small_options

pytestmark = pytest.mark.usefixtures("tiny_dataset")

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (my_\w+\.(?:py|yml))\n(.*?)```", PAGE, flags=re.DOTALL))
# What a test changes for speed must not take away what the page's config sets.
FREE = {
    "my_loss": (),
    "my_clustering": (),
    "my_backbone": ("MODEL.BACKBONE.NAME", "MODEL.BACKBONE.FEAT_DIM"),
    "my_dataset": ("DATASETS.NAMES", "DATASETS.TESTS"),
    "my_memory": (),
}


@pytest.fixture(autouse=True)
def nothing_stays():
    """Take away afterwards what the examples registered and imported: no other test shall meet it."""
    from fastreid.data.datasets import DATASET_REGISTRY
    from fastreid.modeling.backbones import BACKBONE_REGISTRY

    from fastreid_ice.clustering import METHODS
    from fastreid_ice.modeling import LOSS_REGISTRY, MEMORY_REGISTRY

    registries = (DATASET_REGISTRY, BACKBONE_REGISTRY, LOSS_REGISTRY, MEMORY_REGISTRY)
    tables = [METHODS, *(registry._obj_map for registry in registries)]
    before, path = [dict(table) for table in tables], list(sys.path)
    yield
    for table, content in zip(tables, before):
        table.clear()
        table.update(content)
    sys.path[:] = path
    for name in FREE:
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path, tiny_dataset, monkeypatch):
    """A folder with the page's files beside the configs they build on, and crops of nobody knows whom."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    for name in ("demo.yml", "Base-ICE.yml"):
        shutil.copy(ROOT / "configs" / "ICE" / name, tmp_path / name)
    for path in sorted((tiny_dataset / "bounding_box_train").glob("*.jpg")):
        camera = re.findall(r"_c(\d+)_", path.name)[0]
        target = tmp_path / "datasets" / "my_crops" / f"camera_{camera}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def train(folder, example, **more):
    """Train one short epoch with the page's config; returns the row of results.json."""
    options = {key: value for key, value in SMALL.items() if key not in FREE[example]}
    options.update({key.replace("__", "."): value for key, value in more.items()})
    options["OUTPUT_DIR"] = str(folder / "run")
    config = str(folder / f"{example}.yml")
    run(Namespace(config_file=config, opts=small_options(options), eval_only=False, resume=False))
    return json.loads((folder / "run" / "results.json").read_text())[-1]


def test_every_example_is_short():
    assert sorted(FILES) == sorted(f"{name}.{kind}" for name in FREE for kind in ("py", "yml"))
    assert all(len(text.splitlines()) <= 25 for text in FILES.values())


def test_a_loss(folder):
    row = train(folder, "my_loss")
    assert row["loss_centroid_pull"] > 0 and "loss_hard_instance" not in row


def test_a_loss_that_needs_cameras(folder):
    code = (folder / "my_loss.py").read_text()
    code = re.sub(r"(class \w+.*:\n)", r"\1    needs_cameras = True\n", code, count=1)
    (folder / "my_loss.py").write_text(code.replace("CentroidPull", "NearProxies").replace("centroid_pull", "near"))
    options = {"DATASETS__USE_CAMERAS": False, "MODEL__LOSSES__NAME": ("AgnosticLoss", "NearProxiesLoss")}
    with pytest.raises(ValueError, match="MODEL.LOSSES.NAME has NearProxiesLoss, which needs camera ids"):
        train(folder, "my_loss", **options)


def test_a_loss_and_a_memory_that_know_of_no_source(folder):
    """Both get the source's images too, under labels of the same memory."""
    source = {"DATASETS__SOURCE": ("TinySource",), "MODEL__ICE__IMPORTS": ("my_loss", "my_memory")}
    row = train(folder, "my_loss", **source, MODEL__ICE__MEMORY="MovingCentroids")
    assert row["loss_centroid_pull"] > 0 and row["loss_centroid_pull_source"] > 0
    assert row["loss_centroid_pull"] != row["loss_centroid_pull_source"]


def test_a_clustering(folder):
    row = train(folder, "my_clustering")
    assert row["clusters"] >= 2 and row["outliers"] == 0 and row["seconds_linkage"] > 0


def test_a_backbone(folder):
    train(folder, "my_backbone")
    import torch

    state = torch.load(folder / "run" / "model_final.pth", weights_only=True)["model"]
    assert state["heads.bottleneck.0.weight"].shape == (64,) and "backbone.2.0.weight" in state


def test_a_dataset_without_identities(folder, monkeypatch):
    monkeypatch.setattr("fastreid.data.build._root", str(folder / "datasets"))
    row = train(folder, "my_dataset")
    assert row["clusters"] >= 2 and not {"nmi", "ari", "mAP"} & set(row)
    names = {path.name for path in (folder / "run").glob("*.pth")}
    assert "model_final.pth" in names and "model_best.pth" not in names
    log = (folder / "run" / "log.txt").read_text()
    assert "no evaluation and no best checkpoint" in log
    assert (folder / "run" / "clusters.csv").read_text().startswith("path,label,camera\n")


def test_a_memory(folder, monkeypatch):
    from fastreid_ice.modeling import MemoryBank

    built = []
    rebuild = MemoryBank.rebuild
    monkeypatch.setattr(
        MemoryBank, "rebuild", lambda bank, *args: (rebuild(bank, *args), built.append((bank, bank.centroids.clone())))
    )
    train(folder, "my_memory")
    (bank, start) = built[-1]
    assert type(bank).__name__ == "MovingCentroids" and not bank.centroids.equal(start)


def test_a_module_on_the_command_line(folder):
    """Found in the working directory, by a process of its own."""
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", "demo.yml"]
    wrong = ["MODEL.ICE.IMPORTS", "('my_loss',)", "MODEL.LOSSES.NAME", "('NoLoss',)", "MODEL.DEVICE", "cpu"]
    result = subprocess.run([*command, *wrong], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: MODEL.LOSSES.NAME is 'NoLoss'")
    assert "CentroidPullLoss" in result.stderr
