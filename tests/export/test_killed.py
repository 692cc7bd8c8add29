"""SIGKILL at any moment leaves either a whole artifact or nothing, and the next run succeeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contract.artifact import open_artifact
from export.merge import merge_adapter
from export.to_gguf import export_gguf
from tests.export.killing import ROOT, environment
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine

# A child imports what is slow, then forks one process per moment and kills it as soon as a file of that name is there.
CHILD = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import torch, transformers, gguf, llama_cpp
from transformers import AutoTokenizer, AutoConfig, AutoModelForCausalLM, GenerationConfig
from contract.artifact import open_artifact
from export import adapted, check_gguf, clean, gguf_file, merge, reload, source, to_gguf
torch.set_num_threads(1)
for number, moment in enumerate({moments!r}):
    out = Path({out!r}) / str(number)
    pid = os.fork()
    if pid == 0:
        model = open_artifact({model!r})
        {call}
        os._exit(0)
    while not (seen := list(Path({out!r}).glob(moment.format(number)))) and os.waitpid(pid, os.WNOHANG)[0] == 0:
        time.sleep(0.0005)
    if seen:
        print(moment, flush=True)
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it was done already
"""
MERGE_MOMENTS = [
    ".{}.partial-*",
    ".{}.partial-*/config.json",
    ".{}.partial-*/model*.safetensors",
    ".{}.partial-*/manifest.json",
]
EXPORT_MOMENTS = [
    "{}/.q4_k_m.partial-*",
    "{}/.q4_k_m.partial-*/.scratch/vocabulary.gguf",
    "{}/.q4_k_m.partial-*/*.gguf",
    "{}/.q4_k_m.partial-*/manifest.json",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base large enough to be caught writing, and its adapter."""
    folder = tmp_path_factory.mktemp("killed")
    base = make_llama(folder / "base", layers=3, intermediate_size=512, max_shard_size="2MB")
    return base, make_adapter(folder / "adapter", base)


def kill_at_moments(call: str, model: Path, out: Path, moments: list[str]) -> None:
    out.mkdir()
    script = CHILD.format(root=str(ROOT), moments=moments, out=str(out), model=str(model), call=call)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), check=True, stdout=subprocess.PIPE, text=True, timeout=500
    )
    assert set(moments[:-1]) <= set(done.stdout.splitlines())  # the last may be too short to be seen


def test_merge(tmp_path: Path, models: tuple[Path, Path]) -> None:
    adapter = models[1]
    expected = merge_adapter(open_artifact(adapter), tmp_path / "undisturbed").digest
    kill_at_moments("merge.merge_adapter(model, out)", adapter, tmp_path / "out", MERGE_MOMENTS)
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert any(".partial-" in name for name in left)  # it was caught in the act
    for number in range(len(MERGE_MOMENTS)):
        out = tmp_path / "out" / str(number)
        merged = open_artifact(out, verify=True) if out.exists() else merge_adapter(open_artifact(adapter), out)
        assert merged.digest == expected
        assert not list(out.parent.glob(f".{number}.*"))  # what was left behind is swept away


def test_export(tmp_path: Path, models: tuple[Path, Path]) -> None:
    base = models[0]
    expected = export_gguf(open_artifact(base), tmp_path / "undisturbed", quants=["q4_k_m"])[0].digest
    kill_at_moments('to_gguf.export_gguf(model, out, quants=["q4_k_m"])', base, tmp_path / "out", EXPORT_MOMENTS)
    assert list((tmp_path / "out").glob("*/.q4_k_m.partial-*"))
    for number in range(len(EXPORT_MOMENTS)):
        out = tmp_path / "out" / str(number)
        path = out / "q4_k_m"
        made = (
            open_artifact(path, verify=True)
            if path.exists()
            else export_gguf(open_artifact(base), out, quants=["q4_k_m"])[0]
        )
        assert made.digest == expected
        assert [path.name for path in out.iterdir()] == ["q4_k_m"]
