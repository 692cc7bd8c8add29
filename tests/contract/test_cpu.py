"""How many cores a process may use: what it is allotted, not what the machine has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.cpu import read_flags, usable_cores
from contract.sysctl import sysctl


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def made(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "cgroup", folder / "mounts"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"cgroup": "0::/\n", "mounts/cpu.max": "max 100000\n"}, 16),
        ({"cgroup": "0::/\n", "mounts/cpu.max": "400000 100000\n"}, 4),  # a container sees itself as the root
        ({"cgroup": "0::/\n", "mounts/cpu.max": "250000 100000\n"}, 2),
        ({"cgroup": "0::/\n", "mounts/cpu.max": "50000 100000\n"}, 1),
        ({"cgroup": "0::/\n", "mounts/cpu.max": "9900000 100000\n"}, 16),
        ({"cgroup": "0::/a/b\n", "mounts/a/b/cpu.max": "max 1\n", "mounts/a/cpu.max": "300 100\n"}, 3),
        ({"cgroup": "0::/gone\n", "mounts/cpu.max": "500 100\n"}, 5),
        (
            {
                "cgroup": "3:cpuset:/\n2:cpu,cpuacct:/d/x\n1:name=systemd:/\n0::/\n",
                "mounts/cpu,cpuacct/d/x/cpu.cfs_quota_us": "600000\n",
                "mounts/cpu,cpuacct/d/x/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {
                "cgroup": "1:cpu:/\n",
                "mounts/cpu/cpu.cfs_quota_us": "-1\n",
                "mounts/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        ({"cgroup": "nonsense\n0::/\n", "mounts/cpu.max": "nonsense\n"}, 16),
        ({"cgroup": "0::/../..\n", "mounts/cpu.max": "100 0\n"}, 16),
    ],
)
def test_the_smallest_allowance_counts(tmp_path: Path, sixteen: None, files: dict[str, str], cores: int) -> None:
    assert usable_cores(*made(tmp_path, files)) == cores


def test_no_more_than_the_process_may_be_scheduled_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores(*made(tmp_path, {"cgroup": "0::/\n", "mounts/cpu.max": "400 100\n"})) == 2


@pytest.mark.parametrize(("there", "cores"), [(12, 12), (None, 1)])
def test_where_the_system_knows_no_such_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int | None, cores: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: there)
    assert usable_cores(tmp_path / "none", tmp_path / "none") == cores


APPLE = {
    "machdep.cpu.brand_string": "Apple M2",
    "hw.optional.AdvSIMD": "1",
    "hw.optional.arm.FEAT_DotProd": "1",
    "hw.optional.arm.FEAT_I8MM": "1",
    "hw.optional.arm.FEAT_BF16": "0",
}


@pytest.fixture
def a_mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A machine that says what it is as macOS on Apple silicon does."""
    told = dict(APPLE)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: SimpleNamespace(stdout=told.get(command[-1], "") + "\n", returncode=0)
    )
    sysctl.cache_clear()
    yield told
    sysctl.cache_clear()


def test_a_mac_is_told_in_linuxs_words(tmp_path: Path, a_mac: dict[str, str]) -> None:
    assert read_flags(tmp_path / "none") == ("Apple M2", {"asimd", "asimddp", "i8mm"})


def test_where_no_system_names_a_feature_none_is_known(tmp_path: Path, a_mac: dict[str, str]) -> None:
    a_mac.clear()
    model, features = read_flags(tmp_path / "none")
    assert model
    assert features == set()


def test_an_arm_machine_under_linux(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd40\n")
    model, features = read_flags(info)
    assert model == platform.machine()
    assert features == {"fp", "asimd", "asimddp", "i8mm", "bf16"}
