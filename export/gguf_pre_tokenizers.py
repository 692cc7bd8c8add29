"""The table of ways to cut text that llama.cpp knows by name, recognised by structure and regular expression."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract.errors import AssayError, did_you_mean

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CONTRACTIONS_SPELLED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_OTHERS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SMALL_LAST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_CAPITALS_FIRST = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"

LLAMA3 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _OTHERS, _SPACES))
_LLAMA3_SPELLED = "|".join((_CONTRACTIONS_SPELLED, _WORDS, r"\p{N}{1,3}", _OTHERS, _SPACES))
QWEN2 = "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", _OTHERS, _SPACES))
_QWEN35 = "|".join(
    (_CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _SPACES)
)
_TEKKEN = "|".join((_SMALL_LAST, _CAPITALS_FIRST, r"\p{N}", _OTHERS_SLASH, _SPACES))
_GPT4O = "|".join(
    (
        f"{_SMALL_LAST}{_CONTRACTIONS}?",
        f"{_CAPITALS_FIRST}{_CONTRACTIONS}?",
        r"\p{N}{1,3}",
        _OTHERS_SLASH,
        _SPACES,
    )
)
_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r""" ?[\p{P}\p{S}]+[\r\n]*|""" + _SPACES,
)


def _marks_or_capitals(text: str) -> bool:
    """Has the text combining marks, or capitals beyond ASCII? llama.cpp tells cases apart in ASCII only."""
    kinds = [unicodedata.category(character) for character in text if ord(character) > 127]
    return any(kind.startswith("M") or kind in ("Lu", "Lt") for kind in kinds)


def _wide_spaces(text: str) -> bool:
    """Has the text spaces beyond ASCII?"""
    return any(ord(character) > 127 and character.isspace() for character in text)


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text before byte-level merges, and llama.cpp's name for it."""

    name: str  # llama.cpp's
    splits: tuple[str, ...]  # regular expressions whose matches stand alone, applied one after another
    digits: bool = False  # then every digit stands alone
    gpt2: bool = False  # then GPT-2's own expression, which is built into the byte-level step
    ignore_merges: bool = False  # a piece that is a token as a whole skips the merges
    models: str = ""  # where it is met, for the docs
    differs: Callable[[str], bool] | None = None  # texts that llama.cpp is known to cut otherwise
    differs_where: str = ""

    @property
    def steps(self) -> str:
        """As `steps_of` writes it."""
        parts = [f"Split({pattern})" for pattern in self.splits]
        parts += ["Digits"] if self.digits else []
        return " ".join([*parts, "ByteLevel(regex)" if self.gpt2 else "ByteLevel"])


_CASES = "combining marks, and words with capitals beyond ASCII"
KNOWN = (
    PreTokenizer("llama-bpe", (LLAMA3,), ignore_merges=True, models="Llama 3.x, SmolLM3, Falcon 3"),
    PreTokenizer("llama-bpe", (_LLAMA3_SPELLED,), ignore_merges=True, models="Llama 3.x, spelled out"),
    PreTokenizer("dbrx", (LLAMA3,), models="Phi-4, GPT-4's tokenizer"),
    PreTokenizer("qwen2", (QWEN2,), models="Qwen2, Qwen2.5, Qwen3, DeepSeek-R1-Distill-Qwen"),
    PreTokenizer("qwen35", (_QWEN35,), models="newer Qwen"),
    PreTokenizer("gpt-2", (), gpt2=True, models="GPT-2"),
    PreTokenizer("smollm", (), digits=True, gpt2=True, models="SmolLM, SmolLM2, StarCoder2"),
    PreTokenizer(
        "tekken",
        (_TEKKEN,),
        ignore_merges=True,
        models="Mistral NeMo and later",
        differs=_marks_or_capitals,
        differs_where=_CASES,
    ),
    PreTokenizer("gpt-4o", (_GPT4O,), models="Phi-4-mini", differs=_marks_or_capitals, differs_where=_CASES),
    PreTokenizer(
        "deepseek-coder",
        _CODER,
        digits=True,
        models="DeepSeek Coder",
        differs=_wide_spaces,
        differs_where="spaces beyond ASCII before punctuation",
    ),
    PreTokenizer("deepseek-v3", _DEEPSEEK3, models="DeepSeek V3"),
)


def recognise(spec: dict[str, Any], where: str) -> PreTokenizer:
    """The row of the table for the pre-tokenizer of a tokenizer.json.

    Raises:
        AssayError: it is none of the known ones; what was seen and the nearest known one are named.
    """
    steps = steps_of(spec["pre_tokenizer"])
    ignore_merges = bool(spec["model"].get("ignore_merges"))
    for row in KNOWN:
        if (row.steps, row.ignore_merges) == (steps, ignore_merges):
            return row
    nearest = difflib.get_close_matches(steps, [row.steps for row in KNOWN], n=1, cutoff=0.0)[0]
    names = sorted({f"{row.name}, ignore_merges {row.ignore_merges}" for row in KNOWN if row.steps == nearest})
    raise AssayError(
        "llama.cpp is not known to cut text like this tokenizer",
        where=where,
        got=f"{steps or 'no pre-tokenizer'}, ignore_merges {ignore_merges}",
        expected=f"nearest known: {nearest} ({'; '.join(names)})",
        hint="--pre-tokenizer NAME, if llama.cpp has a name for it; token ids are compared all the same",
    )


def named(name: str) -> PreTokenizer:
    """A pre-tokenizer by llama.cpp's name, which need not be in the table: llama.cpp itself refuses an unknown one."""
    rows = [row for row in KNOWN if row.name == name]
    return rows[0] if rows else PreTokenizer(name, ())


def nearest_name(name: str) -> str | None:
    """The name in the table nearest to `name`, as a question."""
    return did_you_mean(name, [row.name for row in KNOWN])


def steps_of(pre: dict[str, Any] | None) -> str:
    """A pre-tokenizer of tokenizer.json as one line: what decides where text is cut."""
    if pre is None:
        return ""
    match pre["type"]:
        case "Sequence":
            return " ".join(steps_of(step) for step in pre["pretokenizers"])
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
