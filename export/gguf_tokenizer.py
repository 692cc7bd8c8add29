"""Turns a Hugging Face tokenizer into GGUF tokenizer tables, or says why llama.cpp could not tokenize alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact_prompt import GGUF_COMPOSES_KEY, GGUF_MERGES_SPACES_KEY, GGUF_SPARED_SPACE_KEY
from contract.errors import AssayError
from contract.model_folder import stop_ids, token_ids
from runtimes import hf_tokenizer

if TYPE_CHECKING:
    import gguf

# GGUF token types (gguf.TokenType), spelled out so that this file needs no heavy import.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass
class TokenTables:
    """What goes into the GGUF: texts, scores and types by id, and how text is cut before merging."""

    model: str  # "gpt2" (byte-level BPE), "llama" (SentencePiece BPE) or "t5" (SentencePiece Unigram)
    pre: str
    texts: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    spares_leading_space: bool = False  # the prefix is left out where the text begins with a space
    charsmap: bytes | None = None  # SentencePiece's map of characters, "t5" only
    removes_extra_spaces: bool | None = None  # "t5" only: runs of spaces become one
    merges_spaces: bool = False  # the same without a space before the text, which llama.cpp cannot do
    normalizes_nfc: bool = False  # Hugging Face composes characters first; llama.cpp does not
    differs: Callable[[str], bool] | None = None  # texts that llama.cpp is known to cut otherwise
    differs_where: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SpecialIds:
    """Ids with a job. `stops` is every id that ends generation, the tokenizer's EOS first, end-of-turn second."""

    bos: int | None
    unknown: int | None
    pad: int | None
    stops: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def load_tokenizer(folder: Path, where: str | None = None) -> Any:
    """The fast Hugging Face tokenizer of a folder.

    Args:
        folder: with the tokenizer's files.
        where: for messages, where the files are copies; the folder by default.

    Raises:
        AssayError: there is none, it cannot be read, it needs code of its own, or it is a slow one.
    """
    tokenizer = hf_tokenizer.load_tokenizer(folder, where)
    if not tokenizer.is_fast:
        raise AssayError(
            "the tokenizer has no fast form to read tables from",
            where=where or str(folder),
            got=type(tokenizer).__name__,
            hint="save its tokenizer.json",
        )
    return tokenizer


def token_tables(folder: Path, tokenizer: Any, rows: int, pre_tokenizer: str | None = None) -> TokenTables:
    """The tables of `tokenizer`, one entry per embedding row.

    Args:
        folder: where tokenizer.model may be.
        tokenizer: a fast Hugging Face tokenizer.
        rows: embedding rows.
        pre_tokenizer: llama.cpp's name for the way text is cut; None: recognised.

    Raises:
        AssayError: a tokenizer llama.cpp does not know, more tokens than rows (but for control tokens that no
            template writes, as text models keep of their siblings that see), or two tokens of one text.
    """
    from export.gguf_bpe import byte_level_tables
    from export.gguf_spm import sentencepiece_tables
    from export.gguf_ugm import unigram_tables

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    beyond = tokens_without_row(tokenizer, _template(tokenizer, folder) or "", rows)
    if beyond is None:
        raise AssayError(
            "the tokenizer has more tokens than the embedding has rows",
            where=str(folder),
            expected=f"at most {rows}",
            got=f"{max(tokenizer.get_vocab().values()) + 1}",
            hint="resize the model's embeddings, or take the tokenizer the model was made with",
        )
    kind, byte_fallback = spec["model"]["type"], bool(spec["model"].get("byte_fallback"))
    if pre_tokenizer is not None and (kind == "Unigram" or (kind == "BPE" and byte_fallback)):
        raise AssayError("a SentencePiece tokenizer has no pre-tokenizer to name", where=str(folder), got=pre_tokenizer)
    if kind == "BPE" and byte_fallback:
        # transformers 5 converts a tokenizer.model without it; bytes stand for what is unknown
        spec["model"]["unk_token"] = spec["model"].get("unk_token") or tokenizer.unk_token
        tables = sentencepiece_tables(folder, spec, rows)
    elif kind == "Unigram":
        tables = unigram_tables(spec, rows, str(folder))
    elif kind == "BPE":
        tables = byte_level_tables(spec, rows, str(folder), pre_tokenizer)
    else:
        raise AssayError(
            "GGUF is not written for this kind of tokenizer",
            where=str(folder),
            got=kind,
            expected="byte-level BPE, SentencePiece BPE with byte fallback, or SentencePiece Unigram",
        )
    _refuse_twins(tables.texts, str(folder))
    tables.notes += [f"{text!r}: left out, the model has no embedding for it" for text in beyond]
    return tables


def tokens_without_row(tokenizer: Any, template: str, rows: int) -> list[str] | None:
    """The tokens beyond the embedding rows, where no prompt can hold them; None where one can.

    Text models keep control tokens of their siblings that see. Text never becomes a control token; neither the template
    nor the tokenizer itself may write one of them.
    """
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id}
    beyond = {text: token_id for text, token_id in tokenizer.get_vocab().items() if token_id >= rows}
    added = tokenizer.added_tokens_decoder
    for text, token_id in beyond.items():
        special = token_id in added and added[token_id].special
        if not special or token_id in own or text in template:
            return None
    return sorted(beyond)


def token_rows(spec: dict[str, Any], rows: int, vocab: dict[str, int]) -> tuple[list[str], list[int]]:
    """Texts and types by id: the vocabulary, then the added tokens over it; rows without a token are unused."""
    texts, types = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    for text, token_id in vocab.items():
        texts[token_id], types[token_id] = text, NORMAL
    for token in spec["added_tokens"]:
        if token["id"] < rows:
            texts[token["id"]], types[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    return texts, types


def added_token_notes(spec: dict[str, Any]) -> list[str]:
    """Added tokens that swallow spaces or respect word borders: llama.cpp does neither."""
    return [
        f"{token['content']!r}: lstrip, rstrip or single_word, which llama.cpp ignores"
        for token in spec["added_tokens"]
        if token["lstrip"] or token["rstrip"] or token["single_word"]
    ]


def _refuse_twins(texts: list[str], where: str) -> None:
    seen: dict[str, int] = {}
    for token_id, text in enumerate(texts):
        if text in seen:
            raise AssayError(
                "two tokens have the same text, which llama.cpp cannot tell apart",
                where=where,
                got=f"{text!r} is {seen[text]} and {token_id}",
            )
        seen[text] = token_id


def special_ids(folder: Path, tokenizer: Any) -> SpecialIds:
    """The ids with a job, from the tokenizer and the folder's configuration files.

    Raises:
        AssayError: a configuration file has something else in an id's place.
    """
    probe = tokenizer("a").input_ids
    bare = tokenizer("a", add_special_tokens=False).input_ids
    found = {*stop_ids(folder), tokenizer.eos_token_id} - {None}
    template = _template(tokenizer, folder)

    def order(token_id: int) -> tuple[bool, bool, int]:
        text = tokenizer.convert_ids_to_tokens(token_id) or ""
        return token_id != tokenizer.eos_token_id, text not in (template or ""), token_id

    padding = tokenizer.pad_token_id
    if padding is None:
        padding = next(iter(token_ids(folder / "generation_config.json", "pad_token_id")), None)
    return SpecialIds(
        bos=tokenizer.bos_token_id,
        unknown=tokenizer.unk_token_id,
        pad=padding,
        stops=tuple(sorted(found, key=order)),
        chat_template=template,
        add_bos=tokenizer.bos_token_id is not None and probe[:1] == [tokenizer.bos_token_id] and probe != bare,
        add_eos=tokenizer.eos_token_id is not None and probe[-1:] == [tokenizer.eos_token_id] and probe != bare,
    )


def refuse_broken_template(tokenizer: Any, template: str, where: str) -> None:
    """Raise where a chat template cannot write a user's turn: every chat with the model would fail.

    transformers renders it, as it knows all that templates may use.
    """
    turn = [{"role": "user", "content": "Hello"}]
    try:
        tokenizer.apply_chat_template(turn, chat_template=template, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template can raise anything
        raise AssayError(
            "the chat template cannot write a user's turn, so no chat with the model would work",
            where=where,
            got=f"{type(error).__name__}: {error}",
            hint="mend or remove chat_template.jinja (in some models: chat_template in tokenizer_config.json)",
        ) from None


def _template(tokenizer: Any, folder: Path) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise AssayError(
                "several chat templates and none of them is the default",
                where=str(folder),
                got=", ".join(sorted(template)),
            )
        template = template["default"]
    return template


def add_tokenizer(writer: gguf.GGUFWriter, tables: TokenTables, special: SpecialIds) -> None:
    """Write the tokenizer's metadata. llama.cpp has three fields for ids that end generation: EOS, EOT and EOM."""
    writer.add_tokenizer_model(tables.model)
    writer.add_tokenizer_pre(tables.pre)
    writer.add_token_list(tables.texts)
    if tables.scores is not None:
        writer.add_token_scores(tables.scores)
    writer.add_token_types(tables.types)
    if tables.merges is not None:
        writer.add_token_merges(tables.merges)
    for add, token_id in (
        (writer.add_bos_token_id, special.bos),
        (writer.add_unk_token_id, special.unknown),
        (writer.add_pad_token_id, special.pad),
    ):
        if token_id is not None:
            add(token_id)
    for add, token_id in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), special.stops, strict=False
    ):
        add(token_id)
    writer.add_add_bos_token(special.add_bos)
    writer.add_add_eos_token(special.add_eos)
    if tables.add_space_prefix is not None:
        writer.add_add_space_prefix(tables.add_space_prefix)
    if tables.charsmap is not None:
        writer.add_precompiled_charsmap(tables.charsmap)
    if tables.removes_extra_spaces is not None:
        writer.add_remove_extra_whitespaces(tables.removes_extra_spaces)
    if tables.merges_spaces:
        writer.add_bool(GGUF_MERGES_SPACES_KEY, True)
    if tables.normalizes_nfc:
        writer.add_bool(GGUF_COMPOSES_KEY, True)
    if tables.spares_leading_space:
        writer.add_bool(GGUF_SPARED_SPACE_KEY, True)
    if special.chat_template:
        writer.add_chat_template(special.chat_template)
