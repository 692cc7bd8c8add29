"""Reading predictions and references for `assay score`, and joining them by id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

from contract.errors import AssayError, did_you_mean, listed
from contract.example import DOCUMENT_COLUMNS, ID_COLUMNS, REFERENCE_COLUMNS, read_examples, reference_columns
from contract.jsonl import read_jsonl
from evalsuite.results import Stop

_MOST_PROBLEMS = 20
_JSONL = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class _Reference:
    ids: tuple[str, ...]  # of all rows with this document
    document: str | None
    texts: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRow:
    """One prediction beside what it is held against."""

    id: str
    document_id: str  # the same for predictions of one document: the id of its first row
    document: str | None  # None: the references came without documents
    references: tuple[str, ...]
    prediction: str
    stop: Stop  # unknown where the prediction's row does not say


@dataclass(frozen=True)
class _Row:
    where: str  # FILE:LINE
    fields: dict[str, Any]


def read_score_rows(predictions: Path, references: str) -> list[ScoreRow]:
    """Read both sides and join them by id, in the order of the references.

    Rows of one document are its references, and a prediction under the id of any of them is held against all. Several
    predictions of one document stay apart, with one `document_id`.

    Args:
        predictions: JSON Lines, rows {"id", "prediction"} and perhaps "stop", as `assay eval` writes them.
        references: JSON Lines, rows {"id", "document", "summary"} or "references": [...], the document in all or in
            none; or whatever else `read_examples` reads.

    Raises:
        AssayError: naming file and line of what cannot be read, or the ids that are missing, double or unknown.
    """
    ours = _read_predictions(predictions)
    theirs = _read_references(references)
    known = {key for reference in theirs for key in reference.ids}
    missing = [reference.ids[0] for reference in theirs if not any(key in ours for key in reference.ids)]
    extra = [f'"{key}" ({row.where})' for key, row in ours.items() if key not in known]
    if missing or extra:
        problems = [f"{len(missing)} without a prediction: {listed(missing)}"] if missing else []
        problems += [f"{len(extra)} without a reference: {listed(extra)}"] if extra else []
        none_fits = len(missing) == len(theirs)
        raise AssayError(
            "predictions and references do not have the same ids",
            where=f"{predictions}, {references}",
            expected=f"an id of each of the {len(theirs)} documents of the references",
            got="; ".join(problems),
            hint="give both the same ids; references without an id are numbered 000001, 000002 …"
            if none_fits
            else None,
        )
    return [
        ScoreRow(
            key,
            reference.ids[0],
            reference.document,
            reference.texts,
            _line_ends(ours[key].fields["prediction"]),
            ours[key].fields.get("stop") or "unknown",
        )
        for reference in theirs
        for key in reference.ids
        if key in ours
    ]


def _line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_predictions(path: Path) -> dict[str, _Row]:
    found: dict[str, _Row] = {}
    problems: list[str] = []
    for row in _rows(path, "predictions"):
        if "prediction" not in row.fields:
            raise AssayError(
                'a row has no "prediction"',
                where=row.where,
                got=listed(row.fields) or "an empty object",
                hint=did_you_mean("prediction", row.fields),
            )
        problems += _text_problems(row, "prediction")
        if row.fields.get("stop") not in (None, "eos", "length", "unknown"):
            problems.append(
                f'{row.where}: field "stop": expected "eos", "length" or "unknown", got {row.fields["stop"]!r}'
            )
        _add(found, row, "id", problems)
    _raise_problems(problems, path)
    if not found:
        raise AssayError("there is no prediction in the file", where=str(path))
    return found


def _read_references(source: str) -> list[_Reference]:
    """With documents as `read_examples` does; JSON Lines may come without."""
    path = Path(source)
    if source.startswith("hf:") or path.suffix not in _JSONL:
        return _with_documents(source)
    rows = list(_rows(path, "references"))
    with_document = [row for row in rows if any(name in row.fields for name in DOCUMENT_COLUMNS)]
    if with_document:
        if len(with_document) < len(rows):
            first = next(row for row in rows if row not in with_document)
            raise AssayError("some rows have a document and others none", where=first.where, got=listed(first.fields))
        return _with_documents(source)
    return _without_documents(rows, path)


def _with_documents(source: str) -> list[_Reference]:
    return [
        _Reference(tuple(dict.fromkeys(example.row_ids)), example.document, example.references)
        for example in read_examples(source)
    ]


def _without_documents(rows: Sequence[_Row], path: Path) -> list[_Reference]:
    found: dict[str, _Row] = {}
    problems: list[str] = []
    texts: dict[str, tuple[str, ...]] = {}
    for row in rows:
        names = reference_columns(row.fields)
        if not names:
            raise AssayError(
                "no summary column found",
                where=row.where,
                got=listed(row.fields) or "an empty object",
                expected=f"one of {', '.join(REFERENCE_COLUMNS)}",
            )
        for name in names:
            problems += _text_problems(row, name, needed=True)
        key = _add(found, row, next((name for name in ID_COLUMNS if name in row.fields), "id"), problems)
        given = [text for name in names for text in _texts(row.fields[name]) if isinstance(text, str)]
        texts[key] = tuple(dict.fromkeys(_line_ends(text).strip() for text in given))
    _raise_problems(problems, path)
    if not found:
        raise AssayError("there is no reference in the file", where=str(path))
    return [_Reference((key,), None, texts[key]) for key in found]


def _add(found: dict[str, _Row], row: _Row, name: str, problems: list[str]) -> str:
    """Enter a row under its id; say what is wrong with the id."""
    key = row.fields.get(name)
    if isinstance(key, bool) or not isinstance(key, str | int):
        got = type(key).__name__ if name in row.fields else "none"
        problems.append(f'{row.where}: field "{name}": expected an id (text or a whole number), got {got}')
    elif str(key) in found:
        problems.append(f'{row.where}: id "{key}" was already used at {found[str(key)].where}')
    else:
        found[str(key)] = row
    return str(key)


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text_problems(row: _Row, name: str, *, needed: bool = False) -> Iterator[str]:
    """What keeps a field's text, or its texts where they are `needed`, from being scored."""
    texts = _texts(row.fields[name]) if needed else [row.fields[name]]
    if not texts:
        yield f'{row.where}: field "{name}" is empty'
    for text in texts:
        if not isinstance(text, str):
            yield f'{row.where}: field "{name}": expected text, got {type(text).__name__}'
        elif needed and not text.strip():
            yield f'{row.where}: field "{name}" is empty'
        elif any("\ud800" <= character <= "\udfff" for character in text):
            yield f'{row.where}: field "{name}" holds half a surrogate pair'


def _raise_problems(problems: Sequence[str], path: Path) -> None:
    if problems:
        more = f"\n    … and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise AssayError(
            f"{len(problems)} problem(s) in the rows",
            where=str(path),
            got="\n    " + "\n    ".join(problems[:_MOST_PROBLEMS]) + more,
        )


def _rows(path: Path, what: str) -> Iterator[_Row]:
    if not path.is_file():
        raise AssayError(f"no such file of {what}", where=str(path), expected='JSON Lines, one {"id": …} per line')
    return starmap(_Row, read_jsonl(path))
