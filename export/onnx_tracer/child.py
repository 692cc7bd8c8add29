"""Traces one model folder with Optimum: FOLDER OUT OPSET. Runs in a process of its own, with the overlay's packages.

Its last line on stdout is a JSON object: {} when OUT holds the graphs, else "error" and, for the disk's, "errno".
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from typing import Any


def main(folder: str, out: str, opset: str) -> dict[str, Any]:
    """Write the graphs of a model folder, in float32 and with key-value cache, into the folder `out`."""
    import torch
    from optimum.exporters.onnx.convert import onnx_export_from_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    for name in ("optimum", "transformers", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    seq2seq = config.is_encoder_decoder
    model, info = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True, output_loading_info=True
    )
    missing = set(info["missing_keys"])
    if missing == {"lm_head.weight"} and hasattr(model, "shared"):
        # T5 1.1 saved by transformers 5: the head is the embedding and its input is not scaled, which 4 cannot say
        model.lm_head.weight = model.shared.weight
    elif missing:
        raise ValueError(f"weights are missing: {', '.join(sorted(missing))}")
    onnx_export_from_model(
        model,
        out,
        task="text2text-generation-with-past" if seq2seq else "text-generation-with-past",
        opset=int(opset),
        no_post_process=True,
        do_validation=False,
        preprocessors=[],
    )
    return {}


if __name__ == "__main__":
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            result = main(*sys.argv[1:])
    except Exception as error:
        sys.stderr.write(said.getvalue())
        first = (str(error).strip().splitlines() or [""])[0][:300]
        result = {"error": f"{type(error).__name__}: {first}", "errno": getattr(error, "errno", None)}
    print(json.dumps(result))
