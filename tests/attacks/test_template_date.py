"""A chat template is told a day; an artifact that would be asked on another day than it was judged on fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.artifact_prompt import prompt_of
from contract.limits import GatePart
from contract.prompt import PromptSpec
from contract.recipe import Recipe
from evalsuite.evaluate import evaluate
from evalsuite.gate import judge
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.chat_templates import LLAMA
from tests.evalsuite.chain import edit_gguf, examples
from tests.evalsuite.quick import figures_only
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

SPEC = PromptSpec(date="2025-03-02")
OTHER = "2026-12-01"


@dataclass(frozen=True)
class Made:
    """A model whose template asks for the date, and its GGUF."""

    merged: Artifact
    gguf: Artifact


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    tmp = tmp_path_factory.mktemp("dated")
    folder = make_llama(tmp / "llama", dtype="float32")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(LLAMA)
    details = {"prompt": SPEC.as_dict(), "generate": {"max_new_tokens": 4}, "dtype": "float32"}
    with new_artifact(tmp / "merged", "merged", "dated", details=details) as draft:
        shutil.copytree(folder, draft.path, dirs_exist_ok=True)
    [gguf] = export_gguf(draft.finished, tmp / "gguf", quants=["f16"], threads=1)
    return Made(draft.finished, gguf)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    figures_only(monkeypatch)


def forged(made: Made, out: Path, prompt: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Artifact:
    """The GGUF as an artifact of the same lineage that records another prompt (None: the key is gone)."""
    old = made.gguf.manifest
    details = {**old.details, "prompt": prompt(dict(old.details["prompt"]))}
    details = {key: value for key, value in details.items() if value is not None}
    with new_artifact(out, "gguf", old.name, parents=old.parents, details=details) as draft:
        shutil.copyfile(made.gguf.gguf_path, draft.path / made.gguf.gguf_path.name)
    return draft.finished


def prompt_ids_differ(artifact: Artifact, out: Path, made: Made, recipe: Recipe | None = None) -> str:
    """The gate's word on the artifact's prompt ids; the verdict is no better."""
    found = evaluate([artifact], examples(20), out, reference=made.merged, recipe=recipe, threads=1, speed=False)
    [verdict] = [verdict for verdict in judge(found, GatePart()) if verdict.label == "f16"]
    [outcome] = [reason.outcome for reason in verdict.reasons if reason.code == "prompt_ids_differ"]
    assert outcome == "pass" or verdict.outcome == "fail"
    return outcome


def recipe_of(date: str) -> Recipe:
    return Recipe.model_validate(
        {"name": "t", "model": {"base": "x"}, "prompt": {"date": date}, "generate": {"max_new_tokens": 4}}
    )


def test_the_right_day_passes(made: Made, tmp_path: Path) -> None:
    assert prompt_of(made.gguf).date == SPEC.date
    assert prompt_ids_differ(made.gguf, tmp_path / "eval", made) == "pass"
    assert prompt_ids_differ(made.gguf, tmp_path / "by-recipe", made, recipe_of(SPEC.date)) == "pass"


def test_another_day_in_the_manifest_fails(made: Made, tmp_path: Path) -> None:
    artifact = forged(made, tmp_path / "gguf", lambda prompt: {**prompt, "date": OTHER})
    assert prompt_ids_differ(artifact, tmp_path / "eval", made) == "fail"


@pytest.mark.parametrize("kept", ["the other words", "nothing"])
def test_a_day_that_was_taken_out_fails(made: Made, tmp_path: Path, kept: str) -> None:
    """Then the default day is taken; where the whole record is gone, the file's own metadata speaks."""
    artifact = forged(
        made,
        tmp_path / "gguf",
        lambda prompt: {k: v for k, v in prompt.items() if k != "date"} if kept != "nothing" else None,
    )
    outcome = prompt_ids_differ(artifact, tmp_path / "eval", made)
    assert outcome == ("fail" if kept != "nothing" else "pass")
    asked = load_runtime(artifact, threads=1).encode(SPEC.messages("Hi."))
    judged = load_runtime(made.merged, threads=1).encode(SPEC.messages("Hi."))
    assert (asked == judged) == (outcome == "pass"), "what is judged is what would be served"


def test_another_day_in_the_files_metadata_fails(made: Made, tmp_path: Path) -> None:
    bare = Path(shutil.copy(made.gguf.gguf_path, tmp_path / "bare.gguf"))
    words = json.dumps(replace(SPEC, date=OTHER).as_dict())
    edit_gguf(bare, metadata=lambda key, old: words if key == "assay.prompt" else old)
    assert prompt_ids_differ(open_artifact(bare), tmp_path / "eval", made) == "fail"


def test_a_recipe_of_another_day_does_not_make_it_right(made: Made, tmp_path: Path) -> None:
    """Judged on the recipe's day, it would be served on its own."""
    assert prompt_ids_differ(made.gguf, tmp_path / "eval", made, recipe_of(OTHER)) == "fail"


def test_the_exports_own_check_sees_it(made: Made, tmp_path: Path) -> None:
    """A GGUF whose metadata name another day than its source is no artifact."""
    from export.check_failed import CheckFailed
    from export.check_logits import check_logits
    from export.source import open_model

    path = Path(shutil.copy(made.gguf.gguf_path, tmp_path / "x.gguf"))
    words = json.dumps(replace(SPEC, date=OTHER).as_dict())
    edit_gguf(path, metadata=lambda key, old: words if key == "assay.prompt" else old)
    with pytest.raises(CheckFailed, match="other ids"):
        check_logits(open_model(made.merged).source(tmp_path), {"f16": path}, threads=1)
