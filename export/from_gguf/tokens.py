"""The token table of a GGUF: texts and types by id, the ids with a job, and what llama.cpp puts around a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contract.artifact_prompt import GGUF_COMPOSES_KEY, GGUF_MERGES_SPACES_KEY, GGUF_SPARED_SPACE_KEY
from contract.errors import AssayError, listed
from export.from_gguf.header import Header
from export.gguf_tokenizer import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from export.llama_vocab import LlamaVocab

_PREFIX = "tokenizer.ggml."
# Ids that only code which asks for them by name ever uses, the original file beside the table, and older templates.
_INERT = (
    *(f"{_PREFIX}{name}_token_id" for name in ("cls", "mask", "seperator", "sep", "fim_pre", "fim_suf", "fim_mid")),
    *(f"{_PREFIX}{name}_token_id" for name in ("fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle")),
    f"{_PREFIX}token_type_count",
    "tokenizer.huggingface.json",
)
_STOPS = ("eos", "eot", "eom")


@dataclass(frozen=True)
class Tokens:
    """What the file's tokenizer consists of, with llama.cpp's own word on its ends."""

    model: str  # llama.cpp's name: "gpt2", "llama", "t5"
    pre: str
    texts: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None
    merges: Sequence[str] | None
    bos: int | None
    unknown: int | None
    pad: int | None
    stops: tuple[int, ...]  # the end of text first
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    charsmap: bytes | None
    removes_extra_spaces: bool
    composes: bool
    spares_leading_space: bool
    merges_spaces: bool
    chat_template: str | None
    notes: tuple[str, ...] = ()

    @property
    def eos(self) -> int | None:
        """The id that ends a text."""
        return self.stops[0] if self.stops else None

    def is_filler(self, token: int) -> bool:
        """Is this a row without a token, as converters name them?"""
        return self.types[token] == UNUSED and self.texts[token] in (f"[PAD{token}]", f"<pad{token}>")

    def text(self, token: int | None) -> str | None:
        """The text of an id."""
        return None if token is None else self.texts[token]

    def added(self) -> list[dict[str, Any]]:
        """Control tokens and tokens of users, as tokenizer.json lists them."""
        return [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for token, (text, kind) in enumerate(zip(self.texts, self.types, strict=True))
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ]


def read_tokens(header: Header, rows: int) -> Tokens:
    """Read the table; llama.cpp itself is asked what it puts around a text and where it stops.

    Args:
        header: the file's.
        rows: embedding rows.

    Raises:
        AssayError: there is no tokenizer, its parts do not fit each other, or llama.cpp cannot load it.
    """
    for key in _INERT:
        header.value(key)
    model = header.value(f"{_PREFIX}model")
    texts, types = header.value(f"{_PREFIX}tokens"), header.value(f"{_PREFIX}token_type")
    if model is None or texts is None:
        raise AssayError(
            "the .gguf file has no tokenizer",
            where=header.where,
            expected="tokenizer.ggml.model and tokenizer.ggml.tokens",
            got=str(model),
        )
    types = [NORMAL] * len(texts) if types is None else types
    scores, merges = header.value(f"{_PREFIX}scores"), header.value(f"{_PREFIX}merges")
    lengths = {"tokens": len(texts), "token_type": len(types), "rows of token_embd.weight": rows}
    if scores is not None:
        lengths["scores"] = len(scores)
    twins = len(texts) - len(set(texts))
    if len(set(lengths.values())) > 1 or twins:
        raise AssayError(
            "the parts of the tokenizer do not fit each other",
            where=header.where,
            got=listed(f"{name} {count}" for name, count in lengths.items()) + (f"; {twins} twins" if twins else ""),
        )
    with LlamaVocab(header.path) as vocab:
        bare = vocab.tokenize("a", add_special=False, parse_special=False)
        whole = vocab.tokenize("a", add_special=True, parse_special=False)
        ends = vocab.end_ids()
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before, after = whole[:at], whole[at + len(bare) :]
    bos = _id(header, "bos", rows)
    bos = before[0] if bos is None and before else bos
    declared = [token for name in _STOPS if (token := _id(header, name, rows)) is not None]
    if after and not declared:
        declared = after[:1]
    template, notes = _template(header)
    # llama.cpp knows ends of turns by their texts too; those that the template writes are meant
    named = sorted(token for token in ends - set(declared) if texts[token] in (template or ""))
    if len(before) > 1 or len(after) > 1 or (before and before != [bos]) or (after and after != declared[:1]):
        raise AssayError(
            "llama.cpp puts more around a text than one BOS and one EOS",
            where=header.where,
            got=f"{before} before, {after} after",
        )
    for name in ("add_bos_token", "add_eos_token", "add_sep_token"):
        header.value(f"{_PREFIX}{name}")
    prefix, charsmap = header.value(f"{_PREFIX}add_space_prefix"), header.value(f"{_PREFIX}precompiled_charsmap")
    return Tokens(
        model=str(model),
        pre=str(header.value(f"{_PREFIX}pre") or "default"),
        texts=texts,
        types=types,
        scores=scores,
        merges=merges,
        bos=bos,
        unknown=_id(header, "unknown", rows),
        pad=_id(header, "padding", rows),
        stops=tuple(dict.fromkeys([*declared, *named])),
        add_bos=bool(before),
        add_eos=bool(after),
        add_space_prefix=prefix,
        charsmap=bytes(charsmap) if charsmap else None,
        removes_extra_spaces=bool(header.value(f"{_PREFIX}remove_extra_whitespaces")),
        composes=bool(header.value(GGUF_COMPOSES_KEY)),
        spares_leading_space=bool(header.value(GGUF_SPARED_SPACE_KEY)),
        merges_spaces=bool(header.value(GGUF_MERGES_SPACES_KEY)),
        chat_template=template,
        notes=notes,
    )


def _id(header: Header, name: str, rows: int) -> int | None:
    value = header.value(f"{_PREFIX}{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < rows:
        raise AssayError(
            "a token id beyond the vocabulary",
            where=f"{header.where}: {_PREFIX}{name}_token_id",
            expected=f"below {rows}",
            got=str(value),
        )
    return value


def _template(header: Header) -> tuple[str | None, tuple[str, ...]]:
    """The default chat template, and a note of others that are left out."""
    template = header.value("tokenizer.chat_template")
    header.value("tokenizer.chat_templates")
    others = [key for key in header.file_keys() if key.startswith("tokenizer.chat_template.")]
    for key in others:
        header.value(key)
    return template, (f"left out, only the default chat template is kept: {listed(others)}",) if others else ()


def around(tokens: Tokens) -> dict[str, Any] | None:
    """tokenizer.json's post-processor: BOS and EOS where the file asks for them."""
    first = [(tokens.bos, tokens.text(tokens.bos))] if tokens.add_bos else []
    last = [(tokens.eos, tokens.text(tokens.eos))] if tokens.add_eos else []
    if not first and not last:
        return None

    def part(name: str, kind: int) -> list[dict[str, Any]]:
        sides = [[{"SpecialToken": {"id": text, "type_id": kind}} for _, text in side] for side in (first, last)]
        return [*sides[0], {"Sequence": {"id": name, "type_id": kind}}, *sides[1]]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": [*part("A", 0), *part("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]} for token, text in (*first, *last)},
    }


def split_vocabulary(tokens: Tokens) -> list[int]:
    """The ids that belong into the model's own vocabulary.

    Added tokens that follow it without a gap stay outside, where no merge and no whole piece of text can reach them;
    others must be inside, for `tokenizers` numbers those outside by itself.
    """
    outside = {token["id"] for token in tokens.added()}
    inside = [token for token in range(len(tokens.texts)) if token not in outside and not tokens.is_filler(token)]
    size = len(inside)
    if inside != list(range(size)) or sorted(outside) != list(range(size, size + len(outside))):
        inside = sorted({*inside, *outside})
    return inside
