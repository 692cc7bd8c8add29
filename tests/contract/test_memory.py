"""How much memory there is and was used, also where the system is not Linux."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.memory import installed_bytes, peak_rss_bytes
from contract.sysctl import sysctl


def unknown_name(name: str) -> int:
    raise ValueError("unrecognized configuration name")


def says(values: dict[str, str]) -> object:
    """A `sysctl` that knows these names, in subprocess.run's place."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        assert command[:2] == ["/usr/sbin/sysctl", "-n"]
        return SimpleNamespace(stdout=values.get(command[2], "") + "\n", returncode=0)

    return run


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    sysctl.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "sysconf", unknown_name)


@pytest.fixture(autouse=True)
def forget() -> object:
    yield
    sysctl.cache_clear()


def test_the_memory_of_this_machine() -> None:
    found = installed_bytes()
    assert found is not None
    assert 1 << 28 < found < 1 << 50


def test_a_mac_says_it_by_name(on_a_mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", says({"hw.memsize": "17179869184"}))
    assert installed_bytes() == 16 << 30


@pytest.mark.parametrize("fault", [OSError("no such program"), subprocess.TimeoutExpired("sysctl", 10)])
def test_where_nothing_tells_it_is_unknown(on_a_mac: None, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(subprocess, "run", fails)
    assert installed_bytes() is None


def test_a_count_of_pages_that_is_not_known_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else -1)
    assert installed_bytes() is None


def test_elsewhere_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert sysctl("hw.memsize") == ""


def test_the_peak_is_what_the_kernel_says(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 900 kB\nVmHWM:\t 123 kB\nVmRSS:\t 100 kB\n")
    assert peak_rss_bytes(status) == 123 * 1024


@pytest.mark.parametrize(("system", "unit_bytes"), [("darwin", 1), ("linux", 1024), ("freebsd14", 1024)])
def test_without_proc_the_peak_is_in_the_systems_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, unit_bytes: int
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=1_000_000))
    assert peak_rss_bytes(tmp_path / "none") == 1_000_000 * unit_bytes


def test_both_ways_agree_here() -> None:
    told = peak_rss_bytes()
    assert told / 2 < peak_rss_bytes(Path("/nowhere/status")) < told * 20  # the second may remember our parent's
