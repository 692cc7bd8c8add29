"""A4 pages for report.pdf: text measured, wrapped and placed, in the font that matplotlib brings along."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from contract.drafts import partial_of
from evalsuite.report.font import REPLACEMENT, Face, font_of, printable, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mark = Literal["", "added", "missing"]
INK, FAINT, RULE, SOFT, HIGHLIGHT = "#1d2430", "#5b6472", "#dfe3ea", "#eef1f5", "#ffe59a"
LEADING = 1.38  # line height over font size
MARGIN = 42.0  # points, as are all lengths here
_SHORT_SIDE, _LONG_SIDE = 595.3, 841.9
_FOOTER_SIZE = 7.0
_REPLACED_NOTE = f" · {REPLACEMENT} stands for a character that this font lacks: report.html shows it"


@dataclass(frozen=True)
class Run:
    """Text of one look."""

    text: str
    face: Face = "regular"
    colour: str = INK
    mark: Mark = ""  # highlighted, or struck through


@dataclass(frozen=True)
class Block:
    """Runs wrapped to a width: one tuple of runs per line, all of one size."""

    lines: tuple[tuple[Run, ...], ...]
    size: float

    @property
    def height(self) -> float:
        """In points."""
        return len(self.lines) * self.size * LEADING

    def __add__(self, below: Block) -> Block:
        return Block(self.lines + below.lines, self.size)


class Sheets:
    """Pages that are filled from top to bottom; what does not fit goes on the next one."""

    def __init__(self, footer: str) -> None:
        """`footer` stands at the foot of every page."""
        self.figures: list[Figure] = []
        self._footer = footer
        self._replaced: set[int] = set()  # pages
        self.width = self.height = self.y = 0.0

    def page(self, *, landscape: bool = False) -> Figure:
        """Begin a page."""
        from matplotlib.figure import Figure

        self.width, self.height = (_LONG_SIDE, _SHORT_SIDE) if landscape else (_SHORT_SIDE, _LONG_SIDE)
        self.figures.append(Figure(figsize=(self.width / 72, self.height / 72)))
        self.y = MARGIN
        return self.figures[-1]

    @property
    def inner_width(self) -> float:
        """Between the margins."""
        return self.width - 2 * MARGIN

    def need(self, points: float) -> bool:
        """Go on to a new page where less than `points` are left; whether it did."""
        if self.y + points <= self.height - MARGIN:
            return False
        self.page(landscape=self.width > self.height)
        return True

    def heading(self, text: str, size: float = 13) -> None:
        """A heading, on one page with the first of what follows it."""
        if not self.need(size + 70) and self.y > MARGIN:
            self.y += 10
        self.text([Run(text, "bold")], size=size, after=4)

    def text(
        self, runs: Iterable[Run], *, size: float = 9, indent: float = 0, bullet: bool = False, after: float = 4
    ) -> None:
        """A paragraph, `indent` in from the margin, with a bullet hanging in front where wanted."""
        block = self.wrap(runs, size, self.inner_width - indent)
        if bullet:
            block = replace(block, lines=block.lines or ((),))
            self.need(size * LEADING)
            self.put(Block(((Run("•", colour=FAINT),),), size), MARGIN + indent - 9, self.y)
        self.columns([(MARGIN + indent, block)])
        self.y += after

    def columns(self, blocks: Sequence[tuple[float, Block]]) -> None:
        """Blocks beside each other, each at its x, over as many pages as the longest takes."""
        step = max(block.size for _, block in blocks) * LEADING
        for row in zip_longest(*(block.lines for _, block in blocks)):
            self.need(step)
            for (x, block), line in zip(blocks, row, strict=True):
                self.put(Block((line or (),), block.size), x, self.y)
            self.y += step

    def wrap(self, runs: Iterable[Run], size: float, width: float) -> Block:
        """Break into lines of at most `width`: at white space; at a hyphen or within where a word alone is wider."""
        lines: list[list[Run]] = [[]]
        used = 0.0
        for run in runs:
            for piece in re.findall(r"\n|[^\S\n]+|\S+", self._known(run)):
                if piece == "\n":
                    lines.append([])
                    used = 0.0
                    continue
                for part in _parts(piece, run.face, size, width):
                    advance = text_width(part, run.face, size)
                    if used and used + advance > width:
                        lines.append([])
                        used = 0.0
                    if used or not part.isspace():
                        lines[-1].append(replace(run, text=part))
                        used += advance
        return Block(tuple(_joined(line) for line in lines), size)

    def put(self, block: Block, x: float, y: float, align_to: float | None = None) -> float:
        """Draw lines from y downwards, from x rightwards or ending at `align_to`; the y below them."""
        for line in block.lines:
            left = x if align_to is None else align_to - sum(text_width(r.text, r.face, block.size) for r in line)
            for run in line:
                left = self._draw(run, left, y, block.size)
            y += block.size * LEADING
        return y

    def fill(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle, below all text."""
        from matplotlib.patches import Rectangle

        left, low = x / self.width, 1 - (y + height) / self.height
        box = Rectangle((left, low), width / self.width, height / self.height, facecolor=colour, edgecolor="none")
        self.figures[-1].add_artist(box)

    def save(self, path: Path, title: str) -> None:
        """Number the pages and write them, whole or not at all; the same pages give the same bytes."""
        from matplotlib.backends.backend_pdf import PdfPages

        partial = partial_of(path)
        try:
            with PdfPages(partial, metadata={"Title": title, "CreationDate": None}) as pdf:
                for index, figure in enumerate(self.figures):
                    pdf.savefig(self._with_footer(index, figure))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _with_footer(self, index: int, figure: Figure) -> Figure:
        note = _REPLACED_NOTE if index in self._replaced else ""
        number = f"page {index + 1} of {len(self.figures)}"
        width, height = (72 * side for side in figure.get_size_inches())
        for text, x, align in ((self._footer + note, MARGIN, "left"), (number, width - MARGIN, "right")):
            figure.text(
                x / width,
                (MARGIN - 20) / height,
                printable(text, "regular")[0],
                fontproperties=font_of("regular"),
                fontsize=_FOOTER_SIZE,
                color=FAINT,
                ha=align,
                parse_math=False,
            )
        return figure

    def _known(self, run: Run) -> str:
        text, replaced = printable(run.text, run.face)
        if replaced:
            self._replaced.add(len(self.figures) - 1)
        return text

    def _draw(self, run: Run, x: float, y: float, size: float) -> float:
        """One run, the top of its line at y; the x behind it."""
        advance = text_width(run.text, run.face, size)
        if run.mark == "added":
            self.fill(x, y + 0.12 * size, advance, 1.2 * size, HIGHLIGHT)
        self.figures[-1].text(
            x / self.width,
            1 - (y + 1.05 * size) / self.height,
            run.text,
            fontproperties=font_of(run.face),
            fontsize=size,
            color=run.colour,
            parse_math=False,
        )
        if run.mark == "missing":
            self.fill(x, y + 0.72 * size, advance, 0.6, run.colour)
        return x + advance


def _parts(piece: str, face: Face, size: float, width: float) -> list[str]:
    """The piece itself, or what of it fits a line each."""
    if piece.isspace() or text_width(piece, face, size) <= width:
        return [piece]
    parts = [""]
    for chunk in re.findall(r"[^-]*-|[^-]+", piece):
        whole = text_width(chunk, face, size) <= width
        for part in [chunk] if whole else chunk:
            if parts[-1] and text_width(parts[-1] + part, face, size) > width:
                parts.append("")
            parts[-1] += part
    return parts


def _joined(line: Sequence[Run]) -> tuple[Run, ...]:
    """Neighbours of one look as one run."""
    joined: list[Run] = []
    for run in line:
        if joined and replace(joined[-1], text=run.text) == run:
            joined[-1] = replace(run, text=joined[-1].text + run.text)
        else:
            joined.append(run)
    return tuple(joined)
