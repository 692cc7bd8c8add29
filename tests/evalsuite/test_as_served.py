"""Summaries are judged as they will be served: with the recipe's beams and penalties, in torch and in ONNX alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import evalsuite.scorer
from contract.artifact import Parent, new_artifact, open_artifact
from contract.recipe import Recipe
from contract.runtime import GenerateParams
from evalsuite.evaluate import evaluate
from runtimes import load_runtime
from tests.evalsuite.chain import examples
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

WRITES = {"max_new_tokens": 10, "num_beams": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 4}


def test_beams_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evalsuite.scorer, "bertscore_available", lambda: False)
    recipe = Recipe.model_validate(
        {"name": "t", "model": {"base": "x"}, "prompt": {"user": "summarize: {document}"}, "generate": WRITES}
    )
    details = {"prompt": recipe.prompt.spec().as_dict(), "generate": recipe.generate.recorded()}
    with new_artifact(tmp_path / "merged", "merged", "t5", details=details) as draft:
        shutil.copytree(make_t5(tmp_path / "t5"), draft.path, dirs_exist_ok=True)
    merged = draft.finished
    graphs = export_folder(merged.path, tmp_path / "graphs", seq2seq=True)
    parent = Parent("merged", str(merged.path), merged.digest)
    details = {**details, "precision": "fp32"}
    with new_artifact(tmp_path / "fp32", "onnx", "t5", parents=[parent], details=details) as draft:
        shutil.copytree(graphs, draft.path, dirs_exist_ok=True)
    some = examples(3)
    evaluate([merged, draft.finished], some, tmp_path / "eval", recipe=recipe, threads=1, speed=False)
    spec, params = recipe.prompt.spec(), GenerateParams.recorded(merged.details)
    assert params == recipe.generate.params()
    runtime = load_runtime(open_artifact(tmp_path / "fp32"), threads=1)
    prompts = [runtime.encode(spec.messages(example.document)) for example in some]
    written = [completion.text for completion in runtime.generate(prompts, params)]
    greedy = [completion.text for completion in runtime.generate(prompts, GenerateParams(10))]
    assert written != greedy
    found = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert found["generate"] == {"num_beams": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 4}
    report = (tmp_path / "eval" / "report.html").read_text()
    assert "At most 10 new tokens, num_beams 2, no_repeat_ngram_size 2" in report
    for label in ("merged", "onnx-fp32"):
        rows = (tmp_path / "eval" / "predictions" / f"{label}.jsonl").read_text().splitlines()
        assert [json.loads(row)["prediction"] for row in rows] == written
