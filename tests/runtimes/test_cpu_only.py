"""llama.cpp computes on the CPU, whatever it was built for: what is proven does not depend on Metal or CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as api
import pytest

from contract.errors import CannotLoadError
from runtimes.llama_engine import Engine, load_model

pytestmark = pytest.mark.engine


def test_no_layer_goes_to_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(api, "llama_model_load_from_file", lambda path, params: asked.append(params))
    with pytest.raises(CannotLoadError):
        load_model(tmp_path / "any.gguf")
    assert [params.n_gpu_layers for params in asked] == [0]


def test_nor_does_the_cache_or_an_operation() -> None:
    params = Engine(None, threads=1, kv_f32=True, vocab_size=100)._params
    assert not params.offload_kqv
    assert not params.op_offload
