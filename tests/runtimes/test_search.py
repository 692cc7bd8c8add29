"""Rules on scores, sampling's probabilities and beam search, each against an independent definition."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from contract.errors import AssayError
from contract.runtime import GenerateParams
from runtimes.answer import Answer, check_params
from runtimes.beam import BeamSearch
from runtimes.logits_rules import LogitsRules, TargetFormat, nucleus

pytestmark = pytest.mark.engine

VOCAB = 23
END = frozenset({2, 7})
NO_END = frozenset[int]()


def scores_of(seed: int, size: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


@pytest.mark.parametrize("made", [0, 1, 2, 5, 12, 13])
@pytest.mark.parametrize("penalty", [1.0, 0.7, 1.5])
@pytest.mark.parametrize("ngram", [0, 1, 2, 3])
def test_rules_are_transformers(made: int, penalty: float, ngram: int) -> None:
    random = np.random.default_rng(made)
    before, ids = random.integers(0, 6, 4).tolist(), random.integers(0, 6, made).tolist()
    params = GenerateParams(14, repetition_penalty=penalty, no_repeat_ngram_size=ngram, min_new_tokens=6)
    processors = theirs.LogitsProcessorList()
    processors.append(theirs.RepetitionPenaltyLogitsProcessor(penalty))
    if ngram:
        processors.append(theirs.NoRepeatNGramLogitsProcessor(ngram))
    processors.append(theirs.MinNewTokensLengthLogitsProcessor(len(before), 6, torch.tensor(sorted(END))))
    scores = scores_of(made)
    kept = scores.copy()
    wanted = processors(torch.tensor([before + ids]), torch.tensor(scores)[None])[0].numpy()
    found = LogitsRules(params, END, before, None, 14).apply(scores, ids)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(scores, kept)


@pytest.mark.parametrize("made", [0, 1, 8, 9])
def test_forced_tokens_are_transformers(made: int) -> None:
    target = TargetFormat(start_id=2, most_tokens=64, forced_bos_id=5, forced_eos_id=2)
    ids = [5, *range(8, 7 + made)][:made]
    processors = theirs.LogitsProcessorList(
        [theirs.ForcedBOSTokenLogitsProcessor(5), theirs.ForcedEOSTokenLogitsProcessor(11, 2)]
    )
    scores = scores_of(made)
    wanted = processors(torch.tensor([[2, *ids]]), torch.tensor(scores)[None])[0].numpy()
    rules = LogitsRules(GenerateParams(10), END, [2], target, 10)
    np.testing.assert_array_equal(rules.apply(scores, ids), wanted)
    assert rules.forces_end(made) == (made == 9)
    free = LogitsRules(GenerateParams(10, ignore_stop=True), NO_END, [2], target, 10)
    assert np.isfinite(free.apply(scores, [5] * 9)).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.9), (1.7, 0.5), (1.0, 1e-6), (0.2, 0.99)])
def test_sampling_draws_from_the_probabilities_of_transformers(seed: int, temperature: float, top_p: float) -> None:
    scores = scores_of(seed, 301)
    if seed % 4 == 0:
        scores[::3] = -np.inf  # what rules forbid
    warped = torch.tensor(scores)[None]
    for warper in (theirs.TemperatureLogitsWarper(temperature), theirs.TopPLogitsWarper(top_p)):
        warped = warper(None, warped)
    wanted = warped.double().softmax(-1)[0].numpy()
    order, summed = nucleus(scores, temperature, top_p)
    found = np.zeros(len(scores))
    found[order] = np.diff(summed, prepend=0.0) / summed[-1]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_draws_follow_the_probabilities_and_the_rules() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    params = GenerateParams(4000, temperature=1.0, seed=1)
    answer = Answer([0], params, end_ids=NO_END, context_length=9999, decode=lambda ids: "")
    for _ in range(4000):
        answer.take(scores)
    np.testing.assert_allclose(np.bincount(answer.ids) / 4000, [0.5, 0.3, 0.2], atol=0.03)
    ruled = Answer(
        [0], GenerateParams(9, temperature=1.0, min_new_tokens=9), end_ids=frozenset({0}), context_length=99,
        decode=lambda ids: "",
    )  # fmt: skip
    for _ in range(9):
        ruled.take(scores)
    assert 0 not in ruled.ids
    assert ruled.stop == "length"


def test_a_forced_end_counts_as_reaching_the_limit() -> None:
    target = TargetFormat(start_id=2, most_tokens=3, forced_eos_id=2)
    answer = Answer(
        [4], GenerateParams(), end_ids=frozenset({2}), context_length=1, decode=lambda ids: "", target=target
    )
    while answer.stop is None:
        answer.take(np.arange(VOCAB, dtype=np.float32))
    assert (answer.ids, answer.stop) == ([22, 22], "length")


def table_model(seed: int, vocab: int) -> np.ndarray:
    """Log-probabilities of the next token by the last two, float32 [vocab + 1, vocab + 1, vocab]."""
    raw = np.random.default_rng(seed).normal(0, 1.5, (vocab + 1, vocab + 1, vocab)).astype(np.float32)
    return raw - np.log(np.exp(raw).sum(-1, keepdims=True))


def run_beams(table: np.ndarray, params: GenerateParams, most: int) -> tuple[int, ...]:
    blank = table.shape[0] - 1
    search = BeamSearch(params, LogitsRules(params, frozenset({0}), [], None, most), frozenset({0}), most)
    histories: list[tuple[int, ...]] = [()] * params.num_beams
    while not search.over:
        parents = search.advance(np.stack([table[(blank, blank, *ids)[-2:]] for ids in histories]))
        histories = [(*histories[parent], token) for parent, token in zip(parents, search.tokens, strict=True)]
    return search.ids


@pytest.mark.parametrize("seed", range(12))
def test_enough_beams_find_the_best_of_all_answers(seed: int) -> None:
    """Without a length penalty sums only fall, so that the search may stop early and still be exhaustive."""
    vocab, most = 3, 4
    table = table_model(seed, vocab)
    params = GenerateParams(most, num_beams=vocab**most, length_penalty=0.0)

    def worth(ids: tuple[int, ...]) -> float:
        padded = (vocab, vocab, *ids)
        return sum(float(table[padded[i], padded[i + 1], token]) for i, token in enumerate(ids))

    every = {ids[: ids.index(0) + 1] if 0 in ids else ids for ids in product(range(vocab), repeat=most)}
    assert run_beams(table, params, most) == max(every, key=worth)


@pytest.mark.parametrize("seed", range(6))
def test_one_beam_is_greedy(seed: int) -> None:
    table = table_model(seed, 6)
    answer = Answer([0], GenerateParams(9), end_ids=frozenset({0}), context_length=99, decode=lambda ids: "")
    while answer.stop is None:
        answer.take(table[tuple((6, 6, *answer.ids)[-2:])])
    found = run_beams(table, GenerateParams(9, num_beams=1), 9)
    assert [token for token in found if token] == answer.ids


def test_params_that_make_no_sense_or_cannot_be_done_are_refused() -> None:
    for params, says in (
        (GenerateParams(num_beams=0), "num_beams must be at least 1"),
        (GenerateParams(num_beams=2), "no beam search"),
        (GenerateParams(repetition_penalty=0.0), "repetition_penalty must be over 0"),
        (GenerateParams(no_repeat_ngram_size=-1), "not negative"),
    ):
        with pytest.raises(AssayError, match=says):
            check_params(params)
    check_params(GenerateParams(num_beams=2), beams=True)
    for params in (
        GenerateParams(num_beams=2, temperature=1.0),
        GenerateParams(num_beams=2, stop=("x",)),
        GenerateParams(num_beams=2, ignore_stop=True),
    ):
        with pytest.raises(AssayError, match="neither with sampling"):
            check_params(params, beams=True)


def test_logits_that_are_not_finite_end_the_search() -> None:
    params = GenerateParams(4, num_beams=2)
    search = BeamSearch(params, LogitsRules(params, END, [], None, 4), END, 4)
    with pytest.raises(AssayError, match="not finite"):
        search.advance(np.full((2, VOCAB), np.nan, np.float32))
