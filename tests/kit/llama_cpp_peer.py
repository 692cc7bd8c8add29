"""llama.cpp's own converter and programs, where ASSAY_LLAMA_CPP names a folder with its source (src) and its bin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDER = os.environ.get("ASSAY_LLAMA_CPP")
SOURCE = None if _FOLDER is None else Path(_FOLDER) / "src"
BIN = Path(_FOLDER or "no-folder") / "bin"
needs_source = pytest.mark.skipif(
    SOURCE is None, reason="ASSAY_LLAMA_CPP does not name a folder with llama.cpp's src/convert_hf_to_gguf.py"
)
# It knows a byte-level tokenizer by a hash of its output, and a tiny one is none of those: it is told. It would read
# config.json through transformers where it can: it is made to read the file itself.
_NAMED = """
import runpy, sys
from pathlib import Path
name, sys.argv = sys.argv[1], sys.argv[2:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
import conversion.base as base
base.AutoConfig = None
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: name
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def convert(folder: Path, out: Path, outtype: str = "f32", pre_tokenizer: str = "qwen2") -> None:
    """Have the converter write a GGUF.

    Args:
        folder: a Hugging Face folder.
        out: the file.
        outtype: "f32", "f16", "bf16" or "q8_0".
        pre_tokenizer: what the converter is told of a byte-level tokenizer.
    """
    assert SOURCE is not None
    command = [str(SOURCE / "convert_hf_to_gguf.py"), str(folder), "--outfile", str(out), "--outtype", outtype]
    done = subprocess.run([sys.executable, "-c", _NAMED, pre_tokenizer, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
