"""From a document to prompt segments and ids: the only place with prompt logic (the words are the recipe's).

A prompt is a list of segments, each either control (one special token, written by the template) or text. Only control
segments are looked up as special tokens, so a document that says "<|im_end|>" stays seven harmless pieces of text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from contract.errors import AssayError, did_you_mean
from contract.pinned_date import DEFAULT_DATE, is_iso_date
from contract.stand_in import StandIns, changed_text
from contract.unigram import harmless

DEFAULT_USER = "Summarize the dialogue in a few sentences.\n\n{document}"

# For models that come without a chat template: a plain completion format, always said aloud where it is used.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}Summary: {{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Summary:{% endif %}"
)


@dataclass(frozen=True)
class Message:
    """One turn: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class PromptSpec:
    """The words around a document, as the recipe gives them; stored in every artifact."""

    user: str = DEFAULT_USER  # holds {document}, and may hold {language}
    system: str | None = None
    language: str = "English"
    template: str | None = None  # a chat template that replaces the model's own; "plain" names the built-in one
    date: str = DEFAULT_DATE  # the day a chat template is told, as 2024-07-26

    def __post_init__(self) -> None:
        if not is_iso_date(self.date):
            raise AssayError("the prompt's date is none", where="date", expected="as 2024-07-26", got=repr(self.date))

    def messages(self, document: str) -> list[Message]:
        """The turns that ask for a summary of `document`. Only the recipe's own words are substituted into."""
        before, _, after = self.user.partition("{document}")
        user = before.replace("{language}", self.language) + document + after.replace("{language}", self.language)
        system = [Message("system", self.system.replace("{language}", self.language))] if self.system else []
        return [*system, Message("user", user)]

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptSpec:
        """Rebuild from a manifest or from GGUF metadata; unknown keys are refused, missing ones have their defaults."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise AssayError("the recorded prompt is no object", got=repr(values)[:80])
        for key in values:
            if key not in known:
                raise AssayError(f'unknown prompt key "{key}"', hint=did_you_mean(key, known))
        return cls(**values)


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered prompt: one special token (`control`), or text that never becomes one."""

    text: str
    control: bool


@dataclass(frozen=True)
class ChatFormat:
    """How a model wants its turns written, read from its folder or its GGUF metadata."""

    template: str  # Jinja
    special_tokens: tuple[str, ...]
    bos_token: str | None
    eos_token: str | None
    add_bos: bool  # does the tokenizer put BOS in front by itself
    plain: bool = False  # the model has no template of its own; PLAIN_TEMPLATE is used
    unk_token: str | None = None
    pad_token: str | None = None
    date: str = DEFAULT_DATE  # what the template's strftime_now tells of

    @property
    def asks_date(self) -> bool:
        """Does the template ask for the date?"""
        return asks_date(self.template)


# Roles whose texts a template may cut at a mark, as some cut reasoning off. The document stands in a user's turn.
_CUT = ("system", "assistant")

Tokenize = Callable[[str, bool], list[int]]  # (text, control) -> ids, no BOS or EOS added


def asks_date(template: str) -> bool:
    """Does a chat template ask for the date? Other hosts tell it today's."""
    return "strftime_now" in template


def _render(
    chat: ChatFormat, turns: Sequence[Mapping[str, str]], stand_ins: StandIns | None, *, generation: bool
) -> str:
    from jinja2 import TemplateError

    from contract.chat_template import STAND_INS, compiled

    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: getattr(chat, name) for name in names if getattr(chat, name)}  # undefined where there is none
    try:
        return compiled(chat.template, chat.date).render(
            {STAND_INS: stand_ins},
            messages=turns,
            add_generation_prompt=generation,
            tools=None,
            documents=None,
            **special,
        )
    except (
        *(TemplateError, SyntaxError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
        RecursionError,
    ) as error:
        raise AssayError(
            "the chat template cannot be rendered",
            got=f"{type(error).__name__}: {stand_ins.restored(str(error)) if stand_ins else error}",
            hint="fix the model's chat template or set prompt.template in the recipe",
        ) from None


def _split_control(text: str, special_tokens: Sequence[str]) -> list[Segment]:
    if not special_tokens:
        return [Segment(text, False)] if text else []
    pattern = "|".join(re.escape(token) for token in sorted(special_tokens, key=len, reverse=True))
    return [Segment(piece, bool(index % 2)) for index, piece in enumerate(re.split(f"({pattern})", text)) if piece]


def _merge_text(segments: Sequence[Segment]) -> list[Segment]:
    merged: list[Segment] = []
    for segment in segments:
        if merged and not segment.control and not merged[-1].control:
            merged[-1] = Segment(merged[-1].text + segment.text, False)
        else:
            merged.append(segment)
    return merged


def render(chat: ChatFormat, messages: Sequence[Message], *, generation: bool = True) -> list[Segment]:
    """Render turns through the template, in a sandbox, into segments.

    Message contents are rendered as stand-ins and put back afterwards, so nothing in them can become control. That must
    give what the template makes of the contents themselves.

    Raises:
        AssayError: the template fails, transforms message contents beyond trimming them, or leaves out a part of a
            user's. At a mark that is no special token it may cut a system's or an assistant's, as transformers does.
    """
    messages = [Message(m.role, m.content.strip()) for m in messages]
    stand_ins = StandIns(chat.special_tokens)
    given = [{"role": m.role, "content": stand_ins.of(m.content, whole=m.role not in _CUT)} for m in messages]
    rendered = _render(chat, given, stand_ins, generation=generation)
    segments: list[Segment] = []
    for piece, is_text in stand_ins.pieces(rendered):
        segments += [Segment(piece, False)] if is_text else _split_control(piece, chat.special_tokens)
    segments = _merge_text(segments)
    plain = [{"role": m.role, "content": m.content} for m in messages]
    if "".join(s.text for s in segments) != _render(chat, plain, None, generation=generation):
        raise changed_text()
    return segments


def prompt_ids(chat: ChatFormat, messages: Sequence[Message], tokenize: Tokenize, bos_id: int | None) -> list[int]:
    """The ids of the prompt, ready for the answer, with BOS where the tokenizer adds it and the template did not."""
    ids = [i for segment in render(chat, messages) for i in tokenize(segment.text, segment.control)]
    return [bos_id, *ids] if chat.add_bos and bos_id is not None and ids[:1] != [bos_id] else ids


def completion_segments(chat: ChatFormat, messages: Sequence[Message], text: str) -> list[Segment]:
    """The segments of `text` as the assistant's answer, up to and including the token that closes the turn.

    The template decides what closes it; where it writes nothing, the tokenizer's EOS does.

    Raises:
        AssayError: the text is empty, the template leaves it out, or nothing ends it.
    """
    if not text.strip():
        raise AssayError("an answer without text has no ids")
    full = render(chat, [*messages, Message("assistant", text)], generation=False)
    prompt = "".join(s.text for s in render(chat, messages))
    whole = "".join(s.text for s in full)
    text = text.strip()
    if text not in whole:
        raise AssayError(
            "the chat template leaves out the assistant's answer",
            got=whole[:200],
            hint="set prompt.template in the recipe to one that inserts message.content as it is",
        )
    start = len(prompt) if whole.startswith(prompt) else whole.rindex(text)
    end = whole.rindex(text) + len(text)
    answer: list[Segment] = []
    position = 0
    for segment in full:
        left, position = position, position + len(segment.text)
        if position <= start:
            continue
        if segment.control and left >= end:
            return [*answer, segment]
        answer.append(Segment(segment.text[max(0, start - left) :], segment.control))
    if not chat.eos_token:
        raise AssayError("nothing ends the answer: the template writes no closing token and the tokenizer has no EOS")
    # no closing token: whatever text the template puts behind the answer is not learned, EOS is
    answer = _merge_text([*answer])
    surplus = len(whole) - end
    if surplus and answer and not answer[-1].control:
        answer[-1] = Segment(answer[-1].text[:-surplus], False)
    return [*answer, Segment(chat.eos_token, True)]


def completion_ids(
    chat: ChatFormat, messages: Sequence[Message], text: str, tokenize: Tokenize, bos_id: int | None
) -> list[int]:
    """The ids of the answer, closing token included.

    Prompt and answer are tokenized together and the prompt's ids taken off, so that the answer's first token is the
    one a model would have to write; where a merge crosses the border, the answer is tokenized by itself.
    """
    answer = completion_segments(chat, messages, text)
    alone = [i for segment in answer for i in tokenize(segment.text, segment.control)]
    rendered = render(chat, messages)
    if not rendered or rendered[-1].control:
        return alone
    border = rendered[-1].text
    head = tokenize(border, False)
    if answer and not answer[0].control:
        together = tokenize(border + answer[0].text, False)
        if together[: len(head)] == head:
            rest = [i for segment in answer[1:] for i in tokenize(segment.text, segment.control)]
            return [*together[len(head) :], *rest]
    return alone


def has_double_bos(ids: Sequence[int], bos_id: int | None) -> bool:
    """Do `ids` begin with BOS twice: the template and the tokenizer both added it."""
    return bos_id is not None and list(ids[:2]) == [bos_id, bos_id]


def hf_tokenize(tokenizer: Any) -> Tokenize:
    """The tokenize function of a Hugging Face tokenizer object: text never parses into special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    unigram = harmless(backend) if type(getattr(backend, "model", None)).__name__ == "Unigram" else None

    def tokenize(text: str, control: bool) -> list[int]:
        if control:
            token_id = tokenizer.convert_tokens_to_ids(text)
            if token_id is None or token_id < 0:
                raise AssayError("the template writes a special token the tokenizer does not have", got=text)
            return [token_id]
        if unigram is not None:
            return list(unigram.encode(text, add_special_tokens=False).ids)
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])

    return tokenize


def shorten(document: str, fits: Callable[[str], bool]) -> str:
    """The longest head of `document` that fits, cut at a line's end or, failing that, between words.

    The document is what gives way; summary and template are never cut.

    Raises:
        AssayError: not even an empty document fits.
    """
    if fits(document):
        return document
    for pattern in (r"\n", r"\s+"):
        cuts = [match.start() for match in re.finditer(pattern, document)]
        low, high = 0, len(cuts)  # cuts[:low] are known to fit
        while low < high:
            middle = (low + high) // 2
            if fits(document[: cuts[middle]].rstrip()):
                low = middle + 1
            else:
                high = middle
        if low and document[: cuts[low - 1]].strip():
            return document[: cuts[low - 1]].rstrip()
    raise AssayError("the prompt leaves no room for any of the document", hint="raise train.max_length or the context")
