"""Before an hour of training: a tiny random model of the same architecture and tokenizer goes through all that follows.

What fails after training (an unknown pre-tokenizer, a tensor llama.cpp has no place for, a template that ids disagree
about) depends on the architecture and the tokenizer, not on the weights, so it is found in seconds beforehand.
"""

from __future__ import annotations

import copy
import shutil
import sys
import time
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from contract.artifact import MANIFEST_FILE, ONNX_LABEL, SIGNED_FILE, VERDICT_FILE
from contract.errors import AssayError
from contract.example import write_examples
from contract.model_config import T5_FAMILY, head_is_tied
from contract.model_folder import read_json, resolve_model
from contract.quiet import quiet_transformers
from contract.tensor_names import tensor_names

if TYPE_CHECKING:
    from contract.recipe import Recipe
    from trainer.data import Splits

WORTH_IT_BYTES = 100_000_000  # a smaller base is through the whole chain about as quickly as its twin
_ROWS = 2
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.gguf", "*.pth", "*.onnx")
_OURS = (MANIFEST_FILE, VERDICT_FILE, SIGNED_FILE)  # a base that Assay made is another artifact than its twin
# the same setting under the names that architectures give it
_LAYERS = ("num_hidden_layers", "n_layer")
_HEADS = ("num_attention_heads", "n_head")
_WIDTH = ("hidden_size", "n_embd")
_INNER = ("intermediate_size", "n_inner")
_KINDS = ("layer_types", "no_rope_layers")  # what each layer is; the twin has one of each kind
_NO_MODEL = "the base's config makes no model"
_NO_TWIN = "no small twin can be made of this model, so what follows training is not tried beforehand"


class NoTwinError(AssayError):
    """An architecture that is not known how to make smaller. It says nothing against the model."""


def is_worth_it(base: Path) -> bool:
    """Is the base so large that trying its twin first saves time?"""
    return sum(path.stat().st_size for path in base.glob("*.safetensors")) > WORTH_IT_BYTES


def preflight(recipe: Recipe, splits: Splits, *, device: str = "auto", threads: int = 2) -> float:
    """Train one step of the twin, merge, export every type the recipe asks for with its checks, and generate.

    Returns:
        How long it took, in seconds.

    Raises:
        NoTwinError: nothing could be tried.
        AssayError: what would have failed after training.
    """
    from contract.prompt import Message
    from flow.run import run_recipe
    from runtimes import load_runtime

    started = time.monotonic()
    with TemporaryDirectory(prefix="assay-preflight-") as scratch:
        folder = Path(scratch)
        try:
            twin = make_twin(resolve_model(recipe.model.base, recipe.model.revision), folder / "base")
            small = _small(recipe, splits, twin, folder)
            with redirect_stderr(StringIO()):  # its steps and figures are not the model's
                made = run_recipe(small, folder / "run", device=device, threads=threads, until="onnx").artifacts
            for label in _last_of_each(small):
                runtime = load_runtime(made[label], threads=threads)
                try:
                    params = replace(recipe.generate.params(), max_new_tokens=4, min_new_tokens=0)
                    runtime.generate([runtime.encode([Message("user", "Hello")])], params)
                finally:
                    runtime.close()
        except NoTwinError:
            raise
        except AssayError as error:
            hint = error.hint if str(folder) not in str(error.hint) else None  # what it names is gone by then
            raise AssayError(
                f"a small twin of the model does not get through: {error.what}",
                where=error.where and error.where.replace(str(folder), "…"),
                expected=error.expected,
                got=error.got,
                hint=hint or "the model itself would fail the same way, after training",
            ) from error
    return time.monotonic() - started


def _last_of_each(recipe: Recipe) -> list[str]:
    """The label of the last export of each format, or the merged model's where nothing is exported."""
    gguf, onnx = recipe.export.gguf, recipe.export.onnx
    labels = [*(gguf.quants[-1:] if gguf else []), *([ONNX_LABEL + onnx.precisions[-1]] if onnx else [])]
    return labels or ["merged"]


def make_twin(base: Path, folder: Path) -> Path:
    """A model of the base's architecture, with its tokenizer and few random weights.

    Head size, kinds of layers, RoPE and vocabulary stay; there are fewer and narrower layers.

    Raises:
        NoTwinError: the base's config makes a model, but no smaller one.
        AssayError: the base's config makes no model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    quiet_transformers()
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns(*_WEIGHTS, *_OURS, "*.md"))
    where = str(base / "config.json")
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers makes of a config
        raise AssayError(_NO_MODEL, where=where, got=_said(error)) from None
    small, seq2seq = copy.deepcopy(config), bool(config.is_encoder_decoder)
    loader = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    try:
        (_shrink_seq2seq if seq2seq else _shrink)(small)
        torch.manual_seed(0)
        model = loader.from_config(small, dtype=torch.float32)
        _give_own_head(model, base)
    except Exception as error:
        try:
            with torch.device("meta"):
                loader.from_config(config)
        except Exception as own:
            raise AssayError(_NO_MODEL, where=where, got=_said(own)) from None
        raise NoTwinError(_NO_TWIN, where=where, got=_said(error)) from None
    generation = folder / "generation_config.json"
    kept = generation.read_bytes() if generation.is_file() else None
    model.half().save_pretrained(folder)
    if kept is not None:
        generation.write_bytes(kept)
    return folder


def _give_own_head(model: Any, base: Path) -> None:
    """A head of its own, where a T5 has one: transformers 5 builds each with its embeddings for a head."""
    config = read_json(base / "config.json")
    if config.get("model_type") in T5_FAMILY and not head_is_tied(config, tensor_names(base), usual=True):
        head = model.get_output_embeddings()
        head.weight = type(head.weight)(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _shrink(config: Any) -> None:
    heads, width = _value(config, _HEADS), _value(config, _WIDTH)
    head_size = getattr(config, "head_dim", None) or width // heads
    # k-quants of the twin fall back where those of the model do: its rows are no whole blocks of 256 either
    fewer = (*range(2, heads, 2), *range(3, heads, 2), heads)
    few = next(n for n in fewer if (n * head_size % 256 == 0) == (heads * head_size % 256 == 0))
    groups = max(1, heads // (getattr(config, "num_key_value_heads", None) or heads))
    kinds = {name: found for name in _KINDS if (found := getattr(config, name, None))}
    firsts = [found.index(kind) for found in kinds.values() for kind in found]
    layers = min(max(2, 1 + max(firsts, default=0)), _value(config, _LAYERS))
    _set(config, _HEADS, few)
    _set(config, _WIDTH, few * head_size if width == heads * head_size else 256 + width % 256)
    _set(config, _LAYERS, layers)
    _set(config, _INNER, 512)
    if getattr(config, "num_key_value_heads", None):
        config.num_key_value_heads = 1 if few % groups else few // groups
    for name, found in kinds.items():
        setattr(config, name, list(found[:layers]))


def _shrink_seq2seq(config: Any) -> None:
    """Two layers and two heads on each side, of the size they have (T5's names, then BART's)."""
    size = getattr(config, "d_kv", None) or config.d_model // config.encoder_attention_heads
    for name in ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"):
        _set(config, (name,), 2)
    for name in ("num_heads", "encoder_attention_heads", "decoder_attention_heads"):
        _set(config, (name,), 2)
    for name in ("d_ff", "encoder_ffn_dim", "decoder_ffn_dim"):
        _set(config, (name,), 4 * size)
    config.d_model = 2 * size


def _value(config: Any, names: tuple[str, ...]) -> int:
    return next(int(value) for name in names if (value := getattr(config, name, None)))


def _set(config: Any, names: tuple[str, ...], value: int) -> None:
    for name in names:
        if getattr(config, name, None) is not None:
            setattr(config, name, value)


def _small(recipe: Recipe, splits: Splits, twin: Path, folder: Path) -> Recipe:
    """The recipe for the twin: a few rows, one step; prompt, method and exports as they are."""
    data = {}
    for name, rows in splits.named().items():
        shortest = sorted(rows, key=lambda example: len(example.document))[:_ROWS]
        write_examples(folder / f"{name}.jsonl", shortest)
        data[name] = str(folder / f"{name}.jsonl")
    once = {"max_steps": 1, "evaluations": 1, "batch_size": 1, "accumulation_steps": 1}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"base": str(twin), "revision": None}),
            "data": type(recipe.data)(**data),
            "train": recipe.train.model_copy(update=once),
        }
    )


def say_preflight(recipe: Recipe, splits: Splits, *, device: str, threads: int) -> None:
    """`preflight`, with a line on stderr before and after; a model that no twin can be made of goes on without."""
    print("assay run · preflight: a small twin of the model goes all the way …", file=sys.stderr, flush=True)
    try:
        seconds = preflight(recipe, splits, device=device, threads=threads)
    except NoTwinError as error:
        print(f"assay run · note: {error}", file=sys.stderr, flush=True)
        return
    print(f"assay run · preflight: it gets through, {seconds:.0f} s", file=sys.stderr, flush=True)
