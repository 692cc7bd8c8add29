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
from tests.export.makers import train_sentencepiece
from tests.export.test_gguf import LLAMA3_ROPE
from tests.tiny import make_llama

SOURCE = os.environ.get("LLAMA_CPP")
# The converter knows byte-level tokenizers by a hash of their output, so a tiny GPT-2 is none of its models.
ACCEPTED = ["llama", *(name for name in FAMILIES if name != "gpt2")]


@pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP does not name a folder with llama.cpp's convert_hf_to_gguf.py")
@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_tensors_are_those_of_the_converter(tmp_path: Path, name: str, outtype: str) -> None:
    from gguf import GGUFReader

    assert SOURCE is not None
    model = (
        make_llama(
            tmp_path / "model", tokenizer=train_sentencepiece, dtype="bfloat16", tie=False, rope_scaling=LLAMA3_ROPE
        )
        if name == "llama"
        else make_model(tmp_path / "model", name, tokenizer=train_sentencepiece, dtype="bfloat16")
    )
    theirs = tmp_path / "theirs.gguf"
    done = subprocess.run(
        [sys.executable, Path(SOURCE) / "convert_hf_to_gguf.py", model, "--outfile", theirs, "--outtype", outtype],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [made] = export_gguf(open_artifact(model), tmp_path / "ours", quants=[outtype], threads=1)
    ours, expected = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in (made.gguf_path, theirs))
    assert ours.keys() == expected.keys()
    for tensor, other in expected.items():
        assert ours[tensor].tensor_type == other.tensor_type, tensor
        if tensor == ROPE_FREQS:  # computed: theirs in float32, ours in float64
            assert np.allclose(ours[tensor].data, other.data, rtol=1e-6), tensor
        else:
            assert ours[tensor].data.tobytes() == other.data.tobytes(), tensor
