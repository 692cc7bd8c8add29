"""llama.cpp tokenizes like Hugging Face, for every kind of tokenizer that is let through; the others are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from export.check_gguf import CheckFailed
from export.to_gguf import export_gguf
from tests.export.makers import (
    byte_level_tokenizer,
    convert_sentencepiece,
    edit_json,
    gpt2_tokenizer,
    llama3_tokenizer,
    smollm_tokenizer,
    train_sentencepiece,
)
from tests.tiny import make_bpe_tokenizer, make_llama


@pytest.mark.parametrize(
    ("maker", "pre"),
    [
        (make_bpe_tokenizer, "qwen2"),
        (llama3_tokenizer, "llama-bpe"),
        (gpt2_tokenizer, "gpt-2"),
        (smollm_tokenizer, "smollm"),
        (train_sentencepiece, "default"),
        (convert_sentencepiece, "default"),
    ],
)
def test_token_ids_agree_on_hard_text(tmp_path: Path, maker: object, pre: str) -> None:
    folder = make_llama(tmp_path / "model", tokenizer=maker, layers=1)
    made = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])  # the structure check compares ids
    assert made[0].details["tokenizer"] == pre


def test_scores_rebuilt_from_merges_order_pieces_like_the_sentencepiece_model(tmp_path: Path) -> None:
    from export.gguf_tokenizer import load_tokenizer, token_tables

    (tmp_path / "spm").mkdir()
    train_sentencepiece(tmp_path / "spm")
    tokenizer = load_tokenizer(tmp_path / "spm")
    own = token_tables(tmp_path / "spm", tokenizer, 420)
    (tmp_path / "spm/tokenizer.model").unlink()
    rebuilt = token_tables(tmp_path / "spm", tokenizer, 420)
    assert own.texts == rebuilt.texts
    assert own.types == rebuilt.types
    merged = [i for i, text in enumerate(own.texts) if len(text) > 1 and own.types[i] == 1]
    assert own.scores is not None
    assert rebuilt.scores is not None
    assert sorted(merged, key=own.scores.__getitem__) == sorted(merged, key=rebuilt.scores.__getitem__)
    assert own.add_space_prefix
    assert [own.types[i] for i in (0, 1, 2, 3)] == [2, 3, 3, 6]  # unknown, control, control, byte


def test_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = make_llama(tmp_path / "model", layers=1, vocab_size=576)
    made = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    reader = GGUFReader(made[0].gguf_path)
    tokens, types = (reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "token_type"))
    assert len(tokens) == 576
    assert tokens[-1] == "[PAD575]"
    assert types[-1] == 5


def test_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1, vocab_size=300)
    with pytest.raises(AssayError, match="more tokens than the embedding has rows"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert not list((tmp_path / "gguf").iterdir())


def test_unknown_pre_tokenizer_is_named_with_the_nearest_known(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    def odd(folder: Path) -> None:
        byte_level_tokenizer(
            folder,
            [
                pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,4}|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        )

    folder = make_llama(tmp_path / "model", tokenizer=odd, layers=1)
    with pytest.raises(AssayError, match="nearest known") as error:
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert r"\p{N}{1,4}" in str(error.value)


def test_a_normalizer_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1)
    edit_json(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(AssayError, match="rewrites text"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])


def test_composing_normalizer_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path / "model", layers=1)
    edit_json(folder / "tokenizer.json", normalizer={"type": "NFC"})
    export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert "NFC" in capsys.readouterr().err


def test_a_wrong_pre_tokenizer_is_caught_by_token_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import gguf_bpe

    folder = make_llama(tmp_path / "model", tokenizer=llama3_tokenizer, layers=1)
    for key, name in list(gguf_bpe.KNOWN.items()):
        if name == "llama-bpe":
            monkeypatch.setitem(gguf_bpe.KNOWN, key, "smollm")
    with pytest.raises(CheckFailed, match="ids differ at"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert not list((tmp_path / "gguf").iterdir())


def test_every_stop_id_ends_a_generation(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = make_llama(tmp_path / "model", layers=1)
    made = export_gguf(open_artifact(folder), tmp_path / "ok", quants=["f16"])
    reader = GGUFReader(made[0].gguf_path)
    assert [reader.get_field(f"tokenizer.ggml.{end}_token_id").contents() for end in ("eos", "eot")] == [1, 4]
    edit_json(folder / "generation_config.json", eos_token_id=[1, 4, 10, 11, 12])  # llama.cpp has three fields
    with pytest.raises(CheckFailed, match="ends nothing"):
        export_gguf(open_artifact(folder), tmp_path / "many", quants=["f16"])


def test_the_template_and_the_prompt_are_embedded(tmp_path: Path, llama_folder: Path) -> None:
    from gguf import GGUFReader

    from contract.artifact import new_artifact
    from tests.tiny import TEMPLATE

    with new_artifact(tmp_path / "merged", "merged", "m", details={"prompt": {"user": "Sum up: {document}"}}) as draft:
        shutil.copytree(llama_folder, draft.path, dirs_exist_ok=True)
    made = export_gguf(draft.finished, tmp_path / "gguf", quants=["f16"])
    reader = GGUFReader(made[0].gguf_path)
    assert reader.get_field("tokenizer.chat_template").contents() == TEMPLATE
    assert json.loads(reader.get_field("assay.prompt").contents()) == {"user": "Sum up: {document}"}
    assert made[0].details["prompt"] == {"user": "Sum up: {document}"}
