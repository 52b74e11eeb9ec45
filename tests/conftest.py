"""Shared by all tests: where the data lie, a small config, a small rendered dataset."""

import logging
import os
import tempfile
from pathlib import Path

from fastreid_ice.cores import usable_cores  # imports neither torch nor numba

if os.environ.get("PYTEST_XDIST_WORKER"):  # read when torch and numba are imported, here and in processes of the tests
    threads = max(1, usable_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent


def pytest_configure(config):
    """Let the tests render into a folder of their own, gone after them; processes they start inherit it.

    fastreid reads the variable when fastreid.data is imported, so it is set before any test is collected.
    """
    folder = tempfile.TemporaryDirectory(prefix="fastreid_ice_tests_")
    config.add_cleanup(folder.cleanup)
    os.environ["FASTREID_DATASETS"] = folder.name
    if not os.environ.get("FASTREID_ICE_TEST_CUDA"):  # the tests compute on the CPU, also where there is a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="module")
def no_logger_outlives_its_file():
    """A run's loggers write to the screen of the test that ran it, which is closed when a later test logs."""
    yield
    for name in ("fastreid", "fastreid_ice"):
        logging.getLogger(name).handlers.clear()


def load_numbers(*names: str) -> dict:
    """Arrays of tests/data/<name>.npz as tensors, single numbers as floats."""
    numbers = {}
    for name in names:
        with np.load(DATA / f"{name}.npz") as file:
            numbers.update({k: torch.from_numpy(file[k]) if file[k].ndim else file[k].item() for k in file})
    return numbers


# Keys and values that shrink configs/ICE/demo.yml to a second, for what goes through a command line.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_two_convolutions",
    "MODEL.BACKBONE.FEAT_DIM": 32,
    "DATASETS.NAMES": ("TinyReID",),
    "DATASETS.TESTS": ("TinyReID",),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.ITERS_PER_EPOCH": 2,
    "MODEL.ICE.CHANNELS_LAST": False,
    "CLUSTERING.CAMERA_NORMALIZATION": False,
    "CLUSTERING.K1": 6,
    "CLUSTERING.EPS": 0.4,
    "CLUSTERING.MIN_SAMPLES": 2,
    "REPORT.ENABLED": False,
}


def small_options(options: dict) -> list:
    """{KEY: value} as the command line has them."""
    return [item for pair in options.items() for item in pair]


def ice_config(**overrides):
    """configs/ICE/demo.yml on the CPU, shrunk to seconds, with overrides such as ``SOLVER__MAX_EPOCH=1``."""
    from fastreid.config import get_cfg

    from fastreid_ice.config import add_ice_config
    from tests import tiny  # noqa: F401  (registers the dataset and the backbone)

    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "ICE" / "demo.yml"))
    small = {
        "MODEL__DEVICE": "cpu",
        "MODEL__BACKBONE__NAME": "build_two_convolutions",
        "MODEL__BACKBONE__FEAT_DIM": 32,
        "DATASETS__NAMES": ("TinyReID",),
        "DATASETS__TESTS": ("TinyReID",),
        "DATALOADER__NUM_WORKERS": 0,
        "SOLVER__IMS_PER_BATCH": 8,
        "DATALOADER__NUM_INSTANCE": 4,
        "SOLVER__MAX_EPOCH": 2,
        "SOLVER__ITERS_PER_EPOCH": 3,
        "SOLVER__BASE_LR": 3.5e-4,
        "INPUT__BLUR__ENABLED": True,
        "INPUT__REA__ENABLED": True,
        "MODEL__ICE__CHANNELS_LAST": False,
        "CLUSTERING__CAMERA_NORMALIZATION": False,
        "CLUSTERING__K1": 6,
        "CLUSTERING__EPS": 0.4,
        "CLUSTERING__MIN_SAMPLES": 2,
        "TEST__EVAL_PERIOD": 1,
    }
    small.update(overrides)
    for key, value in small.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.fixture(autouse=True)
def _messages_reach_caplog(monkeypatch):
    """fastreid's set-up of its loggers, in whatever test came before, keeps their messages from pytest's."""
    for name in ("fastreid", "fastreid_ice"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.fixture(scope="session")
def tiny_dataset():
    """Register the dataset ``TinyReID`` (8 + 4 identities, 3 cameras) and render it; returns its folder."""
    from tests.tiny import TinyReID

    TinyReID(root=os.environ["FASTREID_DATASETS"])
    return Path(os.environ["FASTREID_DATASETS"]) / TinyReID.dataset_dir
