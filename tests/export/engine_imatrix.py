"""What llama-imatrix collects, collected from llama.cpp itself as that tool does: by a callback at each operation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as api
import numpy as np


class Tensor(ctypes.Structure):
    """The head of ggml.h's struct ggml_tensor."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def _op_name(op: int) -> str:
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(llama_cpp.__file__).parent / "lib" / f"libggml-base.{suffix}"
    library = ctypes.CDLL(str(path))
    library.ggml_op_name.restype = ctypes.c_char_p
    return str(library.ggml_op_name(op).decode())


def engine_sums(
    path: Path, ids: Sequence[int], chunk_tokens: int, bos: int | None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Sums of squares per column and counts of rows, of every matrix of a block, in llama.cpp's own arithmetic.

    Args:
        path: an F32 GGUF file.
        ids: the stream of ids.
        chunk_tokens: the length of the pieces it is cut into.
        bos: replaces the first id of each piece, unless None.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def collect(pointer: int, ask: bool, _data: object) -> bool:
        tensor = Tensor.from_address(pointer)
        if _op_name(tensor.op) != "MUL_MAT":
            return not ask
        name, inputs = tensor.src[0].contents.name.decode(), tensor.src[1].contents
        wanted = name.startswith("blk.") and inputs.type == 0 and inputs.ne[1] >= 16
        if ask or not wanted:
            return wanted or not ask
        assert inputs.nb[0] == 4
        assert inputs.ne[2] == inputs.ne[3] == 1
        for row in range(inputs.ne[1]):
            start = inputs.data + row * inputs.nb[1]
            values = np.ctypeslib.as_array((ctypes.c_float * inputs.ne[0]).from_address(start)).astype(np.float64)
            sums[name] = sums.get(name, np.zeros(inputs.ne[0])) + values**2
            counts[name] = counts.get(name, 0) + 1
        return True

    callback = api.ggml_backend_sched_eval_callback(collect)
    on_the_cpu = api.llama_model_default_params()
    on_the_cpu.n_gpu_layers = 0
    model = api.llama_model_load_from_file(str(path).encode(), on_the_cpu)
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = chunk_tokens
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # float32, as torch; half precision would blur the values by some 5e-4
    params.flash_attn_type = 0
    params.cb_eval = callback
    context = api.llama_init_from_model(model, params)
    batch = api.llama_batch_init(chunk_tokens, 0, 1)
    try:
        for start in range(0, len(ids) - chunk_tokens + 1, chunk_tokens):
            api.llama_memory_clear(api.llama_get_memory(context), True)
            batch.n_tokens = chunk_tokens
            for position, token in enumerate(ids[start : start + chunk_tokens]):
                batch.token[position] = bos if bos is not None and position == 0 else token
                batch.pos[position] = position
                batch.n_seq_id[position] = 1
                batch.seq_id[position][0] = 0
                batch.logits[position] = 1
            assert api.llama_decode(context, batch) == 0
    finally:
        api.llama_batch_free(batch)
        api.llama_free(context)
        api.llama_model_free(model)
    return sums, counts
