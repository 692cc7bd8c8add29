"""Loading any artifact as a Runtime: picks the engine; each engine is imported only when it is needed."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, Literal

from contract.artifact import Artifact
from contract.artifact_prompt import gguf_string, prompt_of, refuse_split
from contract.errors import AssayError, NoEngineError
from contract.runtime import Runtime

Weights = Literal["w16", "nf4"]
Dtype = Literal["float32", "float16", "bfloat16"]
KvDtype = Literal["f16", "f32"]


def load_runtime(
    artifact: Artifact,
    *,
    threads: int = 2,
    base_weights: Weights | None = None,
    merge_dtype: Dtype | None = None,
    context_length: int | None = None,
    kv_dtype: KvDtype = "f16",
    parallel: int = 8,
    provider: str | None = None,
    date: str | None = None,
) -> Runtime:
    """Load an artifact into the engine that runs its kind: torch in float32, llama.cpp or onnxruntime.

    Args:
        artifact: from `open_artifact`.
        threads: CPU threads.
        base_weights: torch only: run on the stored 16-bit weights, or on those weights put through NF4 and back. None
            takes what the adapter was trained on, w16 where nothing was recorded.
        merge_dtype: adapters only: merge in memory in float32, then round every weight through this dtype.
        context_length: fewer tokens than the model was made for; None takes the model's own.
        kv_dtype: llama.cpp only: dtype of the key-value cache (torch's is always float32).
        parallel: sequences run side by side at most.
        provider: onnxruntime only: the execution provider, "cpu" or "cuda". None takes ASSAY_ONNX_PROVIDER, else "cpu".
        date: the day the chat template is told, as 2024-07-26. None takes what the artifact records, and where nothing
            was recorded the default.

    Raises:
        AssayError: the artifact's kind cannot be run, its prompt cannot be read, its files do not make a model, or its
            engine is not installed.
    """
    if threads < 1 or parallel < 1:
        raise AssayError("threads and parallel must be at least 1", got=f"threads={threads}, parallel={parallel}")
    runtime: Runtime
    match artifact.kind:
        case "merged" | "adapter":
            try:
                from runtimes.torch_load import runs_encoder_decoder
                from runtimes.torch_ref import TorchRuntime
                from runtimes.torch_seq2seq import TorchSeq2SeqRuntime
            except ModuleNotFoundError as error:
                raise _not_installed(artifact, error, "eval") from None
            if merge_dtype is not None and artifact.kind != "adapter":
                raise AssayError("merge_dtype is for adapters only", where=str(artifact.path), got=artifact.kind)
            torch_runtime = (TorchSeq2SeqRuntime if runs_encoder_decoder(artifact) else TorchRuntime)(
                artifact,
                threads=threads,
                base_weights=base_weights,
                merge_dtype=merge_dtype,
                context_length=context_length,
                parallel=parallel,
            )
            runtime, plain = torch_runtime, False
            if isinstance(torch_runtime, TorchRuntime):
                _tell_date(torch_runtime, artifact, date)
                plain = torch_runtime.chat.plain
        case "gguf":
            if base_weights is not None or merge_dtype is not None:
                raise AssayError(
                    "base_weights and merge_dtype are for model folders, not for a .gguf", where=str(artifact.path)
                )
            path = artifact.gguf_path
            refuse_split(path)
            try:
                from runtimes.llama_cpp import LlamaCppRuntime
                from runtimes.llama_t5 import ARCHITECTURE, LlamaT5Runtime
            except ModuleNotFoundError as error:
                raise _not_installed(artifact, error, "serve") from None
            if gguf_string(path, "general.architecture") == ARCHITECTURE:
                runtime = LlamaT5Runtime(path, threads=threads, context_length=context_length, kv_dtype=kv_dtype)
                plain = False
            else:
                llama_runtime = LlamaCppRuntime(
                    path, threads=threads, context_length=context_length, kv_dtype=kv_dtype, parallel=parallel
                )
                _tell_date(llama_runtime, artifact, date)
                runtime, plain = llama_runtime, llama_runtime.chat.plain
        case "gguf-lora":
            raise NoEngineError(
                "a LoRA adapter in GGUF form cannot run by itself",
                where=str(artifact.path),
                hint="open the PEFT adapter it was made from, or export the merged model: "
                "assay export gguf ADAPTER --out DIR",
            )
        case "onnx":
            if base_weights is not None or merge_dtype is not None:
                raise AssayError(
                    "base_weights and merge_dtype are for model folders, not for ONNX", where=str(artifact.path)
                )
            try:
                from runtimes.onnx_rt import OnnxRuntime
            except ModuleNotFoundError as error:
                raise _not_installed(artifact, error, "cpu") from None
            onnx_runtime = OnnxRuntime(
                artifact, threads=threads, provider=provider, context_length=context_length, parallel=parallel
            )
            runtime, plain = onnx_runtime, False
            if onnx_runtime.chat is not None:
                _tell_date(onnx_runtime, artifact, date)
                plain = onnx_runtime.chat.plain
    if plain:
        print(
            f"note: {artifact.name} has no chat template of its own; the plain completion format is used",
            file=sys.stderr,
        )
    return runtime


def _tell_date(runtime: Any, artifact: Artifact, date: str | None) -> None:
    """Let the chat template of a runtime that has one know which day it is."""
    try:
        runtime.chat = replace(runtime.chat, date=date or prompt_of(artifact).date)
    except AssayError:
        runtime.close()
        raise


def _not_installed(artifact: Artifact, error: ModuleNotFoundError, extra: str) -> AssayError:
    return NoEngineError(
        f"the engine for this artifact is not installed: no module named {error.name}",
        where=str(artifact.path),
        hint=f"in Assay's checkout: pip install -e '.[{extra}]'",
    )
