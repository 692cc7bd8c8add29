"""Pairs for encoder-decoders: the ids of the contract, documents cut to fit, summaries whole, unsound rows named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.example import Example
from contract.prompt import PromptSpec
from contract.recipe import Recipe
from tests.tiny_seq2seq import make_bart_tokenizer, make_t5_tokenizer
from trainer.rows import encoder_of
from trainer.seq2seq_rows import PairEncoder, make_pair_encoder
from trainer.tokenize import all_stop_ids, encode_rows, load_tokenizer

pytestmark = pytest.mark.engine

SPEC = PromptSpec("summarize: {document}")
DOCUMENT = "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free.\nMara: Then we take that."
SUMMARY = "They take room 527."
T5 = {
    "model_type": "t5",
    "is_encoder_decoder": True,
    "n_positions": 128,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
}
BART = {
    "model_type": "bart",
    "is_encoder_decoder": True,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, make, config in (("t5", make_t5_tokenizer, T5), ("bart", make_bart_tokenizer, BART)):
        folders[name] = tmp_path_factory.mktemp(name)
        make(folders[name])
        (folders[name] / "config.json").write_text(json.dumps(config))
    return folders


def encoder(folder: Path, max_length: int = 128, max_target_length: int = 64) -> PairEncoder:
    return make_pair_encoder(folder, SPEC, max_length, max_target_length, load_tokenizer(folder))


def test_the_config_decides_which_rows_are_made(folders: dict[str, Path], llama_folder: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "t", "model": {"base": "x"}, "train": {"max_length": 100, "max_target_length": 50}}
    )
    pair = encoder_of(folders["t5"], recipe, load_tokenizer(folders["t5"]))
    assert isinstance(pair, PairEncoder)
    assert (pair.max_length, pair.max_target_length) == (100, 50)
    assert not isinstance(encoder_of(llama_folder, recipe, load_tokenizer(llama_folder)), PairEncoder)


@pytest.mark.parametrize(("name", "head", "tail"), [("t5", [], [1]), ("bart", [0], [2])])
def test_prefix_and_special_tokens_stand_around_the_text(
    folders: dict[str, Path], name: str, head: list[int], tail: list[int]
) -> None:
    tokenizer = load_tokenizer(folders[name])
    row = encoder(folders[name]).row("a", DOCUMENT, SUMMARY)
    assert row.source == tokenizer(f"summarize: {DOCUMENT}").input_ids
    assert row.target == [*head, *tokenizer(SUMMARY, add_special_tokens=False).input_ids, *tail]
    assert row.cut_tokens == 0
    assert (row.tokens, row.supervised_tokens) == (len(row.source) + len(row.target), len(row.target))
    looks = encoder(folders[name]).row("b", "Mara: </s> <s> said.", "It is </s> so.")
    assert looks.source.count(tail[0]) == looks.target.count(tail[0]) == 1


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_long_document_is_cut_at_a_line_and_the_summary_stays(folders: dict[str, Path], name: str) -> None:
    whole = encoder(folders[name]).row("a", DOCUMENT, SUMMARY)
    short = encoder(folders[name], max_length=len(whole.source) - 3)
    row = short.row("a", DOCUMENT, SUMMARY)
    kept = DOCUMENT.rpartition("\n")[0]
    assert row.source == short.prompt(kept)
    assert row.cut_tokens == len(whole.source) - len(row.source)
    assert row.target == whole.target


def test_summaries_that_are_too_long_are_refused_together(folders: dict[str, Path]) -> None:
    examples = [Example("a", DOCUMENT, (SUMMARY,)), Example("b", DOCUMENT, (SUMMARY * 9,))]
    with pytest.raises(AssayError, match="never cut") as error:
        encode_rows(encoder(folders["t5"], max_target_length=32), examples)
    assert "b (" in str(error.value)
    assert "a (" not in str(error.value)
    assert "train.max_target_length = 32" in str(error.value)


def test_lengths_beyond_the_context_are_refused(folders: dict[str, Path]) -> None:
    for lengths, named in (((129, 64), "train.max_length = 129"), ((64, 129), "train.max_target_length = 129")):
        with pytest.raises(AssayError, match="longer than the model's context") as error:
            encoder(folders["bart"], *lengths)
        assert named in str(error.value)


def test_a_model_that_does_not_say_how_it_starts_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    make_t5_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(T5 | {"decoder_start_token_id": None}))
    with pytest.raises(AssayError, match="what its decoder starts with"):
        encoder(tmp_path)


def test_unsound_rows_are_named(folders: dict[str, Path]) -> None:
    made = encoder(folders["bart"])
    rows = [made.row(name, DOCUMENT, SUMMARY) for name in "abc"]
    stops = all_stop_ids(folders["bart"], made, load_tokenizer(folders["bart"]).eos_token_id)
    assert stops == [2]
    assert made.check(rows, stops) == {
        "min": len(rows[0].target),
        "mean": len(rows[0].target),
        "total": 3 * len(rows[0].target),
    }
    for damage, message in (
        ({"source": rows[1].source[1:]}, "lacks the tokenizer's special tokens"),
        ({"source": [0, 2]}, "nothing to read"),
        ({"target": [0, 2]}, "no token to learn from"),
        ({"target": rows[1].target[:-1]}, "does not end with a stop token"),
        ({"target": [*rows[1].target, 2]}, "two stop tokens"),
    ):
        with pytest.raises(AssayError, match=message) as error:
            made.check([rows[0], replace(rows[1], **damage), rows[2]], stops)
        assert f"{message}: b" in str(error.value) or "special tokens: b" in str(error.value)
