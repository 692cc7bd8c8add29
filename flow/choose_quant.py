"""The stage behind `assay export gguf --auto`: limits in; the one GGUF that keeps to them out, and what was tried."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import Artifact, refuse_existing
from contract.errors import AssayError
from contract.example import Example, sha256_of_rows
from contract.files import write_whole
from contract.groups import group
from contract.sample_size import FEWEST_DOCUMENTS
from evalsuite.cache import CACHE_FOLDER, KEEP_LOGITS_BYTES, Cache
from evalsuite.distance import checksum_path
from flow.quant_bench import Bench, Settings
from flow.quant_limits import Figures, Limits
from flow.quant_search import Prefer, search
from flow.quant_winner import Left, kept, left_in

if TYPE_CHECKING:
    from export.to_gguf import Check

SELECTION_FILE = "selection.json"
SELECTION_SCHEMA = 1
WORK_FOLDER = ".selection"  # what was measured so far; gone once a type has been chosen


@dataclass(frozen=True)
class Selection:
    """What was tried, smallest first, and what was kept."""

    model: Artifact
    data_sha256: str
    documents: int
    limits: Limits
    prefer: Prefer
    threads: int
    figures: tuple[Figures, ...]
    winner: Artifact | None

    def as_json(self) -> dict[str, Any]:
        """For selection.json and --json."""
        kept = None if self.winner is None else self.winner.details["quant"]
        return {
            "schema": SELECTION_SCHEMA,
            "model": {"name": self.model.name, "digest": self.model.digest},
            "data": {"sha256": self.data_sha256, "documents": self.documents},
            "limits": asdict(self.limits),
            "prefer": self.prefer,
            "threads": self.threads,
            "winner": kept,
            "digest": None if self.winner is None else self.winner.digest,
            "types": [
                {
                    **asdict(figures),
                    "outcome": figures.outcome(self.limits),
                    "kept": figures.quant == kept,
                    "reasons": [asdict(reason) for reason in figures.reasons(self.limits)],
                }
                for figures in self.figures
            ],
        }


def choose_quant(
    model: Artifact,
    examples: Sequence[Example],
    out: Path,
    *,
    limits: Limits,
    limit: int | None = None,
    prefer: Prefer | None = None,
    quants: Sequence[str] | None = None,
    check: Check = "structure",
    settings: Settings | None = None,
) -> Selection:
    """Try types of the ladder until it is known which of those within all limits is the preferred one, and export it.

    Interrupted, it goes on where it was: what was measured is kept in `out`/.selection. Where nothing passes it is kept
    as well, so that other limits cost little.

    Args:
        model: a merged artifact, a plain Hugging Face folder, or an adapter.
        examples: validation documents with reference summaries.
        out: the winner becomes a folder in here, named after its type; beside it selection.json.
        limits: one or more.
        limit: use the first N documents only.
        prefer: which of several types that pass; by default the smallest where there is a limit of quality, else the
            nearest.
        quants: which types may be taken; default: all that can be made.
        check: of the winner, as `export.to_gguf.export_gguf`; structure is checked of every type.
        settings: of the export.

    Raises:
        AssayError: there is no limit, the examples are the test split or too few, or something is there already.
        CheckFailed: the winner does not behave like its source.
    """
    settings = settings or Settings()
    prefer = prefer or ("smallest" if limits.of_quality else "nearest")
    if limits.none:
        raise AssayError("choosing needs a limit", hint="--max-kl, --max-rouge-loss, --max-bytes or --max-ms-per-token")
    _refuse_test_split(model, examples)
    examples = group(examples)[:limit]
    if limits.of_quality and len(examples) < FEWEST_DOCUMENTS:
        raise AssayError(
            "too few documents to pass a limit of quality on",
            got=f"{len(examples)} documents",
            expected=f"at least {FEWEST_DOCUMENTS}",
            hint="give more validation examples with --data",
        )
    allowed = _allowed(quants, settings)
    work = out / WORK_FOLDER
    _refuse_taken(out, allowed, left_in(work))
    planned = _planned(model, allowed, settings, exact_only=quants is None)
    small_enough = [figures.quant for figures in planned if _fits(figures, limits)]
    with _working(work) as cache:
        _refuse_taken(out, allowed, left_in(work))  # again: somebody else may have been at work here until now
        bench = Bench(model, examples, {f.quant: f for f in planned}, limits, settings, work, cache)
        chosen = _chosen(small_enough, prefer, bench)
        bench.drop()
        winner = kept(bench, chosen, out, work, check)
        selection = Selection(
            model,
            sha256_of_rows(examples),
            len(examples),
            limits,
            prefer,
            settings.threads,
            tuple(bench.figures[figures.quant] for figures in planned),
            winner,
        )
        write_whole(out / SELECTION_FILE, json.dumps(selection.as_json(), indent=1, allow_nan=False) + "\n")
        if winner is None:
            _drop_large_logits(work / CACHE_FOLDER)
        else:
            shutil.rmtree(work, ignore_errors=True)  # another run may just be trying the lock
    return selection


def _chosen(order: Sequence[str], prefer: Prefer, bench: Bench) -> str | None:
    """The search's answer; but never a file that came out larger than it was planned, and too large."""
    while (chosen := search(order, prefer, bench)) is not None:
        if bench.figures[chosen].outcome(bench.limits) == "pass":
            break
        order = [quant for quant in order if quant != chosen]
    return chosen


def _drop_large_logits(folder: Path) -> None:
    """They are soon computed again; every figure stays, whichever types were allowed this time."""
    logits = list(folder.glob("*.f32"))
    if sum(path.stat().st_size for path in logits) > KEEP_LOGITS_BYTES:
        for path in logits:
            path.unlink()
            checksum_path(path).unlink(missing_ok=True)


def _fits(figures: Figures, limits: Limits) -> bool:
    return figures.refused is None and (limits.size_bytes is None or figures.size_bytes <= limits.size_bytes)


def _refuse_test_split(model: Artifact, examples: Sequence[Example]) -> None:
    from export.imatrix import recorded_splits, split_of

    if split_of(recorded_splits(model), examples) == "test":
        raise AssayError(
            "these examples are the model's test split: chosen on them, the winner's scores there would prove nothing",
            where=str(model.path),
            hint="give the validation split with --data",
        )


def _refuse_taken(out: Path, quants: Sequence[str], left: Left | None) -> None:
    """Raise where a choice was made already, or a folder is in the way that is not what a killed run left."""
    _refuse_finished(out)
    for quant in quants:
        if left is None or quant != left.quant:
            refuse_existing(out / quant)


def _refuse_finished(out: Path) -> None:
    path = out / SELECTION_FILE
    if not path.exists():
        return
    try:
        finished = json.loads(path.read_text(encoding="utf-8"))["winner"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        finished = True
    if finished:
        refuse_existing(path)


def _allowed(quants: Sequence[str] | None, settings: Settings) -> list[str]:
    """The types asked for; by default all that can be made, with or without an importance matrix."""
    from export.quantize import LADDER, NEED_MATRIX
    from export.to_gguf import refuse_quants

    if quants is None:
        return [quant for quant in LADDER if settings.imatrix is not None or quant not in NEED_MATRIX]
    refuse_quants(quants, with_matrix=settings.imatrix is not None)
    return list(quants)


def _planned(model: Artifact, quants: Sequence[str], settings: Settings, *, exact_only: bool) -> list[Figures]:
    """Every type's size, smallest first; of equal sizes the one of fewer bits first.

    With `exact_only` no float type that is as large as the one that loses nothing.
    """
    from export.planned_sizes import planned_sizes
    from export.quantize import FLOATS, LADDER

    exact, files = planned_sizes(
        model,
        quants,
        with_matrix=settings.imatrix is not None,
        name=settings.name,
        pre_tokenizer=settings.pre_tokenizer,
    )
    found = [
        Figures(
            quant,
            file.size_bytes,
            file.types.bits_per_weight,
            refused=file.types.fallback_sentence(quant) if settings.strict and file.types.fallbacks else None,
        )
        for quant, file in files.items()
        if not exact_only or quant not in FLOATS or quant == exact or file.size_bytes < files[exact].size_bytes
    ]
    ladder = list(LADDER)
    return sorted(found, key=lambda figures: (figures.size_bytes, -ladder.index(figures.quant)))


@contextmanager
def _working(work: Path) -> Iterator[Cache]:
    """The cache of the work folder, which nobody else works in meanwhile, without what a killed run had half made."""
    cache = Cache(work / CACHE_FOLDER)
    with cache.held():
        shutil.rmtree(work / "tried", ignore_errors=True)
        yield cache
