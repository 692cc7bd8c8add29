"""A model folder, our GGUF of it, and the folder that is made of that again: one model, one tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.model_folder import stop_ids
from contract.prompt import hf_tokenize
from export.check_failed import CheckFailed
from export.from_gguf.check import check_folder
from export.from_gguf.families import read_config
from export.from_gguf.header import Header
from export.from_gguf.to_folder import UNKNOWN_COST, import_gguf
from export.from_gguf.tokens import read_tokens
from export.from_gguf.weights import take_tensors
from export.ggml import dequantize_rows
from export.gguf_families import read_model
from export.hard_texts import HARD_TEXTS
from export.source import Source
from export.to_gguf import export_gguf
from export.weights import FolderWeights
from runtimes.hf_tokenizer import load_tokenizer
from tests.evalsuite.chain import edit_gguf
from tests.export.families import FAMILIES, make_model
from tests.export.makers import (
    convert_sentencepiece,
    edit_json,
    edit_tensors,
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
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMAS |= {
    "llama-yarn": {"rope_scaling": YARN},
    "llama-yarn-attention": {"rope_scaling": {**YARN, "attention_factor": 1.3}},
}
T5S: dict[str, dict[str, Any]] = {"t5-1.1": {}, "t5-1.0": {"v1_1": False}, "mt5": {"family": "MT5"}}
T5S |= {
    "umt5": {"family": "UMT5", "v1_1": False, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 1},
    "umt5-own-head": {"family": "UMT5"},
}


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


QUANTS = ["q8_0", "q4_k_m", "iq4_xs", "bf16"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model as GGUFs of several types. Copy a file before you change it."""
    tmp = tmp_path_factory.mktemp("llama")
    model = make_llama(tmp / "model", dtype="float32")
    made = export_gguf(open_artifact(model), tmp / "gguf", quants=["f32", *QUANTS], threads=1)
    return {artifact.details["quant"]: artifact.gguf_path for artifact in made}


def copy(path: Path, folder: Path) -> Path:
    copied = folder / "base.gguf"
    copied.write_bytes(path.read_bytes())
    return copied


@pytest.mark.parametrize("quant", QUANTS)
def test_values_are_those_that_llama_cpp_dequantizes(tmp_path: Path, llama: dict[str, Path], quant: str) -> None:
    import torch
    from gguf import GGUFReader

    made = import_gguf(llama[quant], tmp_path / "made", dtype="float32", threads=1)
    weights = FolderWeights.open(made.path)
    stored = {tensor.name: tensor for tensor in GGUFReader(llama[quant]).tensors}
    there = stored["blk.1.ffn_down.weight"]
    if quant == "bf16":
        expected = torch.frombuffer(bytearray(there.data.tobytes()), dtype=torch.bfloat16).float()
    else:
        expected = dequantize_rows(there.tensor_type.name, bytearray(there.data.tobytes()), 256)
    assert torch.equal(weights.read("model.layers.1.mlp.down_proj.weight"), expected.reshape(256, 256))
    imported = made.details["imported"]
    assert imported["types"]["blk.1.ffn_down.weight"] == there.tensor_type.name
    assert imported.get("cost") == (None if quant == "bf16" else UNKNOWN_COST)
    assert made.manifest.measurements["check"]["torch_f32"]["max_abs"] < 1e-3
    again = import_gguf(llama[quant], tmp_path / "again", dtype="float32", threads=1)
    assert again.manifest.files_digest == made.manifest.files_digest


def test_the_folder_is_a_base_like_any_other(tmp_path: Path, llama: dict[str, Path]) -> None:
    """It is exported, and an adapter on it is merged."""
    from export.merge import merge_adapter
    from tests.tiny import make_adapter

    made = import_gguf(llama["q8_0"], tmp_path / "made", threads=1)
    assert gguf_of(made.path, tmp_path / "gguf", "q8_0").parent("merged").digest == made.digest  # type: ignore[union-attr]
    adapter = make_adapter(tmp_path / "adapter", made.path)
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged")
    assert ids_of(merged.path) == ids_of(made.path)


def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, llama: dict[str, Path]) -> None:
    def refused(match: str, **edit: Any) -> None:
        base = copy(llama["f32"], tmp_path)
        edit_gguf(base, **edit)
        with pytest.raises(AssayError, match=match) as raised:
            import_gguf(base, tmp_path / "made", threads=1)
        assert raised.value.exit_code == 2
        assert not (tmp_path / "made").exists()
        assert not list(tmp_path.glob(".made*")), "nothing is left behind"

    refused("llama.expert_count = 4", added={"llama.expert_count": 4})
    refused("llama.attention.scale", added={"llama.attention.scale": 2})
    refused("tokenizer.ggml.normalizer.lowercase", added={"tokenizer.ggml.normalizer.lowercase": 1})
    refused("one part of several", added={"split.count": 2})
    refused("llama.rope.foo = 1", added={"llama.rope.foo": 1})
    refused("scales RoPE", added={"llama.rope.scaling.type": "su"})
    refused("cuts text is not known|cannot load the tokenizer", metadata=_changed("tokenizer.ggml.pre", "jais-2"))
    refused("no merges|cannot load the tokenizer", metadata=_changed("tokenizer.ggml.merges", None))
    refused("beyond the vocabulary", metadata=_changed("tokenizer.ggml.eos_token_id", 4000))
    refused("lacks a number", metadata=_changed("llama.block_count", None))
    refused("blk.2.attn_norm.weight: missing", metadata=_changed("llama.block_count", 3))
    refused(r"(?s)float16.*model.norm.weight \(max", tensor=_times("output_norm.weight", 1e6))
    refused("(?s)not finite.*model.norm.weight", tensor=_times("output_norm.weight", float("nan")))


def _changed(key: str, wanted: Any) -> Any:
    return lambda name, value: wanted if name == key else value


def _times(name: str, factor: float) -> Any:
    return lambda tensor, data: data * data.dtype.type(factor) if tensor == name else data


def test_another_architecture_is_refused_with_those_that_are_read(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_tensor("token_embd.weight", __import__("numpy").zeros((4, 32), "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AssayError, match="got: mamba") as raised:
        import_gguf(tmp_path / "x.gguf", tmp_path / "made", threads=1)
    assert "llama, smollm3, qwen2" in str(raised.value)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, llama: dict[str, Path]) -> None:
    base = copy(llama["q8_0"], tmp_path)
    base.write_bytes(base.read_bytes()[:-5000])
    with pytest.raises(AssayError, match=r"cut short|cannot be read"):
        import_gguf(base, tmp_path / "made", threads=1)


DAMAGES = {
    "rope": ("freq_base|max_abs", lambda folder: edit_json(folder / "config.json", **_rope(20000.0))),
    "eps": ("layer_norm_rms_epsilon", lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-4)),
    "tensor": ("blk.0.attn_k.weight", lambda folder: edit_tensors(folder / "model.safetensors", _swap)),
    "cut": ("ids differ", lambda folder: edit_json(folder / "tokenizer.json", pre_tokenizer=_GPT2)),
    "merges": ("merges", lambda folder: _reverse_merges(folder / "tokenizer.json")),
    "template": ("chat template", lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}")),
    "stops": ("stop ids", lambda folder: edit_json(folder / "generation_config.json", eos_token_id=1)),
    "bos": ("BOS in front", lambda folder: edit_json(folder / "tokenizer.json", post_processor=None)),
}
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _swap(tensors: dict[str, Any]) -> None:
    """Two heads' rows of a key projection."""
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = tensors[name].roll(64, 0)


def _reverse_merges(path: Path) -> None:
    values = json.loads(path.read_text())
    values["model"]["merges"][:2] = values["model"]["merges"][1::-1]
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, llama: dict[str, Path]) -> Path:
    return import_gguf(llama["q8_0"], tmp_path_factory.mktemp("imported") / "made", threads=1).path


@pytest.mark.parametrize("damage", ["none", *DAMAGES])
def test_the_check_says_no(tmp_path: Path, llama: dict[str, Path], imported: Path, damage: str) -> None:
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    scratch.mkdir()
    shutil.copytree(imported, folder)
    said, change = DAMAGES.get(damage, ("", lambda _: None))
    change(folder)
    header = Header(llama["q8_0"])
    _, config = read_config(header)
    tokens = read_tokens(header, config["vocab_size"])
    config = json.loads((folder / "config.json").read_text())
    source = Source(folder, config, FolderWeights.open(folder), "it", {}, None)
    weights = take_tensors(read_model(source), header)
    if damage == "none":
        found = check_folder(source, header, weights, tokens, dtype="float16", scratch=scratch, threads=1)
        assert found["torch_f32"]["positions"] > 100
        return
    with pytest.raises(CheckFailed, match=said) as raised:
        check_folder(source, header, weights, tokens, dtype="float16", scratch=scratch, threads=1)
    assert raised.value.exit_code == 1


def test_what_transformers_4_made_of_a_gguf_is_refused_with_the_command(tmp_path: Path, llama: dict[str, Path]) -> None:
    folder = tmp_path / "made"
    shutil.copytree(llama["f32"].parents[2] / "model", folder)
    shutil.copy(llama["q8_0"], folder / "tokenizer.model")
    assert gguf_of(folder, tmp_path / "gguf", "f16").path.is_dir(), "a copy of the GGUF is left aside"
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"] |= {"byte_fallback": True, "fuse_unk": True}
    values["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, _GPT2]}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(AssayError, match=f"assay import {folder / 'tokenizer.model'} --out FOLDER"):
        gguf_of(folder, tmp_path / "again", "f16")
    made = import_gguf(folder / "tokenizer.model", tmp_path / "right", threads=1)
    assert ids_of(made.path) == ids_of(llama["f32"].parents[2] / "model")


def test_the_command(tmp_path: Path, llama: dict[str, Path]) -> None:
    from click.testing import CliRunner

    from export.from_gguf.cli import import_command

    arguments = [str(llama["q8_0"]), "--out", str(tmp_path / "made"), "--threads", "1", "--dtype", "bfloat16"]
    done = CliRunner().invoke(import_command, arguments)
    assert done.exit_code == 0
    assert "made  bfloat16" in done.stdout
    assert UNKNOWN_COST in done.stdout
    assert json.loads((tmp_path / "made" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(AssayError, match="nothing is overwritten"):
        CliRunner().invoke(import_command, arguments, catch_exceptions=False)
