"""Byte-level BPE tables for GGUF: the pre-tokenizer is recognised by its structure and regex, never guessed."""

from __future__ import annotations

import difflib
from typing import Any

from contract.errors import AssayError
from export.gguf_tokenizer import TokenTables, added_token_notes, token_rows

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_CONTRACTIONS_SPELLED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|"
_AFTER_NUMBERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = "ByteLevel(regex)"
# (the steps of the pre-tokenizer, does a whole word that is a token skip the merges) -> llama.cpp's name
KNOWN: dict[tuple[str, bool], str] = {
    (f"Split({_CONTRACTIONS}{_WORDS}\\p{{N}}{{1,3}}{_AFTER_NUMBERS}) ByteLevel", True): "llama-bpe",
    (f"Split({_CONTRACTIONS_SPELLED}{_WORDS}\\p{{N}}{{1,3}}{_AFTER_NUMBERS}) ByteLevel", True): "llama-bpe",
    (f"Split({_CONTRACTIONS}{_WORDS}\\p{{N}}{{1,3}}{_AFTER_NUMBERS}) ByteLevel", False): "dbrx",
    (f"Split({_CONTRACTIONS}{_WORDS}\\p{{N}}{_AFTER_NUMBERS}) ByteLevel", False): "qwen2",
    (_GPT2, False): "gpt-2",
    (f"Digits {_GPT2}", False): "smollm",
    (f"Split({_TEKKEN}) ByteLevel", True): "tekken",
}


def byte_level_tables(spec: dict[str, Any], rows: int, where: str) -> TokenTables:
    """The tables of a byte-level BPE tokenizer.

    Args:
        spec: tokenizer.json.
        rows: embedding rows; tokens are padded to that many.
        where: named in messages.

    Raises:
        AssayError: a pre-tokenizer or normalizer llama.cpp does not have.
    """
    model = spec["model"]
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"):
        if model.get(option):
            raise AssayError("llama.cpp's BPE has no such option", where=where, got=f"{option} = {model[option]!r}")
    texts, types = token_rows(spec, rows, model["vocab"])
    merges = [
        pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair) for pair in model["merges"]
    ]
    return TokenTables(
        "gpt2",
        pre_tokenizer_name(spec, where),
        texts,
        types,
        merges=merges,
        normalizes_nfc=_composes(spec, where),
        notes=added_token_notes(spec),
    )


def pre_tokenizer_name(spec: dict[str, Any], where: str) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    Raises:
        AssayError: it is none of the known ones; what was seen and the nearest known one are named.
    """
    steps = _steps(spec["pre_tokenizer"])
    ignore_merges = bool(spec["model"].get("ignore_merges"))
    name = KNOWN.get((steps, ignore_merges))
    if name is None:
        nearest = difflib.get_close_matches(steps, [known for known, _ in KNOWN], n=1, cutoff=0.0)[0]
        names = sorted({found for (known, _), found in KNOWN.items() if known == nearest})
        raise AssayError(
            "llama.cpp is not known to cut text like this tokenizer",
            where=where,
            got=f"{steps or 'no pre-tokenizer'}, ignore_merges {ignore_merges}",
            expected=f"nearest known: {nearest} ({', '.join(names)})",
        )
    return name


def _steps(pre: dict[str, Any] | None) -> str:
    """The pre-tokenizer as one line: what decides where text is cut."""
    if pre is None:
        return ""
    match pre["type"]:
        case "Sequence":
            return " ".join(_steps(step) for step in pre["pretokenizers"])
        case "ByteLevel":
            options = ["prefix space"] if pre["add_prefix_space"] else []
            options += ["regex"] if pre.get("use_regex", True) else []
            return f"ByteLevel({', '.join(options)})" if options else "ByteLevel"
        case "Digits":
            return "Digits" if pre["individual_digits"] else "Digits(together)"
        case "Split":
            pattern = pre["pattern"].get("Regex", f"literally {pre['pattern'].get('String')!r}")
            plain = pre["behavior"] in ("Isolated", "Removed") and pre["invert"] == (pre["behavior"] == "Removed")
            return f"Split({pattern})" if plain else f"Split({pattern}, {pre['behavior']}, invert {pre['invert']})"
        case other:
            return str(other)


def _composes(spec: dict[str, Any], where: str) -> bool:
    """Is text composed (NFC) before it is cut? Anything else that rewrites text is refused."""
    normalizer = spec["normalizer"]
    if normalizer is None:
        return False
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    kinds = [step["type"] for step in steps]
    if kinds not in ([], ["NFC"]):
        raise AssayError("the tokenizer rewrites text in a way llama.cpp does not", where=where, got=", ".join(kinds))
    return bool(kinds)
