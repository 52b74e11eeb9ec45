"""What the benchmarks compare computes the same, and the script for the day with a GPU runs."""

import json
import os
import subprocess
import sys

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.data.datasets.market1501 import Market1501

from benchmarks import acceptance, rendered_market
from benchmarks.acceptance import checks
from benchmarks.acceptance_place import Place
from benchmarks.epoch import stages_of, table
from benchmarks.plain_step import PlainStep
from benchmarks.step import our_step, random_batch
from tests.conftest import ROOT, ice_config
from tests.test_step import BACKBONE, build


def test_the_plain_step_is_ours():
    """Three steps in one chunk: the sum of the losses, and the weights of both encoders."""
    size = {"INPUT__SIZE_TRAIN": [32, 16], "MODEL__ICE__BN_CHUNKS": 1, **BACKBONE}
    cfg = ice_config(**size)
    plain, model = PlainStep(cfg, build(**size), 1), build(**size)
    batch = random_batch(cfg)
    run = our_step(cfg, model)
    for _ in range(3):
        assert sum(plain(batch)) == pytest.approx(run(batch), rel=1e-5)
    for ours, others in ((model.backbone, plain.online[0]), (model.momentum_encoder, plain.momentum)):
        for first, second in zip(ours.parameters(), others.parameters()):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


LOG = """\
[11/25 05:56:00] fastreid INFO: Rank of current process: 0. World size: 1
[11/25 05:56:10] fastreid.evaluation.evaluator INFO: Start inference on 9 images
[11/25 05:57:10] fastreid.evaluation.evaluator INFO: Total inference time: 0:01:00.000000 (1.0 s / batch per device)
[11/25 05:57:12] fastreid.evaluation.testing INFO: Evaluation results in csv format:
[11/25 05:57:52] fastreid_ice.engine.hooks.clustering INFO: Epoch 1: 4 clusters, 1 outliers of 9 images, in 40.0 s \
(features 10.0, search 20.00, reciprocal 10.00, jaccard 0.00, dbscan 0.00)
[11/25 05:59:02] fastreid_ice.engine.hooks.clustering INFO: Epoch 2: 4 clusters, 1 outliers of 9 images, in 12.0 s \
(features 11.0, search 1.00, reciprocal 0.00, jaccard 0.00, dbscan 0.00); NMI 0.8, ARI 0.2
[11/25 06:00:04] fastreid.evaluation.evaluator INFO: Start inference on 9 images
[11/25 06:01:04] fastreid.evaluation.evaluator INFO: Total inference time: 0:00:59.500000 (1.0 s / batch per device)
[11/25 06:01:07] fastreid.evaluation.testing INFO: Evaluation results in csv format:
"""


def test_rendered_people_are_a_market1501(tmp_path):
    """fastreid's own dataset reads them: identities of the two sides apart, distractors among the gallery."""
    count = rendered_market.render(tmp_path, parts=2, identities=2, processes=1)
    dataset = Market1501(str(tmp_path))
    assert count == {"bounding_box_train": len(dataset.train), "query": len(dataset.query),
                     "bounding_box_test": len(dataset.gallery)}  # fmt: skip
    assert {item[1] for item in dataset.train} == {f"market1501_{identity}" for identity in (1, 2, 3, 4)}
    assert {item[1] for item in dataset.query} == {751, 752, 753, 754}
    assert {item[1] for item in dataset.gallery} == {0, 751, 752, 753, 754}
    with pytest.raises(FileExistsError):
        rendered_market.render(tmp_path, parts=1, identities=2)
    with pytest.raises(ValueError, match="16 parts of 47 identities"):
        rendered_market.render(tmp_path / "other", identities=47)


def test_stages_of_an_epoch_by_hand():
    stages = stages_of(LOG)
    assert stages == {
        "inference": [60.0, 59.5],
        "ranking": [2.0, 3.0],
        "start": [112 - 62 - 10.0],  # what compiles in the first clustering is part of it
        "features": [10.0, 11.0],
        "clustering": [1.0],
        "steps": [58.0, 62.0],
    }
    faster = {stage: [value / 2 for value in values] for stage, values in stages.items()}
    assert "| steps | 60.0 | 45 % | 30.0 | 45 % | 2.0 |" in table(faster, stages)


def test_the_acceptance_course_is_whole_on_the_cpu(tmp_path):
    """Every check runs and passes; what is held to a limit on a GPU only is noted."""
    command = [sys.executable, ROOT / "benchmarks/acceptance.py", "--device", "cpu", "--output", tmp_path]
    environment = {name: value for name, value in os.environ.items() if name != "FASTREID_DATASETS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads((tmp_path / "acceptance.json").read_text())
    assert [record["check"] for record in records] == list(checks())
    assert all(record["state"] == "passed" and record["numbers"] for record in records)


class TestAcceptance:
    """What a check finds, and what becomes of one that fails."""

    def course(self, monkeypatch, tmp_path, *made, seconds=60):
        monkeypatch.setattr(acceptance, "checks", lambda: {check.__name__: check for check in made})
        records = acceptance.run(Place.of("cpu", tmp_path), [check.__name__ for check in made], seconds)
        assert json.loads((tmp_path / "acceptance.json").read_text()) == records
        return records

    def test_failures_do_not_stop_the_course(self, monkeypatch, tmp_path):
        def good(place, found):
            found.at_most("error", 1e-7, 1e-6)

        def far(place, found):
            found.at_most("error", float("nan"), 1e-6)
            found.at_most("seconds", 7.0, 5)
            found.holds("equal labels", False)

        def broken(place, found):
            raise KeyError("what")

        records = self.course(monkeypatch, tmp_path, far, broken, good)
        assert [record["state"] for record in records] == ["failed", "broken", "passed"]
        assert records[0]["failures"][1:] == ["seconds is 7, at most 5 is needed", "equal labels: no"]
        assert records[0]["failures"][0].startswith("error is nan") and "KeyError" in records[1]["failures"][0]
        assert records[2]["numbers"] == {"error": 1e-7}

    def test_time_is_up(self, monkeypatch, tmp_path):
        def never(place, found):
            raise AssertionError

        (record,) = self.course(monkeypatch, tmp_path, never, seconds=0)
        assert record["state"].startswith("skipped")
