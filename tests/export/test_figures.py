"""Every family against figures that transformers did not compute: llama.cpp's converter and engine, frozen.

The models are drawn by NumPy and described by hand, so that a value our readers and our reference both read wrongly
shows. `tests/export/figures.py` writes the figures anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import open_artifact
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.export.drawn_models import DRAWN, HIDDEN, draw, drawn_ids
from tests.export.figures import COLUMNS, FOLDER, ROWS, contents, digest, list_digest, logits
from tests.export.makers import edit_json

pytestmark = pytest.mark.engine

# What we write besides, each the default of llama.cpp's loader or of a host, or a word of our own.
OURS = (
    *(".vocab_size", ".rope.dimension_count", ".rope.freq_base", ".rope.scaling.attn_factor"),
    *(".attention.sliding_window_pattern", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id"),
    *("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.padding_token_id"),
    *("phi3.attention.key_length", "phi3.attention.value_length"),
    "assay.tokenizer.spares_leading_space",
)
# What the converter writes and nothing that we support reads: a separator's, and a number that Phi-3's loader ignores
# where layers have no window.
THEIRS = ("tokenizer.ggml.add_sep_token", "phi3.attention.sliding_window", "tokenizer.ggml.scores")
# The scale of a tied head stands in this tensor; the converter leaves it out, and its file's logits are as much larger.
SCALED = {"t5": "dec.output_norm.weight"}


def frozen(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def compare_file(path: Path, expected: dict[str, Any], name: str) -> None:
    """Every value that decides what is computed is the converter's (numbers to float32), and so is every tensor."""
    ours, tensors = contents(path)
    theirs = expected["metadata"]
    surplus = [key for key in ours.keys() - theirs.keys() if not key.endswith(OURS)]
    assert not surplus
    for key, value in theirs.items():
        if key in THEIRS or (key not in ours and key == "tokenizer.ggml.padding_token_id"):
            continue
        assert key in ours, key
        if key == "tokenizer.ggml.add_space_prefix":  # the converter says so of every Gemma, whatever its tokenizer
            continue
        found = ours[key]
        if isinstance(value, dict):
            assert (len(found), list_digest(found)) == (value["length"], value["sha256"]), key
        elif isinstance(value, float):
            assert found == pytest.approx(value, rel=1e-6), key
        else:
            assert found == value, key
    assert tensors.keys() == expected["tensors"].keys()
    for tensor, values in tensors.items():
        whole = values * np.float32(HIDDEN**0.5) if tensor == SCALED.get(name) else values
        assert digest(whole) == expected["tensors"][tensor], tensor


@pytest.mark.parametrize("name", DRAWN)
def test_files_and_both_engines_give_the_frozen_figures(tmp_path: Path, name: str) -> None:
    expected, folder = frozen(name), draw(tmp_path / "model", name)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"], threads=1)
    compare_file(made.gguf_path, expected, name)
    check_logits(logits(made.gguf_path, name), expected, name)
    check_logits(torch_logits(folder, name), expected, name)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "llama.rope.freq_base", 500000.0),
        ("llama-old-words", "llama.rope.freq_base", 500000.0),
        ("qwen2-yarn", "qwen2.rope.scaling.factor", 8.0),
        ("gemma3", "gemma3.rope.freq_base_swa", 5000.0),
    ],
)
def test_figures_are_of_what_was_written_by_hand(name: str, key: str, value: float) -> None:
    assert frozen(name)["metadata"][key] == value


def test_both_words_for_one_base_give_the_same_figures() -> None:
    assert frozen("llama")["metadata"] == frozen("llama-old-words")["metadata"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ("llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}}),
        ("qwen2-yarn", {"rope_scaling": None}),
        ("umt5", {"layer_norm_epsilon": 0.1}),
        ("gemma2", {"sliding_window": 512}),
    ],
)
def test_a_config_read_wrongly_is_seen(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    """By torch and by the file: both would have the fault, and agree."""
    expected, folder = frozen(name), draw(tmp_path / "model", name)
    edit_json(folder / "config.json", **change)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"], check="logits", threads=1)
    with pytest.raises(AssertionError):
        compare_file(made.gguf_path, expected, name)
    for found in (logits(made.gguf_path, name), torch_logits(folder, name)):
        with pytest.raises(AssertionError):
            check_logits(found, expected, name)


def torch_logits(folder: Path, name: str) -> np.ndarray:
    """float32 [90, vocabulary], as `tests.export.figures.logits`."""
    ids = drawn_ids(name)
    runtime = load_runtime(open_artifact(folder), threads=1)
    try:
        if DRAWN[name].config.get("is_encoder_decoder"):
            [found] = runtime.score([(ids, ids)])
        else:
            [found] = runtime.score([(ids[:1], [*ids[1:], 5])])
    finally:
        runtime.close()
    return found


def check_logits(found: np.ndarray, expected: dict[str, Any], name: str) -> None:
    limit = 2e-2 if DRAWN[name].looks_up_gelu else 1e-3
    known = np.array(expected["logits"]) * (HIDDEN**-0.5 if name in SCALED else 1.0)
    assert np.abs(known).max() > 0.3, "they are not all nothing"
    assert np.abs(found[list(ROWS), :COLUMNS] - known).max() < limit
    same = found.argmax(1) == np.array(expected["largest"])
    assert same.mean() > 0.97
