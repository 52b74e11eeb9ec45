"""Memory is told in the units of the system, or not at all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastreid_ice.clustering import Costs, costs

CPU = torch.device("cpu")


@pytest.mark.parametrize("platform, mebibytes", [("linux", 3 * 1024), ("darwin", 3)])
def test_units_of_the_system(monkeypatch, platform, mebibytes):
    usage = SimpleNamespace(ru_maxrss=3 * 2**20)
    monkeypatch.setattr(costs.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(costs.sys, "platform", platform)
    assert costs.process_peak_mb(CPU) == mebibytes


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(costs.sys, "platform", "win32")
    monkeypatch.delattr(costs, "resource")
    record = Costs(CPU)
    with record.stage("search"):
        pass
    assert list(record.seconds) == ["search"] and record.process_peak_mb == {}
