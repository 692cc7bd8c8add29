"""llama.cpp's C interface, low level: a model file, a context that grows to what is needed, batches of tokens."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as api
import numpy as np

from contract.cpu import this_cpu
from contract.errors import AssayError, CannotLoadError

BATCH_TOKENS = 512
_OUTPUT_BYTES = 64 << 20  # logits of one batch
_LENGTH_STEP = 256

_WARNING, _ERROR = 3, 4  # enum ggml_log_level

_log: deque[str] = deque(maxlen=20)


@api.llama_log_callback
def _keep_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    """llama.cpp talks much; its last warnings and errors are kept for our messages, the rest is dropped."""
    if level in (_WARNING, _ERROR) and text.strip():
        _log.append(text.decode("utf-8", errors="replace").strip())


def load_model(path: Path, *, encoder: bool = False) -> Any:
    """A llama_model pointer, memory-mapped, on the CPU, its tensors validated.

    Args:
        path: the .gguf.
        encoder: has the model an encoder beside its decoder?

    Raises:
        CannotLoadError: the file is truncated or damaged, or llama.cpp does not know the architecture.
        AssayError: its kind is another.
    """
    api.llama_backend_init()
    api.llama_log_set(_keep_log, ctypes.c_void_p(0))
    _log.clear()
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    params.check_tensors = True
    # Built by GCC 12, llama.cpp's AMX kernels load a tile configuration that was never stored, and the process dies:
    # <amxtileintrin.h> names 8 of its 64 bytes, so the rest counts as unused. Without extra buffers there is no AMX.
    params.use_extra_bufts = "amx_int8" not in this_cpu().features
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        # llama.cpp gives no code; which of its lines is shown is all that its words decide
        said = [line for line in _log if "error" in line] or list(_log)
        raise CannotLoadError(
            "llama.cpp cannot load the file",
            where=str(path),
            got=said[0] if said else "no reason",
            hint="is it complete? assay inspect compares it with its manifest",
        )
    if api.llama_model_has_encoder(model) != encoder or not api.llama_model_has_decoder(model):
        api.llama_model_free(model)
        raise AssayError("the file holds a model of a kind that is not run here", where=str(path))
    return model


class Engine:
    """A context over a model. Sequences are numbered from 0; positions are given by the caller.

    `border`: a length beyond which the model turns positions otherwise (LongRoPE), or None. llama.cpp decides by the
    size of the context, so that one is made anew where the border lies between it and what is needed.
    """

    def __init__(self, model: Any, *, threads: int, kv_f32: bool, vocab_size: int, border: int | None = None) -> None:
        self._model, self._vocab_size, self._border = model, vocab_size, border
        self._context: Any = None
        self._length = self._sequences = 0
        self.begun = 0  # how often everything was forgotten
        self.max_outputs = max(1, min(BATCH_TOKENS, _OUTPUT_BYTES // (vocab_size * 4)))
        params = api.llama_context_default_params()
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = api.GGML_TYPE_F32 if kv_f32 else api.GGML_TYPE_F16
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # its sums depend on how the work is divided
        params.kv_unified = False  # else every sequence's attention walks over all the others' cells
        params.offload_kqv = params.op_offload = False
        params.no_perf = True
        self._params = params
        self._token = np.zeros(BATCH_TOKENS, np.int32)
        self._position = np.zeros(BATCH_TOKENS, np.int32)
        self._sequence = np.zeros(BATCH_TOKENS, np.int32)
        self._output = np.zeros(BATCH_TOKENS, np.int8)
        self._one = np.ones(BATCH_TOKENS, np.int32)
        self._pointers = (self._sequence.ctypes.data + 4 * np.arange(BATCH_TOKENS)).astype(np.uintp)

    def begin(self, sequences: int, length: int) -> None:
        """Forget everything, and have room for so many sequences of `length` tokens each.

        Raises:
            AssayError: there is not enough memory.
        """
        api.llama_log_set(_keep_log, ctypes.c_void_p(0))  # others in the process may have set their own since
        self.begun += 1
        if not self.has_room(sequences, length):
            self.free_context()
            self._sequences, self._length = sequences, -(-length // _LENGTH_STEP) * _LENGTH_STEP
            if self._border is not None and length <= self._border:
                self._length = min(self._length, self._border)
            self._params.n_seq_max, self._params.n_ctx = sequences, sequences * self._length
            self._params.n_outputs_max = max(self.max_outputs, sequences)
            context = api.llama_init_from_model(self._model, self._params)
            if not context:
                raise AssayError(
                    f"llama.cpp cannot make a context of {self._params.n_ctx} tokens",
                    got=_log[-1] if _log else "no reason",
                    hint="shorter documents, or more memory",
                )
            self._context = context
        api.llama_memory_clear(self._memory, True)

    def has_room(self, sequences: int, length: int) -> bool:
        """Does the context as it is take so many sequences of that length?"""
        crossed = self.beyond(length) != self.beyond(self._length)
        return self._context is not None and sequences <= self._sequences and length <= self._length and not crossed

    def beyond(self, length: int) -> bool:
        """Is a text of this length on the far side of the border?"""
        return self._border is not None and length > self._border

    @property
    def _memory(self) -> Any:
        return api.llama_get_memory(self._context)

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], outputs: Sequence[bool]
    ) -> np.ndarray:
        """Run at most BATCH_TOKENS tokens, of which at most `max_outputs` (or one per sequence) give logits.

        Returns:
            float32 [number of outputs, vocab_size], a copy, in the order of the tokens.
        """
        count = len(tokens)
        self._token[:count], self._position[:count] = tokens, positions
        self._sequence[:count], self._output[:count] = sequences, outputs
        batch = api.llama_batch(
            n_tokens=count,
            token=_pointer(self._token, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._position, ctypes.c_int32),
            n_seq_id=_pointer(self._one, ctypes.c_int32),
            seq_id=_pointer(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._output, ctypes.c_int8),
        )
        code = api.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}: {_log[-1] if _log else ''}")
        rows = int(np.count_nonzero(self._output[:count]))
        if not rows:
            return np.zeros((0, self._vocab_size), np.float32)
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), (rows, self._vocab_size)).copy()

    def share(self, source: int, target: int) -> None:
        """Let sequence `target` begin with a copy of all that `source` holds."""
        api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, sequence: int, start: int = -1) -> None:
        """Free the cells of a sequence, from position `start` on; only where `can_go_back` if it is given.

        Raises:
            RuntimeError: llama.cpp cannot.
        """
        if not api.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise RuntimeError(f"llama.cpp does not forget what stands behind position {start}")

    @property
    def can_go_back(self) -> bool:
        """Is the end of a text forgotten without a trace? Not where cells are used again or a state sums them up."""
        special = api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model)
        return not special and not api.llama_model_n_swa(self._model)

    def free_context(self) -> None:
        """Free the context; `begin` makes another."""
        if self._context is not None:
            api.llama_free(self._context)
            self._context = None


def _pointer(array: np.ndarray, kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
