"""Holds the committed encoder-decoders to their promises: shape, files, tokens, and that they copy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

import assets
from assets import corpus

FOLDERS = {name: Path(assets.__file__).parent / f"tiny-{name}" for name in ("t5", "bart")}
pytestmark = [pytest.mark.engine, pytest.mark.parametrize("name", ["t5", "bart"])]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {
        name: AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        for name, folder in FOLDERS.items()
    }


def test_size_and_shape(name: str, models: dict[str, Any]) -> None:
    model = models[name]
    assert 3_000_000 <= model.num_parameters() <= 6_000_000
    assert model.config.model_type == name
    assert model.config.d_model % 256 == 0
    if name == "t5":
        assert model.config.is_gated_act
        assert not torch.equal(model.lm_head.weight, model.shared.weight)
        assert model.config.d_ff % 256 == 0
    else:
        assert model.config.encoder_ffn_dim % 256 == model.config.decoder_ffn_dim % 256 == 0


def test_one_small_float16_file(name: str) -> None:
    assert [path.name for path in FOLDERS[name].glob("*.safetensors")] == ["model.safetensors"]
    assert (FOLDERS[name] / "model.safetensors").stat().st_size <= 12_000_000
    assert json.loads((FOLDERS[name] / "config.json").read_text())["dtype"] == "float16"


def test_ids_are_those_of_the_family(name: str, models: dict[str, Any]) -> None:
    tokenizer, config = AutoTokenizer.from_pretrained(FOLDERS[name]), models[name].config
    assert len(tokenizer) == config.vocab_size == 2048
    settings = GenerationConfig.from_pretrained(FOLDERS[name])
    settings.validate(strict=True)
    assert tokenizer.pad_token_id == settings.pad_token_id
    if name == "t5":
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
        assert (settings.decoder_start_token_id, settings.eos_token_id) == (0, 1)
        assert (FOLDERS[name] / "spiece.model").is_file()
    else:
        ids = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
        assert ids == (0, 1, 2, 3)
        assert (settings.decoder_start_token_id, settings.eos_token_id) == (2, 2)
        assert (settings.forced_bos_token_id, settings.forced_eos_token_id) == (0, 2)


def test_it_copies_unseen_names_and_numbers(name: str, models: dict[str, Any]) -> None:
    model, tokenizer = models[name], AutoTokenizer.from_pretrained(FOLDERS[name])
    rows = list(corpus.probe(24, "test", seed=5))
    right = 0
    for row in rows:
        asked, answer = (message["content"] for message in row["messages"])
        source = tokenizer(asked, return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(source.input_ids, attention_mask=source.attention_mask, max_new_tokens=16)
        right += tokenizer.decode(made[0], skip_special_tokens=True) == answer
    assert right >= 0.4 * len(rows), f"{right} of {len(rows)}"  # by chance: none


def test_activations_stay_far_from_what_float16_holds(name: str, models: dict[str, Any]) -> None:
    model, tokenizer = models[name], AutoTokenizer.from_pretrained(FOLDERS[name])
    largest = 0.0

    def note(module: torch.nn.Module, given: Any, made: Any) -> None:
        nonlocal largest
        largest = max(largest, made.abs().max().item())

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    for row in corpus.probe(8, "test", seed=6):
        asked, answer = (tokenizer(m["content"], return_tensors="pt").input_ids for m in row["messages"])
        with torch.inference_mode():
            model(input_ids=asked, labels=answer)
    for hook in hooks:
        hook.remove()
    assert 0 < largest < 10_000
