"""What llama.cpp's own converter writes is read back as the folder was. Needs its source: LLAMA_CPP=FOLDER pytest …"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.from_gguf.to_folder import import_gguf
from export.hard_texts import HARD_TEXTS
from export.weights import FolderWeights
from tests.export.families import FAMILIES
from tests.export.test_from_gguf import ids_of, logits_of
from tests.export.test_gguf_peer import make

pytestmark = pytest.mark.engine

SOURCE = os.environ.get("LLAMA_CPP")


@pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP does not name a folder with llama.cpp's convert_hf_to_gguf.py")
@pytest.mark.parametrize("name", ["llama", *(name for name in FAMILIES if name != "gpt2"), "t5"])
def test_the_converters_files_come_back(tmp_path: Path, name: str) -> None:
    import torch

    assert SOURCE is not None
    model, theirs = make(tmp_path / "model", name), tmp_path / "theirs.gguf"
    converter = str(Path(SOURCE) / "convert_hf_to_gguf.py")
    done = subprocess.run(
        [sys.executable, converter, str(model), "--outfile", str(theirs), "--outtype", "bf16"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = import_gguf(theirs, tmp_path / "again", dtype="bfloat16", threads=1)
    before, after = FolderWeights.open(model), FolderWeights.open(made.path)
    for tensor in after.names():
        if (name, tensor) == (
            "t5",
            "decoder.final_layer_norm.weight",
        ):  # with the scale of a tied head, which it has not
            continue
        close = (
            {"rtol": 0.01, "atol": 0.01} if name.startswith("gemma") and "norm" in tensor else {"rtol": 0, "atol": 0}
        )
        assert torch.allclose(after.read(tensor).float(), before.read(tensor).float(), **close), tensor
    if name == "t5":
        assert torch.allclose(logits_of(made.path), logits_of(model), rtol=0, atol=1e-3)
    if name.startswith(("gemma", "qwen2")):
        # there the converter says that there is no space before a text, whatever the tokenizer does; here
        # transformers 5 makes a Qwen2Tokenizer of whatever vocabulary lies in a folder without tokenizer.json
        return
    both = list(zip(HARD_TEXTS, ids_of(made.path), ids_of(model), strict=False))
    assert [text for text, a, b in both if a != b and not text.startswith((" ", "▁"))] == []
