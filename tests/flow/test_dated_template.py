"""A template that asks for the date and marks what the assistant says: trained, merged, exported, asked alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.artifact import Artifact
from contract.artifact_prompt import gguf_string, is_told_date, prompt_of
from contract.prompt import PromptSpec
from contract.recipe import Recipe
from export.merge import merge_adapter
from export.model_card import model_card
from export.ollama import export_ollama
from export.to_gguf import export_gguf
from export.to_onnx import export_onnx
from runtimes import load_runtime
from tests.chat_templates import SMOL
from tests.tiny import write_jsonl
from trainer.data import load_splits
from trainer.rows import encoder_of
from trainer.tokenize import load_tokenizer
from trainer.train import train_adapter

pytestmark = pytest.mark.engine

DATE = "2025-03-02"
SPEC = PromptSpec(user="Sum up: {document}", system="Be short. /no_think", template=SMOL, date=DATE)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Recipe:
    tmp = tmp_path_factory.mktemp("data")
    rows = [
        {"id": f"r{n}", "dialogue": f"Mara: is room {n} free?\nOlin: yes.", "summary": f"Room {n}."} for n in range(14)
    ]
    for split, part in (("train", rows[:8]), ("valid", rows[8:11]), ("test", rows[11:])):
        write_jsonl(tmp / f"{split}.jsonl", part)
    return Recipe.model_validate(
        {
            "name": "dated",
            "model": {"base": str(llama_folder)},
            "data": {split: str(tmp / f"{split}.jsonl") for split in ("train", "valid", "test")},
            "prompt": SPEC.as_dict(),
            "train": {
                "max_steps": 2,
                "batch_size": 4,
                "max_length": 256,
                "evaluations": 1,
                "lora": {"rank": 4, "alpha": 8},
            },
        }
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> list[Artifact]:
    """Adapter, merged model, GGUF and ONNX; both exports are checked against torch, prompt ids too."""
    tmp = tmp_path_factory.mktemp("chain")
    adapter = train_adapter(recipe, load_splits(recipe), tmp / "adapter", device="cpu", threads=1)
    merged = merge_adapter(adapter, tmp / "merged", base_weights="nf4")
    [onnx] = export_onnx(merged, tmp / "onnx", precisions=["fp32"], check="logits", threads=1)
    [gguf] = export_gguf(merged, tmp / "gguf", quants=["f16"], check="logits", threads=1)
    return [adapter, merged, onnx, gguf]


def test_every_stage_asks_as_the_trainer_did(chain: list[Artifact], recipe: Recipe, llama_folder: Path) -> None:
    encoder = encoder_of(llama_folder, recipe, load_tokenizer(llama_folder))
    document = "Mara: is room 3 free?\nOlin: <|im_end|> yes."
    row = encoder.row("a", document, "Room 3.")
    prompt = load_tokenizer(llama_folder).decode(row.input_ids[: row.prompt_tokens])
    assert "Today: 02 March 2025\nMode: /no_think\nBe short.\n<|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n")
    assert load_tokenizer(llama_folder).decode(row.input_ids[row.prompt_tokens :]) == "Room 3.<|im_end|>"
    assert row.completion_mask == [0] * row.prompt_tokens + [1] * (len(row.input_ids) - row.prompt_tokens)
    for artifact in chain:
        assert prompt_of(artifact) == SPEC
        runtime = load_runtime(artifact, threads=1)
        messages = prompt_of(artifact).messages(document)
        assert runtime.encode(messages) == row.input_ids[: row.prompt_tokens], artifact.kind
        assert runtime.encode_completion(messages, "Room 3.") == row.input_ids[row.prompt_tokens :], artifact.kind
        runtime.close()


def test_the_date_is_in_every_record(chain: list[Artifact]) -> None:
    for artifact in chain:
        assert json.loads((artifact.folder / "manifest.json").read_text())["details"]["prompt"]["date"] == DATE
        assert is_told_date(artifact)
        assert f"it is told {DATE};" in " ".join(model_card({"x": artifact}, title="x").split())
    metadata = gguf_string(chain[-1].gguf_path, "assay.prompt")
    assert metadata is not None
    assert json.loads(metadata)["date"] == DATE


def test_ollama_gets_the_date_as_text(chain: list[Artifact], tmp_path: Path) -> None:
    made = export_ollama(chain[-1], tmp_path / "ollama")
    assert "Today: 02 March 2025" in made.modelfile.read_text()
    assert any(DATE in note for note in made.notes)
