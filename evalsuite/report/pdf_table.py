"""A report's table on the pages of report.pdf: over several pages where it is long, in several pieces where wide."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalsuite.report.pdf_sheets import FAINT, MARGIN, RULE, SOFT, Block, Run, Sheets
from evalsuite.report.table import Cell, Column, Line, Table

_NAMES_WIDTH = 168.0  # points
_NARROWEST = 66.0
_PAD = 4.0
_SIZE, _SMALL = 7.6, 6.2


def put_table(sheets: Sheets, table: Table) -> None:
    """Draw it from where the page stands."""
    fitting = max(1, int((sheets.inner_width - _NAMES_WIDTH) / _NARROWEST))
    pieces = math.ceil(len(table.columns) / fitting)
    size = math.ceil(len(table.columns) / pieces)
    for start in range(0, len(table.columns), size):
        if start:
            sheets.page(landscape=sheets.width > sheets.height)
        _piece(sheets, table, start, start + size, (sheets.inner_width - _NAMES_WIDTH) / size)


def _piece(sheets: Sheets, table: Table, start: int, stop: int, width: float) -> None:
    columns = table.columns[start:stop]
    _header(sheets, columns, width)
    for index, line in enumerate(table.lines):
        opens = bool(line.group) and (index == 0 or line.group != table.lines[index - 1].group)
        name, cells = _wrapped(sheets, line, line.cells[start:stop], width)
        height = max(sum(block.height for block in blocks) for blocks in (name, *cells)) + _PAD
        turned = sheets.need(height + (22 if opens else 0))
        if turned:
            _header(sheets, columns, width)
        if line.group and (opens or turned):
            _band(sheets, line.group)
        _row(sheets, name, cells, width, height)


def _header(sheets: Sheets, columns: Sequence[Column], width: float) -> None:
    blocks = [_stack(sheets, (column.label, column.note), width - _PAD) for column in columns]
    height = max(sum(block.height for block in stacked) for stacked in blocks) + 2 * _PAD
    sheets.fill(MARGIN, sheets.y, sheets.inner_width, height, SOFT)
    for index, stacked in enumerate(blocks):
        _put_right(sheets, stacked, index, width, sheets.y + _PAD)
    sheets.y += height


def _band(sheets: Sheets, group: str) -> None:
    block = sheets.wrap([Run(group, "bold", FAINT)], _SIZE, sheets.inner_width - 2 * _PAD)
    sheets.fill(MARGIN, sheets.y, sheets.inner_width, block.height + _PAD, SOFT)
    sheets.y = sheets.put(block, MARGIN + _PAD, sheets.y + _PAD / 2) + _PAD / 2


def _row(sheets: Sheets, name: Sequence[Block], cells: Sequence[Sequence[Block]], width: float, height: float) -> None:
    y = sheets.y + _PAD / 2
    for block in name:
        y = sheets.put(block, MARGIN + _PAD, y)
    for index, blocks in enumerate(cells):
        _put_right(sheets, blocks, index, width, sheets.y + _PAD / 2)
    sheets.y += height
    sheets.fill(MARGIN, sheets.y, sheets.inner_width, 0.5, RULE)


def _put_right(sheets: Sheets, blocks: Sequence[Block], column: int, width: float, y: float) -> None:
    edge = MARGIN + _NAMES_WIDTH + (column + 1) * width - _PAD
    for block in blocks:
        y = sheets.put(block, 0, y, align_to=edge)


def _wrapped(sheets: Sheets, line: Line, cells: Sequence[Cell], width: float) -> tuple[list[Block], list[list[Block]]]:
    name = f"{line.metric}\u00a0{line.better}" if line.better else line.metric
    unit = ", ".join(part for part in (line.unit, f"n = {line.n}" if line.n else "") if part)
    notes = [[cell.note, f"n = {cell.n}" if cell.n else ""] for cell in cells]
    return (
        _stack(sheets, (name, unit), _NAMES_WIDTH - 2 * _PAD),
        [
            _stack(sheets, (cell.value, *note), width - _PAD, bold=False)
            for cell, note in zip(cells, notes, strict=True)
        ],
    )


def _stack(sheets: Sheets, texts: Sequence[str], width: float, *, bold: bool = True) -> list[Block]:
    """The first text large, the others small below it, empty ones left out."""
    first = sheets.wrap([Run(texts[0], "bold" if bold else "regular")], _SIZE, width)
    return [first, *(sheets.wrap([Run(text, colour=FAINT)], _SMALL, width) for text in texts[1:] if text)]
