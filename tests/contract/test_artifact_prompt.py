"""The prompt's words come from the manifest, from a bare .gguf's metadata, or are the default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.artifact import new_artifact, open_artifact
from contract.artifact_prompt import gguf_string, prompt_of
from contract.errors import AssayError
from contract.prompt import PromptSpec

SPEC = PromptSpec(user="Fasse zusammen: {document}", system="Du bist knapp.", language="German")


def write_gguf(path: Path, prompt: str | None) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float64("some.float", 0.5)
    writer.add_bool("some.flag", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "Über"])
    writer.add_array("tokenizer.ggml.scores", [0.1, 0.2])
    if prompt is not None:
        writer.add_string("assay.prompt", prompt)
    writer.add_string("general.name", "x")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_the_manifest_knows(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "a", "merged", "a", details={"prompt": SPEC.as_dict()}) as draft:
        (draft.path / "config.json").write_text("{}")
    assert prompt_of(open_artifact(tmp_path / "a")) == SPEC


def test_a_bare_gguf_knows(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", json.dumps(SPEC.as_dict()))
    assert prompt_of(open_artifact(path)) == SPEC
    assert gguf_string(path, "general.name") == "x"
    assert gguf_string(path, "llama.block_count") is None


def test_default_words_where_nothing_was_recorded(tmp_path: Path) -> None:
    assert prompt_of(open_artifact(write_gguf(tmp_path / "m.gguf", None))) == PromptSpec()


@pytest.mark.parametrize("prompt", ["{", '{"usr": "x"}'])
def test_unreadable_words_are_refused(tmp_path: Path, prompt: str) -> None:
    with pytest.raises(AssayError, match=r"not JSON|unknown prompt key"):
        prompt_of(open_artifact(write_gguf(tmp_path / "m.gguf", prompt)))


def test_a_truncated_header_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", None).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:90])
    with pytest.raises(AssayError, match="cannot be read"):
        gguf_string(tmp_path / "cut.gguf", "assay.prompt")
