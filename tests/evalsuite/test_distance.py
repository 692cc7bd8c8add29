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
    spool = LogitsSpool(tmp_path / "x.f32", 40)
    assert [block.shape for block in spool.write(iter(blocks), 9)] == [(3, 40), (1, 40), (5, 40)]
    for index in (2, 0, 1):
        np.testing.assert_array_equal(spool.read(index), blocks[index])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 0, 100))
    with pytest.raises(AssayError, match="no room"):
        spool.check_room(9)


def test_a_model_against_itself_is_exactly_zero_another_batch_size_nearly(tmp_path: Path, llama_folder: Path) -> None:
    runtime = load_runtime(open_artifact(llama_folder))
    spec = PromptSpec()
    pairs = [
        (runtime.encode(spec.messages(text)), runtime.encode_completion(spec.messages(text), text[:40]))
        for text in ("Mara: room 418?\nOlin: No.", "Bus 84 leaves at nine from Tarvo, said Kesto.", "Yes.")
    ]
    spool = LogitsSpool(tmp_path / "ref.f32", runtime.vocab_size)
    assert score_against(runtime, pairs, [], spool) == []
    again = score_against(runtime, pairs, [spool])[0]
    assert max(document.kl.max() for document in again) == 0.0
    assert summarize("gold", again).top1.mean == 1.0
    other_batch = score_against(runtime, pairs, [spool], batch=1)[0]
    assert mean_kl(other_batch) < 1e-9
    runtime.close()
