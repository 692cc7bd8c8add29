"""The three splits of a recipe: read, divided, freed of leaks, and hashed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import AssayError, listed
from contract.example import Columns, Example, read_examples, sha256_of_rows
from contract.groups import row_count
from trainer.duplicates import Dropped, Near, drop_leaks, near_in

if TYPE_CHECKING:
    from contract.recipe import Recipe

SPLITS = ("train", "valid", "test")
# What the files of a `--data` folder may be called.
_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}
_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class DataReport:
    """What was found per split, every example that was dropped and why, and whether ids were prefixed.

    Rows of one document are one example, so there may be fewer documents than rows.
    """

    sources: dict[str, str]
    rows_read: dict[str, int]
    documents_read: dict[str, int]
    documents_kept: dict[str, int]
    dropped: tuple[Dropped, ...]
    ids_prefixed: bool
    near: tuple[Near, ...]  # near-duplicates within valid and within test; they are kept

    def as_dict(self) -> dict[str, object]:
        """As `assay data --json` prints it."""
        return asdict(self)


@dataclass(frozen=True)
class Splits:
    """The examples of each split, the sha256 of each (over its rows as kept), and the report."""

    train: list[Example]
    valid: list[Example]
    test: list[Example]
    sha256: dict[str, str]
    report: DataReport

    def named(self) -> dict[str, list[Example]]:
        """Split name -> examples."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


def load_splits(recipe: Recipe, data: str | None = None) -> Splits:
    """Read the examples of a recipe.

    Rows of one document are one example with several references. Of documents found in two splits the copy in train
    gives way to those in valid and test, and the copy in valid to that in test, so the test stays as it is.

    Args:
        recipe: says where the examples are, how one file is divided, and which column holds what.
        data: replaces the recipe's paths: a file (divided by data.split), a folder with train, valid and test files, or
            hf:OWNER/NAME@SPLIT (divided by data.split).

    Raises:
        AssayError: a file, line or field is wrong, there are too few documents for the split, or one is left empty.
    """
    sources, rows = _read(recipe, data)
    rows_read = {name: row_count(examples) for name, examples in rows.items()}
    read = {name: len(examples) for name, examples in rows.items()}
    rows, prefixed = _unique_ids(rows)
    dropped: list[Dropped] = []
    for name, against in (("valid", ("test",)), ("train", ("valid", "test"))):
        rows[name], leaks = drop_leaks(name, rows[name], {other: rows[other] for other in against})
        dropped += leaks
    empty = [name for name in SPLITS if not rows[name]]
    if empty:
        raise AssayError(
            "leaks leave a split without a document",
            where=", ".join(sources.values()),
            got=", ".join(f"{name}: {read[name]} read, 0 kept" for name in empty),
            hint="give splits that share no documents",
        )
    kept = {name: len(rows[name]) for name in SPLITS}
    near = [found for name in ("valid", "test") for found in near_in(name, rows[name])]
    report = DataReport(sources, rows_read, read, kept, tuple(dropped), prefixed, tuple(near))
    return Splits(
        rows["train"], rows["valid"], rows["test"], {name: sha256_of_rows(rows[name]) for name in SPLITS}, report
    )


def _read(recipe: Recipe, data: str | None) -> tuple[dict[str, str], dict[str, list[Example]]]:
    part, columns = recipe.data, recipe.data.columns.columns()
    if data is not None and Path(data).is_dir():
        return _read_files(_files_of(Path(data)), columns)
    files = {name: path for name, path in (("train", part.train), ("valid", part.valid), ("test", part.test)) if path}
    source = data or part.source
    if data is None and part.source and files:
        raise AssayError(
            "the recipe gives both one file and separate files",
            where="data",
            got=", ".join(["source", *files]),
            hint="keep data.source with data.split, or the three files",
        )
    if source is not None:
        return _divide(source, recipe, columns)
    missing = [f"data.{name}" for name in SPLITS if name not in files]
    if missing:
        raise AssayError(
            "the recipe does not say where all examples are",
            where=", ".join(missing),
            expected="data.train, data.valid and data.test, or data.source with data.split",
            hint="add them, or give --data FILE_OR_DIR",
        )
    found, rows = _read_files(files, columns)
    return found, {name: examples[: getattr(part.at_most, name)] for name, examples in rows.items()}


def _files_of(folder: Path) -> dict[str, str]:
    files: dict[str, str] = {}
    problems = []
    for split, names in _NAMES.items():
        found = [path for name in names for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
        if len(found) == 1:
            files[split] = str(found[0])
        else:
            problems.append(f"{split}: " + (f"several: {listed(path.name for path in found)}" if found else "none"))
    if problems:
        raise AssayError(
            "a data folder holds one file per split",
            where=str(folder),
            got="; ".join(problems),
            expected="train, valid (or validation, dev) and test, each .jsonl, .csv, .tsv or .parquet",
        )
    return files


def _read_files(files: dict[str, str], columns: Columns) -> tuple[dict[str, str], dict[str, list[Example]]]:
    problems, rows = [], {}
    for name, path in files.items():
        try:
            rows[name] = read_examples(path, columns)
        except AssayError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise AssayError("problems in several files", got="\n" + "\n".join(str(problem) for problem in problems))
    return files, rows


def _divide(source: str, recipe: Recipe, columns: Columns) -> tuple[dict[str, str], dict[str, list[Example]]]:
    split = recipe.data.split
    if split is None:
        raise AssayError(
            "one file needs counts of documents to be divided",
            where=source,
            hint="set data.split in the recipe, e.g. {train: 800, valid: 100, test: 100}, or give a folder",
        )
    examples = read_examples(source, columns)
    counts = {"train": split.train, "valid": split.valid, "test": split.test}
    wanted = sum(counts.values())
    if len(examples) < wanted:
        raise AssayError(
            "there are too few documents for the split",
            where=source,
            got=f"{len(examples)} documents in {row_count(examples)} rows",
            expected=f"{wanted} documents ({', '.join(f'{name} {n}' for name, n in counts.items())})",
            hint="lower data.split in the recipe",
        )
    rows, start = {}, 0
    for name, count in counts.items():
        rows[name] = examples[start : start + count]
        start += count
    return dict.fromkeys(SPLITS, source), rows


def _unique_ids(rows: dict[str, list[Example]]) -> tuple[dict[str, list[Example]], bool]:
    """Rows numbered per file, or files that use the same ids: the split's name goes in front of every id."""
    ids = [example.id for examples in rows.values() for example in examples]
    if len(set(ids)) == len(ids):
        return dict(rows), False
    return {
        name: [replace(example, id=f"{name}-{example.id}") for example in examples] for name, examples in rows.items()
    }, True
