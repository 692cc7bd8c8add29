"""The font that matplotlib brings along: what it can show, and how wide text comes out; the same on every machine."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

Face = Literal["regular", "bold", "mono"]
REPLACEMENT = "□"
_FILES: dict[Face, str] = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf", "mono": "DejaVuSansMono.ttf"}


def printable(text: str, face: Face) -> tuple[str, bool]:
    """`text` as the font can show it, and whether a visible character had to be replaced.

    Tabs become spaces; characters without a glyph that are not seen anyway (joiners, selectors) are dropped.
    """
    known, shown, replaced = _characters(face), [], False
    for character in text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4):
        if character == "\n" or (ord(character) in known and unicodedata.category(character) != "Cc"):
            shown.append(character)
        elif unicodedata.category(character) not in ("Cc", "Cf", "Mn"):
            shown.append(REPLACEMENT)
            replaced = True
    return "".join(shown), replaced


@lru_cache(maxsize=1 << 14)
def text_width(text: str, face: Face, size: float) -> float:
    """How far a printable text of one line reaches, in points."""
    from matplotlib.textpath import text_to_path

    font = font_of(face).copy()
    font.set_size(size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


@lru_cache
def font_of(face: Face) -> FontProperties:
    """The face, without a size."""
    import matplotlib
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=str(Path(matplotlib.get_data_path(), "fonts", "ttf", _FILES[face])))


@lru_cache
def _characters(face: Face) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(str(font_of(face).get_file())).get_charmap())
