"""`assay export ollama`: what lies in the folder, that its template gives the trained ids, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.errors import AssayError
from contract.prompt import Message, PromptSpec
from export.cli import export
from export.go_template import conversations
from export.llama_vocab import LlamaVocab
from export.modelfile import run_command
from export.ollama import CACHE_BYTES, export_ollama, ollama_name
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.export.makers import edit_json, gemma_tokenizer, llama3_tokenizer, metaspace_tokenizer, train_sentencepiece
from tests.export.test_go_template import go
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "SentencePiece": train_sentencepiece,
    "Gemma": gemma_tokenizer,
    "Llama 3": llama3_tokenizer,
    "Mistral": metaspace_tokenizer,
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Artifact:
    out = tmp_path_factory.mktemp("gguf")
    return export_gguf(open_artifact(llama_folder), out, quants=["f16"], name="small", threads=1)[0]


def with_details(gguf: Artifact, folder: Path, **details: Any) -> Artifact:
    """The same file as an artifact that records more."""
    with new_artifact(folder, "gguf", gguf.name, details={**gguf.details, **details}) as draft:
        shutil.copyfile(gguf.gguf_path, draft.path / gguf.gguf_path.name)
    return draft.finished


def template_in(modelfile: Path) -> str:
    found = re.search('TEMPLATE """(.*?)"""', modelfile.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_a_folder_that_is_taken_is_refused_before_any_work(
    gguf: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import ollama

    monkeypatch.setattr(ollama, "gguf_facts", lambda *_: pytest.fail("it was read"))
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path, gguf.folder / "ollama"):
        with pytest.raises(AssayError, match=r"exists already|inside an artifact") as refusal:
            export_ollama(gguf, out)
        assert refusal.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_lies_in_the_folder(gguf: Artifact, tmp_path: Path) -> None:
    source = with_details(gguf, tmp_path / "gguf", generate={"max_new_tokens": 99}, license="apache-2.0")
    made = export_ollama(source, tmp_path / "ollama")
    assert sorted(path.name for path in made.artifact.folder.iterdir()) == [
        "Modelfile",
        "README.md",
        "manifest.json",
        "small-F16.gguf",
    ]
    made.artifact.verify()
    assert open_artifact(tmp_path / "ollama").gguf_path.samefile(source.gguf_path)
    assert made.linked
    assert [(parent.role, parent.digest) for parent in made.artifact.manifest.parents] == [("gguf", source.digest)]
    lines = made.modelfile.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "FROM ./small-F16.gguf"
    assert [line for line in lines if line.startswith(("PARAMETER", "SYSTEM", "LICENSE"))] == [
        'PARAMETER stop "<|end|>"',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER num_ctx 512",
        "PARAMETER num_predict 99",
        'LICENSE "apache-2.0"',
    ]
    assert made.notes == ("not proven: nobody evaluated this file (assay eval)",)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ollamas_text_has_the_trained_ids(name: str, tmp_path: Path) -> None:
    """Go renders the Modelfile's template, llama.cpp reads it in one piece: the ids are the runtime's own."""
    folder = make_llama(tmp_path / "model", layers=1, tokenizer=TOKENIZERS[name])
    source = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"], threads=1)[0]
    made = export_ollama(source, tmp_path / "ollama")
    asked = conversations(made.artifact.details["ollama"]["system"])
    texts = go([(template_in(made.modelfile), messages) for messages in asked])
    runtime = load_runtime(source, threads=1)
    with LlamaVocab(made.artifact.gguf_path) as engine:
        for messages, text in zip(asked, texts, strict=True):
            assert engine.tokenize(text, add_special=True, parse_special=True) == runtime.encode(messages)
    runtime.close()


def test_ids_that_would_differ_are_refused(tmp_path: Path) -> None:
    """A tokenizer that composes characters: assay does that for llama.cpp, Ollama does not."""
    folder = make_llama(tmp_path / "model", layers=1)
    template = "{% for m in messages %}cafe\u0301: {{ m.content }}\n{% endfor %}"
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    source = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"], threads=1)[0]
    with pytest.raises(AssayError, match="as other ids than the model was trained on"):
        export_ollama(source, tmp_path / "ollama")
    assert not (tmp_path / "ollama").exists()


def test_a_bare_file(gguf: Artifact, tmp_path: Path) -> None:
    shutil.copyfile(gguf.gguf_path, tmp_path / "some model.gguf")
    made = export_ollama(open_artifact(tmp_path / "some model.gguf"), tmp_path / "ollama", num_ctx=256)
    text = made.modelfile.read_text(encoding="utf-8")
    assert "FROM ./some model.gguf\n" in text
    assert "PARAMETER num_ctx 256\n" in text
    assert "num_predict" not in text
    assert made.name == "some-model"
    assert "context 256 of 512" in made.notes[-1]


def test_another_file_system_gets_a_copy(gguf: Artifact, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    out = other / f"assay-test-{os.getpid()}"
    try:
        made = export_ollama(gguf, out)
        assert not made.linked
        assert (out / gguf.gguf_path.name).read_bytes() == gguf.gguf_path.read_bytes()
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_the_recipes_system_turn(gguf: Artifact, tmp_path: Path) -> None:
    spec = PromptSpec(user="Sum up:\n{document}\nIn {language}.", system='Be "brief".\nAlways.', language="French")
    source = with_details(gguf, tmp_path / "gguf", prompt=spec.as_dict())
    made = export_ollama(source, tmp_path / "ollama")
    assert 'SYSTEM """Be "brief".\nAlways."""' in made.modelfile.read_text(encoding="utf-8")
    card = (tmp_path / "ollama" / "README.md").read_text(encoding="utf-8")
    assert "language:\n- fr\n" in card
    assert "Sum up:\n{document}\nIn French." in card


@pytest.mark.parametrize("user", ['100 % of it\'s \\n "all":\n\n{document}\n\nNow:', "- Sum up:\n{document}"])
def test_the_command_sends_the_recipes_words(tmp_path: Path, user: str) -> None:
    spec = PromptSpec(user=user)
    (tmp_path / "document.txt").write_text("Mara: Hi $HOME\nOlin: `Hi`\n")
    (tmp_path / "ollama").write_text('#!/bin/sh\nprintf %s "$3"\n')
    (tmp_path / "ollama").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", run_command("x", spec)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
    )
    assert done.stdout == spec.messages("Mara: Hi $HOME\nOlin: `Hi`")[0].content


def test_a_context_too_large_for_a_cache_is_lowered(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1, max_position_embeddings=1 << 23)
    source = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"], threads=1)[0]
    made = export_ollama(source, tmp_path / "ollama")
    cache_bytes = 2 * 2 * 64 * 2  # keys and values of 2 heads of 64, in f16
    assert made.artifact.details["ollama"]["num_ctx"] == CACHE_BYTES // cache_bytes < 1 << 23
    assert "Ollama cuts longer prompts" in made.notes[-1]


def test_refusals(gguf: Artifact, llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="only a GGUF"):
        export_ollama(open_artifact(llama_folder), tmp_path / "a")
    with pytest.raises(AssayError, match="longer than the model was made for"):
        export_ollama(gguf, tmp_path / "a", num_ctx=513)
    unprinted = with_details(gguf, tmp_path / "gguf", prompt={"system": "Be\u00a0brief."})
    with pytest.raises(AssayError, match=r"a Modelfile cannot hold prompt\.system"):
        export_ollama(unprinted, tmp_path / "a")
    quoted = with_details(gguf, tmp_path / "quoted", prompt={"system": 'Write """quotes""".'})
    with pytest.raises(AssayError, match=r"a Modelfile cannot hold prompt\.system"):
        export_ollama(quoted, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("mine")
    with pytest.raises(AssayError, match="nothing is overwritten"):
        export_ollama(gguf, tmp_path / "a")
    damaged = with_details(gguf, tmp_path / "damaged")
    data = bytearray(damaged.gguf_path.read_bytes())
    data[-1] ^= 1
    damaged.gguf_path.write_bytes(data)
    with pytest.raises(AssayError, match="not intact"):
        export_ollama(damaged, tmp_path / "b")


def test_a_template_go_cannot_follow_leaves_nothing(gguf: Artifact, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ loop.index }} {{ m.content }}{% endfor %}")
    source = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"], threads=1)[0]
    with pytest.raises(AssayError, match="more than its role and place"):
        export_ollama(source, tmp_path / "ollama")
    assert not (tmp_path / "ollama").exists()


def test_the_command(gguf: Artifact, tmp_path: Path) -> None:
    done = CliRunner().invoke(export, ["ollama", str(gguf.path), "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    assert f"ollama create {ollama_name(gguf)} -f {tmp_path / 'a' / 'Modelfile'}\n" in done.output
    assert f"ollama run {ollama_name(gguf)} " in done.output
    done = CliRunner().invoke(export, ["ollama", str(gguf.path), "--out", str(tmp_path / "b"), "--json"])
    found = json.loads(done.stdout)
    assert found["name"] == "small-f16"
    assert found["stop"] == ["<|end|>", "<|im_end|>"]
    assert found["num_ctx"] == 512
    assert len(found["commands"]) == 2


def test_the_folder_is_an_artifact_that_runs(gguf: Artifact, tmp_path: Path) -> None:
    made = export_ollama(gguf, tmp_path / "ollama")
    first, second = load_runtime(gguf, threads=1), load_runtime(made.artifact, threads=1)
    messages = [Message("user", "Hello")]
    assert first.encode(messages) == second.encode(messages)
    first.close()
    second.close()
