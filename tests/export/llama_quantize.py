"""llama.cpp's own quantizer, from file to file, in this process: what `llama-quantize` calls."""

from __future__ import annotations

import ctypes
from pathlib import Path

from export.imatrix_file import ImportanceMatrix
from export.quantize import IMATRIX_FILE, LADDER, quiet_llama


def llama_quantize(source: Path, target: Path, quant: str, matrix: ImportanceMatrix | None = None) -> None:
    """Quantize a float GGUF; the matrix and its notes are given as the tool gives them."""
    import llama_cpp.llama_cpp as api

    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = LADDER[quant].file_type, 1
    means = {} if matrix is None else matrix.means()
    entries = (api.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    notes = (api.llama_model_kv_override * 5)()
    if matrix is not None:
        params.imatrix, params.kv_overrides = entries, notes
        said: dict[str, str | int] = {
            "file": IMATRIX_FILE,
            "dataset": matrix.data,
            "entries_count": len(matrix.sums),
            "chunks_count": matrix.chunks,
        }
        for note, (key, value) in zip(notes, said.items(), strict=False):
            note.key = f"quantize.imatrix.{key}".encode()
            if isinstance(value, int):
                note.tag, note.value.val_i64 = api.LLAMA_KV_OVERRIDE_TYPE_INT, value
            else:
                note.tag, note.value.val_str = api.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()[:127]
    with quiet_llama() as log:
        code = api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert code == 0, "".join(log[-4:])
