"""Tensors, and the frozen figures, are those of llama.cpp's own converter, which ASSAY_LLAMA_CPP must name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contract.artifact import open_artifact
from export.gguf_rope import ROPE_FREQS
from export.to_gguf import export_gguf
from tests.export.drawn_models import DRAWN, draw
from tests.export.families import FAMILIES, make_model
from tests.export.figures import FOLDER, figures
from tests.export.makers import edit_json, train_sentencepiece
from tests.export.test_gguf import LLAMA3_ROPE
from tests.kit.llama_cpp_peer import convert, needs_source
from tests.tiny import make_llama
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine


def make(folder: Path, name: str) -> Path:
    """A model in bfloat16 that the converter takes."""
    match name:
        case "llama":
            return make_llama(
                folder, tokenizer=train_sentencepiece, dtype="bfloat16", tie=False, rope_scaling=LLAMA3_ROPE
            )
        case "gpt2":
            made = make_model(folder, name, dtype="bfloat16")
            edit_json(made / "config.json", n_ctx=512)  # as in OpenAI's own folders; the converter reads no other
            return made
        case "t5" | "t5-1.0":
            return make_t5(folder, v1_1=name == "t5", dtype="bfloat16")
    if name.startswith("qwen2"):
        return make_model(folder, name, dtype="bfloat16", vocab_size=520)
    # rows enough for the token that transformers 5 adds to what it takes for a Gemma tokenizer
    return make_model(folder, name, tokenizer=train_sentencepiece, dtype="bfloat16", vocab_size=448)


@needs_source
@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["llama", *FAMILIES, "t5", "t5-1.0"])
def test_tensors_are_those_of_the_converter(tmp_path: Path, name: str, outtype: str) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model, theirs = make(tmp_path / "model", name), tmp_path / "theirs.gguf"
    convert(model, theirs, outtype)
    [made] = export_gguf(open_artifact(model), tmp_path / "ours", quants=[outtype], threads=1)
    ours, expected = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in (made.gguf_path, theirs))
    assert ours.keys() == expected.keys()
    for tensor, other in expected.items():
        if tensor.endswith("attn_rel_b.weight"):  # T5's relative positions, in float32 here
            read = dequantize(other.data, other.tensor_type)
            assert np.array_equal(ours[tensor].data.astype(np.float16), read.astype(np.float16)), tensor
            continue
        assert ours[tensor].tensor_type == other.tensor_type, tensor
        if tensor == ROPE_FREQS:  # computed: theirs in float32, ours in float64
            assert np.allclose(ours[tensor].data, other.data, rtol=1e-6), tensor
        elif (name, tensor) == ("t5-1.0", "dec.output_norm.weight"):  # with the scale of the tied head, 64^-0.5, in it
            assert np.array_equal(ours[tensor].data, other.data / 8), tensor
        else:
            assert ours[tensor].data.tobytes() == other.data.tobytes(), tensor


@needs_source
@pytest.mark.parametrize("name", DRAWN)
def test_the_frozen_figures_are_what_the_converter_makes(tmp_path: Path, name: str) -> None:
    convert(draw(tmp_path / "model", name), tmp_path / "theirs.gguf")
    made, frozen = figures(tmp_path / "theirs.gguf", name), json.loads((FOLDER / f"{name}.json").read_text())
    assert np.allclose(made.pop("logits"), frozen.pop("logits"), atol=1e-3)
    assert made == frozen
