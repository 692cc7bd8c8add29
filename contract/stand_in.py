"""Stand-ins for message contents while a chat template is rendered: the template may look at a text, not write it.

A template asks whether a mark stands in a text, how it begins, strips it or splits it at a mark, and gets true answers.
What it writes is a number between two private-use characters, put back afterwards, so that none of the text's own
characters can be taken for the template's: those alone may be control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from contract.errors import AssayError

_OPEN, _CLOSE = "\uf8f0", "\uf8f1"
_WRITTEN = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")
_REFUSED = "the chat template changes the text of messages, so a prompt cannot be told from its words"


def changed_text(got: str | None = None) -> AssayError:
    """The refusal of a template that does more with a text than to write it as it is."""
    return AssayError(
        _REFUSED, got=got, hint="set prompt.template in the recipe to one that inserts message.content as it is"
    )


class StandIns:
    """The texts of one rendering."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        self._given: list[StandIn] = []
        self._special_tokens = tuple(special_tokens)

    def of(self, text: str, *, whole: bool) -> str:
        """What a template is given for `text`. `whole`: a template that writes less than all of it is refused.

        Raises:
            AssayError: the text holds the characters that mark stand-ins.
        """
        if _OPEN in text or _CLOSE in text:
            raise AssayError("the text holds the private-use characters U+F8F0 or U+F8F1", hint="remove them")
        if not text:
            return ""
        self._given.append(StandIn(self, f"{_OPEN}{len(self._given)}{_CLOSE}", text, whole))
        return self._given[-1]

    def again(self, written: str) -> str:
        """The stand-in that was written and nothing else, or `written` where it is more, or less."""
        found = _WRITTEN.fullmatch(written)
        return self._given[int(found[1])] if found and int(found[1]) < len(self._given) else written

    def is_special(self, mark: str) -> bool:
        """Does it hold a special token?"""
        return any(token in mark for token in self._special_tokens)

    def pieces(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """What was written, piece by piece: (text, does it come from a message)."""
        for index, piece in enumerate(_WRITTEN.split(rendered)):
            if index % 2 and int(piece) < len(self._given):
                yield self._given[int(piece)]._text, True
            elif piece:
                yield piece, False

    def restored(self, text: str) -> str:
        """`text` with the messages' words in it, for people to read."""
        return "".join(piece for piece, _ in self.pieces(text))


class StandIn(str):
    """Reads as the text it stands for and is written as its number.

    What str does that is not here works on the number; then the rendering is not that of the text itself, and refused.
    The names begin with an underscore where Jinja's sandbox must keep templates away.
    """

    _owner: StandIns
    _text: str
    _whole: bool

    def __new__(cls, owner: StandIns, written: str, text: str, whole: bool) -> StandIn:
        """`written`: what a template writes for `text`."""
        made = super().__new__(cls, written)
        made._owner, made._text, made._whole = owner, text, whole
        return made

    def __str__(self) -> str:
        return self

    # What a template may ask: answered truly, so that it does what it would do with the text.

    def __bool__(self) -> bool:
        return bool(self._text)

    def __len__(self) -> int:
        return len(self._text)  # for Jinja's `is sequence`; the filters that tell a length refuse

    def __eq__(self, other: object) -> bool:
        return self._text == _plain(other)

    def __ne__(self, other: object) -> bool:
        return self._text != _plain(other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __contains__(self, mark: Any) -> bool:
        return _plain(mark) in self._text

    def startswith(self, *of: Any) -> bool:
        """As str's."""
        return self._text.startswith(*map(_plain, of))

    def endswith(self, *of: Any) -> bool:
        """As str's."""
        return self._text.endswith(*map(_plain, of))

    def find(self, *of: Any) -> int:
        """As str's."""
        return self._text.find(*map(_plain, of))

    def count(self, *of: Any) -> int:
        """As str's."""
        return self._text.count(*map(_plain, of))

    # What changes a text: nothing where there is nothing to change, else pieces that are texts again.

    def strip(self, chars: Any = None) -> str:
        """As str's."""
        return self._less(self._text.strip(_plain(chars)), "what it strips")

    def lstrip(self, chars: Any = None) -> str:
        """As str's."""
        return self._less(self._text.lstrip(_plain(chars)), "what it strips")

    def rstrip(self, chars: Any = None) -> str:
        """As str's."""
        return self._less(self._text.rstrip(_plain(chars)), "what it strips")

    def removeprefix(self, mark: Any) -> str:
        """As str's."""
        return self._less(self._text.removeprefix(_plain(mark)), _plain(mark))

    def removesuffix(self, mark: Any) -> str:
        """As str's."""
        return self._less(self._text.removesuffix(_plain(mark)), _plain(mark))

    def split(self, sep: Any = None, maxsplit: Any = -1) -> list[str]:
        """As str's."""
        return self._parts(self._text.split(_plain(sep), maxsplit), _plain(sep) or "spaces")

    def rsplit(self, sep: Any = None, maxsplit: Any = -1) -> list[str]:
        """As str's."""
        return self._parts(self._text.rsplit(_plain(sep), maxsplit), _plain(sep) or "spaces")

    def splitlines(self, keepends: Any = False) -> list[str]:
        """As str's."""
        return self._parts(self._text.splitlines(keepends), "line ends")

    def partition(self, sep: Any) -> Any:
        """As str's."""
        head, mark, tail = self._text.partition(_plain(sep))
        return tuple(self._parts([head, mark, tail], mark)) if mark else (self, "", "")

    def rpartition(self, sep: Any) -> Any:
        """As str's."""
        head, mark, tail = self._text.rpartition(_plain(sep))
        return tuple(self._parts([head, mark, tail], mark)) if mark else ("", "", self)

    def replace(self, old: Any, new: Any, count: Any = -1) -> str:
        """As str's; what comes in is the template's own text."""
        old = _plain(old)
        if self._text.replace(old, "", count) == self._text and old:
            return self
        if not old:
            self._refuse("it writes between the characters of a text")
        parts = self._text.split(old, count)
        if not new:
            return self._less("".join(parts), old)
        return str.join(str(new), self._parts(parts, old))

    # What takes a text apart without regard to what it says.

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, str):
            raise TypeError("string indices must be integers")  # message.content.text, where content may be a list
        self._refuse("it takes a part of a text by its position")

    def __iter__(self) -> Iterator[str]:
        yield self._refuse("it goes through a text character by character")

    def _less(self, text: str, mark: str) -> str:
        [part] = self._parts([text], mark)
        return part

    def _parts(self, parts: list[str], mark: str) -> list[str]:
        if parts == [self._text]:
            return [self]
        if self._whole:
            self._refuse(f"it leaves out a part of a user's text, at {mark!r}")
        if self._owner.is_special(mark):
            self._refuse(f"it cuts a text at {mark!r}, which is a special token and in a text is none")
        return [self._owner.of(part, whole=False) for part in parts]

    def _refuse(self, got: str) -> NoReturn:
        raise changed_text(got)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value._text if isinstance(value, StandIn) else value
