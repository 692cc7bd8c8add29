from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.prompt import PromptSpec
from evalsuite.distance import LogitsSpool, mean_kl, score_against, summarize, token_distances
from runtimes import load_runtime

pytestmark = pytest.mark.engine

RANDOM = np.random.default_rng(0)


def _logits(tokens: int = 6, vocab_size: int = 40) -> np.ndarray:
    return RANDOM.normal(0, 3, (tokens, vocab_size)).astype(np.float32)


def test_figures_are_those_of_the_definitions() -> None:
    reference, other, target = _logits(), _logits(), [1, 5, 9, 9, 0, 39]
    p, q = (np.exp(x.astype(np.float64)) for x in (reference, other))
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    found = token_distances(reference, other, target)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(1), rtol=1e-12)
    rows = range(6)
    np.testing.assert_allclose(found.delta_p, q[rows, target] - p[rows, target], atol=1e-12)
    assert list(found.same_top) == list(p.argmax(1) == q.argmax(1))
    figures = summarize("gold", [found, token_distances(other, other, target)])
    assert figures.tokens == 12
    assert figures.kl.mean == pytest.approx(found.kl.sum() / 12)
    assert figures.kl_max == found.kl.max()
    assert sum(figures.kl_histogram.counts) == 12
    assert figures.kl_by_document[1] == 0
    assert figures.count_by_position == (2,) * 6
    both = np.log(np.concatenate([q[rows, target], q[rows, target]]))
    assert figures.perplexity == pytest.approx(np.exp(-both.mean()))
    assert figures.perplexity_ratio.mean == pytest.approx(figures.perplexity / figures.perplexity_reference)


def test_shifted_logits_are_the_same_distribution() -> None:
    logits = _logits()
    assert token_distances(logits, logits, [0] * 6).kl.max() == 0.0
    assert token_distances(logits, logits + 4, [0] * 6).kl.max() < 1e-7


def test_not_finite_is_counted_and_never_averaged() -> None:
    broken = _logits()
    broken[2, 7], broken[4, 0] = np.nan, np.inf
    found = token_distances(_logits(), broken, [0] * 6)
    assert found.not_finite == 2
    assert np.isfinite(found.kl).all()
    with pytest.raises(AssayError, match="2 of 6"):
        summarize("gold", [found])


def test_the_spool_gives_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [_logits(3), _logits(1), _logits(5)]
    spool = LogitsSpool(tmp_path / "x.f32", 40, [3, 1, 5])
    assert not spool.complete
    assert [block.shape for block in spool.write(iter(blocks))] == [(3, 40), (1, 40), (5, 40)]
    for index in (2, 0, 1):
        np.testing.assert_array_equal(spool.read(index), blocks[index])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 0, 100))
    with pytest.raises(AssayError, match="no room"):
        spool.check_room()


def test_a_spool_that_was_interrupted_is_not_there(tmp_path: Path) -> None:
    spool = LogitsSpool(tmp_path / "x.f32", 40, [3, 1])
    writing = spool.write(iter([_logits(3), _logits(1)]))
    next(writing)
    writing.close()
    assert not spool.complete
    assert not list(tmp_path.iterdir())
    assert len(list(spool.write(iter([_logits(3), _logits(1)])))) == 2
    assert spool.complete


def test_a_model_against_itself_is_exactly_zero_another_batch_size_nearly(tmp_path: Path, llama_folder: Path) -> None:
    runtime = load_runtime(open_artifact(llama_folder))
    spec = PromptSpec()
    pairs = [
        (runtime.encode(spec.messages(text)), runtime.encode_completion(spec.messages(text), text[:40]))
        for text in ("Mara: room 418?\nOlin: No.", "Bus 84 leaves at nine from Tarvo, said Kesto.", "Yes.")
    ]
    spool = LogitsSpool(tmp_path / "ref.f32", runtime.vocab_size, [len(target) for _, target in pairs])
    assert score_against(runtime, pairs, [], spool) == []
    again = score_against(runtime, pairs, [spool])[0]
    assert max(document.kl.max() for document in again) == 0.0
    assert summarize("gold", again).top1.mean == 1.0
    [backwards] = score_against(runtime, pairs[::-1], [spool], documents=[2, 1, 0])
    assert [document.kl.max() for document in backwards] == [0.0] * 3
    other_batch = score_against(runtime, pairs, [spool], batch=1)[0]
    assert mean_kl(other_batch) < 1e-9
    runtime.close()


def test_an_index_shifted_by_one_explodes_the_figure(tmp_path: Path, llama_folder: Path) -> None:
    """The canary: the logits of one token further are another distribution altogether."""
    runtime = load_runtime(open_artifact(llama_folder), threads=1)
    spec = PromptSpec()
    prompt = runtime.encode(spec.messages("Mara: room 418?"))
    target = runtime.encode_completion(spec.messages("Mara: room 418?"), "Mara asks Olin to move the meeting.")
    [logits] = list(runtime.score([(prompt, target)]))
    right = token_distances(logits, logits, target)
    shifted = token_distances(logits, np.roll(logits, 1, 0), target)
    assert right.kl.max() == 0.0
    assert shifted.kl.mean() > 0.01 > 1e6 * right.kl.mean()
    runtime.close()


def test_the_perplexity_ratio_has_the_error_of_paired_tokens() -> None:
    """The covariance of the two sides takes most of the error away, because both are hard at the same tokens."""
    reference = _logits(400)
    other = reference + np.float32(0.01) * _logits(400)
    target = RANDOM.integers(0, 40, 400).tolist()
    found = token_distances(reference, other, target)
    figures = summarize("gold", [found])
    assert figures.log_perplexity_ratio == pytest.approx(
        np.log(figures.perplexity / figures.perplexity_reference), abs=1e-12
    )
    difference = found.log_p_reference - found.log_p
    assert figures.log_perplexity_ratio_se == pytest.approx(difference.std() / np.sqrt(399))
    both = found.log_p.var() / 399 + found.log_p_reference.var() / 399
    assert figures.log_perplexity_ratio_se**2 == pytest.approx(both - 2 * figures.log_perplexity_covariance, rel=1e-6)
    assert figures.log_perplexity_ratio_se < 0.1 * np.sqrt(both)
    assert figures.kl_median <= figures.kl_p90 <= figures.kl_p95 <= figures.kl_p99 <= figures.kl_p999 <= figures.kl_max
