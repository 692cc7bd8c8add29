"""What llama.cpp's own converter and engine make of the drawn models, frozen: `python -m tests.export.figures`.

That writes the JSON files in figures/ anew and needs ASSAY_LLAMA_CPP (CONTRIBUTING.md). transformers takes no part: the
converter reads config.json itself, and llama.cpp computes the logits, in float32.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.export.drawn_models import DRAWN, draw, drawn_ids

FOLDER = Path(__file__).parent / "figures"
ROWS, COLUMNS = (0, 20, 89), 24  # the logits that are kept: of these ids, of the first tokens
_UNFROZEN = ("GGUF.", "general.", "tokenizer.ggml.precompiled_charsmap")  # of the file, and of a library's version


def contents(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata by key, without what is said of the file itself, and tensors by name."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(_UNFROZEN)}
    return metadata, {tensor.name: tensor.data for tensor in reader.tensors}


def digest(values: np.ndarray) -> str:
    """Of a tensor's values, or of a list's as JSON."""
    return hashlib.sha256(values.tobytes()).hexdigest()[:32]


def list_digest(values: list[Any]) -> str:
    """Of a list of a tokenizer's table."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()[:32]


def logits(path: Path, name: str) -> np.ndarray:
    """llama.cpp's float32 logits [90, vocabulary] of `drawn_ids`; a T5 reads them, and writes the same ones."""
    ids = drawn_ids(name)
    if DRAWN[name].config.get("is_encoder_decoder"):
        from runtimes.llama_t5 import LlamaT5Runtime

        runtime = LlamaT5Runtime(path, threads=1, context_length=None, kv_dtype="f32")
        try:
            [found] = runtime.score([(ids, ids)])
        finally:
            runtime.close()
        return found
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=128, n_batch=128, n_ubatch=128, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    try:
        model.eval(ids)
        return np.array(model.scores[: len(ids)], np.float32)
    finally:
        model.close()


def figures(path: Path, name: str) -> dict[str, Any]:
    """What is frozen of a file."""
    metadata, tensors = contents(path)
    found = logits(path, name)
    return {
        "metadata": {
            key: {"length": len(value), "sha256": list_digest(value)} if isinstance(value, list) else value
            for key, value in metadata.items()
        },
        "tensors": {key: digest(values) for key, values in tensors.items()},
        "largest": [int(row.argmax()) for row in found],
        "logits": [[round(float(value), 5) for value in found[row, :COLUMNS]] for row in ROWS],
    }


def _freeze(name: str) -> None:
    from tests.kit.llama_cpp_peer import convert

    with tempfile.TemporaryDirectory() as scratch:
        folder = draw(Path(scratch) / "model", name)
        convert(folder, Path(scratch) / "theirs.gguf")
        made = figures(Path(scratch) / "theirs.gguf", name)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in made.items())
    (FOLDER / f"{name}.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    for one in sys.argv[1:] or DRAWN:
        _freeze(one)
        print(one)
