"""Every type is what the program llama-quantize, writes: ASSAY_LLAMA_CPP=FOLDER pytest …"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from export.quantize import NEED_MATRIX
from tests.export.test_gguf_write import QUANTIZED, contents, opened, write
from tests.kit.llama_cpp_peer import BIN
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

TOOL = BIN / "llama-quantize"


@pytest.mark.skipif(not TOOL.is_file(), reason="ASSAY_LLAMA_CPP names no folder with llama-quantize")
def test_every_type_is_the_programs(tmp_path: Path) -> None:
    source, plan = opened(make_llama(tmp_path / "model", layers=8, tie=False), tmp_path / "scratch")
    quants = [quant for quant in QUANTIZED if quant not in NEED_MATRIX]
    made = write(["f16", *quants], plan, source, tmp_path / "made")
    for quant in quants:
        theirs = tmp_path / f"theirs-{quant}.gguf"
        done = subprocess.run([TOOL, made["f16"], theirs, quant.upper(), "1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert contents(made[quant]) == contents(theirs), quant
