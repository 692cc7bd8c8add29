"""Tiny models made on the spot, with dimensions that are multiples of 256 so that k-quants are real."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
os.environ.update(OMP_NUM_THREADS="1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.trained import Trained, trained
from tests.said import lines, said, say_at_the_end
from tests.tiny import make_adapter, make_llama


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama with a byte-level BPE tokenizer and a chat template, float16. Do not write into it."""
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A plain PEFT adapter with non-zero deltas for `llama_folder`. Do not write into it."""
    return make_adapter(tmp_path_factory.mktemp("adapters") / "adapter", llama_folder)


@pytest.fixture(scope="session")
def trained_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Trained]:
    """Gives, by seed, a tiny model that has learned its task. Trained once, in 20 s, and kept in pytest's cache.

    Artifacts are made of it anew (tests/evalsuite/chain.py, trained_chain), for they are stamped with verdicts.
    """
    kept = getattr(request.config, "cache", None)
    cache = kept.mkdir("trained") if kept else tmp_path_factory.getbasetemp()
    return functools.partial(trained, Path(cache))


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many MiB, empty; where mounting is not allowed the test is skipped."""
    folder = tmp_path / "disk"

    def made(size_mib: int) -> Path:
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
        mounted = subprocess.run(["mount", *options], capture_output=True)
        if mounted.returncode:
            folder.rmdir()
            pytest.skip(f"a small disk needs root: {mounted.stderr.decode().strip()}")
        return folder

    yield made
    if folder.is_dir():
        subprocess.run(["umount", str(folder)], check=True)


ENGINES = ("torch", "llama_cpp", "onnxruntime")  # none of them is loaded by what is marked fast
_ENDS_AT_S = time.monotonic() + float(os.environ.get("ASSAY_TESTS_SECONDS", "inf"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is neither `engine` nor `slow` is `fast`."""
    for item in items:
        if not any(item.iter_markers("engine")) and not any(item.iter_markers("slow")):
            item.add_marker(pytest.mark.fast)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where there is only so much time (ASSAY_TESTS_SECONDS), what is left at its end is skipped, and said to be."""
    if time.monotonic() > _ENDS_AT_S:
        pytest.skip("no time was left for it")


@pytest.fixture(autouse=True)
def _fast_is_fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked fast that loads an engine belongs to the others."""
    before = {name for name in ENGINES if name in sys.modules}
    yield
    if request.node.get_closest_marker("fast"):
        assert {name for name in ENGINES if name in sys.modules} == before, "mark it: pytest.mark.engine"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process beside others hands over what its tests measured."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["said"] = said()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What such a process handed over."""
    for key, line in getattr(node, "workeroutput", {}).get("said", {}).items():
        say_at_the_end(key, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured, not only that they passed."""
    for line in lines():
        terminalreporter.write_line(line)
