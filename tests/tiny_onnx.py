"""Exports tiny models through Optimum as anybody would, so that the runtime is tested on folders Assay did not make."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

from contract.model_config import as_written_by_4
from contract.model_folder import TOKENIZER_FILES, read_json
from export.onnx_tracer.overlay import overlay_environment

_EXPORT = """
import sys
from optimum.exporters.onnx import main_export
model, out, task, merged = sys.argv[1:]
plain = merged != "merged"
main_export(
    model, output=out, task=task, device="cpu", do_validation=False, no_post_process=plain, local_files_only=True
)
"""


def as_people_had_it(model: Path, out: Path) -> Path:
    """A copy of a folder for Optimum's transformers, which reads configs of its own time only."""
    shutil.copytree(model, out)
    config = as_written_by_4(read_json(model / "config.json"))
    (out / "config.json").write_text(json.dumps(config))
    if config["model_type"] == "t5" and not config["tie_word_embeddings"]:
        tensors = load_file(out / "model.safetensors")
        save_file({"lm_head.weight": tensors["shared.weight"].copy(), **tensors}, out / "model.safetensors")
    return out


def export_folder(model: Path, out: Path, *, seq2seq: bool, merged: bool = False) -> Path:
    """ONNX graphs with a cache, beside config and tokenizer; `merged`: both decoders in one graph."""
    older = as_people_had_it(model, out.with_name(f"{out.name}-source"))
    task = "text2text-generation-with-past" if seq2seq else "text-generation-with-past"
    run_tracer(_EXPORT, str(older), str(out), task, "merged" if merged else "plain")
    for name in TOKENIZER_FILES:  # that an older transformers does not read
        if (model / name).is_file():
            shutil.copyfile(model / name, out / name)
    if merged:
        for name in ("decoder_model.onnx", "decoder_with_past_model.onnx"):
            (out / name).unlink()
    return out


def run_tracer(code: str, *arguments: str) -> str:
    """What Python code printed that sees Optimum and the transformers it needs."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code, *arguments],
        env=overlay_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
