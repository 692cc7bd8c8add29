"""Holds a rebuilt folder against its GGUF: metadata, tokens, every tensor, and both of them run side by side.

No allowance is made for the engine's rounding, which is large where llama.cpp computes with quantized activations:
- the GGUF and a copy of it that has the header we write of the folder give the same logits, bit for bit;
- the folder in torch and an F32 GGUF of it agree as `assay export gguf --check logits` wants it;
- every tensor of the folder, laid out as llama.cpp has it, is what ggml's own code dequantizes, but for one rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import open_artifact
from contract.errors import AssayError, listed
from contract.model_folder import context_of
from contract.prompt import PromptSpec
from export.check_failed import CheckFailed
from export.check_gguf import check_tokenizer
from export.from_gguf.header import FLOAT_TYPES, Header, StoredRows
from export.from_gguf.tokens import Tokens
from export.from_gguf.weights import GgufWeights
from export.gguf_file import GgufFile, GgufPlan, plan_gguf, write_header
from export.gguf_tokenizer import UNUSED
from export.source import Source

if TYPE_CHECKING:
    import torch

    from contract.failed import Failure
    from contract.runtime import Runtime
    from export.torch_reference import Pair

_CLOSE = 1e-6  # relative, of metadata in float32 and of norms that one is added to and taken from
_COPIED_AT_ONCE = 8 << 20  # bytes


def check_folder(
    source: Source, header: Header, weights: GgufWeights, tokens: Tokens, *, dtype: str, scratch: Path, threads: int
) -> dict[str, Any]:
    """Compare a folder with the GGUF that it was made from.

    Args:
        source: the folder, its details saying the words it was tuned with, if any.
        header: the GGUF's.
        weights: the GGUF's tensors under the folder's names.
        tokens: the GGUF's tokenizer.
        dtype: what the folder's values were rounded to, as torch names it.
        scratch: an empty folder, on a disk with room for the model in float32.
        threads: CPU threads.

    Returns:
        "torch_f32": the folder in torch against its own F32 GGUF in llama.cpp; "gguf": against the GGUF itself, which
        is how much llama.cpp's arithmetic on quantized values costs; each with "positions", "max_abs", "mean_kl_nats",
        "top1_agreement". "extra_stop_ids": where llama.cpp also stops.

    Raises:
        CheckFailed: naming what differs.
    """
    plan = plan_gguf(source)
    problems = [*_metadata(header, plan), *_tables(tokens, plan), *_tensors(header, weights, plan, source, dtype)]
    _raise(problems, header)
    try:
        told = check_tokenizer(header.path, plan)
    except CheckFailed as error:
        raise CheckFailed(_WHAT, where=header.where, got=error.got) from None
    measured, failures = _behaviour(header, plan, source, scratch, threads)
    _raise([failure.text for failure in failures], header)
    return {**measured, **told}


_WHAT = "the folder that was made is not what the .gguf file is, and nothing was written"


def _raise(problems: Sequence[str], header: Header) -> None:
    if problems:
        raise CheckFailed(_WHAT, where=header.where, got=listed(problems, 20))


def _metadata(header: Header, plan: GgufPlan) -> list[str]:
    """What our exporter would write of the folder, where the file has it too."""
    problems = []
    window = header.own("attention.sliding_window")
    for key, wanted in plan.model.metadata.items():
        found = header.value(key)
        if key.endswith(".context_length") and plan.model.arch == "phi3" and window:
            found = min(found, window)  # beyond it llama.cpp does not do what the model does
        if found is None or found == wanted:
            continue
        if key.endswith(".sliding_window_pattern") and not isinstance(found, list):
            continue  # a number, of which the list was made
        close = (
            isinstance(found, int | float)
            and isinstance(wanted, int | float)
            and math.isclose(found, wanted, rel_tol=_CLOSE)
        )
        if not close:
            problems.append(f"{key}: {found!r}, the folder gives {wanted!r}")
    return problems


def _tables(tokens: Tokens, plan: GgufPlan) -> list[str]:
    """Texts by id, merges, and the ids with a job, as our exporter reads them from the folder."""
    problems = []
    for token, (text, again) in enumerate(zip(tokens.texts, plan.tables.texts, strict=True)):
        spelled = {text, text.replace(" ", "▁")}  # converters write the spaces of users' tokens as spaces
        if again not in spelled and not (tokens.is_filler(token) and plan.tables.types[token] == UNUSED):
            problems.append(f"token {token}: {text!r}, the folder has {again!r}")
    if tokens.model == "gpt2" and list(tokens.merges or ()) != plan.tables.merges:
        problems.append("the folder has other merges")
    special = plan.special
    pairs = {
        "BOS": (tokens.bos, special.bos),
        "unknown token": (tokens.unknown, special.unknown),
        "padding": (tokens.pad, special.pad),
        "stop ids": (set(tokens.stops), set(special.stops)),
        "end of text": (tokens.eos, special.stops[0] if special.stops else None),
        "BOS in front": (tokens.add_bos, special.add_bos),
        "EOS at the end": (tokens.add_eos, special.add_eos),
        "chat template": (tokens.chat_template, special.chat_template),
    }
    return problems + [f"{name}: {a!r:.60}, the folder has {b!r:.60}" for name, (a, b) in pairs.items() if a != b]


def _tensors(header: Header, weights: GgufWeights, plan: GgufPlan, source: Source, dtype: str) -> list[str]:
    """Every tensor as our exporter lays it out, against what ggml's code makes of the file's bytes."""
    import torch

    stored = getattr(torch, dtype)
    problems = []
    for tensor in plan.tensors:
        there = header.tensors[tensor.name]
        if tensor.source is None:
            continue  # RoPE's factors, compared when they were found
        start, worst, same = 0, 0.0, True
        for _, rows in tensor.blocks(source.weights):
            stop = start + (len(rows) if rows.dim() else 1)
            exact = _dequantized(weights, there, start, stop)
            start = stop
            rows = rows.float()
            # one rounding to the dtype; a fused multiply-add here, a sum undone there: neither comes back to the bit
            least = _CLOSE * exact.abs().max().item() + torch.finfo(stored).smallest_normal * torch.finfo(stored).eps
            if not torch.allclose(rows, exact, rtol=torch.finfo(stored).eps + _CLOSE, atol=least):
                same = False  # said apart: the largest of a NaN and a number may be either
                worst = max(worst, (rows - exact).abs().max().item())
        if not same or start != there.shape[0]:
            problems.append(f"{tensor.name}: differs by up to {worst:g}")
    return problems


def _dequantized(weights: GgufWeights, there: StoredRows, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` as the file has them, in float32, by ggml's own code."""
    import torch

    from export.ggml import dequantize_rows

    data = weights.raw(there, start, stop)
    shape = (stop - start, *there.shape[1:])
    if there.kind not in FLOAT_TYPES:
        return dequantize_rows(there.kind, data, there.shape[-1]).reshape(shape)
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return torch.frombuffer(data, dtype=kinds[there.kind]).float().reshape(shape)


def _behaviour(
    header: Header, plan: GgufPlan, source: Source, scratch: Path, threads: int
) -> tuple[dict[str, Any], list[Failure]]:
    """Run the folder in torch, its F32 GGUF, the GGUF, and the GGUF under our header; one model in memory at a time."""
    from contract.failed import Failure
    from export.check_logits import compare, other_ids, over_limit, prompt_pairs
    from export.gguf_write import write_ggufs
    from export.spool import Spool
    from export.torch_reference import source_logits, source_words

    spec = PromptSpec.from_dict(source.details["prompt"]) if "prompt" in source.details else PromptSpec()
    words = source_words(source, spec.date)
    both, context = words.form is not None, context_of(source.folder)
    pairs: list[Pair] = prompt_pairs(words, spec, both, context)
    failures: list[Failure] = []
    measured: dict[str, Any] = {}
    half = plan.model.half_precision_activation
    with source_logits(source, pairs, scratch, threads, words.form) as expected:
        float32 = scratch / "f32.gguf"
        write_ggufs({"f32": float32}, plan, source, name="f32", threads=threads)
        with _opened(float32, threads) as runtime:
            measured["torch_f32"] = compare(expected, runtime.score(_fitting(pairs, runtime, both)))
        float32.unlink()
        failures += over_limit("f32", measured["torch_f32"], half)
        with _opened(header.path, threads) as runtime:
            fitting = _fitting(pairs, runtime, both)
            failures += other_ids(prompt_pairs(runtime, spec, both, context), pairs)
            own = Spool(scratch, [(len(target), runtime.vocab_size) for _, target in fitting])
            for number, logits in enumerate(runtime.score(fitting)):
                own.put(number, logits)
        with own:
            measured["gguf"] = compare(expected, (own.get(number) for number in range(len(fitting))))
            ours = scratch / "header.gguf"
            write_under_our_header(ours, header, plan, source)
            with _opened(ours, threads) as runtime:
                differing = [
                    float(abs(logits - own.get(number)).max())
                    for number, logits in enumerate(runtime.score(fitting))
                    if not (logits == own.get(number)).all()
                ]
            ours.unlink()
    if differing:
        text = f"under the header that the folder gives, the GGUF's logits differ by up to {max(differing):.3g}"
        failures.append(Failure("header_differs", text, max(differing), 0.0))
    return measured, failures


def _fitting(pairs: list[Pair], runtime: Runtime, both: bool) -> list[Pair]:
    return pairs if both else [(head, rest[: runtime.context_length - 1]) for head, rest in pairs]


@contextmanager
def _opened(path: Path, threads: int) -> Iterator[Runtime]:
    from runtimes import load_runtime

    runtime = load_runtime(open_artifact(path), threads=threads, kv_dtype="f32")
    try:
        yield runtime
    finally:
        runtime.close()


def write_under_our_header(path: Path, header: Header, plan: GgufPlan, source: Source) -> None:
    """Write the GGUF's own bytes of every tensor under the header that our exporter makes of the folder."""
    kinds: Mapping[str, str] = {tensor.name: header.tensors[tensor.name].kind for tensor in plan.tensors}
    offsets = write_header(GgufFile(path, kinds, 0), plan, source, name="header")
    with header.path.open("rb") as there, path.open("r+b") as here:
        for name, place in offsets.items():
            stored = header.tensors[name]
            here.seek(place)
            there.seek(stored.offset)
            left = stored.size_bytes
            while left:
                data = there.read(min(left, _COPIED_AT_ONCE))
                if not data:
                    raise AssayError("the .gguf file was cut short while it was read", where=header.where)
                here.write(data)
                left -= len(data)
        here.flush()
        os.fsync(here.fileno())
