"""Can a merged encoder-decoder model run in float16? By what flows through it on real prompts, not by weights alone.

T5's feed-forward layers are known to leave float16's range while every weight is well inside it: it was trained in
bfloat16. Whoever runs such a folder in float16 gets infinities, and from them text that makes no sense.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

from contract.artifact import Artifact
from contract.artifact_prompt import prompt_of
from contract.errors import AssayError
from contract.example import Example

LARGEST = 65504.0  # of float16
PROMPTS = 16
BaseWeights = Literal["w16", "nf4"]


def check_float16(
    adapter: Artifact,
    examples: Sequence[Example],
    *,
    base_weights: BaseWeights | None,
    threads: int,
    origin: str = "training",
) -> dict[str, Any] | None:
    """Run some documents through the merged model in float32, before it is stored in float16.

    Args:
        adapter: on an encoder-decoder base; of any other there is nothing to measure.
        examples: documents and summaries; the first PROMPTS are used.
        base_weights: what the adapter is merged onto.
        threads: CPU threads.
        origin: where the examples are from, for the manifest.

    Returns:
        For the manifest: the largest absolute value, where it was met, and on how many prompts. None for a causal base.

    Raises:
        AssayError: a value is beyond float16's range.
    """
    from runtimes.torch_load import runs_encoder_decoder
    from runtimes.torch_seq2seq import TorchSeq2SeqRuntime

    if not runs_encoder_decoder(adapter):
        return None
    print(f"measuring activations on {min(PROMPTS, len(examples))} prompts, for float16 …", file=sys.stderr, flush=True)
    runtime = TorchSeq2SeqRuntime(
        adapter, threads=threads, base_weights=base_weights, merge_dtype="float32", context_length=None, parallel=1
    )
    try:
        pairs = _pairs(runtime, adapter, examples[:PROMPTS])
        largest, where = runtime.largest_activation(pairs)
    finally:
        runtime.close()
    hint = "--dtype bfloat16 or --dtype float32 (merge.dtype in a recipe)"
    if not largest <= LARGEST:
        raise AssayError(
            "the merged model cannot run in float16: what flows through it is beyond its range",
            where=f"{adapter.path}: {where}",
            expected=f"at most {LARGEST:g}",
            got=f"{largest:g} on {len(pairs)} prompts",
            hint=hint,
        )
    if largest > LARGEST / 2:
        print(
            f"warning: {where} reaches {largest:g} on {len(pairs)} prompts, more than half of float16's {LARGEST:g}; "
            f"other prompts may go beyond: {hint}",
            file=sys.stderr,
        )
    return {"largest": float(f"{largest:.4g}"), "layer": where, "prompts": len(pairs), "origin": origin}


def _pairs(runtime: Any, adapter: Artifact, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """Encoder ids and target ids; what is longer than a context is cut in front of its closing id."""
    spec = prompt_of(adapter)
    pairs = []
    for example in examples:
        messages = spec.messages(example.document)
        source, target = runtime.encode(messages), runtime.encode_completion(messages, example.references[0])
        pairs.append((_cut(source, runtime.context_length), _cut(target, runtime.target_length)))
    return pairs


def _cut(ids: list[int], most: int) -> list[int]:
    return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]
