"""Values and files are those of llama.cpp's own tools, where ASSAY_LLAMA_CPP names their folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.gguf_write import write_ggufs
from export.imatrix_file import read_imatrix, write_imatrix
from export.llama_vocab import LlamaVocab
from tests.export.families import make_model
from tests.export.test_imatrix import matrix, opened
from tests.export.test_imatrix_quantize import tensors
from tests.kit.llama_cpp_peer import BIN
from tests.tiny import TEXT, make_llama

pytestmark = pytest.mark.engine

CHUNK = 64


def tool(name: str, *arguments: object) -> None:
    done = subprocess.run([BIN / name, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not (BIN / "llama-imatrix").is_file(), reason="ASSAY_LLAMA_CPP names no folder with llama-imatrix")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_values_and_quantized_bytes_are_the_tools(tmp_path: Path, name: str) -> None:
    folder = make_llama(tmp_path / "model", tie=False) if name == "llama" else make_model(tmp_path / "model", name)
    _, source, plan = opened(folder, tmp_path / "scratch")
    floats = tmp_path / "f32.gguf"
    write_ggufs({"f32": floats}, plan, source, name="m")
    text = "\n".join(TEXT * 4)
    (tmp_path / "text").write_text(text)
    with LlamaVocab(floats) as vocab:
        ids = vocab.tokenize(text, add_special=True, parse_special=False)
    assert len(ids) > 2 * CHUNK
    ours = matrix(source, plan, ids, CHUNK, plan.special.bos)
    write_imatrix(tmp_path / "ours.gguf", ours)
    options = ("-c", CHUNK, "-b", CHUNK, "-ub", CHUNK, "-t", 1, "-fa", "off", "--no-ppl")
    tool("llama-imatrix", "-m", floats, "-f", tmp_path / "text", "-o", tmp_path / "theirs.gguf", *options)
    theirs = read_imatrix(tmp_path / "theirs.gguf")
    assert (theirs.tokens, theirs.chunks, theirs.chunk_tokens) == (ours.tokens, ours.chunks, ours.chunk_tokens)
    assert theirs.sums.keys() == ours.sums.keys()
    for tensor, sums in theirs.sums.items():  # that tool keeps keys and values in half precision
        np.testing.assert_allclose(ours.sums[tensor], sums, rtol=2e-3, atol=2e-3 * sums.mean())

    in_process = {"q2_k": tmp_path / "in-process.gguf"}
    write_ggufs(in_process, plan, source, name="m", imatrix=tmp_path / "ours.gguf")
    tool("llama-quantize", "--imatrix", tmp_path / "ours.gguf", floats, tmp_path / "by-tool.gguf", "Q2_K", 1)
    assert tensors(tmp_path / "in-process.gguf") == tensors(tmp_path / "by-tool.gguf")
