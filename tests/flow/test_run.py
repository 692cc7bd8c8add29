"""`assay run` on a tiny random model: all the way, redoing only what must be, surviving a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny import write_jsonl

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["Mara", "Olin", "Kesto", "Tarvo", "Belu", "Sanno", "Dirke", "Palu"]


def rows(count: int, start: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"d{n}",
            "document": f"{NAMES[n % 8]}: Is room {100 + n} free?\n{NAMES[n % 7]}: No, take {200 + n}. I told {n}.",
            "summary": f"{NAMES[n % 8]} takes room {200 + n}.",
        }
        for n in range(start, start + count)
    ]


def recipe(folder: Path, base: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "name": "t",
        "model": {"base": str(base)},
        "data": {"train": "train.jsonl", "valid": "valid.jsonl", "test": "test.jsonl"},
        "train": {"max_steps": 6, "batch_size": 4, "evaluations": 2, "max_length": 256, "lora": {"rank": 4}},
        "merge": {"dtype": "float16"},
        "export": {"gguf": {"quants": ["f16", "q8_0"], "check": "structure"}},
        "generate": {"max_new_tokens": 8},
        "gate": {"require": ["merged", "q8_0"], "max_eos_rate_loss": 0.4},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def assay(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "assay", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def run(path: Path, out: Path) -> dict[str, Any]:
    done = assay("run", path, "--out", out, "--json")
    assert done.returncode in (0, 1), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == result["proven"]
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    write_jsonl(folder / "train.jsonl", rows(40, 0))
    write_jsonl(folder / "valid.jsonl", rows(8, 100))
    write_jsonl(folder / "test.jsonl", rows(24, 200))
    return folder


def test_all_the_way_and_only_what_must_be_again(folder: Path, llama_folder: Path) -> None:
    out = folder / "run"
    first = run(recipe(folder, llama_folder), out)
    assert first["done"] == ["adapter", "merged", "gguf/f16, gguf/q8_0", "eval"]
    assert set(first["verdicts"]) == {"merged", "f16", "q8_0"}
    for name in ("metrics.json", "metrics.csv", "verdict.json", "report.html", "predictions/q8_0.jsonl"):
        assert (out / "eval" / name).is_file(), name
    assert "| q8_0 |" in (out / "README.md").read_text()

    second = run(recipe(folder, llama_folder), out)
    assert second["done"] == []
    assert second["artifacts"] == first["artifacts"]

    looser = run(recipe(folder, llama_folder, gate={"max_eos_rate_loss": 0.5}), out)
    assert looser["done"] == ["eval"]

    longer = run(recipe(folder, llama_folder, generate={"max_new_tokens": 9}), out)
    assert longer["done"] == ["merged", "gguf/f16, gguf/q8_0", "eval"]
    assert longer["artifacts"]["adapter"] == first["artifacts"]["adapter"]
    merged = json.loads((out / "merged" / "manifest.json").read_text())
    assert merged["details"]["generate"] == {"max_new_tokens": 9}

    wider = run(recipe(folder, llama_folder, merge={"dtype": "float32"}), out)
    assert wider["done"] == ["merged", "gguf/f16, gguf/q8_0", "eval"]
    assert wider["artifacts"]["adapter"] == first["artifacts"]["adapter"]
    assert (out / "previous" / "merged-1" / "manifest.json").is_file()

    weights = next((out / "gguf" / "q8_0").glob("*.gguf"))
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    mended = run(recipe(folder, llama_folder, merge={"dtype": "float32"}), out)
    assert mended["done"] == ["gguf/q8_0"]
    assert mended["artifacts"]["q8_0"] == wider["artifacts"]["q8_0"]


def test_killed_at_any_moment_the_next_run_goes_on(folder: Path, llama_folder: Path) -> None:
    out = folder / "killed"
    path = recipe(folder, llama_folder, train={"max_steps": 12, "evaluations": 6})
    clean = run(path, folder / "clean")
    for stage in ("checkpoint", "merged", "gguf"):
        process = subprocess.Popen(
            [sys.executable, "-m", "assay", "run", str(path), "--out", str(out)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if (stage == "checkpoint" and any(out.glob(".adapter.training/*"))) or stage in line:
                time.sleep(0.3)
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
        for manifest in out.glob("**/manifest.json"):
            if not any(part.startswith(".") for part in manifest.relative_to(out).parts):
                assert assay("inspect", manifest.parent).returncode == 0
    result = run(path, out)
    digests = {label: artifact["digest"] for label, artifact in result["artifacts"].items()}
    assert digests == {label: artifact["digest"] for label, artifact in clean["artifacts"].items()}
    assert not list(out.glob("**/.*partial*"))


def test_a_folder_in_the_way_is_kept(folder: Path, llama_folder: Path) -> None:
    out = folder / "occupied"
    (out / "adapter").mkdir(parents=True)
    (out / "adapter" / "mine.txt").write_text("precious")
    done = assay("run", recipe(folder, llama_folder), "--out", out, "--until", "adapter")
    assert done.returncode == 0, done.stderr
    assert (out / "previous" / "adapter-1" / "mine.txt").read_text() == "precious"
