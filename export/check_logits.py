"""Runs GGUF files against torch on a handful of prompts: the same ids in, the same distributions out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import open_artifact
from contract.errors import AssayError, NoEngineError
from contract.failed import Failure
from contract.model_folder import context_of
from contract.prompt import PromptSpec
from export.check_failed import BehaviourFailed
from export.quantize import LADDER
from export.spool import Spool
from export.torch_reference import Pair, SourceWords, source_logits, source_words

if TYPE_CHECKING:
    import numpy as np

    from contract.runtime import Runtime
    from export.source import Source

F32_MAX_ABS = 1e-3
MEAN_KL_NATS = {"f32": 1e-5, "f16": 1e-4, "bf16": 1e-2}  # llama.cpp rounds activations to the weights' 16-bit type
_DOCUMENTS = (
    "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free. I will tell Kesto about it.",
    "Tom: Bus 84 leaves at nine.\nAda: It costs 315 crowns!\nTom: Then we walk. See you at half past eight.",
    "A: 👍 naïve café?\nB: Да, 漢字。",
)
_ANSWER = "They moved the meeting to room 527."
_POSITIONS_AT_ONCE = 16  # compared in float64


def check_logits(
    source: Source, paths: Mapping[str, Path], threads: int, *, half_precision_activation: bool = False
) -> dict[str, dict[str, Any]]:
    """Compare each GGUF file with its source in torch, over every position of a few prompts with answers.

    The reference comes first, one layer in memory at a time; its logits wait on disk while one GGUF after the other is
    loaded, so that there are never two models in memory.

    Limits: F32 at most 1e-3 between logits (key-value cache in F32), or at most 1e-5 nats mean KL(torch‖GGUF) where
    llama.cpp computes activations in half precision; F16 at most 1e-4 nats, BF16 at most 1e-2; quantized files at most
    1 nat (2 nats from 4 bits, 4 nats from 2.5 bits), which only catches a broken one.

    Args:
        source: what the files were made from.
        paths: quantization -> GGUF file. The logits wait on the disk that the first one is on.
        threads: CPU threads.
        half_precision_activation: llama.cpp looks this architecture's GELU up in a table of half-precision values.

    Returns:
        quantization -> {"positions", "max_abs", "mean_kl_nats", "top1_agreement"}.

    Raises:
        BehaviourFailed: llama.cpp does not load a file, prompt or stop ids differ, or a limit is exceeded. All are
            named.
    """

    spec = PromptSpec.from_dict(source.details["prompt"]) if "prompt" in source.details else PromptSpec()
    words = source_words(source, spec.date)
    both = words.form is not None
    context = context_of(source.folder)
    pairs = prompt_pairs(words, spec, both, context)
    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, list[Failure]] = {}
    with source_logits(source, pairs, next(iter(paths.values())).parent, threads, words.form) as expected:
        for quant, path in paths.items():
            failed: list[Failure] = []
            runtime = loaded(path, threads, failed)
            if runtime is not None:
                try:
                    failed += other_ids(prompt_pairs(runtime, spec, both, context), pairs)
                    failed += _other_ends(runtime, words)
                    fitting = pairs if both else [(head, rest[: runtime.context_length - 1]) for head, rest in pairs]
                    found[quant] = compare(expected, runtime.score(fitting))
                finally:
                    runtime.close()
                failed += over_limit(quant, found[quant], half_precision_activation)
            if failed:
                failures[quant] = failed
    if failures:
        raise BehaviourFailed(
            "the GGUF does not compute what its source does", where=source.where, failures=failures, measured=found
        )
    return found


def loaded(path: Path, threads: int, failed: list[Failure]) -> Runtime | None:
    """The runtime; None where llama.cpp does not load the file, which is a failure of the file."""
    from runtimes import load_runtime

    try:
        return load_runtime(open_artifact(path), threads=threads, kv_dtype="f32")
    except NoEngineError:
        raise
    except AssayError as error:
        failed.append(Failure("not_loadable", ": ".join(filter(None, [error.what, error.got]))))
        return None


def other_ids(found: list[Pair], pairs: list[Pair]) -> list[Failure]:
    """What is wrong with prompts that two runtimes made ids of."""
    wrong = sum(a != b for a, b in zip(found, pairs, strict=True))
    text = f"{wrong} of {len(pairs)} prompts have other ids in llama.cpp"
    return [Failure("prompt_ids_differ", text, wrong, 0)] if wrong else []


def _other_ends(runtime: Runtime, words: SourceWords) -> list[Failure]:
    lost = words.stop_ids - runtime.stop_ids
    text = f"torch stops at {sorted(words.stop_ids)}, llama.cpp at {sorted(runtime.stop_ids)}"
    return [Failure("stop_ids_differ", text, len(lost), 0)] if lost else []


def prompt_pairs(words: SourceWords | Runtime, spec: PromptSpec, both: bool, context: int) -> list[Pair]:
    """Prompts and answers as ids.

    Of a causal model (not `both`) every id but the very first one is a target, as far as its context reaches.
    """
    pairs = []
    for document in _DOCUMENTS:
        messages = spec.messages(document)
        prompt, target = words.encode(messages), words.encode_completion(messages, _ANSWER)
        pairs.append((prompt, target) if both else (prompt[:1], [*prompt[1:], *target][: context - 1]))
    return pairs


@dataclass
class _Distance:
    """The figures of some positions."""

    max_abs: float
    kl_nats: np.ndarray
    same_top: np.ndarray


def compare(expected: Spool, found: Iterable[np.ndarray]) -> dict[str, Any]:
    """The figures of `check_logits` over the rows of both."""
    import numpy as np

    parts = []
    for number, other in enumerate(found):
        reference = expected.get(number)
        for start in range(0, len(other), _POSITIONS_AT_ONCE):  # a window may have shortened it
            here = slice(start, min(start + _POSITIONS_AT_ONCE, len(other)))
            parts.append(_distance(reference[here], other[here, : reference.shape[1]]))
    kl = np.concatenate([part.kl_nats for part in parts])
    return {
        "positions": len(kl),
        "max_abs": float(np.max([part.max_abs for part in parts])),
        "mean_kl_nats": float(kl.mean()),
        "top1_agreement": float(np.concatenate([part.same_top for part in parts]).mean()),
    }


def _distance(reference: np.ndarray, other: np.ndarray) -> _Distance:
    """Of float32 logits [positions, vocabulary], in float64."""
    import numpy as np

    log_p, log_q = log_softmax(reference.astype(np.float64)), log_softmax(other.astype(np.float64))
    return _Distance(
        float(np.abs(reference.astype(np.float64) - other).max()),
        (np.exp(log_p) * (log_p - log_q)).sum(axis=1),
        reference.argmax(1) == other.argmax(1),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, of logits [positions, vocabulary], in the logits' dtype."""
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def over_limit(quant: str, found: dict[str, Any], half_precision_activation: bool) -> list[Failure]:
    """What exceeds the limits of `check_logits`."""
    if quant == "f32" and not half_precision_activation:
        name, limit, unit = "max_abs", F32_MAX_ABS, ""
    else:
        name, limit, unit = "mean_kl_nats", MEAN_KL_NATS.get(quant, _broken(quant)), " nats"
    if found[name] <= limit:  # NaN is over the limit
        return []
    return [Failure(name, f"{name} {found[name]:.3g}{unit}, at most {limit:g}", found[name], limit)]


def _broken(quant: str) -> float:
    bits = LADDER[quant].bits
    return 1.0 if bits > 4 else 2.0 if bits > 2.5 else 4.0
