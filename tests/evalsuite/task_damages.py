"""Damages that distributions as a whole hardly show, or that keep a model from being scored at all.

A word that is always outbid, an end that is never written, a name that is never right: a looser type's mean KL allows
each, and the checks of first choices, of the summaries and of their ends are there to refuse it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.limits import Quant
from tests.evalsuite.chain import Chain, edit_gguf, edit_tensors, remake
from tests.evalsuite.damages import KL, STOPS, Damage, Do
from tests.kit.dialogues import OTHER, RARE

EMBEDDINGS, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
END, NO_END = "<|im_end|>", "<|pad|>"

Change = Callable[[dict[str, Any], Callable[[str], int]], object]  # tensors by name, and the id of a token


def _changed(folder: Path, change: Change) -> None:
    """Change a merged folder's tensors; a head of its own is one more, so that what is read stays as it is."""
    from tokenizers import Tokenizer

    def with_head(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors[EMBEDDINGS].clone()
        change(tensors, Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id)

    edit_tensors(folder, with_head)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


def exported(quant: Quant, change: Change) -> Do:
    """The GGUF of a merged model whose tensors were changed, in place of the one that is there."""

    def do(folder: Path, chain: Chain) -> None:
        from export.to_gguf import export_gguf

        aside = folder.parent / f"{folder.name}.from"
        changed = remake(chain.artifacts["merged"], aside / "merged", lambda merged: _changed(merged, change))
        [made] = export_gguf(changed, aside / "gguf", quants=[quant])
        shutil.copy(made.gguf_path, next(folder.glob("*.gguf")))
        shutil.rmtree(aside)

    return do


def _row_of_head(token: str, like: str, factor: float) -> Change:
    """A token's row of the head is `factor` times that of another, or its own."""

    def change(tensors: dict[str, Any], id_of: Callable[[str], int]) -> None:
        tensors[HEAD][id_of(token)] = tensors[HEAD][id_of(like)] * factor

    return change


def _row_read_as_another(token: str, other: str) -> Change:
    def change(tensors: dict[str, Any], id_of: Callable[[str], int]) -> None:
        tensors[EMBEDDINGS][id_of(token)] = tensors[EMBEDDINGS][id_of(other)]

    return change


def _overconfident(factor: float) -> Change:
    """The last norm too large: every logit is, and no first choice changes."""

    def change(tensors: dict[str, Any], id_of: Callable[[str], int]) -> None:
        tensors[LAST_NORM] = tensors[LAST_NORM] * factor

    return change


def _larger(name: str, factor: float) -> Change:
    def change(tensors: dict[str, Any], id_of: Callable[[str], int]) -> None:
        tensors[name] = tensors[name] * factor

    return change


def _through_float8(tensors: dict[str, Any], id_of: Callable[[str], int]) -> None:
    """Matrices that were stored in 8 bits before, with 2 bits of mantissa."""
    import torch

    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = tensor.to(torch.float8_e5m2).to(tensor.dtype)


def _through_nf4(tensors: dict[str, Any], id_of: Callable[[str], int]) -> None:
    """Merged into the 4-bit weights of QLoRA training, and read back: much of the delta is rounded away."""
    from runtimes.nf4 import dequantized_nf4

    for name, tensor in tensors.items():
        if ".layers." in name and tensor.ndim == 2:
            tensors[name] = dequantized_nf4(tensor.float(), double_quant=True).to(tensor.dtype)


def _infinite(folder: Path, chain: Chain) -> None:
    """A weight that overflowed float16."""

    def tensor(name: str, data: Any) -> Any:
        if name == "blk.0.ffn_up.weight":
            data[3, 5] = float("inf")
        return data

    edit_gguf(next(folder.glob("*.gguf")), tensor=tensor)


def _cut_off(folder: Path, chain: Chain) -> None:
    path = next(folder.glob("*.gguf"))
    path.write_bytes(path.read_bytes()[: -(path.stat().st_size // 10)])


def _one_more_token(folder: Path, chain: Chain) -> None:
    """Embeddings resized by one row that no tokenizer knows."""
    import torch

    def change(tensors: dict[str, Any]) -> None:
        tensors[EMBEDDINGS] = torch.cat([tensors[EMBEDDINGS], tensors[EMBEDDINGS][-1:]])

    edit_tensors(folder, change)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 1}))


def _stops_at_a_word(folder: Path, chain: Chain) -> None:
    """A word that summaries need is one of the stop tokens."""
    from tokenizers import Tokenizer

    word = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("Ġasks")
    path = folder / "generation_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "eos_token_id": [*values["eos_token_id"], word]}))


TOP1 = frozenset({"top1_gold", "top1_greedy"})

TASK_DAMAGES = (
    Damage(
        "a word's row of the head too large: it outbids the usual one",
        "q4_k_m",
        exported("q4_k_m", _row_of_head(f"Ġ{OTHER}", f"Ġ{OTHER}", 1.3)),
        frozenset({*TOP1, "rouge_l_loss"}),
    ),
    Damage(
        "a token nobody stops at outbids the end: written to the limit",
        "q3_k_m",
        exported("q3_k_m", _row_of_head(NO_END, END, 1.1)),
        frozenset({"eos_rate_loss"}),
    ),
    Damage(
        "the last norm too large: too sure of itself, no first choice changes",
        "q8_0",
        exported("q8_0", _overconfident(2.5)),
        frozenset({*KL, "perplexity_ratio"}),
    ),
    Damage(
        "a rare name read as another: a few documents are ruined",
        "q8_0",
        exported("q8_0", _row_read_as_another(RARE, "Mara")),
        KL,
    ),
    Damage("weights that went through 8-bit floats", "f16", exported("f16", _through_float8), KL),
    Damage("merged into 4-bit weights and read back", "f16", exported("f16", _through_nf4), KL),
    Damage(
        "one tensor twice as large", "bf16", exported("bf16", _larger("model.layers.0.mlp.down_proj.weight", 2)), KL
    ),
    Damage("a weight beyond float16's range", "f16", _infinite, frozenset({"not_loadable"})),
    Damage("the file cut off", "q8_0", _cut_off, frozenset({"not_loadable"})),
    Damage("one row of embeddings more", "merged", _one_more_token, frozenset({"vocabulary_differs"})),
    Damage("it also stops at a word", "merged", _stops_at_a_word, STOPS),
)
