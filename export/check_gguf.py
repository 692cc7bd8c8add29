"""Reads a GGUF file back: every tensor against its source, its metadata, and its tokenizer in llama.cpp."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact_prompt import GGUF_COMPOSES_KEY, GGUF_PROMPT_KEY, GGUF_SPARED_SPACE_KEY
from contract.errors import AssayError, listed
from contract.prompt import hf_tokenize
from export.gguf_file import GgufPlan, stored_type, tensor_values
from export.hard_texts import HARD_TEXTS
from export.llama_vocab import LlamaVocab
from export.source import Source

if TYPE_CHECKING:
    import gguf
    import numpy as np

# The most relative error ‖x - q‖/‖x‖ rounding can cost. About twice what Gaussian weights show; outliers lower it.
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
_EXACT = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROWS_AT_ONCE = 4096


class CheckFailed(AssayError):  # noqa: N818
    """What was exported does not behave like its source: a gate's no, not a fault of the input."""

    exit_code = 1


def check_structure(path: Path, plan: GgufPlan, source: Source) -> dict[str, Any]:
    """Read a GGUF file back and compare it with what it was made from.

    F32 and F16 tensors must be equal to the source rounded once; quantized ones within their type's error.

    Returns:
        What was found: "relative_error", the largest per tensor type; "extra_stop_ids", where llama.cpp also stops;
        and "tokenizer_differences", the hard texts that llama.cpp is known to cut otherwise, where there are any.

    Raises:
        CheckFailed: naming every tensor, key, text and id that differs.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    errors: dict[str, float] = {}
    problems = [*_metadata(reader, plan, source), *_tensors(reader, plan, source, errors)]
    tokenizer_problems, told = _tokenizer(path, plan)
    _raise([*problems, *tokenizer_problems], path)
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


def _tensors(reader: gguf.GGUFReader, plan: GgufPlan, source: Source, errors: dict[str, float]) -> list[str]:
    found = {tensor.name: tensor for tensor in reader.tensors}
    wanted = {tensor.name: tensor for tensor in plan.tensors}
    problems = [f"{name}: missing" for name in wanted if name not in found]
    problems += [f"{name}: not expected" for name in found if name not in wanted]
    for name, tensor in wanted.items():
        if name not in found:
            continue
        stored = found[name]
        extents = tuple(int(extent) for extent in reversed(stored.shape))
        if extents != tensor.shape:
            problems.append(f"{name}: shape {list(extents)}, expected {list(tensor.shape)}")
            continue
        kind = stored.tensor_type.name
        if kind in _EXACT:
            if kind != "F32" and stored_type(tensor, "f16") == "float32":
                problems.append(f"{name}: must be F32 and is stored as {kind}")
                continue
            error = _error(stored, tensor_values(tensor, source, _EXACT[kind]), exact=True)
            limit = 0.0
        elif kind in ERROR_LIMITS:
            error = _error(stored, tensor_values(tensor, source, "float32"), exact=False)
            limit = ERROR_LIMITS[kind]
        else:
            problems.append(f"{name}: unexpected type {kind}")
            continue
        if not error <= limit:
            problems.append(
                f"{name}: {kind} differs from its source, relative error {error:.3g}"
                + (f" over {limit}" if limit else "")
            )
        errors[kind] = max(errors.get(kind, 0.0), round(float(error), 6))
    return problems


def _error(stored: gguf.ReaderTensor, values: np.ndarray, *, exact: bool) -> float:
    """‖stored - values‖ / ‖values‖, some rows at a time; infinite where an exact one is not.

    bfloat16 is compared, and measured, by its bits.
    """
    import gguf
    import numpy as np

    difference, norm = 0.0, 0.0
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = values[start : start + _ROWS_AT_ONCE]
        data = stored.data[start : start + _ROWS_AT_ONCE]
        if rows.dtype == np.uint16:
            data = data.view(np.uint16)
        if exact and np.array_equal(data, rows):
            continue
        read = data.astype(np.float32) if exact else gguf.dequantize(data, stored.tensor_type)
        rows = rows.astype(np.float32)
        difference += float(np.square(read - rows, dtype=np.float64).sum())
        norm += float(np.square(rows, dtype=np.float64).sum())
        if exact and difference == 0.0:  # NaN, or a zero of another sign
            difference = math.inf if np.isnan(read).any() else 0.0
    if norm == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return math.sqrt(difference / norm)


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
            expected, found = tokenize(text, False), vocab.tokenize(text, add_special=False, parse_special=False)
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
