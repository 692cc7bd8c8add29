"""Merging into T5 and BART: equal to PEFT's own, embeddings kept one, generation settings kept and mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.model_folder import read_json
from export.merge import merge_adapter
from export.skeleton import skeleton_of
from export.weights import FolderWeights
from tests.export.makers import edit_json
from tests.tiny_seq2seq import make_adapter_seq2seq, make_bart, make_t5

pytestmark = pytest.mark.engine

QUANTIZED = ("k", "v", "o", "wi", "wi_0", "wi_1", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module", params=["t5-1.1", "t5-1.0", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param) / "model"
    match request.param:
        case "t5-1.1":
            return make_t5(place)
        case "t5-1.0":
            return make_t5(place, v1_1=False, dtype="bfloat16")
        case _:
            return make_bart(place, dtype="float16")


def peft_model(base: Path, adapter: Path) -> Any:
    """PEFT's own model, not merged, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    return PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32), adapter).eval()


def logits(model: Any, target: int = 9) -> Any:
    import torch

    with torch.inference_mode():
        return model(
            input_ids=torch.tensor([[5, 20, 30, 40, 50, 7, 8, target, 1]]), labels=torch.tensor([[6, 9, 12, 60, 1]])
        ).logits


def reloaded(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    return model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"k": 2, "fc1": 3}},
        {"target_modules": "all-linear", "use_dora": True},
        {"modules_to_save": ["layer_norm", "layernorm_embedding"]},
    ],
    ids=["all-linear", "rslora", "dora", "norms"],
)
def test_equal_to_peft_in_float32(tmp_path: Path, base: Path, settings: dict[str, Any]) -> None:
    import torch

    if "bart" in str(base) and settings.get("modules_to_save"):
        settings = {"modules_to_save": ["layernorm_embedding"]}
    elif settings.get("modules_to_save"):
        settings = {"modules_to_save": ["final_layer_norm"]}
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base, **settings)
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32")
    live = peft_model(base, adapter)
    before, expected = logits(live), live.merge_and_unload().state_dict()
    weights = FolderWeights.open(merged.path)
    skeleton = skeleton_of(base)
    assert set(weights.names()) == set(skeleton.shapes) - ({skeleton.head} if skeleton.tied else set())
    for name in weights.names():
        assert torch.allclose(weights.read(name), expected[name], rtol=0, atol=1e-6), name
    torch.testing.assert_close(logits(reloaded(merged.path)), before, rtol=0, atol=5e-4)
    own = reloaded_base(base)
    changed = [name for name in weights.names() if not torch.equal(weights.read(name), own[name])]
    kinds = {name.split(".")[-2] for name in changed}
    assert {"q", "k", "v", "o", "wo"} <= kinds or {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"} <= kinds


def reloaded_base(base: Path) -> dict[str, Any]:
    found: dict[str, Any] = reloaded(base).state_dict()
    return found


def test_the_same_merge_twice_has_the_same_digest(tmp_path: Path, base: Path) -> None:
    adapter = open_artifact(make_adapter_seq2seq(tmp_path / "adapter", base))
    one = merge_adapter(adapter, tmp_path / "one")
    assert one.digest == merge_adapter(adapter, tmp_path / "two").digest
    names = {path.name for path in one.path.iterdir()}
    assert "tokenizer.json" in names
    assert ("spiece.model" in names) == (base / "spiece.model").is_file()


def test_a_head_of_its_own_keeps_its_logits(tmp_path: Path) -> None:
    """T5 scales hidden states in front of a tied head only, so a head that was trained apart takes the scale along."""
    import torch

    base = make_t5(tmp_path / "base", v1_1=False)
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base, target_modules=["lm_head", "q"])
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32")
    config = read_json(merged.path / "config.json")
    assert config["tie_word_embeddings"] is False
    live = peft_model(base, adapter)
    torch.testing.assert_close(logits(reloaded(merged.path)), logits(live), rtol=0, atol=5e-4)
    assert any("lm_head" in change for change in merged.details["cleaning"])


def test_onto_nf4_keeps_what_training_kept(tmp_path: Path, base: Path) -> None:
    """transformers quantizes all linear layers but T5's wo; so does the merge."""
    import torch

    from runtimes.nf4 import dequantized_nf4

    adapter = make_adapter_seq2seq(tmp_path / "adapter", base, target_modules=["q", "q_proj"])
    merged = merge_adapter(
        open_artifact(adapter), tmp_path / "merged", dtype="float32", base_weights="nf4", trained_on="nf4"
    )
    weights, own = FolderWeights.open(merged.path), reloaded_base(base)
    quantized = 0
    for name in weights.names():
        if name.endswith((".q.weight", "q_proj.weight")):
            continue
        expected = own[name].float()
        if name.endswith(tuple(f".{kind}.weight" for kind in QUANTIZED)):
            expected = dequantized_nf4(expected, double_quant=True)
            quantized += 1
        assert torch.equal(weights.read(name), expected), name
    assert quantized >= 20


@pytest.mark.parametrize("module", ["shared", "embed_tokens"])
def test_embeddings_that_would_part_are_refused(tmp_path: Path, base: Path, module: str) -> None:
    """Encoder and decoder read the same embeddings; PEFT trains a copy of one name of them."""
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base, target_modules=["v", "v_proj"], modules_to_save=[module])
    with pytest.raises(AssayError) as raised:
        merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32")
    assert "embed" in str(raised.value) or "shared" in str(raised.value)
    assert not (tmp_path / "merged").exists()


def test_a_base_that_stores_copies(tmp_path: Path) -> None:
    """Older folders store the shared embeddings under every name; they must agree."""
    from safetensors.torch import load_file, save_file

    base = make_t5(tmp_path / "base")
    adapter = open_artifact(make_adapter_seq2seq(tmp_path / "adapter", base))
    path = base / "model.safetensors"
    tensors = load_file(path)
    copy = tensors["shared.weight"].clone()
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": copy[:4].clone()}
    save_file({**tensors, "encoder.embed_tokens.weight": copy, **unused}, path, metadata={"format": "pt"})
    merged = merge_adapter(adapter, tmp_path / "merged", dtype="float32")
    names = FolderWeights.open(merged.path).names()
    assert {"shared.weight", "encoder.embed_tokens.weight"} & set(names) == {"shared.weight"}
    only = {name: tensor for name, tensor in tensors.items() if name != "shared.weight"}
    save_file({**only, "decoder.embed_tokens.weight": copy}, path, metadata={"format": "pt"})
    assert FolderWeights.open(merge_adapter(adapter, tmp_path / "other", dtype="float32").path).names() == names
    save_file({**tensors, "encoder.embed_tokens.weight": copy * 2}, path, metadata={"format": "pt"})
    with pytest.raises(AssayError, match="several times"):
        merge_adapter(adapter, tmp_path / "third", dtype="float32")


def test_a_bias_that_is_not_stored_stays_so(tmp_path: Path) -> None:
    """facebook/bart-base has no final_logits_bias: transformers makes zeros."""
    from safetensors.torch import load_file, save_file

    base = make_bart(tmp_path / "base")
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    tensors = load_file(base / "model.safetensors")
    del tensors["final_logits_bias"]
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}  # as BartModel is saved
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32")
    names = FolderWeights.open(merged.path).names()
    assert {"final_logits_bias", "model.shared.weight"} & set(names) == {"model.shared.weight"}


@pytest.mark.parametrize("legacy", [False, True], ids=["generation_config.json", "config.json"])
def test_generation_settings_are_kept(tmp_path: Path, legacy: bool) -> None:
    from transformers import AutoModelForSeq2SeqLM

    base = make_bart(tmp_path / "base", beams=True, legacy=legacy)
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged")
    found = read_json(merged.path / "generation_config.json")
    wanted = {
        "num_beams": 4,
        "length_penalty": 2.0,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "max_length": 128,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "decoder_start_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
    }
    assert {key: found.get(key) for key in wanted} == wanted
    config = read_json(merged.path / "config.json")
    assert config["decoder_start_token_id"] == 2
    assert not {"num_beams", "forced_bos_token_id"} & set(config)
    assert any("num_beams moved" in change for change in merged.details["cleaning"]) == legacy
    theirs = AutoModelForSeq2SeqLM.from_pretrained(base).generation_config.to_diff_dict()
    ours = AutoModelForSeq2SeqLM.from_pretrained(merged.path).generation_config.to_diff_dict()
    dropped = {"_from_model_config", "transformers_version", "use_cache"}  # the last is config.json's, and true
    assert {k: v for k, v in ours.items() if k not in dropped} == {k: v for k, v in theirs.items() if k not in dropped}


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"early_stopping": True}, "early_stopping true removed (there are no beams)"),
        ({"length_penalty": 2.0}, "length_penalty 2.0 removed (there are no beams)"),
        ({"min_length": 56, "max_length": 20}, "min_length 56 removed (above max_length 20)"),
        ({"num_return_sequences": 4, "num_beams": 4}, "num_return_sequences 4 removed"),
    ],
)
def test_what_contradicts_itself_is_mended(tmp_path: Path, settings: dict[str, Any], note: str) -> None:
    base = make_bart(tmp_path / "base")
    edit_json(base / "generation_config.json", **settings)
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged")
    assert any(note in change for change in merged.details["cleaning"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"forced_bos_token_id": 4000}, "forced_bos_token_id: 4000"),
        ({"decoder_start_token_id": 4000}, "decoder_start_token_id: 4000"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: -1"),
        ({"early_stopping": "soon", "num_beams": 2}, "early_stopping"),
        ({"length_penalty": "long", "num_beams": 2}, "length_penalty"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    base = make_bart(tmp_path / "base")
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    edit_json(base / "generation_config.json", **settings)
    with pytest.raises(AssayError, match="generate as its files say") as raised:
        merge_adapter(open_artifact(adapter), tmp_path / "merged")
    assert said in str(raised.value)
    assert not (tmp_path / "merged").exists()


def test_without_a_decoder_start_there_is_no_model(tmp_path: Path) -> None:
    base = make_t5(tmp_path / "base")
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    for name in ("config.json", "generation_config.json"):
        values = read_json(base / name)
        values.pop("decoder_start_token_id")
        (base / name).write_text(json.dumps(values))
    with pytest.raises(AssayError, match="generate as its files say"):
        merge_adapter(open_artifact(adapter), tmp_path / "merged")


def test_resized_embeddings_bring_the_bias_of_every_token_along(tmp_path: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size + 1))
    layers = ["q_proj"] if model.config.model_type == "bart" else ["q"]
    peft = get_peft_model(
        model, LoraConfig(target_modules=layers, init_lora_weights=False, task_type="SEQ_2_SEQ_LM")
    ).eval()
    peft.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merged = merge_adapter(open_artifact(tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    found, expected = logits(reloaded(merged.path)), logits(peft)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4
