"""Encoder-decoder models in the same evaluation: a faithful merge passes, and each damage is told for what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.history import read_verdicts
from contract.prompt import PromptSpec
from contract.recipe import Recipe
from contract.runtime import GenerateParams
from contract.verdict import Verdict
from evalsuite.evaluate import evaluate
from evalsuite.results import Results
from evalsuite.speed import _measure
from export.merge import merge_adapter
from runtimes import load_runtime
from tests.evalsuite.chain import edit_tensors, examples, make_adapter_artifact, remake
from tests.kit.dialogues import ENOUGH, dialogues
from tests.tiny_seq2seq import make_adapter_seq2seq, make_bart, make_t5

pytestmark = pytest.mark.engine

SPEC = PromptSpec(user="summarize: {document}")
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "model": {"base": "x"},
        "prompt": {"user": SPEC.user},
        "generate": {"max_new_tokens": 8},
        "gate": {"require": ["merged"], "max_eos_rate_loss": 0.2},  # a random model's ends hang by a thread
    }
)


def _edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


def _sign(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = next(name for name in sorted(tensors) if name.endswith(("EncDecAttention.o.weight", "out_proj.weight")))
        tensors[name] = -tensors[name]

    edit_tensors(folder, change)


def _start(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        _edit(folder, name, lambda values: values.update(decoder_start_token_id=7))


def _open_ended(folder: Path) -> None:
    """The tokenizer forgets what it puts behind a text."""
    _edit(folder, "tokenizer.json", lambda values: values.update(post_processor=None))


def _untied(folder: Path) -> None:
    """A head of the same weights, which T5 does not scale for any more."""
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["shared.weight"] * 1.0}))
    _edit(folder, "config.json", lambda values: values.update(tie_word_embeddings=False))


def _headless(folder: Path) -> None:
    _edit(folder, "config.json", lambda values: values.update(tie_word_embeddings=False))


def _biased(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update(final_logits_bias=tensors["final_logits_bias"] * 0))


@dataclass(frozen=True)
class Damaged:
    name: str
    do: Callable[[Path], object]
    codes: frozenset[str]  # one of them fails


MERGE = frozenset({"merge_kl_gold", "merge_kl_greedy"})
PROMPTS = frozenset({"prompt_ids_differ"})
BOTH = (
    Damaged("a flipped sign", _sign, MERGE),
    Damaged("another decoder start", _start, MERGE),
    Damaged("nothing behind a text", _open_ended, PROMPTS),
)
DAMAGES = {
    "t5-1.0": (
        *BOTH,
        Damaged("a tied head untied", _untied, frozenset({"not_loadable"})),
        Damaged("a head that is not there", _headless, frozenset({"not_loadable"})),
    ),
    "bart": (*BOTH, Damaged("the final bias lost", _biased, MERGE)),
}


@dataclass(frozen=True)
class Judged:
    base: Path
    adapter: Artifact
    merged: Artifact
    results: Results
    verdicts: dict[str, Verdict]  # by digest
    damaged: dict[str, Artifact]


@pytest.fixture(scope="module", params=list(DAMAGES))
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Everything in one evaluation: references are loaded once."""
    tmp = tmp_path_factory.mktemp("seq2seq")
    base = make_bart(tmp / "base") if request.param == "bart" else make_t5(tmp / "base", v1_1=False)
    peft = make_adapter_seq2seq(tmp / "peft", base)
    plain = make_adapter_artifact(tmp / "plain", base, peft, quant="w16")
    details = {**plain.details, "prompt": SPEC.as_dict()}
    with new_artifact(tmp / "adapter", "adapter", "tiny", parents=plain.manifest.parents, details=details) as draft:
        for record in plain.manifest.files:
            (draft.path / record.path).write_bytes((plain.folder / record.path).read_bytes())
    adapter = draft.finished
    merged = merge_adapter(adapter, tmp / "merged", dtype="bfloat16")
    damaged = {
        damage.name: remake(merged, tmp / damage.name.replace(" ", "-"), damage.do) for damage in DAMAGES[request.param]
    }
    prefixed = {**merged.details, "prompt": PromptSpec(user="summarise: {document}").as_dict()}
    with new_artifact(tmp / "prefix", "merged", "tiny", parents=merged.manifest.parents, details=prefixed) as draft:
        for record in merged.manifest.files:
            (draft.path / record.path).write_bytes((merged.folder / record.path).read_bytes())
        (draft.path / "LICENSE").write_text("A digest is over files, so this makes another.")
    damaged["another task prefix"] = draft.finished
    results = evaluate(
        [adapter, merged, *damaged.values()],
        dialogues(ENOUGH),
        tmp / "eval",
        recipe=RECIPE,
        base=open_artifact(base),
        threads=1,
        speed=False,
    )
    verdicts = {verdict.digest: verdict for verdict in read_verdicts(tmp / "eval" / "verdict.json")}
    return Judged(base, adapter, merged, results, verdicts, damaged)


def _failed(verdict: Verdict) -> set[str]:
    return {reason.code for reason in verdict.reasons if reason.outcome == "fail"}


def test_a_faithful_merge_passes(judged: Judged) -> None:
    verdict = judged.verdicts[judged.merged.digest]
    assert verdict.outcome == "pass", [r for r in verdict.reasons if r.outcome != "pass"]
    codes = {reason.code for reason in verdict.reasons}
    assert {"merge_kl_gold", "merge_kl_greedy", "prompt_ids_differ", "stop_ids_differ"} <= codes


def test_every_damage_is_told_for_what_it_is(judged: Judged) -> None:
    wanted = {damage.name: damage.codes for damage in (*DAMAGES["t5-1.0"], *DAMAGES["bart"])}
    wanted["another task prefix"] = PROMPTS
    for name, artifact in judged.damaged.items():
        verdict = judged.verdicts[artifact.digest]
        assert verdict.outcome == "fail", name
        assert _failed(verdict) & wanted[name], (name, _failed(verdict))
        if wanted[name] == PROMPTS:
            assert not _failed(verdict) & MERGE, name


def test_the_rows_are_those_of_any_model(judged: Judged) -> None:
    rows = {row.label: row for row in judged.results.rows}
    assert {"base", "adapter", "merged"} <= set(rows)
    merged = rows["merged"]
    assert (merged.engine, merged.kind, merged.bits_per_weight) == ("torch", "merged", 16)
    assert rows["base"].comparisons[0].purpose == "training"
    [comparison] = merged.comparisons
    assert comparison.purpose == "merge_fidelity"
    assert comparison.double_bos == 0
    assert {distance.target_set for distance in comparison.distances} == {"gold", "greedy"}


def test_summaries_are_what_the_runtime_writes(judged: Judged) -> None:
    """What scoring showed of them already is not written again, and still is the same."""
    runtime = load_runtime(judged.merged, threads=1)
    prompts = [runtime.encode(SPEC.messages(example.document)) for example in dialogues(ENOUGH)]
    written = runtime.generate(prompts, GenerateParams(max_new_tokens=8))
    runtime.close()
    row = next(row for row in judged.results.rows if row.digest == judged.merged.digest)
    assert row.task.tokens_mean == pytest.approx(sum(len(one.ids) for one in written) / len(written))
    assert row.task.eos_rate == pytest.approx(sum(one.stop == "eos" for one in written) / len(written))


def test_speed_of_a_full_context(judged: Judged) -> None:
    """A prompt as long as the encoder's context leaves all of the answer's room."""
    runtime = load_runtime(judged.merged, threads=1)
    prompt = runtime.encode(SPEC.messages("word " * 600))[: runtime.context_length]
    runtime.close()
    found = _measure(str(judged.merged.path), [prompt], 1)
    assert found.output_tokens == 32


def test_a_base_is_chosen_by_measuring(judged: Judged) -> None:
    from flow.choose_base import choose_base

    choice = choose_base(judged.adapter, examples(4), dtype="float32", threads=1)
    assert choice.base == "w16"
    assert choice.documents == 4
    assert choice.kl["w16"]["mean"] < 1e-6
