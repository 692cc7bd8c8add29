"""A model's chat template in Go's template language, as Ollama wants it, or the reason why it cannot be one.

Jinja is not parsed: the template is rendered with stand-ins, what it writes around messages is read off, and the Go
template made of that is held against the real one on whole conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from contract.errors import AssayError
from contract.prompt import ChatFormat, Message, render

# Where the system's words go: a turn of their own, inside the first or the last user's turn, or nowhere.
SystemPlace = Literal["turn", "first", "last", "none"]
Write = Callable[..., str]  # trained_text of one chat format
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
_CONVERSATIONS = ("u", "uau", "uauau", "su", "suau", "suauau")
_TEXTS = (
    "Answer in one line.",
    'Mara: Is room 418 free?\nOlin: No.\n\n"Take 527," he said.',
    "They take room 527.",
    "{{ .Prompt }} {% raw %} {{- 1 }} -- costs < 5 & > 3?",
    'a """quoted""" word: <b>1</b>',
    "x",
)


@dataclass(frozen=True)
class Turns:
    """What is written around messages; BOS is not in it where llama.cpp puts it in front by itself."""

    place: SystemPlace
    lead: str  # before everything
    no_system: str  # in place of the system's words where there are none
    system_open: str
    system_close: str
    first_open: str  # before the first user's words where there is no system, or it is written elsewhere
    user_open: str
    user_close: str
    assistant_open: str
    assistant_close: str
    generation: str  # at the end, for the answer to follow

    def render(self, messages: Sequence[Message]) -> str:
        """What Go makes of `text`, for turns of which no two neighbours have the same role."""
        system = "\n\n".join(m.content for m in messages if m.role == "system")
        written = [self.lead, "" if system else self.no_system]
        opening = self.first_open
        if self.place == "first" and system:
            opening = self.system_open + system + self.system_close
        for position, message in enumerate(messages):
            match message.role:
                case "system" if self.place == "turn":
                    written += [self.system_open, message.content, self.system_close]
                case "user":
                    written.append(opening)
                    if self.place == "last" and system and position == len(messages) - 1:
                        written += [system, self.system_close]
                    written += [message.content, self.user_close]
                    opening = self.user_open
                case "assistant":
                    written += [self.assistant_open, message.content, self.assistant_close]
        return "".join([*written, self.generation])

    def text(self) -> str:
        """The Go template. Of Ollama's variables it uses .System, .Messages, .Role and .Content."""
        default = f"{{{{ if not .System }}}}{_literal(self.no_system)}{{{{ end }}}}" if self.no_system else ""
        rows = "range $i, $_ := .Messages" if self.place == "last" else "range .Messages"
        return "".join(
            [
                _literal(self.lead),
                default,
                f"{self._opening()}{{{{ $open := {_go_string('')} }}}}" if self._first_differs else "",
                f'{{{{ {rows} }}}}{{{{ if eq .Role "user" }}}}{self._user()}',
                f'{{{{ else if eq .Role "system" }}}}{self._around("system")}' if self.place == "turn" else "",
                f'{{{{ else if eq .Role "assistant" }}}}{self._around("assistant")}{{{{ end }}}}{{{{ end }}}}',
                _literal(self.generation),
            ]
        )

    @property
    def _first_differs(self) -> bool:
        return self.place == "first" or self.first_open != self.user_open

    def _around(self, role: Literal["system", "assistant"]) -> str:
        system = role == "system"
        before, after = (self.system_open, self.system_close) if system else (self.assistant_open, self.assistant_close)
        return f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}"

    def _user(self) -> str:
        end = f"{{{{ .Content }}}}{_literal(self.user_close)}"
        if self._first_differs:  # what opens a turn is a variable: nothing, then what stands before all later ones
            return f"{{{{ $open }}}}{end}{{{{ $open = {_go_string(self.user_open)} }}}}"
        system = ""
        if self.place == "last":
            is_last = "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}"
            system = f"{is_last}{{{{ $.System }}}}{_literal(self.system_close)}{{{{ end }}}}"
        return f"{_literal(self.user_open)}{system}{end}"

    def _opening(self) -> str:
        first = _literal(self.first_open)
        if self.place == "none":
            return first
        system = f"{_literal(self.system_open)}{{{{ .System }}}}{_literal(self.system_close)}"
        return f"{{{{ if .System }}}}{system}{{{{ else }}}}{first}{{{{ end }}}}"


def trained_text(
    chat: ChatFormat, messages: Sequence[Message], *, generation: bool = True, spares_space: bool = False
) -> str:
    """The prompt as it was trained on, less what llama.cpp adds by itself.

    Args:
        chat: the model's chat format; BOS is left out where its tokenizer puts it in front.
        messages: the turns.
        generation: up to where the answer begins.
        spares_space: the tokenizer puts a space before text that has none, llama.cpp before any that follows a
            control token: there the template's own is left out.

    Raises:
        AssayError: the template cannot be rendered.
    """
    segments = render(chat, messages, generation=generation)
    texts = [segment.text for segment in segments]
    for index, segment in enumerate(segments):
        begins = index == 0 or segments[index - 1].control
        if spares_space and begins and not segment.control and len(segment.text) > 1:
            texts[index] = segment.text.removeprefix(" ")
    drop_bos = segments and chat.add_bos and segments[0].control and segments[0].text == chat.bos_token
    return "".join(texts[1:] if drop_bos else texts)


def conversations(place: SystemPlace) -> list[list[Message]]:
    """The conversations a template is compared on: one to three turns, with and without a system turn."""
    return [
        [Message(_ROLES[role], _TEXTS[index]) for index, role in enumerate(roles, 0 if roles[0] == "s" else 1)]
        for roles in _CONVERSATIONS
        if place != "none" or roles[0] != "s"
    ]


def go_turns(chat: ChatFormat, *, spares_space: bool = False) -> Turns:
    """Read a chat template's turns off and prove them.

    Args:
        chat: the model's chat format.
        spares_space: as in `trained_text`.

    Returns:
        Turns that give the template's own text for every conversation in `conversations`.

    Raises:
        AssayError: the template fails for several turns, or what it writes around a message depends on more than
            the roles next to it.
    """
    write = partial(trained_text, chat, spares_space=spares_space)
    candidates = _candidates(chat, write)
    failures = [_difference(write, turns) for turns in candidates]
    for turns, failure in zip(candidates, failures, strict=True):
        if failure is None:
            return turns
    roles, expected, got = next(failure for failure in failures if failure is not None)
    raise AssayError(
        "the chat template cannot be written in Ollama's template language: what it writes around a message depends "
        "on more than its role and place",
        where=f"turns: {', '.join(roles)}",
        expected=repr(expected[-300:]),
        got=repr(got[-300:]),
        hint="serve it with assay serve or llama-server, which run the template itself, or train with another "
        "prompt.template",
    )


def _difference(write: Write, turns: Turns) -> tuple[list[str], str, str] | None:
    for messages in conversations(turns.place):
        expected, got = write(messages), turns.render(messages)
        if expected != got:
            return [message.role for message in messages], expected, got
    return None


def _pieces(write: Write, roles: str, *, generation: bool = True) -> list[str]:
    """What the template writes before, between and after the contents of turns of these roles."""
    words = [f"Stand{index}In" for index in range(len(roles))]
    messages = [Message(_ROLES[role], word) for role, word in zip(roles, words, strict=True)]
    text = write(messages, generation=generation)
    pieces = re.split("|".join(words), text)
    if re.findall("|".join(words), text) != words:
        raise AssayError(
            "the chat template leaves out, repeats or reorders messages, which Ollama's cannot do",
            where=f"turns: {', '.join(_ROLES[role] for role in roles)}",
            got=repr(text[:300]),
            hint="serve it with assay serve or llama-server, which run the template itself",
        )
    return pieces


def _optional(write: Write, roles: str, *, generation: bool = True) -> list[str] | None:
    try:
        return _pieces(write, roles, generation=generation)
    except AssayError:
        return None


def _candidates(chat: ChatFormat, write: Write) -> list[Turns]:
    """Ways to write the template, the plainest first; `_difference` says which are right."""
    head, after_user, after_assistant, end = _pieces(write, "uau")
    shut_user, shut_both = (_optional(write, roles, generation=False) for roles in ("u", "ua"))
    user_close = _shared(chat, [after_user, end, *(shut_user[-1:] if shut_user else [])])
    assistant_close = _shared(chat, [after_assistant, *(shut_both[-1:] if shut_both else [])])
    user_open = after_assistant.removeprefix(assistant_close)
    around = {
        "user_close": user_close,
        "assistant_open": after_user.removeprefix(user_close),
        "assistant_close": assistant_close,
        "generation": end.removeprefix(user_close),
    }
    system = _optional(write, "su")
    if system is None:
        return [Turns("none", "", "", "", "", head, user_open, **around)]
    opened, closed = system[0], system[1]
    bos = chat.bos_token or ""
    lead = bos if bos and head.startswith(bos) and opened.startswith(bos) else ""
    candidates = []
    if closed.endswith(user_open) and head.endswith(user_open):
        candidates.append(
            Turns(
                "turn",
                lead,
                head.removesuffix(user_open).removeprefix(lead),
                opened.removeprefix(lead),
                closed.removesuffix(user_open),
                user_open,
                user_open,
                **around,
            )
        )
    candidates.append(Turns("first", "", "", opened, closed, head, user_open, **around))
    if head.endswith(user_open):
        candidates.append(Turns("last", head.removesuffix(user_open), "", "", closed, user_open, user_open, **around))
    return candidates


def _shared(chat: ChatFormat, texts: Sequence[str]) -> str:
    """The longest common beginning, not ending inside a special token."""
    end = 0
    while all(text[: end + 1] == texts[0][: end + 1] for text in texts) and end < len(texts[0]):
        end += 1
    for token in chat.special_tokens:
        for match in re.finditer(re.escape(token), texts[0]):
            if match.start() < end < match.end():
                end = match.start()
    return texts[0][:end]


def _literal(text: str) -> str:
    """Text as Go's template language and the Modelfile's quotes leave it alone."""
    pieces = re.split(r'(\{\{+|\{$|"""+|[^\S \n]+)', text)
    return "".join(
        "".join(char if char == "\n" or char.isprintable() else _action(char) for char in piece)
        if index % 2 == 0
        else _action(piece)
        for index, piece in enumerate(pieces)
    )


def _action(text: str) -> str:
    return f"{{{{ {_go_string(text)} }}}}"


def _go_string(text: str) -> str:
    """A Go string in quotes, ASCII but for what prints; quotes are escaped, so that no three stand in a row."""
    return '"' + "".join(_go_character(char) for char in text) + '"'


def _go_character(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char == "\n":
        return "\\n"
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
