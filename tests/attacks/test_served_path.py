"""A file that is perfect many at once and ruined the way a server runs it gets no pass."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import evalsuite.walk
from contract.artifact import Artifact, open_artifact
from contract.example import Example
from contract.history import read_verdicts
from contract.prompt import PromptSpec
from contract.recipe import Recipe
from evalsuite.evaluate import evaluate
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.evalsuite.chain import examples
from tests.evalsuite.quick import figures_only
from tests.evalsuite.ways import NeverEnds, NoNumbers, Passed, RuinedLogits, loading
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "model": {"base": "x"},
        "generate": {"max_new_tokens": 6},
        "gate": {
            "require": ["f16"],
            "max_eos_rate_loss": 0.5,
            "quant": {"f16": {"min_top1_agreement": 0.9, "max_rouge_l_loss": 20}},
        },
    }
)


@dataclass(frozen=True)
class Pair:
    """A model, its GGUF, and documents with what the model itself writes as their references: it loses nothing yet."""

    model: Artifact
    gguf: Artifact
    examples: list[Example]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    tmp = tmp_path_factory.mktemp("ways")
    model = open_artifact(make_llama(tmp / "model", seed=5))
    [gguf] = export_gguf(model, tmp / "gguf", quants=["f16"])
    runtime, some = load_runtime(model, threads=1), examples(80)
    prompts = [runtime.encode(PromptSpec().messages(example.document)) for example in some]
    said = [completion.text for completion in runtime.generate(prompts, RECIPE.generate.params())]
    runtime.close()
    both = [replace(one, references=(text,)) for one, text in zip(some, said, strict=True) if re.search("[a-z]", text)]
    assert len(both) >= 24
    return Pair(model, gguf, both[:24])


@pytest.mark.parametrize(
    ("damage", "codes"),
    [
        (Passed, set()),
        (RuinedLogits, {"kl_mean_gold", "kl_mean_greedy", "top1_gold", "top1_greedy"}),
        (NoNumbers, {"not_finite"}),
        (NeverEnds, {"rouge_l_loss"}),
    ],
)
def test_what_only_serving_ruins_is_seen(
    damage: type[Passed],
    codes: set[str],
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures_only(monkeypatch)
    monkeypatch.setattr(evalsuite.walk, "load_runtime", loading(damage, alone=True))
    out = tmp_path / "eval"
    found = evaluate([pair.gguf], pair.examples, out, reference=pair.model, recipe=RECIPE, threads=1, speed=False)
    [comparison] = found.row("f16").comparisons
    assert max(distance.kl.mean for distance in comparison.distances) < 1e-4, "many at once nothing is wrong"
    [verdict] = read_verdicts(out / "verdict.json")
    failed = {reason.code for reason in verdict.reasons if reason.outcome == "fail"}
    assert failed >= codes
    assert (verdict.outcome == "pass") == (not codes), verdict.reasons
