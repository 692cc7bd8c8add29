"""What a Modelfile must know of a GGUF, read without its weights; that Ollama reads the same ids is proven here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact_prompt import GGUF_SPARED_SPACE_KEY
from contract.errors import AssayError
from contract.prompt import PromptSpec, completion_segments, prompt_ids
from export.go_template import Turns, conversations, go_turns

if TYPE_CHECKING:
    from runtimes.gguf_chat import GgufVocab


@dataclass(frozen=True)
class GgufFacts:
    """Of one file."""

    turns: Turns
    stops: tuple[str, ...]  # the texts of every id that ends generation
    context_length: int  # tokens
    cache_bytes: int  # of an f16 key-value cache, per token
    license_name: str | None
    plain: bool  # the file has no chat template
    date: str | None  # where its template asks for the date: the one that stands in `turns` as text


def gguf_facts(path: Path, spec: PromptSpec) -> GgufFacts:
    """Read a .gguf.

    Raises:
        AssayError: llama.cpp cannot load it, its chat template cannot be written in Go's template language, or
            Ollama would read that template's text as other ids.
    """
    with _vocabulary(path) as (model, vocab):
        vocab.chat = replace(vocab.chat, date=spec.date)
        turns = go_turns(vocab.chat, spares_space=vocab.metadata(GGUF_SPARED_SPACE_KEY) == "true")
        _check_ids(path, vocab, turns)
        closing = completion_segments(vocab.chat, spec.messages("x"), "x")[-1].text
        context_length, cache_bytes = _context(vocab, path)
        return GgufFacts(
            turns,
            tuple(sorted({closing, *_texts(model, vocab.stop_ids)})),
            context_length,
            cache_bytes,
            vocab.metadata("general.license"),
            vocab.chat.plain,
            vocab.chat.date if vocab.chat.asks_date else None,
        )


@contextmanager
def _vocabulary(path: Path) -> Iterator[tuple[Any, GgufVocab]]:
    """A llama_model pointer without weights, and its tokenizer, chat template and metadata."""
    import llama_cpp

    from export.quantize import quiet_llama
    from runtimes.gguf_chat import GgufVocab

    with quiet_llama() as log:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise AssayError("llama.cpp cannot load the file", where=str(path), got="".join(log[-4:]).strip())
        try:
            yield model, GgufVocab(model, path)
        finally:
            llama_cpp.llama_model_free(model)


def _check_ids(path: Path, vocab: GgufVocab, turns: Turns) -> None:
    """Ollama hands its text to llama.cpp in one piece, which adds BOS and reads control tokens in it.

    Raises:
        AssayError: the ids are not those of the chat template, for one of the conversations it was compared on.
    """
    from export.llama_vocab import LlamaVocab

    with LlamaVocab(path) as engine:
        for messages in conversations(turns.place):
            expected = prompt_ids(vocab.chat, messages, vocab.tokenize, vocab.bos_id)
            got = engine.tokenize(turns.render(messages), add_special=True, parse_special=True)
            if got != expected:
                same = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), len(got))
                raise AssayError(
                    "Ollama would read the prompt as other ids than the model was trained on",
                    where=f"{path.name}, turns: {', '.join(m.role for m in messages)}, token {same}",
                    expected=str(expected[same : same + 8]),
                    got=str(got[same : same + 8]),
                    hint="serve it with assay serve, which hands over ids",
                )


def _texts(model: Any, ids: frozenset[int]) -> list[str]:
    """What llama.cpp writes for each id, control tokens shown."""
    import ctypes

    import llama_cpp

    vocab, room = llama_cpp.llama_model_get_vocab(model), 512
    texts = []
    for token in sorted(ids):
        buffer = ctypes.create_string_buffer(room)
        length = llama_cpp.llama_token_to_piece(vocab, token, buffer, room, 0, True)
        texts.append(buffer.raw[: max(0, length)].decode("utf-8", errors="replace"))
    return [text for text in texts if text]


def _context(vocab: GgufVocab, path: Path) -> tuple[int, int]:
    """The context the file was made for, and the bytes of an f16 key-value cache per token of it."""
    arch = vocab.metadata("general.architecture")

    def number(key: str, default: int | None = None) -> int:
        value = vocab.metadata(f"{arch}.{key}")
        if value is not None and value.isdigit() and int(value):
            return int(value)
        if default is None:
            raise AssayError("the .gguf lacks what a context needs", where=f"{path}: {arch}.{key}")
        return default

    heads = number("attention.head_count", 1)
    width = number("embedding_length") // heads
    width_both = number("attention.key_length", width) + number("attention.value_length", width)
    return number("context_length"), 2 * number("block_count") * number("attention.head_count_kv", heads) * width_both
