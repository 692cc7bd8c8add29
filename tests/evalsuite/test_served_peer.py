"""Our GGUF behind llama.cpp's own server, is what was proven: ASSAY_LLAMA_CPP=FOLDER pytest …"""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket

import pytest

from contract.artifact import open_artifact
from contract.example import read_examples
from contract.history import read_verdicts
from evalsuite.evaluate import evaluate
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.served.endpoint import connect
from export.to_gguf import export_gguf
from tests.kit.llama_cpp_peer import BIN

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
SERVER = BIN / "llama-server"
DOCUMENTS = 16


@contextmanager
def llama_server(gguf: Path) -> Iterator[str]:
    with closing(socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    options = ["--port", port, "-c", 2048, "-np", 1, "-t", 1, "-fa", "off", "--no-webui"]
    child = subprocess.Popen(
        [SERVER, "-m", gguf, *map(str, options)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            assert child.poll() is None, "llama-server went away"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(not SERVER.is_file(), reason="ASSAY_LLAMA_CPP names no folder with llama-server")
def test_llama_server_serves_what_was_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsuite.scorer.bertscore_available", lambda: False)
    [made] = export_gguf(open_artifact(ROOT / "assets" / "tiny-base"), tmp_path / "gguf", quants=["f16"], threads=1)
    documents = read_examples(ROOT / "assets" / "dialogues" / "test.jsonl", limit=DOCUMENTS)
    with llama_server(made.gguf_path) as url:
        results = evaluate(
            [open_artifact(made.gguf_path)], documents, tmp_path / "eval", threads=1, speed=False, endpoint=connect(url)
        )
    row = results.row("served")
    [comparison] = row.comparisons
    served = comparison.served
    assert served is not None
    assert comparison.prompts == DOCUMENTS + len(HARD_TEXTS)
    assert (row.engine, comparison.prompt_ids_differ, served.offset, served.truncated) == ("llamacpp", 0, 0, 0)
    assert (served.same_text.mean, served.same_stop.mean, served.completion_tokens_differ) == (1, 1, 0)
    [verdict] = [one for one in read_verdicts(tmp_path / "eval" / "verdict.json") if one.label == "served"]
    assert {reason.outcome for reason in verdict.reasons if reason.code.startswith("served_")} == {"pass"}
