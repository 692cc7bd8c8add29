"""Killed at random, or on a full disk: a whole merged model or none, one clear message, and the inputs untouched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from export.merge import merge_adapter
from tests.export.killing import ROOT, environment, kill_at_random_moments
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine

MOMENTS = 50
LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import assay
sys.argv = ["assay", "merge", {adapter!r}, "--out", {out!r}]
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
assay.main()
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose base takes several blocks per tensor."""
    folder = tmp_path_factory.mktemp("killed")
    base = make_llama(folder / "base", layers=3, intermediate_size=2048, max_shard_size="2MB")
    return make_adapter(folder / "adapter", base)


@pytest.fixture(autouse=True)
def inputs_stay(adapter: Path) -> Iterator[None]:
    """Whatever happens, adapter and base are what they were."""
    folders = (adapter, adapter.parent / "base")
    before = [open_artifact(folder).digest for folder in folders]
    yield
    assert [open_artifact(folder).digest for folder in folders] == before


def test_killed_at_random_moments(tmp_path: Path, adapter: Path) -> None:
    out = tmp_path / "out"
    kill_at_random_moments(
        adapter,
        out,
        MOMENTS,
        setup="from export.merge import merge_adapter",
        work="merge_adapter(model, out)",
    )
    expected = open_artifact(out / "warm", verify=True).digest
    whole = [number for number in range(MOMENTS) if (out / str(number)).exists()]
    for number in whole:
        assert open_artifact(out / str(number), verify=True).digest == expected
    killed = sorted(set(range(MOMENTS)) - set(whole))
    left = {path.name.split(".")[1] for path in out.glob(".*.partial-*")}
    print(f"{len(killed)} of {MOMENTS} killed before the end, {len(left)} of them while writing")
    assert len(killed) >= MOMENTS // 2
    assert left  # some were caught in the act
    number = int(min(left, key=int))
    assert merge_adapter(open_artifact(adapter), out / str(number)).digest == expected
    assert not list(out.glob(f".{number}.*"))


def test_a_write_that_fails_midway(tmp_path: Path, adapter: Path) -> None:
    script = LIMITED.format(root=str(ROOT), adapter=str(adapter), out=str(tmp_path / "out" / "merged"), size=1_000_000)
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "the artifact could not be written" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture
def small_disk(disk_of: Callable[[int], Path]) -> Path:
    """A tmpfs of 2 MiB; the merged weights need more."""
    return disk_of(2)


def test_a_disk_that_is_too_small_is_seen_beforehand(small_disk: Path, adapter: Path) -> None:
    with pytest.raises(AssayError, match="not enough room for the weights") as error:
        merge_adapter(open_artifact(adapter), small_disk / "merged")
    assert "MB free" in str(error.value)
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up(small_disk: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import shards

    monkeypatch.setattr(shards, "refuse_without_room", lambda folder, needed: None)  # as if another took the room
    with pytest.raises(AssayError, match="could not be written") as error:
        merge_adapter(open_artifact(adapter), small_disk / "merged")
    assert "No space left" in str(error.value)
    assert not list(small_disk.iterdir())
