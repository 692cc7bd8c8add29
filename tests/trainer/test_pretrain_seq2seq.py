"""Pretrains a micro T5 and a micro BART: the loss falls, what is saved loads, pairs are what the corpus says."""

import json
import random
from array import array
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from trainer import pretrain_pairs, pretrain_seq2seq
from trainer.pretrain_corpus import batches, read_corpus
from trainer.pretrain_pairs import Pair

pytestmark = pytest.mark.engine

MICRO = pretrain_seq2seq.Shape(
    hidden=32,
    t5_intermediate=32,
    bart_intermediate=32,
    t5_encoder_layers=1,
    bart_encoder_layers=1,
    decoder_layers=1,
    heads=2,
    vocabulary=272,
    positions=128,
)
WORDS = ("Anna", "Bert", "Carla", "lamp", "boat", "house", "river", "garden", "window", "letter", "morning", "evening")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows: list[dict[str, object]] = [{"text": "Anna: A row without a question is left out."}]
    for _ in range(160):
        said = " ".join(rng.choices(WORDS, k=6)) + f" {rng.randint(10, 99)} " + "".join(rng.choices("abcdefgh", k=5))
        asked = {"role": "user", "content": f"Repeat this.\n\n{said}"}
        more = {"role": "user", "content": "Which word is first?"}
        rows.append(
            {
                "messages": [
                    asked,
                    {"role": "assistant", "content": said},
                    more,
                    {"role": "assistant", "content": said.split()[0]},
                ]
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(family: pretrain_seq2seq.Family, corpus: Path, out: Path, steps: int = 4, seed: int = 0) -> list[float]:
    return pretrain_seq2seq.pretrain(
        family, corpus, out, steps=steps, seed=seed, threads=1, shape=MICRO, batch_tokens=512
    )


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_loss_falls_and_the_folder_loads(
    family: pretrain_seq2seq.Family, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = run(family, corpus, tmp_path / "base", steps=30)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    model, found = AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "base", dtype="auto", output_loading_info=True, attn_implementation="eager"
    )
    assert model.dtype == torch.float16
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    if family == "t5":  # scores are not divided by √head_dim; what is stored shares that out
        attention = model.encoder.block[0].layer[0].SelfAttention
        assert 0.5 < (attention.q.weight.float().std() / attention.k.weight.float().std()).item() < 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer.decode(tokenizer("Anna 42").input_ids, skip_special_tokens=True) == "Anna 42"
    settings = GenerationConfig.from_pretrained(tmp_path / "base")
    settings.validate(strict=True)
    assert settings.decoder_start_token_id == model.config.decoder_start_token_id == {"t5": 0, "bart": 2}[family]
    assert settings.forced_bos_token_id == {"t5": None, "bart": 0}[family]
    assert not (tmp_path / "base.unfinished").exists()


def test_a_model_is_trained_further(corpus: Path, tmp_path: Path) -> None:
    run("bart", corpus, tmp_path / "first")
    pretrain_seq2seq.pretrain(
        "bart", corpus, tmp_path / "second", steps=2, threads=1, batch_tokens=512, start=tmp_path / "first"
    )
    first, second = (GenerationConfig.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert first.forced_bos_token_id == second.forced_bos_token_id == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert one != other
    assert (tmp_path / "first" / "tokenizer.json").read_text() == (tmp_path / "second" / "tokenizer.json").read_text()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    family: pretrain_seq2seq.Family, corpus: Path, tmp_path: Path
) -> None:
    assert run(family, corpus, tmp_path / "a") == run(family, corpus, tmp_path / "b")
    run(family, corpus, tmp_path / "c", seed=1)
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert one == same
    assert one != other


def test_an_existing_folder_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        run("t5", corpus, tmp_path / "base")


def test_pairs_hold_what_the_user_says_and_what_is_answered() -> None:
    messages = [
        {"role": role, "content": text}
        for role, text in (("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2"))
    ]
    found = pretrain_pairs.pairs([{"text": "no"}, *[{"messages": messages}] * 40], random.Random(0))
    assert len(found) == 40
    assert set(found) == {("One?", "1"), ("One?\n\nTwo?", "1\n2")}


def test_special_ids_are_those_of_the_families(corpus: Path, tmp_path: Path) -> None:
    rows = read_corpus(corpus)
    t5 = pretrain_pairs.unigram_tokenizer(rows, 272, tmp_path)
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert t5("Anna").input_ids[-1] == 1
    assert len(t5) == 272
    assert len(t5("12345", add_special_tokens=False).input_ids) in (5, 6)  # digit by digit, perhaps behind a space
    bart = pretrain_pairs.bpe_tokenizer(rows, 272)
    assert (bart.bos_token_id, bart.pad_token_id, bart.eos_token_id, bart.unk_token_id) == (0, 1, 2, 3)
    ids = bart("Anna: é 🙂 42\n").input_ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert bart.decode(ids, skip_special_tokens=True) == "Anna: é 🙂 42\n"


def test_a_corpus_too_poor_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vocabulary of 2048"):
        pretrain_pairs.unigram_tokenizer([{"text": "one two"}], 2048, tmp_path)


def test_a_text_that_does_not_fit_is_refused_rather_than_cut(corpus: Path) -> None:
    rows = read_corpus(corpus)
    tokenizer = pretrain_pairs.bpe_tokenizer(rows, 272)
    with pytest.raises(ValueError, match="at most 5 fit"):
        pretrain_pairs.encode_pairs(tokenizer, pretrain_pairs.pairs(rows, random.Random(0)), 5)


def test_batches_are_padded_masked_and_shifted() -> None:
    rows = [Pair(array("H", [5, 6, 2]), array("H", [0, 7, 2])), Pair(array("H", [5, 2]), array("H", [8, 2]))]
    batch = {name: tensor.tolist() for name, tensor in pretrain_pairs.collate_pairs(rows, 1, 2, [0, 2]).items()}
    assert batch == {
        "input_ids": [[5, 6, 2, 1], [1, 1, 5, 2]],
        "attention_mask": [[1, 1, 1, 0], [0, 0, 1, 1]],
        "decoder_input_ids": [[2, 0, 7], [2, 8, 1]],
        "labels": [[0, 7, 2], [8, 2, -100]],
    }
    assert sorted(len(pair) for pair in next(batches(rows, 100, random.Random(0)))) == [4, 6]
