"""Changes that move numbers and lose nothing: other storage, an equivalent rewriting, another way of running."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.artifact import Artifact
from contract.example import Example
from tests.evalsuite.chain import Chain, edit_gguf, edit_template, edit_tensors, remake

HEADS, KEY_VALUE_HEADS, HEAD_SIZE = 4, 2, 64


@dataclass(frozen=True)
class Harmless:
    """A new artifact of the same chain, made in `path`."""

    name: str
    make: Callable[[Chain, Path], Artifact]


@dataclass(frozen=True)
class OtherWay:
    """The same artifacts evaluated otherwise: settings of the runtimes, threads, or which half of the documents."""

    name: str
    runtime: dict[str, Any]
    threads: int
    choose: Callable[[list[Example]], list[Example]]


def _merged(**options: Any) -> Callable[[Chain, Path], Artifact]:
    from export.merge import merge_adapter

    return lambda chain, path: merge_adapter(chain.artifacts["adapter"], path, **{"base_weights": "nf4", **options})


def _rewritten(change: Callable[[dict[str, Any]], object], **config: Any) -> Callable[[Chain, Path], Artifact]:
    """The merged folder with tensors that compute the same function."""

    def make(chain: Chain, path: Path) -> Artifact:
        def damage(folder: Path) -> None:
            edit_tensors(folder, change)
            if config:
                values = json.loads((folder / "config.json").read_text())
                (folder / "config.json").write_text(json.dumps({**values, **config}))

        return remake(chain.artifacts["merged"], path, damage)

    return make


def _layers(tensors: dict[str, Any]) -> range:
    return range(sum(name.endswith("q_proj.weight") for name in tensors))


def _permuted_neurons(tensors: dict[str, Any]) -> None:
    """Feed-forward neurons in another order: sums are taken in another order."""
    import torch

    for layer in _layers(tensors):
        mlp = f"model.layers.{layer}.mlp"
        order = torch.randperm(
            tensors[f"{mlp}.down_proj.weight"].shape[1], generator=torch.Generator().manual_seed(layer)
        )
        for name in ("gate_proj", "up_proj"):
            tensors[f"{mlp}.{name}.weight"] = tensors[f"{mlp}.{name}.weight"][order].contiguous()
        tensors[f"{mlp}.down_proj.weight"] = tensors[f"{mlp}.down_proj.weight"][:, order].contiguous()


def _permuted_heads(tensors: dict[str, Any]) -> None:
    """Key-value heads, with the query heads that belong to them, in the opposite order."""
    for layer in _layers(tensors):
        attention = f"model.layers.{layer}.self_attn"
        for name, axis in (("q_proj", 0), ("k_proj", 0), ("v_proj", 0), ("o_proj", 1)):
            weight = tensors[f"{attention}.{name}.weight"]
            tensors[f"{attention}.{name}.weight"] = weight.roll(
                weight.shape[axis] // KEY_VALUE_HEADS, axis
            ).contiguous()


def _norms_moved(tensors: dict[str, Any]) -> None:
    """Each norm half as large again, what follows it as much smaller: every weight is rounded anew."""
    for layer in _layers(tensors):
        at = f"model.layers.{layer}"
        for norm, names in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            tensors[f"{at}.{norm}.weight"] = (tensors[f"{at}.{norm}.weight"].float() * 1.5).half()
            for name in names:
                tensors[f"{at}.{name}.weight"] = (tensors[f"{at}.{name}.weight"].float() / 1.5).half()


def _values_turned(tensors: dict[str, Any]) -> None:
    """Values in another basis, turned back by the output projection."""
    import torch

    for layer in _layers(tensors):
        attention = f"model.layers.{layer}.self_attn"
        random = torch.randn(HEAD_SIZE, HEAD_SIZE, generator=torch.Generator().manual_seed(layer))
        turn = torch.linalg.qr(random)[0]
        values = tensors[f"{attention}.v_proj.weight"].float().view(KEY_VALUE_HEADS, HEAD_SIZE, -1)
        tensors[f"{attention}.v_proj.weight"] = (turn @ values).flatten(0, 1).half()
        output = tensors[f"{attention}.o_proj.weight"].float()
        turned = output.view(len(output), HEADS, HEAD_SIZE) @ turn.T
        tensors[f"{attention}.o_proj.weight"] = turned.flatten(1).half()


def _queries_scaled(tensors: dict[str, Any]) -> None:
    """Queries larger, keys as much smaller."""
    for layer in _layers(tensors):
        attention = f"model.layers.{layer}.self_attn"
        for name, factor in (("q_proj", 1.37), ("k_proj", 1 / 1.37)):
            tensors[f"{attention}.{name}.weight"] = (tensors[f"{attention}.{name}.weight"].float() * factor).half()


def _own_head(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def _same_template_in_other_words(chain: Chain, path: Path) -> Artifact:
    def reword(template: str) -> str:
        return "{# as before #}" + template.replace("{% for m in messages %}", "{%- for m in messages -%}")

    return remake(chain.artifacts["merged"], path, lambda folder: edit_template(folder, reword))


def _gguf(quant: str, of: str = "merged", **options: Any) -> Callable[[Chain, Path], Artifact]:
    from export.to_gguf import export_gguf

    return lambda chain, path: export_gguf(chain.artifacts[of], path, quants=[quant], **options)[0]  # type: ignore[list-item]


def _other_metadata(chain: Chain, path: Path) -> Artifact:
    def change(key: str, value: object) -> object:
        return "another name" if key == "general.name" else value

    return remake(chain.artifacts["f16"], path, lambda at: edit_gguf(next(at.glob("*.gguf")), metadata=change))


HARMLESS = (
    Harmless("merged, stored as bfloat16", _merged(dtype="bfloat16")),
    Harmless("merged, in many small files", _merged(shard_bytes=200_000)),
    Harmless("feed-forward neurons in another order", _rewritten(_permuted_neurons)),
    Harmless("heads in another order, consistently", _rewritten(_permuted_heads)),
    Harmless("norms scaled, what follows scaled back", _rewritten(_norms_moved)),
    Harmless("values in another basis", _rewritten(_values_turned)),
    Harmless("queries scaled, keys scaled back", _rewritten(_queries_scaled)),
    Harmless("the tied head stored once more", _rewritten(_own_head, tie_word_embeddings=False)),
    Harmless("the same template in other words", _same_template_in_other_words),
    Harmless("F16 GGUF straight from the adapter's merge in float32", _gguf("f16", of="merged32")),
    Harmless("Q8_0 GGUF from the float32 merge", _gguf("q8_0", of="merged32")),
    Harmless("GGUF under another name", _other_metadata),
)


def _first_half(examples: list[Example]) -> list[Example]:
    return examples[: len(examples) // 2]


def _longest(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: len(example.document))[len(examples) // 2 :]


OTHER_WAYS = (
    OtherWay("two threads, the first half of the documents", {}, 2, _first_half),
    OtherWay("three threads, the other half", {}, 3, lambda examples: examples[len(examples) // 2 :]),
    OtherWay("one document at a time, every other one", {"parallel": 1}, 1, lambda examples: examples[::2]),
    OtherWay(
        "three documents at a time, in the opposite order",
        {"parallel": 3},
        1,
        lambda examples: _first_half(examples)[::-1],
    ),
    OtherWay("a key-value cache in float32, the longest documents", {"kv_dtype": "f32"}, 1, _longest),
    OtherWay("a key-value cache in float16, the longest documents", {"kv_dtype": "f16"}, 1, _longest),
    OtherWay("a shorter context", {"context_length": 256}, 1, _first_half),
)
