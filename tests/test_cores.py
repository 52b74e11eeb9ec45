"""The cores of a machine, of a process and of a container."""

import os

import pytest

from fastreid_ice import cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 cores, of which this process may use 6, without a container."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    return tmp_path


def test_without_a_container(machine, monkeypatch):
    assert cores.usable_cores() == 6
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores.usable_cores() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.usable_cores() == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("max 100000\n", 6),
        ("200000 100000\n", 2),
        ("150000 100000", 2),
        ("5000 100000", 1),
        ("900000 100000", 6),
        ("", 6),
    ],
)
def test_second_cgroups(machine, text, found):
    (machine / "cpu.max").write_text(text)
    assert cores.usable_cores() == found


@pytest.mark.parametrize(("quota", "found"), [("-1\n", 6), ("250000\n", 3)])
def test_first_cgroups(machine, quota, found):
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.usable_cores() == found
