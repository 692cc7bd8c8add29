"""What goes wrong with models in practice, done to whole artifacts before their manifest is written; some in doses.

A damage gets a folder it may change and the chain the artifact is from. `codes` are the reasons that must fail. Those
that only the checks of single tokens, of the task or of loading see are in task_damages.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.evalsuite.chain import Chain, edit_gguf, edit_template, edit_tensors

Do = Callable[[Path, Chain], object]

MERGE = frozenset({"merge_kl_gold", "merge_kl_greedy"})
KL = frozenset({"kl_mean_gold", "kl_mean_greedy"})
PROMPTS = frozenset({"prompt_ids_differ"})
BOS = frozenset({"prompt_ids_differ", "double_bos"})
STOPS = frozenset({"stop_ids_differ"})
# what may go wrong as well once distributions, prompts or ends are wrong
FOLLOWS = frozenset(
    {
        *KL,
        "perplexity_ratio",
        "top1_gold",
        "top1_greedy",
        "rouge_l_loss",
        "eos_rate_loss",
        "ruined_documents",
        "merge_ruined_documents",
        "base_change_ruined_documents",
    }
)


@dataclass(frozen=True)
class Damage:
    name: str
    of: str  # "merged", or a type of GGUF
    do: Do
    codes: frozenset[str]


@dataclass(frozen=True)
class Dosed:
    """The same damage in doses, the largest first."""

    name: str
    of: str
    do: Callable[[float], Do]
    doses: tuple[float, ...]
    unit: str
    codes: frozenset[str]


# --- a merged folder


def _tensors(change: Callable[[dict[str, Any], Chain], object]) -> Do:
    return lambda folder, chain: edit_tensors(folder, lambda tensors: change(tensors, chain))


def _config(name: str = "config.json", **values: Any) -> Do:
    def do(folder: Path, chain: Chain) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return do


def _rope_base(theta: float) -> Do:
    """Another base of the rotations, in the words of every version of transformers that the config is written in."""

    def do(folder: Path, chain: Chain) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["rope_parameters"]["rope_theta"] = theta
        if "rope_theta" in config:
            config["rope_theta"] = theta
        path.write_text(json.dumps(config))

    return do


def _rope_twice(folder: Path, chain: Chain) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    config["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    path.write_text(json.dumps(config))


def _both(*steps: Do) -> Do:
    return lambda folder, chain: [step(folder, chain) for step in steps]


def _delta(factor: float, layer: str = "") -> Do:
    """Put `factor` times each delta onto the base instead of once; of one layer only, where it is named."""

    def change(tensors: dict[str, Any], chain: Chain) -> None:
        base = chain.base_tensors
        for name, merged in tensors.items():
            if layer in name:
                whole = base[name].float() + factor * (merged.float() - base[name].float())
                tensors[name] = whole.to(merged.dtype)

    return _tensors(change)


def _scaled(name: str, factor: float) -> Do:
    def change(tensors: dict[str, Any], chain: Chain) -> None:
        tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)

    return _tensors(change)


def _noisy(sigma: float) -> Do:
    """Gaussian noise on every matrix, `sigma` of its own standard deviation."""
    import torch

    def change(tensors: dict[str, Any], chain: Chain) -> None:
        random = torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                noise = torch.randn(tensor.shape, generator=random) * tensor.float().std() * sigma
                tensors[name] = (tensor.float() + noise).to(tensor.dtype)

    return _tensors(change)


def _clipped(tensors: dict[str, Any], chain: Chain) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    limit = float(tensors[name].float().abs().quantile(0.97))
    tensors[name] = tensors[name].clamp(-limit, limit)


def _untied(tensors: dict[str, Any], chain: Chain) -> None:
    import torch

    embeddings = tensors["model.embed_tokens.weight"]
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(embeddings.shape, generator=random) * embeddings.float().std()
    tensors["lm_head.weight"] = noise.to(embeddings.dtype)


def _shifted_vocabulary(tensors: dict[str, Any], chain: Chain) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].roll(1, 0)


def _swapped_heads(tensors: dict[str, Any], chain: Chain) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    tensors[name] = tensors[name].roll(len(tensors[name]) // 2, 0)


def _wrong_layer_order(tensors: dict[str, Any], chain: Chain) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        other = name.replace(".layers.0.", ".layers.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def _not_a_number(tensors: dict[str, Any], chain: Chain) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


def _other_adapter(folder: Path, chain: Chain) -> None:
    shutil.copy(chain.other_merged / "model.safetensors", folder / "model.safetensors")


def _template(change: Callable[[str], str]) -> Do:
    return lambda folder, chain: edit_template(folder, change)


def _two_bos(template: str) -> str:
    return "{{ bos_token }}" + template


def _newline(template: str) -> str:
    return template.replace("{{ m.role }}\n", "{{ m.role }}\n\n")


def _no_generation_prompt(template: str) -> str:
    return template.split("{% if add_generation_prompt %}")[0]


def _tokenizer(change: Callable[[dict[str, Any]], object]) -> Do:
    def do(folder: Path, chain: Chain) -> None:
        path = folder / "tokenizer.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return do


def _lowercase(values: dict[str, Any]) -> None:
    values["normalizer"] = {"type": "Lowercase"}


def _half_the_merges(values: dict[str, Any]) -> None:
    merges = values["model"]["merges"]
    values["model"]["merges"] = merges[: len(merges) // 2]


# --- a .gguf


def _gguf(
    *,
    metadata: Callable[[str, Any], Any] = lambda key, value: value,
    tensor: Callable[[str, Any], Any] = lambda name, data: data,
) -> Do:
    return lambda folder, chain: edit_gguf(next(folder.glob("*.gguf")), metadata=metadata, tensor=tensor)


def _key(ending: str, change: Callable[[Any], Any]) -> Do:
    return _gguf(metadata=lambda key, value: change(value) if key.endswith(ending) else value)


def _gguf_scaled(name: str, factor: float) -> Do:
    return _gguf(tensor=lambda at, data: data * np.asarray(factor, data.dtype) if at == name else data)


def _rows_in_half_order(name: str, data: np.ndarray) -> np.ndarray:
    """Hugging Face's order of query and key rows, as if the converter had not permuted them."""
    heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2] if name.startswith("blk.") else "")
    if heads is None:
        return data
    return data.reshape(heads, len(data) // heads // 2, 2, -1).swapaxes(1, 2).reshape(data.shape)


def _transposed(name: str, data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data.T) if name == "blk.0.attn_q.weight" else data


def _swapped_gate(folder: Path, chain: Chain) -> None:
    """Gate and up projections under each other's names."""
    names = {"blk.1.ffn_gate.weight": "blk.1.ffn_up.weight", "blk.1.ffn_up.weight": "blk.1.ffn_gate.weight"}
    path = next(folder.glob("*.gguf"))
    import gguf

    data = {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(path).tensors}
    edit_gguf(path, tensor=lambda name, found: data[names[name]] if name in names else found)


def _q8_blocks(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Do:
    """Change the blocks of one Q8_0 tensor: scales float16 [blocks], values int8 [blocks, 32]."""

    def tensor(name: str, data: np.ndarray) -> np.ndarray:
        if name != "blk.0.ffn_up.weight":
            return data
        blocks = data.reshape(-1, 34)
        scales, values = change(blocks[:, :2].copy().view(np.float16)[:, 0], blocks[:, 2:].copy().view(np.int8))
        changed = np.concatenate([scales[:, None].view(np.uint8), values.view(np.uint8)], axis=1)
        return changed.reshape(data.shape)

    return _gguf(tensor=tensor)


def _saturated(most: int) -> Do:
    return _q8_blocks(lambda scales, values: (scales, values.clip(-most, most)))


def _zero_scales(scales: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(np.arange(len(scales)) % 4 != 0, np.float16(0), scales).astype(np.float16), values


def _worse_quant(folder: Path, chain: Chain) -> None:
    """A Q2_K under the name that is there, and the file says that it is an F16."""
    _another_quant(folder, chain)
    edit_gguf(next(folder.glob("*.gguf")), metadata=lambda key, value: 1 if key == "general.file_type" else value)


def _another_quant(folder: Path, chain: Chain) -> None:
    """A Q2_K under the name that is there: the manifest says another type than the file."""
    path = next(folder.glob("*.gguf"))
    shutil.copy(chain.artifacts["q2_k"].gguf_path, path)


DAMAGES = (
    Damage("one tensor 1% larger", "merged", _scaled("model.layers.0.mlp.down_proj.weight", 1.01), MERGE),
    Damage("the last layer without its delta", "merged", _delta(0.0, ".layers.1."), MERGE),
    Damage("no delta at all: the base under the merged model's name", "merged", _delta(0.0), MERGE),
    Damage("the delta's sign turned", "merged", _delta(-1.0), MERGE),
    Damage("rsLoRA's scale ignored: alpha/r for alpha/sqrt(r)", "merged", _delta(8**-0.5), MERGE),
    Damage("the delta merged twice", "merged", _delta(2.0), MERGE),
    Damage("another adapter's deltas", "merged", _other_adapter, MERGE),
    Damage("wrong RoPE base", "merged", _rope_base(500000.0), MERGE),
    Damage("RoPE stretched twice", "merged", _rope_twice, MERGE),
    Damage("wrong norm epsilon", "merged", _config(rms_norm_eps=1e-2), MERGE),
    Damage("another activation", "merged", _config(hidden_act="gelu"), MERGE),
    Damage(
        "head untied and never trained", "merged", _both(_tensors(_untied), _config(tie_word_embeddings=False)), MERGE
    ),
    Damage("vocabulary shifted by one", "merged", _tensors(_shifted_vocabulary), MERGE),
    Damage("value heads in another order", "merged", _tensors(_swapped_heads), MERGE),
    Damage("two layers exchanged", "merged", _tensors(_wrong_layer_order), MERGE),
    Damage("large weights cut off (saturated)", "merged", _tensors(_clipped), MERGE),
    Damage("a weight that is not a number", "merged", _tensors(_not_a_number), frozenset({"not_finite"})),
    Damage(
        "end-of-turn lost",
        "merged",
        _both(_config("generation_config.json", eos_token_id=1), _config(eos_token_id=1)),
        STOPS,
    ),
    Damage("BOS twice", "merged", _template(_two_bos), BOS),
    Damage("one newline more in the template", "merged", _template(_newline), PROMPTS),
    Damage("no generation prompt in the template", "merged", _template(_no_generation_prompt), PROMPTS),
    Damage("a tokenizer that lower-cases", "merged", _tokenizer(_lowercase), PROMPTS),
    Damage("half of the tokenizer's merges lost", "merged", _tokenizer(_half_the_merges), PROMPTS),
    Damage("one tensor 50% larger", "f16", _gguf_scaled("blk.0.ffn_down.weight", 1.5), KL),
    Damage("query and key rows not permuted", "f16", _gguf(tensor=_rows_in_half_order), KL),
    Damage("a square matrix transposed", "f16", _gguf(tensor=_transposed), KL),
    Damage("gate and up exchanged", "f16", _swapped_gate, KL),
    Damage("wrong RoPE base", "f16", _key("rope.freq_base", lambda value: 500000.0), KL),
    Damage("wrong norm epsilon", "f16", _key("layer_norm_rms_epsilon", lambda value: 0.3), KL),
    Damage(
        "token list shifted by one", "f16", _key("tokenizer.ggml.tokens", lambda value: [*value[1:], value[0]]), PROMPTS
    ),
    Damage("end-of-turn lost", "f16", _key("eot_token_id", lambda value: None), STOPS),
    Damage("BOS twice", "f16", _key("tokenizer.chat_template", _two_bos), BOS),
    Damage("one newline more in the template", "f16", _key("tokenizer.chat_template", _newline), PROMPTS),
    Damage("another pre-tokenizer", "f16", _key("tokenizer.ggml.pre", lambda value: "gpt-2"), PROMPTS),
    Damage(
        "half of the merges lost", "f16", _key("tokenizer.ggml.merges", lambda value: value[: len(value) // 2]), PROMPTS
    ),
    Damage("int8 values saturated at 12 of 127", "q8_0", _saturated(12), KL),
    Damage("three of four blocks' scales are zero", "q8_0", _q8_blocks(_zero_scales), KL),
    Damage("a Q2_K under the name of an F16", "f16", _worse_quant, KL),
    Damage("a Q2_K that says so under the name of an F16", "f16", _another_quant, frozenset({"not_loadable"})),
)

DOSED = (
    Dosed(
        "one tensor larger",
        "merged",
        lambda dose: _scaled("model.layers.0.mlp.down_proj.weight", 1 + dose),
        (0.03, 0.01, 0.003, 0.001),
        "of its value",
        MERGE,
    ),
    Dosed(
        "part of every delta missing",
        "merged",
        lambda dose: _delta(1 - dose),
        (0.01, 0.001, 0.0003),
        "of the delta",
        MERGE,
    ),
    Dosed(
        "noise on every matrix",
        "merged",
        _noisy,
        (0.001, 0.0003, 0.0001),
        "of its standard deviation",
        MERGE,
    ),
    Dosed(
        "norm epsilon too large",
        "merged",
        lambda dose: _config(rms_norm_eps=1e-6 + dose),
        (1e-4, 1e-5, 1e-6),
        "added",
        MERGE,
    ),
    Dosed(
        "RoPE base too large",
        "merged",
        lambda dose: _rope_base(10000.0 * (1 + dose)),
        (0.1, 0.01, 0.001),
        "of its value",
        MERGE,
    ),
    Dosed(
        "one tensor larger",
        "f16",
        lambda dose: _gguf_scaled("blk.0.ffn_down.weight", 1 + dose),
        (0.5, 0.2, 0.1, 0.05),
        "of its value",
        KL,
    ),
    Dosed(
        "int8 values saturated",
        "q8_0",
        lambda dose: _saturated(round(127 * (1 - dose))),
        (0.9, 0.8, 0.6, 0.4),
        "of the range",
        KL,
    ),
)
