"""How many cores a process may use: what it is allotted, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.cpu import usable_cores


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
