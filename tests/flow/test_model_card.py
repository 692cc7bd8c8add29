"""The model card: front matter that parses, the evaluation's figures, no path of this machine, no clobbering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.artifact import Artifact, Parent, new_artifact
from export.model_card import model_card
from flow.model_card import CARD_FILE, card_scores, write_card
from tests.evalsuite.made_results import make_results, make_verdicts


def make(folder: Path, kind: Any, *, base: str = "acme/small-1b", **details: Any) -> Artifact:
    """An adapter or a gguf with a lineage of two."""
    with new_artifact(
        folder / "adapter",
        "adapter",
        "mine",
        parents=[Parent("base", base, "b" * 64)],
        data_sha256={"train": "7" * 64},
        tools={"peft": "0.21.1"},
        details={
            "base": base,
            "license": "apache-2.0",
            "train": {"method": "qlora", "learning_rate": 2e-4, "seed": 3},
            "lora": {"rank": 16},
            "prompt": {"user": "Sum up: {document}", "system": "Be brief.", "language": "French"},
            **details,
        },
    ) as draft:
        (draft.path / "adapter_config.json").write_text("{}")
    adapter = draft.finished
    if kind == "adapter":
        return adapter
    with new_artifact(
        folder / "gguf",
        kind,
        "mine",
        parents=[Parent("adapter", str(adapter.path), adapter.digest)],
        tools={"gguf": "0.19.0"},
        details={"quant": "q4_k_m", "bits_per_weight": 4.85, "prompt": adapter.details["prompt"]},
    ) as draft:
        (draft.path / "mine.gguf").write_bytes(b"GGUF")
    return draft.finished


def front_matter(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_front_matter_and_figures(tmp_path: Path) -> None:
    results, verdicts = make_results(), make_verdicts()
    text = model_card({"q4_k_m": make(tmp_path, "gguf")}, title="mine", scores=card_scores(results, verdicts))
    front = front_matter(text)
    assert front["language"] == ["fr"]
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "acme/small-1b"
    assert front["pipeline_tag"] == "summarization"
    assert front["tags"] == ["summarization", "gguf", "llama.cpp", "qlora"]
    [index] = front["model-index"]
    figures = {metric["name"]: metric["value"] for result in index["results"] for metric in result["metrics"]}
    for label in results.require:
        task = results.row(label).task
        assert figures[f"ROUGE-1 ({label})"] == round(task.rouge1.mean, 2)
        assert figures[f"ROUGE-Lsum ({label})"] == round(task.rougeLsum.mean, 2)
    assert len(figures) == 4 * len(results.require)
    assert f"On {results.data.documents} test documents" in text
    for row in results.rows:
        assert f"| {row.label} | {row.task.rouge1.mean:.1f} |" in text
    for shown in ("[system]\nBe brief.\n\n[user]\nSum up: {document}", "learning rate | 0.0002", "LoRA rank | 16"):
        assert shown in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"license": "Our own 1.0"}, {"license": "other", "license_name": "Our own 1.0"}),
        ({"prompt": {"language": "Klingon"}}, {"license": "apache-2.0"}),
    ],
)
def test_what_the_hub_does_not_know(tmp_path: Path, details: dict[str, Any], expected: dict[str, Any]) -> None:
    front = front_matter(model_card({"adapter": make(tmp_path, "adapter", **details)}, title="mine"))
    assert {key: front[key] for key in expected} == expected
    assert ("language" in front) == ("prompt" not in details)


def test_a_local_base_is_named_without_its_path(tmp_path: Path) -> None:
    text = model_card({"adapter": make(tmp_path, "adapter", base=str(tmp_path / "models" / "secret-base"))}, title="x")
    assert "from `secret-base`" in text
    assert str(tmp_path) not in text
    assert "base_model" not in front_matter(text)
    assert "without an evaluation" in text


def test_a_parent_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    gguf = make(tmp_path, "gguf")
    (tmp_path / "adapter" / "manifest.json").write_text("{")
    text = model_card({"q4_k_m": gguf}, title="x")
    assert gguf.digest in text
    assert "a model that is not recorded" in text


def test_a_base_in_the_hubs_cache_is_named_by_its_id(tmp_path: Path) -> None:
    base = str(tmp_path / "hub" / "models--acme--big-8b" / "snapshots" / "0123abc")
    assert front_matter(model_card({"adapter": make(tmp_path, "adapter", base=base)}, title="x"))["base_model"] == (
        "acme/big-8b"
    )


def test_the_runs_card_is_renewed_and_a_strangers_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = {"adapter": make(tmp_path, "adapter")}
    run = tmp_path / "run"
    run.mkdir()
    first = write_card(run, "mine", artifacts, make_results(), make_verdicts()).read_text()
    again = write_card(run, "mine", artifacts, make_results(poor=True), make_verdicts()).read_text()
    assert first != again
    assert write_card(run, "mine", artifacts, make_results(), make_verdicts()).read_text() == first
    (run / CARD_FILE).write_text("# Mine\n")
    write_card(run, "mine", artifacts, make_results(), make_verdicts())
    assert (run / CARD_FILE).read_text() == "# Mine\n"
    assert "is not Assay's" in capsys.readouterr().err


def test_a_base_that_was_a_gguf_is_named_with_what_is_not_known_of_it(tmp_path: Path) -> None:
    imported = {"file": "small.Q4_1.gguf", "bits_per_weight": 5.74, "cost": "what it cost is not known"}
    text = model_card({"adapter": make(tmp_path, "adapter", imported=imported)}, title="mine")
    assert "Fine-tuned with QLoRA from `small.Q4_1.gguf`, a GGUF of 5.74 bits per weight" in text
    assert "What it cost is not known." in text
