"""Pretrains a micro model: the loss falls, what is saved loads, the same seed gives the same weights."""

import json
import random
from array import array
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import pretrain, pretrain_corpus

pytestmark = pytest.mark.engine

MICRO = pretrain.Shape(hidden=32, intermediate=64, layers=1, heads=2, kv_heads=1, vocabulary=290, positions=256)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows: list[dict[str, object]] = []
    for _ in range(120):
        thing, number = rng.choice(["lamp", "boat", "house"]), rng.randint(10, 99)
        said = f"Anna: The {thing} costs {number}.\nBert: I see, {number}."
        rows.append({"text": said})
        question = {"role": "user", "content": f"What costs {number}?\n\n{said}"}
        rows.append({"messages": [question, {"role": "assistant", "content": f"the {thing}"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encoded(ids: list[int], weights: list[float]) -> pretrain_corpus.Encoded:
    return pretrain_corpus.Encoded(array("H", ids), array("f", weights))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def run(corpus: Path, out: Path, steps: int = 12, seed: int = 0) -> list[float]:
    return pretrain.pretrain(corpus, out, steps=steps, seed=seed, threads=1, shape=MICRO, batch_tokens=512)


def test_the_loss_falls_and_the_folder_loads(corpus: Path, tmp_path: Path) -> None:
    losses = run(corpus, tmp_path / "base", steps=40)
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert model.dtype == torch.float16
    assert tokenizer("Anna").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer("Anna: é 🙂 42\n", add_special_tokens=False).input_ids) == "Anna: é 🙂 42\n"
    assert not (tmp_path / "base.unfinished").exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(corpus: Path, tmp_path: Path) -> None:
    assert run(corpus, tmp_path / "a", steps=4) == run(corpus, tmp_path / "b", steps=4)
    run(corpus, tmp_path / "c", steps=4, seed=1)
    one, same, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_an_existing_folder_is_refused_and_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        run(corpus, tmp_path / "base")
    assert not list((tmp_path / "base").iterdir())


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": "wrong"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2"):
        pretrain_corpus.read_corpus(tmp_path / "bad.jsonl")


def test_a_row_that_does_not_fit_is_refused_rather_than_cut(corpus: Path) -> None:
    rows = pretrain_corpus.read_corpus(corpus)
    tokenizer = pretrain_corpus.train_tokenizer(rows, MICRO.vocabulary)
    with pytest.raises(ValueError, match="at most 5 fit"):
        pretrain_corpus.encode(tokenizer, rows, 5)


def test_a_corpus_too_poor_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="larger corpus"):
        pretrain_corpus.train_tokenizer([{"text": "one two"}], 2048)


def test_only_answers_and_their_end_weigh_more(corpus: Path) -> None:
    rows = pretrain_corpus.read_corpus(corpus)
    tokenizer = pretrain_corpus.train_tokenizer(rows, MICRO.vocabulary)
    row = next(row for row in rows if "messages" in row)
    found = pretrain_corpus.encode(tokenizer, [row], 256)[0]
    heavy = [token for token, weight in zip(found.ids, found.weights, strict=True) if weight > 1]
    assert tokenizer.decode(heavy) == row["messages"][1]["content"] + pretrain_corpus.END


def test_what_is_trained_on_is_what_the_chat_template_renders(corpus: Path) -> None:
    rows = pretrain_corpus.read_corpus(corpus)
    tokenizer = pretrain_corpus.train_tokenizer(rows, MICRO.vocabulary)
    row = next(row for row in rows if "messages" in row)
    assert tokenizer.apply_chat_template(row["messages"], return_dict=False) == list(
        pretrain_corpus.encode(tokenizer, [row], 256)[0].ids
    )


def test_batches_keep_to_their_budget_and_lose_no_row() -> None:
    rows = [encoded([at] * (1 + at % 9), [1.0] * (1 + at % 9)) for at in range(50)]
    source = pretrain_corpus.batches(rows, 30, random.Random(0))
    seen: list[int] = []
    while len(seen) < len(rows):
        batch = next(source)
        assert len(batch) * max(len(row.ids) for row in batch) <= 30
        seen += [row.ids[0] for row in batch]
    assert sorted(seen) == list(range(50))


def test_padding_has_no_weight() -> None:
    ids, weight = pretrain_corpus.collate([encoded([5, 6, 7], [1.0, 1.0, 4.0]), encoded([8], [1.0])], 2)
    assert ids.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert weight.tolist() == [[1, 1, 4], [1, 0, 0]]
