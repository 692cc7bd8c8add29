"""Merging: equal to PEFT's own, true to its flags, deterministic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Parent, new_artifact, open_artifact
from contract.model_folder import read_json
from export.merge import merge_adapter
from export.weights import FolderWeights
from tests.export.makers import edit_json
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine


def peft_merge(base: Path, adapter: Path) -> dict[str, Any]:
    """PEFT's own merge in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def assert_equal_to_peft(merged: Path, expected: dict[str, Any]) -> None:
    import torch

    weights = FolderWeights.open(merged)
    assert set(weights.names()) <= set(expected)
    for name in weights.names():
        assert torch.allclose(weights.read(name), expected[name], rtol=0, atol=1e-6), name


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({}, {}),
        ({"use_rslora": True}, {"dtype": "bfloat16"}),
        ({"rank_pattern": {"q_proj": 4, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"v_proj": 3}}, {"tie": False}),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, {"tie": False}),
    ],
)
def test_equal_to_peft_in_float32(tmp_path: Path, settings: dict[str, Any], base: dict[str, Any]) -> None:
    folder = make_llama(tmp_path / "base", max_shard_size="600KB", **base)
    assert (folder / "model.safetensors.index.json").is_file()
    adapter = make_adapter(tmp_path / "adapter", folder, **settings)
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32")
    assert_equal_to_peft(merged.path, peft_merge(folder, adapter))
    assert merged.details["merged_on"] == "w16"
    assert {parent.role for parent in merged.manifest.parents} == {"base", "adapter"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_dtype_is_one_rounding_away(
    tmp_path: Path, llama_folder: Path, adapter_folder: Path, dtype: Any
) -> None:
    import torch

    merged = merge_adapter(open_artifact(adapter_folder), tmp_path / "merged", dtype=dtype)
    expected = peft_merge(llama_folder, adapter_folder)
    weights = FolderWeights.open(merged.path)
    for name in weights.names():
        assert torch.equal(weights.read(name), expected[name].to(getattr(torch, dtype))), name
    assert read_json(merged.path / "config.json")["dtype"] == dtype


def test_the_same_merge_twice_has_the_same_digest(tmp_path: Path, adapter_folder: Path) -> None:
    first = merge_adapter(open_artifact(adapter_folder), tmp_path / "one")
    second = merge_adapter(open_artifact(adapter_folder), tmp_path / "two")
    sharded = merge_adapter(open_artifact(adapter_folder), tmp_path / "three", shard_bytes=300_000)
    assert first.digest == second.digest
    assert len(list(sharded.path.glob("*.safetensors"))) > 2
    weights, shards = FolderWeights.open(first.path), FolderWeights.open(sharded.path)
    assert weights.names() == shards.names()
    first.verify()


def test_onto_nf4_is_the_dequantized_base_plus_the_delta(
    tmp_path: Path, llama_folder: Path, adapter_folder: Path
) -> None:
    import torch

    from runtimes.nf4 import dequantized_nf4

    merged = merge_adapter(
        open_artifact(adapter_folder), tmp_path / "merged", dtype="float32", base_weights="nf4", trained_on="nf4"
    )
    base, plain = FolderWeights.open(llama_folder), peft_merge(llama_folder, adapter_folder)
    weights = FolderWeights.open(merged.path)
    name = "model.layers.1.mlp.up_proj.weight"
    before = base.read(name).float()
    expected = dequantized_nf4(before, double_quant=True) + (plain[name] - before)
    assert torch.allclose(weights.read(name), expected, atol=1e-6)
    embedding = "model.embed_tokens.weight"
    assert torch.equal(weights.read(embedding), base.read(embedding).float())
    assert merged.details["merged_on"] == "nf4"


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_tied_embeddings_that_come_apart_are_untied(
    tmp_path: Path, llama_folder: Path, settings: dict[str, Any]
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    folder = make_adapter(tmp_path / "adapter", llama_folder, **settings)
    if "modules_to_save" in settings:  # as if it had been trained
        tensors = load_file(folder / "adapter_model.safetensors")
        key = "base_model.model.model.embed_tokens.weight"
        save_file({**tensors, key: tensors[key] * 1.1}, folder / "adapter_model.safetensors")
    merged = merge_adapter(open_artifact(folder), tmp_path / "merged", dtype="float32")
    assert read_json(merged.path / "config.json")["tie_word_embeddings"] is False
    assert any("lm_head" in change for change in merged.details["cleaning"])
    base = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    unmerged = PeftModel.from_pretrained(base, folder).eval()
    whole = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32).eval()
    ids = torch.tensor([[0, 20, 30, 40, 50]])
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, unmerged(ids).logits, atol=1e-4)


def test_embeddings_that_stay_one_stay_tied(tmp_path: Path, adapter_folder: Path) -> None:
    merged = merge_adapter(open_artifact(adapter_folder), tmp_path / "merged")
    assert read_json(merged.path / "config.json")["tie_word_embeddings"] is True
    assert "lm_head.weight" not in FolderWeights.open(merged.path).names()


def test_added_tokens_come_with_their_rows(tmp_path: Path, llama_folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from export.to_gguf import export_gguf

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    peft = get_peft_model(
        model,
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["embed_tokens", "lm_head"]),
    )
    peft.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merged = merge_adapter(open_artifact(tmp_path / "adapter"), tmp_path / "merged")
    assert read_json(merged.path / "config.json")["vocab_size"] == len(tokenizer)
    assert AutoTokenizer.from_pretrained(merged.path).convert_tokens_to_ids("<new>") == len(tokenizer) - 1
    export_gguf(merged, tmp_path / "gguf", quants=["f16"])


def test_cleaning(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    base = make_llama(tmp_path / "base", layers=1)
    adapter = make_adapter(tmp_path / "adapter", base)
    edit_json(
        base / "config.json",
        use_cache=False,
        _name_or_path="/somewhere",
        gradient_checkpointing=True,
        quantization_config={"load_in_4bit": True},
        nested={"quantization_config": {"bits": 4}},
    )
    edit_json(base / "generation_config.json", temperature=0.6, top_p=0.9, pad_token_id=None, eos_token_id=1)
    (base / "model-00007-of-00009.safetensors").write_bytes(b"orphan")
    (base / "LICENSE").write_text("free")
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged")
    config = read_json(merged.path / "config.json")
    assert "quantization_config" not in json.dumps(config)
    assert config["use_cache"] is True
    assert not {"_name_or_path", "gradient_checkpointing"} & set(config)
    generation = GenerationConfig.from_pretrained(merged.path)
    generation.validate(strict=True)
    assert generation.eos_token_id == [1, 4]  # the template closes a turn with <|im_end|>
    assert generation.pad_token_id == 2
    assert "temperature" not in read_json(merged.path / "generation_config.json")
    names = {path.name for path in merged.path.iterdir()}
    assert {"LICENSE", "tokenizer.json", "model.safetensors", "chat_template.jinja"} <= names
    assert "model-00007-of-00009.safetensors" not in names
    told = "\n".join(merged.details["cleaning"])
    for word in ("quantization_config", "nested.quantization_config", "use_cache", "temperature", "eos_token_id"):
        assert word in told


def test_the_adapters_own_tokenizer_and_records_come_along(
    tmp_path: Path, llama_folder: Path, adapter_folder: Path
) -> None:
    base = open_artifact(llama_folder)
    details = {
        "prompt": {"user": "{document}"},
        "generate": {"max_new_tokens": 7},
        "trained_on": {"quant": "nf4", "block_size": 64, "double_quant": False, "compute_dtype": "float32"},
    }
    with new_artifact(
        tmp_path / "adapter",
        "adapter",
        "mine",
        details=details,
        parents=[Parent("base", str(llama_folder), base.digest)],
    ) as draft:
        for path in [
            *adapter_folder.glob("adapter_*"),
            *llama_folder.glob("token*"),
            llama_folder / "chat_template.jinja",
        ]:
            shutil.copyfile(path, draft.path / path.name)
        (draft.path / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    merged = merge_adapter(draft.finished, tmp_path / "merged", base_weights="nf4")
    assert (merged.path / "chat_template.jinja").read_text() == "{{ messages[0].content }}{{ eos_token }}"
    assert {key: merged.details[key] for key in details} == details
    assert merged.name == "mine"
