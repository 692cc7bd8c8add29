"""The report's plots: which there are and what they say; as SVG for the page and as PNG files.

Drawn without a display, and byte for byte the same for the same results.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalsuite.report.pareto import pareto
from evalsuite.report.plot_axes import (
    Point,
    Theme,
    draw_front,
    draw_kl_by_position,
    draw_kl_distribution,
    draw_latency,
    draw_same_until,
    settings,
)
from evalsuite.results import Comparison, Distance, Results, Row

if TYPE_CHECKING:
    from evalsuite.report.plot_axes import Canvas

_WIDTH_IN, _HEIGHT_IN = 5.4, 3.7  # small, so that text stays readable when a phone scales it down
_PNG_DPI = 200


@dataclass(frozen=True)
class Sketch:
    """A plot before it is drawn. `alt` says in words what is to be seen."""

    name: str  # of its file, without ending
    title: str
    caption: str
    alt: str
    draw: Callable[[Canvas, Theme], None]  # onto an empty figure, or a part of one


@dataclass(frozen=True)
class Plot:
    """One figure in both themes."""

    title: str
    caption: str
    alt: str
    light: bytes  # SVG
    dark: bytes


def draw_plots(results: Results) -> list[Plot]:
    """Every plot for which `results` has figures."""
    return [
        Plot(sketch.title, sketch.caption, sketch.alt, _svg(sketch, "light"), _svg(sketch, "dark"))
        for sketch in sketches(results)
    ]


def write_plots(results: Results, folder: Path) -> None:
    """Write every plot as NAME.png (light, 200 dots per inch) into `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for sketch in sketches(results):
        image = _render(sketch, "light", format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
        (folder / f"{sketch.name}.png").write_bytes(image)


def sketches(results: Results) -> list[Sketch]:
    """The plots there are figures for, in the order of the report."""
    styles = {row.label: index for index, row in enumerate(results.rows)}
    compared = [(row, comparison) for row in results.rows if (comparison := _made_from(row)) is not None]
    near = [(row, distance) for row, comparison in compared if (distance := _gold(comparison)) is not None]
    same = [(row, comparison.first_divergence) for row, comparison in compared if comparison.first_divergence]
    found = [_by_size(results, styles), _by_latency(results, styles), _latency(results, styles)]
    if near:
        found.append(
            Sketch(
                "kl_distribution",
                "How far each artifact is from its reference",
                "Share of tokens by KL divergence, on the reference summaries. Further left is nearer; what is nearer "
                "than the left edge counts there.",
                "; ".join(f"{row.label}: median {d.kl_median:.2g}, mean {d.kl.mean:.2g} nats" for row, d in near),
                lambda figure, theme: draw_kl_distribution(figure, near, styles, theme),
            )
        )
    if any(distance.kl_by_position for _, distance in near):
        found.append(
            Sketch(
                "kl_by_position",
                "Where in the summary artifacts drift",
                "Mean KL at each token of the reference summaries; positions that few summaries reach are left out.",
                f"one line each for {', '.join(row.label for row, _ in near)}",
                lambda figure, theme: draw_kl_by_position(figure, near, styles, theme),
            )
        )
    if same:
        found.append(
            Sketch(
                "same_until",
                "How long artifacts write the same words",
                "Share of generated summaries that are still the reference's, token for token. A line's right end is "
                "the share that is the same to the last token.",
                "; ".join(f"{row.label}: {_exact(first):.1%} the same to the end" for row, first in same),
                lambda figure, theme: draw_same_until(figure, same, styles, theme),
            )
        )
    return [sketch for sketch in found if sketch is not None]


def _exact(first_divergence: Sequence[int]) -> float:
    return sum(position < 0 for position in first_divergence) / len(first_divergence)


def _made_from(row: Row) -> Comparison | None:
    """An artifact against what it was made from; not against what training changed."""
    found = (c for c in row.comparisons if c.purpose in ("merge_fidelity", "quantization"))
    return next(found, None)


def _gold(comparison: Comparison) -> Distance | None:
    return next((distance for distance in comparison.distances if distance.target_set == "gold"), None)


def _shippable(results: Results) -> list[Row]:
    """What can stand alone. Where nothing else was scored, the model before training counts too."""
    whole = [row for row in results.rows if row.kind not in ("adapter", "gguf-lora", "endpoint")]
    return [row for row in whole if row.label != "base"] or whole


def _by_size(results: Results, styles: dict[str, int]) -> Sketch | None:
    rows = [row for row in _shippable(results) if row.size_bytes]
    points = _points([(row, row.size_bytes / 1e6) for row in rows])
    return _front(points, results, styles, "size", "size of the files, MB", "smaller")


def _by_latency(results: Results, styles: dict[str, int]) -> Sketch | None:
    timed = [(row, row.speed) for row in _shippable(results) if row.speed is not None]
    points = _points([(row, 1000 / speed.documents_per_s) for row, speed in timed])
    tokens = timed[0][1].output_tokens if timed else 0
    return _front(points, results, styles, "latency", f"time for a summary of {tokens} tokens, ms", "faster")


def _points(rows: Sequence[tuple[Row, float]]) -> list[Point]:
    front = pareto([(cost, -row.task.rougeL.mean) for row, cost in rows])
    return [Point(row.label, cost, row.task.rougeL, best) for (row, cost), best in zip(rows, front, strict=True)]


def _front(
    points: Sequence[Point], results: Results, styles: dict[str, int], name: str, axis: str, better: str
) -> Sketch | None:
    if not points:
        return None
    baselines = {baseline.label: baseline.task.rougeL.mean for baseline in results.baselines}
    unseen = ", ".join(f"{label} {value:.1f}" for label, value in baselines.items())
    return Sketch(
        f"quality_{name}",
        f"Quality against {name}",
        f"ROUGE-L (0-100, more is better) with 95% intervals over documents. Filled and named is the Pareto front: "
        f"nothing else is both {better} and better on average. Where intervals overlap, who is better is not certain. "
        "The axis need not begin at 0." + (f" Without any model: {unseen}." if unseen else ""),
        "; ".join(
            f"{p.label}: {p.cost:.3g}, ROUGE-L {p.quality.mean:.1f}{', on the Pareto front' if p.front else ''}"
            for p in points
        ),
        lambda figure, theme: draw_front(figure, points, baselines, axis, styles, theme),
    )


def _latency(results: Results, styles: dict[str, int]) -> Sketch | None:
    timed = [(row.label, row.speed) for row in results.rows if row.speed is not None]
    if not timed:
        return None
    return Sketch(
        "latency",
        "Latency",
        "Median time to the first token and for each token after it, one document at a time; the thin line reaches "
        "to the 95th percentile. Less is better.",
        "; ".join(f"{label}: first {s.first_token_ms:.3g} ms, then {s.per_token_ms:.3g} ms" for label, s in timed),
        lambda figure, theme: draw_latency(figure, timed, styles, theme),
    )


def _svg(sketch: Sketch, theme: Theme) -> bytes:
    return _render(sketch, theme, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _render(sketch: Sketch, theme: Theme, **how: Any) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(settings(theme)):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN))
        sketch.draw(figure, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, **how)
    return buffer.getvalue()
