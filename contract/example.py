"""One example (id, document, references): reading it from files or a hub, and writing it."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import AssayError, did_you_mean, listed
from contract.groups import group
from contract.jsonl import read_jsonl
from contract.similarity import same_key

# Column names tried in this order when the recipe maps none.
DOCUMENT_COLUMNS = ("document", "dialogue", "article", "text", "transcript", "source")
REFERENCE_COLUMNS = ("references", "summary", "highlights", "reference", "target")
ID_COLUMNS = ("id", "fname", "guid", "doc_id")


@dataclass(frozen=True)
class Example:
    """A document and the summaries people wrote of it."""

    id: str
    document: str
    references: tuple[str, ...]
    row_ids: tuple[str, ...] = field(default=(), compare=False)  # of the rows it was read from; (): of one, itself

    def as_row(self) -> dict[str, Any]:
        """The row that `write_examples` writes and `read_examples` reads back unchanged."""
        return {"id": self.id, "document": self.document, "references": list(self.references)}


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None means: the first known name that the data has."""

    id: str | None = None
    document: str | None = None
    references: tuple[str, ...] | None = None


def _rows_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(1 << 28)  # documents are longer than the csv module's default of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row:
                    raise AssayError("a row has more fields than the header", where=where)
                yield where, row
        except csv.Error as error:
            raise AssayError("a line is not valid CSV", where=f"{path}:{reader.line_num}", got=str(error)) from None


def _rows_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise AssayError("reading Parquet needs pyarrow", where=str(path), hint="pip install pyarrow") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except pyarrow.ArrowException as error:
        raise AssayError("the file is not Parquet", where=str(path), got=str(error).splitlines()[0]) from None


def _rows_hub(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`hf:OWNER/NAME[:CONFIG]@SPLIT`, through the datasets library (and its cache when offline)."""
    name, _, split = source.removeprefix("hf:").partition("@")
    name, _, config = name.partition(":")
    try:
        import datasets
    except ImportError:
        raise AssayError(
            "reading a hub dataset needs the datasets library", where=source, hint="pip install datasets"
        ) from None
    try:
        table = datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise AssayError("the hub dataset could not be loaded", where=source, got=str(error).splitlines()[0]) from None
    for number, row in enumerate(table, 1):
        yield f"{source}: row {number}", row


def _rows(source: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, str) and source.startswith("hf:"):
        yield from _rows_hub(source)
        return
    path = Path(source)
    if not path.is_file():
        raise AssayError(
            "no such data file",
            where=str(path),
            hint="give a .jsonl, .csv, .tsv or .parquet file, or hf:OWNER/NAME@SPLIT",
        )
    try:
        match path.suffix:
            case ".jsonl" | ".ndjson":
                yield from read_jsonl(path)
            case ".csv" | ".tsv":
                yield from _rows_csv(path)
            case ".parquet":
                yield from _rows_parquet(path)
            case other:
                raise AssayError(
                    "unknown data format",
                    where=str(path),
                    got=other or "no extension",
                    expected=".jsonl, .csv, .tsv or .parquet",
                )
    except UnicodeDecodeError as error:
        raise AssayError("the file is not UTF-8", where=str(path), got=str(error)) from None


def _pick(row: Mapping[str, Any], wanted: str | None, known: tuple[str, ...], what: str, where: str) -> str | None:
    if wanted is not None:
        if wanted not in row:
            raise AssayError(
                f'no column "{wanted}" for the {what}', where=where, got=listed(row), hint=did_you_mean(wanted, row)
            )
        return wanted
    return next((name for name in known if name in row), None)


def reference_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that hold summaries by their usual names: one, or numbered ones (summary1, summary2 …)."""
    for name in REFERENCE_COLUMNS:
        if name in row:
            return [name]
    for name in REFERENCE_COLUMNS:
        numbered = [(int(found[1]), key) for key in row if (found := re.fullmatch(rf"{name}_?([0-9]+)", str(key)))]
        if numbered:
            return [key for _, key in sorted(numbered)]
    return []


def _text(value: Any, name: str, where: str, problems: list[str]) -> str | None:
    if not isinstance(value, str):
        problems.append(f'{where}: field "{name}": expected text, got {type(value).__name__}')
        return None
    text = value.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        problems.append(f'{where}: field "{name}" is empty')
        return None
    if any("\ud800" <= character <= "\udfff" for character in text):
        problems.append(f'{where}: field "{name}" holds half a surrogate pair')
        return None
    if "\x00" in text:
        problems.append(f'{where}: field "{name}" holds a NUL character')
        return None
    return text


def read_examples(
    source: str | Path, columns: Columns | None = None, *, need_references: bool = True, limit: int | None = None
) -> list[Example]:
    """Read and validate every row of `source`; rows of one document become one example with several references.

    Args:
        source: a .jsonl, .csv, .tsv or .parquet file, or `hf:OWNER/NAME[:CONFIG]@SPLIT`.
        columns: the mapping; where it is silent, the usual names are tried.
        need_references: refuse rows without a summary.
        limit: at most this many documents, the first ones; rows of theirs that stand further down are read too.

    Raises:
        AssayError: naming file, line and field of everything that is wrong, at most 20 of them.
    """
    columns = columns or Columns()
    examples: list[Example] = []
    problems: list[str] = []
    seen: dict[str, tuple[str, str | None]] = {}  # id -> where it was first used, and of which document
    for index, (where, row) in enumerate(_rows(source)):
        document_name = _pick(row, columns.document, DOCUMENT_COLUMNS, "document", where)
        if document_name is None:
            raise AssayError(
                "no document column found",
                where=where,
                got=listed(row),
                expected=f"one of {', '.join(DOCUMENT_COLUMNS)}",
                hint="map it: data.columns.document",
            )
        if columns.references:
            reference_names = [
                name for wanted in columns.references if (name := _pick(row, wanted, (), "references", where))
            ]
        else:
            reference_names = reference_columns(row)
        if not reference_names and need_references:
            raise AssayError(
                "no summary column found",
                where=where,
                got=listed(row),
                expected=f"one of {', '.join(REFERENCE_COLUMNS)}; or several, numbered: summary1, summary2 …",
                hint="map it: data.columns.references",
            )
        id_name = _pick(row, columns.id, ID_COLUMNS, "id", where)
        document = _text(row[document_name], document_name, where, problems)
        references: list[str] = []
        for name in reference_names:
            value = row[name]
            values = value if isinstance(value, list | tuple) else [value]
            if not values and need_references:
                problems.append(f'{where}: field "{name}" is empty')
            references += [text for item in values if (text := _text(item, name, where, problems))]
        key = str(row[id_name]) if id_name else f"{index + 1:06d}"
        document_key = None if document is None else same_key(document)
        used_at, used_for = seen.setdefault(key, (where, document_key))
        if used_at != where and (document_key is None or document_key != used_for):
            problems.append(f'{where}: id "{key}" was already used at {used_at}, for another document')
        if document is not None:
            examples.append(Example(key, document, tuple(references)))
    if problems:
        more = f"\n    … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise AssayError(
            f"{len(problems)} problem(s) in the data",
            where=str(source),
            got="\n    " + "\n    ".join(problems[:20]) + more,
        )
    if not examples:
        raise AssayError("there is no example in the data", where=str(source))
    return group(examples)[:limit]


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write JSON Lines that `read_examples` reads back unchanged."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            file.write(json.dumps(example.as_row(), ensure_ascii=False) + "\n")


def key_of(example: Example) -> str:
    """What tells a document with its references from others, whatever its id: 32 hex digits."""
    said = json.dumps([example.document, list(example.references)], ensure_ascii=False)
    return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:32]


def sha256_of_rows(examples: Sequence[Example]) -> str:
    """The sha256 over the rows as canonical JSON (keys sorted, UTF-8), one per line, in order."""
    digest = hashlib.sha256()
    for example in examples:
        row = json.dumps(example.as_row(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(row.encode(errors="surrogatepass") + b"\n")  # JSON can spell a lone surrogate
    return digest.hexdigest()
