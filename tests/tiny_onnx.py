"""Exports tiny models through Optimum as anybody would, so that the runtime is tested on folders Assay did not make."""

from __future__ import annotations

import warnings
from pathlib import Path


def export_folder(model: Path, out: Path, *, seq2seq: bool, merged: bool = False) -> Path:
    """ONNX graphs with a cache, beside config and tokenizer; `merged`: both decoders in one graph."""
    from optimum.exporters.onnx import main_export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(
            str(model),
            output=str(out),
            task="text2text-generation-with-past" if seq2seq else "text-generation-with-past",
            device="cpu",
            do_validation=False,
            no_post_process=not merged,
            local_files_only=True,
        )
    if merged:
        for name in ("decoder_model.onnx", "decoder_with_past_model.onnx"):
            (out / name).unlink()
    return out
