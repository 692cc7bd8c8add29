"""Tensors are byte for byte those of llama.cpp's own converter. Needs its source: LLAMA_CPP=FOLDER pytest …"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.artifact import open_artifact
from export.gguf_rope import ROPE_FREQS
from export.to_gguf import export_gguf
from tests.export.families import FAMILIES, make_model
from tests.export.makers import edit_json, train_sentencepiece
from tests.export.test_gguf import LLAMA3_ROPE
from tests.tiny import make_llama
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

SOURCE = os.environ.get("LLAMA_CPP")
# The converter knows a byte-level tokenizer by a hash of its output, and a tiny one is none of those: it is told.
NAMED = """
import runpy, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


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
    return make_model(folder, name, tokenizer=train_sentencepiece, dtype="bfloat16")


@pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP does not name a folder with llama.cpp's convert_hf_to_gguf.py")
@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ["llama", *FAMILIES, "t5", "t5-1.0"])
def test_tensors_are_those_of_the_converter(tmp_path: Path, name: str, outtype: str) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    assert SOURCE is not None
    model, theirs = make(tmp_path / "model", name), tmp_path / "theirs.gguf"
    named = ["-c", NAMED] if name == "gpt2" else []
    converter = str(Path(SOURCE) / "convert_hf_to_gguf.py")
    done = subprocess.run(
        [sys.executable, *named, converter, str(model), "--outfile", str(theirs), "--outtype", outtype],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
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
