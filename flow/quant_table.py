"""What was tried for a selection, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from contract.verdict import Outcome
from evalsuite.results import Interval
from flow.quant_limits import Figures, Limits

if TYPE_CHECKING:
    from flow.choose_quant import Selection

_LIMITS = {
    "size_bytes": "--max-bytes",
    "kl_gold": "--max-kl, gold",
    "kl_greedy": "--max-kl, greedy",
    "rouge_l_loss": "--max-rouge-loss",
    "ms_per_token": "--max-ms-per-token",
}
_WORDS: dict[Outcome | None, str] = {"pass": "passes", "fail": "no", "inconclusive": "not sure", None: "not tried"}


def as_text(selection: Selection) -> str:
    """The table, smallest type first, what it means, and what was kept."""
    kept = None if selection.winner is None else selection.winner.details["quant"]
    header = ["type", "MB", "bits", "KL gold", "KL greedy", "R-L lost", "ms/tok", "verdict"]
    rows = [_cells(figures, selection.limits, figures.quant == kept) for figures in selection.figures]
    lines = _aligned([header, *rows])
    lines += [
        "",
        f"{selection.documents} documents. KL(model‖GGUF) in nats per token, R-L lost in points of ROUGE-L: the mean "
        "and, in brackets, its 95% interval, all of which must be within the limit.",
    ]
    if any(figures.outcome(selection.limits) == "inconclusive" for figures in selection.figures):
        lines.append("not sure: too close to call; selection.json says about how many documents would decide")
    if selection.winner is None:
        lines.append("none of the types is within the limits: nothing was kept")
    else:
        lines.append(f"kept, as the {selection.prefer} within the limits: {selection.winner.gguf_path}")
        both = f"{selection.model.path} {selection.winner.path}"
        lines.append(f"choosing is no proof yet; that takes assay eval {both} --data TEST --out EVAL")
    return "\n".join(lines)


def _cells(figures: Figures, limits: Limits, kept: bool) -> list[str]:
    outcome, quality = figures.outcome(limits), figures.quality
    said_no = [_LIMITS.get(reason.code, reason.text) for reason in figures.reasons(limits) if reason.outcome != "pass"]
    verdict = "KEPT" if kept else "not needed" if outcome is None and figures.digest else _WORDS[outcome]
    return [
        figures.quant,
        f"{figures.size_bytes / 1e6:.2f}",
        f"{figures.bits_per_weight:.2f}",
        _interval(quality.kl_nats.get("gold") if quality else None),
        _interval(quality.kl_nats.get("greedy") if quality else None),
        _interval(quality.rouge_l_loss if quality else None),
        "" if figures.ms_per_token is None else f"{figures.ms_per_token:.3g}",
        ": ".join([verdict, *(["; ".join(said_no)] if said_no else [])]),
    ]


def _interval(found: Interval | None) -> str:
    return "" if found is None else f"{found.mean:.2g} [{found.low:.2g}, {found.high:.2g}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first and the last column to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
                row[-1],
            ]
        )
        for row in rows
    ]
