"""The commands on real models: a GGUF exported and quantized on the spot, served by a real process over real HTTP."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, open_artifact
from contract.verdict import Verdict
from serve import once
from tests.kit.verdicts import write_verdicts

pytestmark = pytest.mark.engine

ASSAY = [sys.executable, "-m", "assay"]
DOCUMENT = "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free. <|im_end|>"


@pytest.fixture(scope="module")
def q4(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Artifact:
    from export.to_gguf import export_gguf

    out = tmp_path_factory.mktemp("gguf")
    (artifact,) = export_gguf(open_artifact(llama_folder), out, quants=["q4_k_m"], check="structure", name="tiny")
    write_verdicts(artifact.folder / "verdict.json", [Verdict("q4_k_m", artifact.digest, "pass", ())])
    return artifact


def assay(*arguments: str | Path | int, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ASSAY, *map(str, arguments), "--threads", "1"], input=text, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def url(q4: Artifact) -> Iterator[str]:
    """A server in a process of its own that is stopped by SIGTERM and must leave cleanly."""
    server = subprocess.Popen(
        [*ASSAY, "serve", str(q4.path), "--threads", "1", "--port", "0", "--context", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    line = next((line for line in server.stderr if line.startswith("serving on ")), "")
    try:
        assert line, "the server did not come up"
        yield line.split()[2]
    finally:
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=60)
        assert (server.returncode, out) == (0, ""), err
        assert "Traceback" not in err


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def chat(url: str, **fields: Any) -> Any:
    status, text = post(
        url, "/v1/chat/completions", {"messages": [{"role": "user", "content": DOCUMENT}], "max_tokens": 24, **fields}
    )
    assert status == 200, text
    return text if fields.get("stream") else json.loads(text)


def streamed(text: str) -> str:
    events = text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    return "".join(json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events[:-1])


def test_the_served_summary_is_the_one_of_the_command_line(url: str, q4: Artifact) -> None:
    status, text = post(url, "/summarize", {"document": DOCUMENT, "max_new_tokens": 20})
    assert status == 200
    served = json.loads(text)
    assert (served["digest"], served["proven"]) == (q4.digest, False)  # 20 tokens are not the length that was judged
    told = assay("summarize", q4.path, "-", "--max-new-tokens", "20", "--json", text=DOCUMENT)
    assert told.returncode == 0, told.stderr
    body = json.loads(told.stdout)
    assert body["summary"] == served["summary"]
    assert body["prompt_tokens"] == served["prompt_tokens"]
    assert body["engine"] == "llama.cpp"


def test_streaming_equals_not_streaming_and_stops_at_stop_strings(url: str) -> None:
    whole = chat(url)["choices"][0]["message"]["content"]
    assert len(whole) > 4
    assert streamed(chat(url, stream=True)) == whole
    stop = whole[len(whole) // 2 :][:3]
    cut = chat(url, stop=stop)["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"
    assert streamed(chat(url, stop=stop, stream=True)) == cut["message"]["content"]


def test_a_seed_makes_sampling_repeatable(url: str) -> None:
    first, again = (chat(url, temperature=1.5, seed=3)["choices"][0]["message"]["content"] for _ in range(2))
    assert first == again
    assert {chat(url, temperature=1.5, seed=s)["choices"][0]["message"]["content"] for s in (4, 5)} != {first}


def test_a_document_that_does_not_fit_is_a_400_with_figures(url: str) -> None:
    status, text = post(url, "/summarize", {"document": DOCUMENT * 20})
    error = json.loads(text)["error"]
    assert (status, error["code"], error["context_length"]) == (400, "context_length_exceeded", 300)
    assert error["prompt_tokens"] > 300


def test_text_never_becomes_control_tokens(url: str) -> None:
    def tokens(content: str) -> int:
        status, text = post(
            url, "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        )
        assert status == 200, text
        return int(json.loads(text)["usage"]["prompt_tokens"])

    assert tokens("x<|im_end|>") - tokens("x") > 1


def test_hard_text_is_answered(url: str) -> None:
    for document in ("\x00", "\U0001f9d1\u200d\U0001f680 ​ ﷽", "\n\n\n.", "{{ 7 * 7 }} {document}"):
        status, text = post(url, "/summarize", {"document": document, "max_new_tokens": 3})
        assert status == 200, text


def test_the_serving_process_imports_no_torch(q4: Artifact) -> None:
    code = (
        "import sys, signal, threading, os, urllib.request\n"
        "from pathlib import Path\n"
        "from contract.artifact import open_artifact\n"
        "from serve.cli import serve\n"
        "import serve.server as server\n"
        "real = server.url_of\n"
        "def ask(bound):\n"
        "    url = real(bound)\n"
        "    def go():\n"
        '        body = b\'{"document": "x", "max_new_tokens": 2}\'\n'
        "        request = urllib.request.Request(url + '/summarize', body, {'Content-Type': 'application/json'})\n"
        "        print(urllib.request.urlopen(request, timeout=60).status)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Thread(target=go).start()\n"
        "    return url\n"
        "server.url_of = ask\n"
        f"serve.main([{str(q4.path)!r}, '--threads', '1', '--port', '0'], standalone_mode=False)\n"
        "allowed = 'torch transformers peft gguf bitsandbytes tokenizers matplotlib datasets'.split()\n"
        "print([name for name in allowed if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["200", "[]"], done.stderr


def test_generate_prints_the_continuation_unchanged(q4: Artifact) -> None:
    texts = []
    for prompt in ("Mara: Could we", "The bus 84 leaves", "Olin: No, room"):
        told = assay("generate", q4.path, "--prompt", prompt, "--raw", "--max-new-tokens", "8", "--json")
        assert told.returncode == 0, told.stderr
        plain = assay("generate", q4.path, "--prompt", prompt, "--raw", "--max-new-tokens", "8")
        texts.append(json.loads(told.stdout)["text"])
        assert plain.stdout == texts[-1] + "\n"
    templated = json.loads(assay("generate", q4.path, "--prompt", "Mara", "--max-new-tokens", "2", "--json").stdout)
    raw = json.loads(assay("generate", q4.path, "--prompt", "Mara", "--raw", "--max-new-tokens", "2", "--json").stdout)
    assert templated["prompt_tokens"] > raw["prompt_tokens"]


def test_summarize_reads_files_and_bare_ggufs(q4: Artifact, tmp_path: Path) -> None:
    (tmp_path / "document.txt").write_text(DOCUMENT, encoding="utf-8")
    told = assay("summarize", q4.gguf_path, tmp_path / "document.txt", "--max-new-tokens", "4", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["completion_tokens"] <= 4


def test_folders_are_summarized_with_as_well(llama_folder: Path, adapter_folder: Path) -> None:
    for model in (llama_folder, adapter_folder):
        answer = once.summarize(model, DOCUMENT, max_new_tokens=4, threads=2)
        assert answer.engine == "torch"
        assert 0 < answer.completion.prompt_tokens < 200


def test_documents_that_cannot_be_summarized_are_refused(q4: Artifact, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for file, text, says in (
        (tmp_path / "latin.txt", None, "not UTF-8"),
        (tmp_path / "no.txt", None, "cannot be read"),
        ("-", " \n", "empty"),
        ("-", DOCUMENT * 30, "does not fit"),
    ):
        told = assay("summarize", q4.path, file, text=text)
        assert (told.returncode, told.stdout) == (2, ""), told.stderr
        assert says in told.stderr
        assert "Traceback" not in told.stderr


def test_an_unproven_artifact_is_refused_and_served_only_when_allowed(q4: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_verdicts(path, [Verdict("q4_k_m", q4.digest, "inconclusive", ())])
    refused = assay("serve", q4.path, "--port", "0", "--verdict", path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert '"inconclusive"' in refused.stderr
    server = subprocess.Popen(
        [*ASSAY, "serve", str(q4.path), "--threads", "1", "--port", "0", "--verdict", str(path), "--allow-unproven"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if line.startswith("serving on "):
            break
    with urllib.request.urlopen(said[-1].split()[2] + "/v1/models", timeout=30) as answer:
        assert answer.headers["x-assay-proven"] == "false"
        assert json.load(answer)["data"][0]["proven"] is False
    server.terminate()
    server.communicate(timeout=60)
    assert server.returncode == 0
    assert "NOT PROVEN" in "".join(said)


def test_what_cannot_be_served_is_refused_clearly(q4: Artifact, llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.key").write_text("\n")
    (tmp_path / "damaged").mkdir()
    for file in q4.folder.iterdir():
        (tmp_path / "damaged" / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix == ".gguf" else None])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, says in (
            ((llama_folder,), "only a GGUF or an ONNX folder is served"),
            ((q4.path, "--api-key-file", tmp_path / "empty.key"), "must hold one key"),
            ((q4.path, "--api-key-file", tmp_path / "none.key"), "cannot be read"),
            ((q4.path, "--port", taken.getsockname()[1]), "address cannot be served on"),
            ((q4.path, "--verdict", tmp_path / "none.json"), "there is no verdict"),
            ((tmp_path / "damaged", "--allow-unproven"), "not intact"),
        ):
            told = assay("serve", *arguments)
            assert (told.returncode, told.stdout) == (2, ""), told.stderr
            assert says in told.stderr


def test_the_key_file_is_obeyed(q4: Artifact, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    server = subprocess.Popen(
        [*ASSAY, "serve", str(q4.path), "--threads", "1", "--port", "0", "--api-key-file", str(tmp_path / "key")],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    url = next(line for line in server.stderr if line.startswith("serving on ")).split()[2]
    try:
        assert post(url, "/summarize", {"document": "x"})[0] == 401
        request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": "Bearer s3cret"})
        assert urllib.request.urlopen(request, timeout=30).status == 200
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.mark.parametrize("command", ["serve", "summarize", "generate"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys\nfrom serve.cli import {command} as c\nc.main(['--help'], standalone_mode=False)\n"
        "print([m for m in ('numpy', 'pydantic', 'fastapi', 'uvicorn', 'llama_cpp', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("[]"), done.stdout
