"""A model folder, our GGUF of it, and the folder that is made of that again: one model, one tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, open_artifact
from contract.model_folder import stop_ids
from contract.prompt import hf_tokenize
from export.from_gguf.to_folder import import_gguf
from export.hard_texts import HARD_TEXTS
from export.to_gguf import export_gguf
from export.weights import FolderWeights
from runtimes.hf_tokenizer import load_tokenizer
from tests.export.families import FAMILIES, make_model
from tests.export.makers import (
    convert_sentencepiece,
    edit_json,
    llama3_tokenizer,
    metaspace_tokenizer,
    smollm_tokenizer,
)
from tests.tiny import make_llama
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LLAMAS: dict[str, dict[str, Any]] = {
    "llama": {"tie": False, "rope_theta": 500000.0, "tokenizer": llama3_tokenizer},
    "smollm2": {"tokenizer": smollm_tokenizer, "attention_bias": True, "mlp_bias": True},
    "llama-linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}, "tokenizer": convert_sentencepiece},
    "llama3-factors": {"rope_scaling": LLAMA3, "tokenizer": metaspace_tokenizer},
}
T5S: dict[str, dict[str, Any]] = {"t5-1.1": {}, "t5-1.0": {"v1_1": False}}


def make(folder: Path, name: str) -> Path:
    if name in LLAMAS:
        made = make_llama(folder, dtype="float32", **LLAMAS[name])
        if not (made / "generation_config.json").read_text().count("["):  # as make_bpe_tokenizer's: it ends turns too
            edit_json(made / "generation_config.json", eos_token_id=[1, 4])
        return made
    return make_t5(folder, **T5S[name]) if name in T5S else make_model(folder, name)


def gguf_of(folder: Path, out: Path, quant: str) -> Artifact:
    [made] = export_gguf(open_artifact(folder), out, quants=[quant], threads=1)
    return made


def ids_of(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    tokenize = hf_tokenize(tokenizer)
    return [tokenize(text, False) for text in HARD_TEXTS] + [list(tokenizer("a b").input_ids)]


def logits_of(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    seq2seq = json.loads((folder / "config.json").read_text()).get("is_encoder_decoder")
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(5, 90).unsqueeze(0)
    with torch.inference_mode():
        return model(input_ids=ids, **({"decoder_input_ids": ids[:, :9]} if seq2seq else {})).logits


@pytest.mark.parametrize("name", [*LLAMAS, *T5S, *FAMILIES])
def test_round_trip(tmp_path: Path, name: str) -> None:
    import torch

    folder = make(tmp_path / "model", name)
    made = import_gguf(
        gguf_of(folder, tmp_path / "gguf", "f32").gguf_path, tmp_path / "again", dtype="float32", threads=1
    )
    before, after = FolderWeights.open(folder), FolderWeights.open(made.path)
    moved = [tensor for tensor in after.names() if not torch.equal(after.read(tensor), before.read(tensor))]
    if name.startswith("gemma"):  # one is added to norms, which costs their last bits
        assert all(tensor.endswith("norm.weight") for tensor in moved)
        assert all(torch.allclose(after.read(t), before.read(t), atol=3e-7) for t in moved)
    elif name in T5S:  # the scale in front of a tied head goes through it, or is written as one where there was none
        assert moved in ([], ["decoder.final_layer_norm.weight"])
    else:
        assert moved == []
    assert torch.allclose(logits_of(made.path), logits_of(folder), rtol=0, atol=2e-5)
    assert ids_of(made.path) == ids_of(folder)
    assert load_tokenizer(made.path).chat_template == load_tokenizer(folder).chat_template
    assert set(stop_ids(made.path)) == {*stop_ids(folder), load_tokenizer(folder).eos_token_id}
    assert "cost" not in made.details["imported"]
    assert made.parent("gguf") is not None
