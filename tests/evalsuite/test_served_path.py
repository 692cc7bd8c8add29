"""A GGUF is judged the way it is served: one text at a time, token by token, and only on what serving takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import evalsuite.walk
from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.example import Example
from contract.history import read_verdicts
from contract.recipe import Recipe
from contract.runtime import Completion, GenerateParams
from contract.verdict import Verdict
from evalsuite.evaluate import evaluate
from evalsuite.fit import fits, recorded_context
from evalsuite.results import Results, read_results
from evalsuite.served_path import spread
from export.to_gguf import export_gguf
from runtimes import load_runtime
from serve.fit import DoesNotFitError, answer_tokens
from tests.evalsuite.chain import edit_gguf, examples, remake
from tests.evalsuite.quick import figures_only
from tests.evalsuite.ways import Blurred, loading
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

MOST = 10
LIMITS: dict[str, float] = {
    "min_top1_agreement": 0.3,
    "max_kl_nats": 1.0,
    "max_perplexity_ratio": 2.0,
    "max_rouge_l_loss": 20,
}
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "model": {"base": "x"},
        "generate": {"max_new_tokens": MOST},
        "gate": {
            "require": ["f16"],
            "max_eos_rate_loss": 0.5,
            "quant": {
                "f16": {"max_kl_nats": 1e-4, "min_top1_agreement": 0.9, "max_rouge_l_loss": 20},
                "q8_0": LIMITS,
                "q4_k_m": LIMITS,
            },
        },
    }
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    figures_only(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(make_llama(tmp_path_factory.mktemp("served") / "model", seed=5))


@pytest.fixture(scope="module")
def made(model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    quants = ["f16", "q8_0", "q4_k_m"]
    files = export_gguf(model, tmp_path_factory.mktemp("made") / "gguf", quants=quants)  # type: ignore[arg-type]
    return dict(zip(quants, files, strict=True))


def run(
    artifacts: Sequence[Artifact], out: Path, model: Artifact | None, some: Sequence[Example] | None = None
) -> tuple[Results, dict[str, Verdict]]:
    found = evaluate(artifacts, some or examples(), out, reference=model, recipe=RECIPE, threads=1, speed=False)
    assert read_results(out) == found
    return found, {verdict.label: verdict for verdict in read_verdicts(out / "verdict.json")}


def texts(out: Path, label: str) -> list[str]:
    lines = (out / "predictions" / f"{label}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def as_served(artifact: Artifact, model: Artifact, some: Sequence[Example]) -> list[str]:
    """What `assay serve` would answer."""
    from contract.artifact_prompt import prompt_of

    runtime = load_runtime(artifact, threads=1, parallel=1)
    said = []
    for example in some:
        prompt = runtime.encode(prompt_of(model).messages(example.document))
        *_, completion = runtime.stream(prompt, GenerateParams(max_new_tokens=MOST))
        assert isinstance(completion, Completion)
        said.append(completion.text.strip())
    runtime.close()
    return said


def test_documents_of_all_lengths_are_chosen_and_always_the_same() -> None:
    prompts = [[0] * (1 + (7 * index) % 300) for index in range(300)]
    chosen = spread(prompts)
    assert chosen == spread(prompts) == tuple(sorted(set(chosen)))
    lengths = sorted(len(prompts[index]) for index in chosen)
    assert (len(lengths), lengths[0], lengths[-1]) == (32, 1, 300)
    assert all(8 <= b - a <= 11 for a, b in pairwise(lengths))
    assert spread(prompts[:5]) == (0, 1, 2, 3, 4)
    assert spread(prompts[:1]) == (0,)


def test_what_is_served_is_written_and_scored_one_at_a_time(
    made: dict[str, Artifact], model: Artifact, tmp_path: Path
) -> None:
    some = examples(36)
    found, verdicts = run(list(made.values()), tmp_path / "eval", model, some)
    for label in ("f16", "q8_0", "q4_k_m"):
        [comparison] = found.row(label).comparisons
        path = comparison.served_path
        assert path is not None
        assert path.documents == 32
        assert [noise.target_set for noise in path.noise] == ["gold", "greedy"]
        for noise in path.noise:
            assert noise.served.documents == noise.batched.documents == 32
            assert noise.served.tokens == noise.batched.tokens
            assert noise.reference_noise_kl is None, "a model that nothing is merged into has none measured"
            assert noise.served.kl.mean == pytest.approx(noise.batched.kl.mean, rel=0.2)
        assert all(distance.documents == len(some) for distance in path.distances)
        assert texts(tmp_path / "eval", label) == as_served(made[label], model, some)
        [told] = [reason for reason in verdicts[label].reasons if reason.code == "served_path"]
        assert (told.outcome, told.n) == ("pass", 32)
    assert found.row("merged").comparisons == ()


def test_many_at_once_gone_wrong_does_no_harm(
    made: dict[str, Artifact], model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server never computes is neither held against a file nor lets its summaries be spliced."""
    monkeypatch.setattr(evalsuite.walk, "load_runtime", loading(Blurred, alone=False))
    found, verdicts = run([made["f16"]], tmp_path / "eval", model)
    [comparison] = found.row("f16").comparisons
    assert min(distance.kl.mean for distance in comparison.distances) > 0.1
    reasons = {reason.code: reason for reason in verdicts["f16"].reasons}
    assert reasons["kl_mean_gold"].outcome == reasons["kl_mean_greedy"].outcome == "pass"
    assert "as it is served, one text at a time" in reasons["kl_mean_gold"].text
    path = comparison.served_path
    assert path is not None
    assert path.texts_differ
    assert "so all were written one at a time" in reasons["served_path"].text
    assert verdicts["f16"].outcome == "pass", verdicts["f16"].reasons
    assert texts(tmp_path / "eval", "f16") == as_served(made["f16"], model, examples())


def test_what_was_found_is_found_again(
    made: dict[str, Artifact], model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run([made["q8_0"]], tmp_path / "eval", model)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is loaded again")

    monkeypatch.setattr(evalsuite.walk, "load_runtime", refuse)
    again, _ = run([made["q8_0"]], tmp_path / "eval", model)
    assert again.rows == first.rows


@pytest.mark.parametrize("target_length", [None, 5])
def test_what_fits_is_what_the_server_takes(target_length: int | None) -> None:
    """An answer of the artifact's own length: an encoder-decoder writes no more than its decoder holds."""
    for prompt in range(1, 14):
        for most in range(1, 14):
            own = GenerateParams(most).within(target_length).max_new_tokens
            try:
                taken = answer_tokens(prompt, own, 12, target_length) == own
            except DoesNotFitError:
                taken = False
            assert fits(prompt, 1, most, 12, target_length) == taken, (prompt, most)
    assert not fits(6, 7, 2, 12, None), "a reference summary that leaves no room"
    assert not fits(6, 6, 2, 12, 5)


LONG = Example("long", "\n".join(f"Mara: line number {index}, Olin." for index in range(200)), ("Mara counts.",))
WORDY = Example("wordy", "Mara: hi.", ("Mara counts to a hundred and never stops. " * 200,))


def test_what_serving_refuses_is_counted_and_not_judged(
    made: dict[str, Artifact], model: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [LONG, *examples(24), WORDY]
    found, verdicts = run([made["f16"]], tmp_path / "eval", model, some)
    assert (found.data.documents, found.data.too_long) == (24, ("long", "wordy"))
    assert "2 of 26 documents are too long to be served" in capsys.readouterr().err
    for label in ("merged", "f16"):
        assert len(texts(tmp_path / "eval", label)) == found.row(label).task.rougeL.n == 24
    assert verdicts["f16"].outcome == "pass", verdicts["f16"].reasons
    [told] = [reason for reason in verdicts["f16"].reasons if reason.code == "documents_too_long"]
    assert told.text == "24 of 26 documents were judged: 2 are too long to be served"
    whole, _ = run([made["f16"]], tmp_path / "whole", model, examples(24))
    assert whole.rows == found.rows
    assert whole.data.sha256 != found.data.sha256


def test_the_shortest_context_counts_for_all(made: dict[str, Artifact], model: Artifact, tmp_path: Path) -> None:
    def cut(key: str, value: object) -> object:
        return 64 if key == "llama.context_length" else value

    short = remake(
        made["q8_0"], tmp_path / "short", lambda folder: edit_gguf(next(folder.glob("*.gguf")), metadata=cut)
    )
    assert (recorded_context(made["q8_0"]), recorded_context(short), recorded_context(model)) == (512, 64, 512)
    some = [Example(f"s{index}", f"Mara: bus {index}.", ("Bus.",)) for index in range(9)]
    found, verdicts = run([made["f16"], short], tmp_path / "eval", model, [*some, *examples(10)])
    assert found.data.documents == 9
    assert found.data.too_long == tuple(f"d{index}" for index in range(10))
    for label in ("f16", "q8_0"):
        reasons = {reason.code: reason.outcome for reason in verdicts[label].reasons}
        assert reasons["documents_too_long"] == "inconclusive"
        assert verdicts[label].outcome != "pass"


@pytest.mark.parametrize("alone", [True, False])
def test_where_nothing_fits_there_is_no_evaluation(
    alone: bool, made: dict[str, Artifact], model: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(AssayError, match="no document fits the context") as raised:
        run([made["f16"]], tmp_path / "eval", None if alone else model, [LONG, WORDY])
    assert raised.value.exit_code == 2
    assert not (tmp_path / "eval" / "metrics.json").exists()
