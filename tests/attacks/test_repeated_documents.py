"""Attack: one document many times, so that a few measurements look like many and intervals are narrow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.example import Example, write_examples
from contract.history import read_verdicts
from contract.recipe import Recipe
from contract.verdict import VERDICT_FILE
from evalsuite.cli import eval_command
from evalsuite.evaluate import evaluate
from evalsuite.results import read_results
from export.to_gguf import export_gguf
from flow.choose_quant import choose_quant
from flow.quant_limits import Limits
from flow.train_cli import data
from serve.proof import UnprovenError, refuse_unproven
from tests.evalsuite.chain import examples
from tests.evalsuite.quick import figures_only
from tests.tiny import write_jsonl
from trainer.data import load_splits

pytestmark = pytest.mark.engine

# Limits that the artifact keeps by far: only the number of documents can keep it from passing.
RECIPE = """
name: t
model: {base: x}
generate: {max_new_tokens: 4}
gate:
  require: [f16]
  max_eos_rate_loss: 0.5
  quant: {f16: {max_kl_nats: 1, min_top1_agreement: 0.3, max_perplexity_ratio: 9, max_rouge_l_loss: 20}}
"""


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Artifact:
    """A faithful export: what it is judged on is the attack."""
    [made] = export_gguf(open_artifact(llama_folder), tmp_path_factory.mktemp("gguf"), quants=["f16"])
    return made


@pytest.fixture
def assess(
    tmp_path: Path, f16: Artifact, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Any, str]]:
    """`assay eval` of the export on these rows: exit code, the JSON it prints, and stderr."""
    figures_only(monkeypatch)
    monkeypatch.setattr("evalsuite.evaluate._speed", lambda *_: None)

    def run(rows: list[dict[str, Any]], *options: str) -> tuple[int, Any, str]:
        source = write_jsonl(tmp_path / "data.jsonl", rows)
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        arguments = [str(f16.path), "--reference", str(llama_folder), "--data", str(source), "--threads", "1"]
        arguments += ["--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "eval"), "--json", *options]
        done = CliRunner(catch_exceptions=False).invoke(eval_command, arguments)
        return done.exit_code, json.loads(done.stdout), done.stderr

    return run


def _row(example: Example, row_id: str, document: str | None = None, summary: str | None = None) -> dict[str, Any]:
    return {
        "id": row_id,
        "document": document or example.document,
        "summary": summary or example.references[0],
    }


def _looks(document: str, at: int) -> str:
    """The same words in the same order, another copy for each number."""
    words = (document.replace(":", " :") if at % 5 == 0 else document).split(" ")
    words[at % len(words)] = words[at % len(words)].upper()
    return "\u200b" * (at % 3) + ("  " if at % 2 else "\n").join(words) + "\r\n" * (at % 4)


ONE = examples(1)[0]
ATTACKS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "ids differ": ([_row(ONE, f"d{at}") for at in range(24)], []),
    "one id": ([_row(ONE, "d") for _ in range(24)], []),
    "other summaries": ([_row(ONE, f"d{at}", summary=f"They talk, {at}.") for at in range(24)], []),
    "case and white space differ": ([_row(ONE, f"d{at}", _looks(ONE.document, at)) for at in range(24)], []),
    "a limit": ([_row(ONE, f"d{at}") for at in range(24)], ["--limit", "20"]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_copies_of_one_document_are_one_document(
    assess: Callable[..., tuple[int, Any, str]], f16: Artifact, attack: str
) -> None:
    rows, options = ATTACKS[attack]
    code, said, _ = assess(rows, *options)
    assert code == 1
    assert said["proven"] is False
    assert (said["results"]["data"]["documents"], said["results"]["data"]["rows"]) == (1, 24)
    [verdict] = said["verdicts"]
    assert verdict["outcome"] == "inconclusive"
    assert "too_few_documents" in [reason["code"] for reason in verdict["reasons"]]
    with pytest.raises(UnprovenError):
        refuse_unproven(f16)


def test_as_many_documents_are_not_too_few(assess: Callable[..., tuple[int, Any, str]]) -> None:
    """What keeps the export from passing above is the copies, nothing else."""
    _, said, stderr = assess([_row(each, each.id) for each in examples(24)])
    assert said["results"]["data"]["documents"] == 24
    assert "too_few_documents" not in [reason["code"] for verdict in said["verdicts"] for reason in verdict["reasons"]]
    assert "nearly another one" not in stderr


def test_a_limit_takes_documents_so_copies_cannot_fill_it(assess: Callable[..., tuple[int, Any, str]]) -> None:
    rows = [_row(each, f"{each.id}_{at}", summary=f"Copy {at}.") for at in range(3) for each in examples(4)]
    _, said, _ = assess(rows, "--limit", "3")
    assert (said["results"]["data"]["documents"], said["results"]["data"]["rows"]) == (3, 9)


def test_intervals_resample_documents_not_rows(
    tmp_path: Path, f16: Artifact, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document five times is as much evidence as every document once."""
    figures_only(monkeypatch)
    recipe = Recipe.model_validate({"name": "t", "model": {"base": "x"}, "generate": {"max_new_tokens": 4}})
    found = {}
    for copies in (1, 5):
        rows = [replace(each, id=f"{each.id}_{at}") for each in examples(6) for at in range(copies)]
        made = evaluate(
            [f16],
            rows,
            tmp_path / str(copies),
            reference=open_artifact(llama_folder),
            recipe=recipe,
            threads=1,
            speed=False,
        )
        found[copies] = made.row("f16").comparisons[0].distances
        assert made.data.documents == 6
    assert [distance.kl for distance in found[1]] == [distance.kl for distance in found[5]]


def test_a_run_takes_copies_for_one_document(
    tmp_path: Path, f16: Artifact, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures_only(monkeypatch)
    for name, rows in (("train", examples(12)[4:]), ("valid", examples(4)[1:])):
        write_examples(tmp_path / f"{name}.jsonl", rows)
    copies = [_row(ONE, f"t{at}", _looks(ONE.document, at), f"Summary {at}.") for at in range(24)]
    write_jsonl(tmp_path / "test.jsonl", copies)
    recipe = Recipe.model_validate(
        {"name": "t", "model": {"base": str(llama_folder)}, "generate": {"max_new_tokens": 4}}
    )
    splits = load_splits(recipe, str(tmp_path))
    assert [example.id for example in splits.test] == ["t0"]
    assert len(splits.test[0].references) == 24
    out = tmp_path / "eval"
    evaluate([f16], splits.test, out, reference=open_artifact(llama_folder), recipe=recipe, threads=1, speed=False)
    [verdict] = read_verdicts(out / VERDICT_FILE)
    assert verdict.outcome == "inconclusive"
    assert "too_few_documents" in [reason.code for reason in verdict.reasons]
    assert read_results(out).data.rows == 24

    (tmp_path / "recipe.yaml").write_text(f"name: t\nmodel: {{base: {llama_folder}}}\ntrain: {{max_length: 256}}\n")
    said = CliRunner(catch_exceptions=False).invoke(data, [str(tmp_path / "recipe.yaml"), "--data", str(tmp_path)])
    assert "test: 24 rows of 1 document" in said.stdout


def test_a_type_is_not_chosen_on_copies(tmp_path: Path, llama_folder: Path) -> None:
    copies = [replace(ONE, id=f"d{at}", document=_looks(ONE.document, at)) for at in range(24)]
    with pytest.raises(AssayError, match="too few documents") as refusal:
        choose_quant(open_artifact(llama_folder), copies, tmp_path / "out", limits=Limits(kl_nats=1.0))
    assert "got: 1 document" in str(refusal.value)


def _nearly_one(count: int) -> list[dict[str, Any]]:
    """Thirty words of small talk in front of which one word differs."""
    talk = " ".join(f"word{n}" for n in range(30))
    return [_row(ONE, f"n{at}", f"Take {at}. {talk}") for at in range(count)]


def test_near_duplicates_are_reported(
    assess: Callable[..., tuple[int, Any, str]], tmp_path: Path, llama_folder: Path
) -> None:
    _, said, stderr = assess(_nearly_one(30))
    found = said["results"]["data"]
    assert (found["documents"], found["near_duplicates"], len(found["nearest"])) == (30, 29, 20)
    assert found["nearest"][0] == {"id": "n1", "other_id": "n0", "jaccard": pytest.approx(23 / 27, abs=1e-4)}
    assert "29 of 30 documents are nearly another one: n1 (as n0, 0.85)" in stderr

    for name, rows in (("train", examples(12)[4:]), ("valid", examples(4)[1:])):
        write_examples(tmp_path / f"{name}.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", _nearly_one(30))
    (tmp_path / "r.yaml").write_text(f"name: t\nmodel: {{base: {llama_folder}}}\ntrain: {{max_length: 256}}\n")
    arguments = [str(tmp_path / "r.yaml"), "--data", str(tmp_path)]
    told = CliRunner(catch_exceptions=False).invoke(data, arguments).stdout
    assert "Nearly another document of test, kept: 29 of 30: n1 (as n0, 0.85)" in told
    near = json.loads(CliRunner(catch_exceptions=False).invoke(data, [*arguments, "--json"]).stdout)["near"]
    assert len(near) == 29
    assert near[0] == {"split": "test", "id": "n1", "other_id": "n0", "jaccard": pytest.approx(23 / 27, abs=1e-4)}
