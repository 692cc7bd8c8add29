"""ONNX folders served by a real process in which torch cannot be imported, through the same endpoints as a GGUF."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.prompt import Message
from contract.runtime import GenerateParams
from contract.verdict import Verdict
from runtimes import load_runtime
from tests.kit.verdicts import basis, write_verdicts
from tests.tiny import make_llama
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

DOCUMENT = "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free. </s> <|im_end|>"
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers', 'optimum', 'onnx', 'llama_cpp', 'safetensors'):
            raise ModuleNotFoundError(f'{name} is blocked', name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has onnxruntime, but neither torch nor llama.cpp."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": str(folder)}


def proven(out: Path, folder: Path, details: dict[str, Any]) -> Artifact:
    """An artifact of an Optimum export, with a verdict on it."""
    with new_artifact(out, "onnx", "tiny", details=details) as draft:
        shutil.copytree(folder, draft.path, dirs_exist_ok=True)
    judged = basis(generate={"prompt": None, **details.get("generate", {"max_new_tokens": 64})})
    write_verdicts(out / "verdict.json", [Verdict("onnx-fp32", draft.finished.digest, "pass", ())], on=judged)
    return open_artifact(out)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    root = tmp_path_factory.mktemp("t5")
    folder = export_folder(make_t5(root / "model"), root / "graphs", seq2seq=True)
    details = {
        "prompt": {"user": "summarize: {document}"},
        "generate": {"max_new_tokens": 12, "num_beams": 3, "min_new_tokens": 6},
    }
    return proven(root / "onnx", folder, details)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    root = tmp_path_factory.mktemp("llama")
    folder = export_folder(make_llama(root / "model", dtype="float32"), root / "graphs", seq2seq=False)
    return proven(root / "onnx", folder, {})


@contextmanager
def served(artifact: Artifact, environment: dict[str, str], *options: str) -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "assay", "serve", str(artifact.path), "--threads", "1", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert server.stderr is not None
    said = []
    url = None
    for line in server.stderr:
        said.append(line)
        if line.startswith("serving on "):
            url = line.split()[2]
            break
    try:
        assert url, "".join(said)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=60)
        assert (server.returncode, out) == (0, ""), err
        assert "Traceback" not in err


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
            return answer.status, text if body.get("stream") else json.loads(text)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_an_encoder_decoder_is_served_as_its_recipe_writes(t5: Artifact, bare: dict[str, str]) -> None:
    runtime = load_runtime(t5, threads=1)
    ids = runtime.encode([Message("user", f"summarize: {DOCUMENT}")])
    params = GenerateParams.recorded(t5.details)
    assert params.num_beams == 3
    [expected] = runtime.generate([ids], params)
    with served(t5, bare) as url:
        status, summary = post(url, "/summarize", {"document": DOCUMENT})
        assert status == 200
        assert (summary["summary"], summary["stop"]) == (expected.text.strip(), expected.stop)
        assert (summary["prompt_tokens"], summary["digest"], summary["proven"]) == (len(ids), t5.digest, True)
        turns = {"messages": [{"role": "user", "content": f"summarize: {DOCUMENT}"}], "max_tokens": 12}
        status, chat = post(url, "/v1/chat/completions", turns)
        assert (status, chat["choices"][0]["message"]["content"]) == (200, expected.text)
        status, sampled = post(url, "/v1/chat/completions", {**turns, "temperature": 1.0, "seed": 4})
        assert (status, sampled["usage"]["prompt_tokens"]) == (200, len(ids))
        long = " ".join(["room"] * 700)
        status, refused = post(url, "/summarize", {"document": long})
        assert (status, refused["error"]["code"]) == (400, "context_length_exceeded")
        assert "tokens of answer" in refused["error"]["message"] or "of answer" in refused["error"]["message"]
        nearly = runtime.context_length - 8  # a prompt that leaves no room takes none from the answer
        status, full = post(url, "/summarize", {"document": "a " * (nearly // 4), "max_new_tokens": 300})
        assert status == 200, full


def test_a_causal_folder_streams_what_it_answers(llama: Artifact, bare: dict[str, str]) -> None:
    with served(llama, bare, "--context", "300") as url:
        turns = {"messages": [{"role": "user", "content": DOCUMENT}], "max_tokens": 16}
        status, whole = post(url, "/v1/chat/completions", turns)
        assert status == 200
        status, text = post(url, "/v1/chat/completions", {**turns, "stream": True})
        events = [json.loads(event[6:]) for event in text.strip().split("\n\n") if not event.endswith("[DONE]")]
        streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert streamed == whole["choices"][0]["message"]["content"] != ""


def test_commands_run_without_torch(t5: Artifact, llama: Artifact, bare: dict[str, str]) -> None:
    def assay(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "assay", *arguments, "--threads", "1", "--json"],
            input=DOCUMENT, capture_output=True, text=True, timeout=120, env=bare,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    told = assay("summarize", str(t5.path), "-")
    assert (told["engine"], told["digest"]) == ("onnxruntime", t5.digest)
    assert told["summary"]
    assert assay("generate", str(llama.path), "--prompt", "Mara", "--max-new-tokens", "4")["completion_tokens"] <= 4


def test_an_unproven_folder_is_refused(t5: Artifact, bare: dict[str, str], tmp_path: Path) -> None:
    copy = shutil.copytree(t5.path, tmp_path / "copy")
    (copy / "verdict.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "assay", "serve", str(copy)], capture_output=True, text=True, timeout=60, env=bare
    )
    assert done.returncode == 1
    assert "not proven" in done.stderr
