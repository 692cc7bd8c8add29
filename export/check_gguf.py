"""Reads a GGUF file back: every tensor against its source, its metadata, and its tokenizer in llama.cpp."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact_prompt import (
    GGUF_COMPOSES_KEY,
    GGUF_MERGES_SPACES_KEY,
    GGUF_PROMPT_KEY,
    GGUF_SPARED_SPACE_KEY,
    merged_spaces,
)
from contract.errors import listed
from contract.prompt import hf_tokenize
from export.check_failed import CheckFailed
from export.ggml import dequantize_rows, quantize_rows
from export.gguf_family import GgufTensor
from export.gguf_file import GgufPlan, stored_type
from export.gguf_write import FLOAT_KINDS, rounded_rows
from export.hard_texts import HARD_TEXTS
from export.imatrix_file import read_imatrix
from export.llama_vocab import LlamaVocab
from export.parallel import in_parallel
from export.quantize import tensor_bytes
from export.source import Source
from export.tensors.at_offset import read_at

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import torch

# The most relative error ‖x - q‖/‖x‖ rounding can cost a row. About twice what Gaussian rows show; outliers lower it.
ERROR_LIMITS = {
    "Q8_0": 0.02,
    "Q6_K": 0.05,
    "Q5_K": 0.1,
    "Q5_0": 0.12,
    "Q5_1": 0.12,
    "Q4_K": 0.2,
    "Q4_0": 0.25,
    "Q4_1": 0.25,
    "IQ4_NL": 0.25,
    "IQ4_XS": 0.25,
    "Q3_K": 0.4,
    "IQ3_S": 0.5,
    "IQ3_XXS": 0.5,
    "Q2_K": 0.7,
    "IQ2_S": 0.7,
    "IQ2_XS": 0.7,
    "IQ2_XXS": 0.8,
    "IQ1_M": 0.95,
    "IQ1_S": 0.95,
}
# Of the mean row's norm; a smaller row's error counts as if the row were this large. Scales of rows that are smaller by
# far lose bits at the end of float16, most of all in Q6_K, and unused tokens have such rows.
_LEAST_NORM = 0.1


@dataclass(frozen=True)
class _Errors:
    """‖stored - source‖ / ‖source‖ of a tensor."""

    whole: float
    worst_row: float


def check_structure(
    path: Path, plan: GgufPlan, source: Source, threads: int = 1, imatrix: Path | None = None
) -> dict[str, Any]:
    """Read a GGUF file back and compare it with what it was made from.

    F32 and F16 tensors must be equal to the source rounded once; every row of quantized ones within its type's error.
    With an importance matrix llama.cpp gives up columns that never matter, so there a tensor that is over its limit
    must be, byte for byte, what llama.cpp makes of the source.

    Args:
        path: the file.
        plan: it was written after.
        source: the model.
        threads: each reads a tensor of its own.
        imatrix: the importance matrix's file, where the values were chosen with one.

    Returns:
        What was found: "relative_error", the largest per tensor type; "extra_stop_ids", where llama.cpp also stops;
        and "tokenizer_differences", the hard texts that llama.cpp is known to cut otherwise, where there are any.

    Raises:
        CheckFailed: naming every tensor, key, text and id that differs.
    """
    from export.gguf_read import read_gguf

    reader = read_gguf(path)
    means = {} if imatrix is None else read_imatrix(imatrix).means()
    misread, errors = _tensors(path, reader, plan, source, threads, means)
    tokenizer_problems, told = _tokenizer(path, plan)
    _raise([*_metadata(reader, plan, source), *misread, *tokenizer_problems], path)
    return {"relative_error": errors, **told}


def check_tokenizer(path: Path, plan: GgufPlan) -> dict[str, Any]:
    """Compare token ids only, so that a tokenizer llama.cpp reads otherwise is refused before any tensor is written.

    Returns:
        "extra_stop_ids" and "tokenizer_differences", as `check_structure`.

    Raises:
        CheckFailed: naming every text and id that differs.
    """
    problems, told = _tokenizer(path, plan)
    _raise(problems, path)
    return told


def _raise(problems: list[str], path: Path) -> None:
    if problems:
        raise CheckFailed("the GGUF file is not what it was made from", where=path.name, got=listed(problems, 20))


def _metadata(reader: gguf.GGUFReader, plan: GgufPlan, source: Source) -> list[str]:
    special = plan.special
    expected: dict[str, Any] = {
        "general.architecture": plan.model.arch,
        **plan.model.metadata,
        "tokenizer.ggml.model": plan.tables.model,
        "tokenizer.ggml.pre": plan.tables.pre,
        "tokenizer.ggml.bos_token_id": special.bos,
        "tokenizer.ggml.padding_token_id": special.pad,
        "tokenizer.ggml.unknown_token_id": special.unknown,
        "tokenizer.ggml.add_bos_token": special.add_bos,
        "tokenizer.ggml.add_eos_token": special.add_eos,
        "tokenizer.chat_template": special.chat_template,
        GGUF_COMPOSES_KEY: plan.tables.normalizes_nfc or None,
        GGUF_SPARED_SPACE_KEY: plan.tables.spares_leading_space or None,
        GGUF_MERGES_SPACES_KEY: plan.tables.merges_spaces or None,
    }
    ends = ("eos", "eot", "eom")
    for index, end in enumerate(ends):
        expected[f"tokenizer.ggml.{end}_token_id"] = special.stops[index] if index < len(special.stops) else None
    problems = []
    for key, value in expected.items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        same = (
            math.isclose(found, value, rel_tol=1e-6)
            if isinstance(value, float) and found is not None
            else found == value
        )
        if not same:
            problems.append(f"{key}: {found!r}, expected {value!r}")
    if "prompt" in source.details and reader.get_field(GGUF_PROMPT_KEY) is None:
        problems.append(f"{GGUF_PROMPT_KEY}: missing")
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None or len(tokens.data) != plan.rows:
        problems.append(f"tokenizer.ggml.tokens: {0 if tokens is None else len(tokens.data)}, expected {plan.rows}")
    return problems


def _tensors(
    path: Path,
    reader: gguf.GGUFReader,
    plan: GgufPlan,
    source: Source,
    threads: int,
    means: Mapping[str, np.ndarray],
) -> tuple[list[str], dict[str, float]]:
    """What is wrong with the tensors, and the largest relative error of each type."""
    found = {tensor.name: tensor for tensor in reader.tensors}
    wanted = {tensor.name: tensor for tensor in plan.tensors}
    problems = [f"{name}: missing" for name in wanted if name not in found]
    problems += [f"{name}: not expected" for name in found if name not in wanted]
    both = sorted(found.keys() & wanted.keys(), key=lambda name: (-math.prod(wanted[name].shape), name))
    with path.open("rb") as file:

        def errors_of(name: str) -> _Errors | str:
            stored, tensor = found[name], wanted[name]
            problem = _misfit(stored, tensor)
            if problem is not None:
                return problem
            measured, kind = _errors(file.fileno(), stored, tensor, source), stored.tensor_type.name
            limit = ERROR_LIMITS.get(kind, 0.0)
            if measured.worst_row <= limit:  # written so that NaN is over the limit
                return measured
            weighed = kind in ERROR_LIMITS and name in means
            if weighed and _requantizes(file.fileno(), stored, tensor, source, means[name]):
                return measured
            over = f" over {limit}" if limit else ""
            return f"{kind} differs from its source, relative error of a row {measured.worst_row:.3g}{over}"

        measured = dict(zip(both, in_parallel(errors_of, both, threads), strict=True))
    errors: dict[str, float] = {}
    for name in (name for name in wanted if name in measured):
        kind, one = found[name].tensor_type.name, measured[name]
        if isinstance(one, str):
            problems.append(f"{name}: {one}")
        else:
            errors[kind] = max(errors.get(kind, 0.0), round(one.whole, 6))
    return problems, errors


def _misfit(stored: gguf.ReaderTensor, tensor: GgufTensor) -> str | None:
    """Why a tensor's values cannot be compared."""
    extents, kind = tuple(int(extent) for extent in reversed(stored.shape)), stored.tensor_type.name
    if extents != tensor.shape:
        return f"shape {list(extents)}, expected {list(tensor.shape)}"
    if kind not in ERROR_LIMITS and kind not in FLOAT_KINDS:
        return f"unexpected type {kind}"
    if kind in FLOAT_KINDS and kind != "F32" and stored_type(tensor, "f16") == "F32":
        return f"must be F32 and is stored as {kind}"
    return None


def _errors(descriptor: int, stored: gguf.ReaderTensor, tensor: GgufTensor, source: Source) -> _Errors:
    """Of the whole and of its worst row, read from the file some rows at a time.

    Float types are held against the source rounded once, so there the error is 0 unless something is wrong.
    """
    import torch

    kind = stored.tensor_type.name
    # of each row; made at once, as a little one behind each block would keep the heap from being used again
    difference, norm = torch.zeros(2, math.prod(tensor.shape[:-1]))
    start = 0
    for exact, data in _blocks(descriptor, stored, tensor, source):
        if not data:
            return _Errors(math.inf, math.inf)
        rows = slice(start, start := start + math.prod(exact.shape[:-1]))
        if kind in FLOAT_KINDS:
            if data == exact.view(torch.uint8).numpy().data:  # bytes compare much faster than half-precision values
                continue
            read = torch.frombuffer(data, dtype=exact.dtype).view_as(exact)
        else:
            read = dequantize_rows(kind, data, exact.shape[-1])
        exact = exact.float()
        difference[rows] = torch.linalg.vector_norm(read.float() - exact, dim=-1).reshape(-1)
        norm[rows] = torch.linalg.vector_norm(exact, dim=-1).reshape(-1)
    if not difference.any():
        return _Errors(0.0, 0.0)
    relative = difference / norm.clamp(min=_LEAST_NORM * norm.mean().item())
    return _Errors((difference.norm() / norm.norm()).item(), relative.max().item())


def _requantizes(
    descriptor: int, stored: gguf.ReaderTensor, tensor: GgufTensor, source: Source, means: np.ndarray
) -> bool:
    """Are a tensor's bytes what llama.cpp makes of the source with these mean squares?"""
    kind, where = stored.tensor_type.name, _where(tensor, source)
    return all(
        data == quantize_rows(kind, exact, means, where).reshape(-1).data
        for exact, data in _blocks(descriptor, stored, tensor, source)
    )


def _blocks(
    descriptor: int, stored: gguf.ReaderTensor, tensor: GgufTensor, source: Source
) -> Iterator[tuple[torch.Tensor, bytearray]]:
    """Some rows of the source, as they are before they are quantized, and their bytes in the file; none if it ends."""
    kind, offset = stored.tensor_type.name, int(stored.data_offset)
    for _, rows in tensor.blocks(source.weights):
        exact = rounded_rows(rows, kind if kind in FLOAT_KINDS else "F32", _where(tensor, source))
        data = bytearray(tensor_bytes(kind, exact.shape[::-1]))
        whole = read_at(descriptor, memoryview(data), offset) == len(data)
        offset += len(data)
        yield exact, data if whole else bytearray()


def _where(tensor: GgufTensor, source: Source) -> str:
    return f"{source.where}: {tensor.source or tensor.name}"


def _tokenizer(path: Path, plan: GgufPlan) -> tuple[list[str], dict[str, Any]]:
    """Compare llama.cpp's token ids with Hugging Face's; texts are parsed without control tokens, as prompts are.

    Returns:
        The problems, and what is told of a file without any.
    """
    tokenizer, special = plan.tokenizer, plan.special
    tokenize = hf_tokenize(tokenizer)
    controls = [text for text, kind in zip(plan.tables.texts, plan.tables.types, strict=True) if kind == 3]
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token_id < plan.rows}
    problems: list[str] = []
    differences: list[str] = []
    with LlamaVocab(path) as vocab:
        if vocab.size() != plan.rows:
            problems.append(f"llama.cpp sees {vocab.size()} tokens, expected {plan.rows}")
        for text in (*HARD_TEXTS, " ".join(["look-alikes:", *controls[:20]]), "".join(controls[:20])):
            if plan.tables.normalizes_nfc:
                text = unicodedata.normalize("NFC", text)
            expected = tokenize(text, False)
            text = merged_spaces(text) if plan.tables.merges_spaces else text
            found = vocab.tokenize(text, add_special=False, parse_special=False)
            if found != expected:
                known = plan.tables.differs is not None and plan.tables.differs(text)
                (differences if known else problems).append(_first_difference(text, expected, found))
        for text, token_id in added.items():
            found = vocab.tokenize(text, add_special=False, parse_special=True)
            if found != [token_id]:
                problems.append(f"the token {text!r} is {token_id}, llama.cpp reads {found}")
        whole = vocab.tokenize("a b", add_special=True, parse_special=True)
        if whole != (expected := list(tokenizer("a b").input_ids)):
            problems.append(f"with its special tokens 'a b' is {expected}, llama.cpp makes {whole}")
        ends = vocab.end_ids()
    problems += [
        f"the stop id {stop} ({tokenizer.convert_ids_to_tokens(stop)!r}) ends nothing in llama.cpp"
        for stop in special.stops
        if stop not in ends
    ]
    told = {"tokenizer_differences": differences} if differences else {}
    return problems, {"extra_stop_ids": sorted(ends - set(special.stops)), **told}


def _first_difference(text: str, expected: list[int], found: list[int]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    shown = text if len(text) <= 40 else text[:40] + "…"
    return f"{shown!r}: ids differ at {at}: {expected[at : at + 4]}, llama.cpp {found[at : at + 4]}"
