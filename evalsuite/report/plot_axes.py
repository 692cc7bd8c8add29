"""Drawing onto matplotlib axes: the front of quality and cost, distances, latency; and the colours they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from evalsuite.report.font import text_width
from evalsuite.results import Distance, Interval, Row, Speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Canvas = Figure | SubFigure

Theme = Literal["light", "dark"]
_INK = {"light": ("#1d2430", "#d4d9e2"), "dark": ("#e6e9ef", "#3a4250")}  # text, grid
_COLOURS = {
    "light": ("#5b6472", "#1f6feb", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#0e7490", "#a16207"),
    "dark": ("#9aa4b2", "#6aa7ff", "#ff9254", "#4ade80", "#b794f6", "#f472b6", "#22d3ee", "#fbbf24"),
}
_MARKERS = "osD^vPX"  # another number than colours, so that many artifacts stay apart
_LINES = ("-", "--", "-.", ":")
_LEGEND_SIZE, _LEGEND_HANDLE = 9, 44  # points
_NAME_SIZE = 9
_LEAST_SPAN = 2.0  # ROUGE points that the axis shows at least: noise is not blown up
# Points right of and above the interval's upper end, and which side of the name stands there; the best place first.
_NAME_PLACES = [(x, y, side) for y in (6, 18, 30) for x, side in ((0, "center"), (8, "right"), (-8, "left"))]


@dataclass(frozen=True)
class Point:
    """One artifact by what it costs (less is better) and how good it is."""

    label: str
    cost: float
    quality: Interval
    front: bool


def settings(theme: Theme) -> dict[str, Any]:
    """matplotlib's rcParams for all plots."""
    ink, grid = _INK[theme]
    return {
        "svg.hashsalt": "assay",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": _LEGEND_SIZE,
        "axes.axisbelow": True,
    }


def draw_front(
    figure: Canvas,
    points: Sequence[Point],
    baselines: dict[str, float],
    cost_axis: str,
    styles: dict[str, int],
    theme: Theme,
) -> None:
    """Quality over cost with intervals; what is on the front is filled, named and joined."""
    ink, _ = _INK[theme]
    axes = figure.subplots()
    front = sorted((point for point in points if point.front), key=lambda point: point.cost)
    for point in points:
        colour, quality = _colour(styles, point.label, theme), point.quality
        axes.errorbar(
            point.cost,
            quality.mean,
            yerr=[[quality.mean - quality.low], [quality.high - quality.mean]],
            capsize=3,
            marker=_MARKERS[styles[point.label] % len(_MARKERS)],
            markersize=8,
            markerfacecolor=colour if point.front else "none",
            markeredgewidth=1.6,
            linestyle="none",
            color=colour,
            label=_plain(point.label),
        )
    if len(front) > 1:
        costs, means = [point.cost for point in front], [point.quality.mean for point in front]
        axes.step(costs, means, where="post", color=ink, linewidth=1, linestyle=":", zorder=1, label="Pareto front")
    low, high = _quality_limits(points)
    for index, (label, value) in enumerate(baselines.items()):
        if low < value < high:
            axes.axhline(value, color=ink, linewidth=1, linestyle=_LINES[1 + index % 3], label=_plain(label))
    axes.set_ylim(low, high)
    axes.set_xlim(0, 1.18 * max(point.cost for point in points))
    axes.set_xlabel(cost_axis)
    axes.set_ylabel("ROUGE-L")
    _finish(figure, axes)
    _name(axes, front, points)


def _quality_limits(points: Sequence[Point]) -> tuple[float, float]:
    low, high = min(point.quality.low for point in points), max(point.quality.high for point in points)
    pad = max(0.1 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    return max(0.0, low - pad), high + 2.5 * pad  # room for names


def _name(axes: Axes, named: Sequence[Point], points: Sequence[Point]) -> None:
    """Write names above intervals, each where it first covers no other interval and no other name."""
    from matplotlib.transforms import Bbox

    dots = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    ends = [axes.transData.transform([(p.cost, p.quality.low), (p.cost, p.quality.high)]) / dots for p in points]
    taken = [Bbox(both).padded(1) for both in ends]
    tops = {point.label: tuple(both[1]) for point, both in zip(points, ends, strict=True)}
    for point in named:
        width = text_width(_plain(point.label), "regular", _NAME_SIZE)
        for x, y, side in _NAME_PLACES:
            left = tops[point.label][0] + x - width * {"left": 0, "center": 0.5, "right": 1}[side]
            box = Bbox.from_bounds(left, tops[point.label][1] + y, width, _NAME_SIZE)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            _plain(point.label),
            (point.cost, point.quality.high),
            xytext=(x, y),
            textcoords="offset points",
            ha=side,
            fontsize=_NAME_SIZE,
        )


def draw_kl_distribution(
    figure: Canvas, compared: Sequence[tuple[Row, Distance]], styles: dict[str, int], theme: Theme
) -> None:
    """The histograms of KL per token, as shares of the tokens."""
    axes = figure.subplots()
    filled = []
    for row, distance in compared:
        histogram = distance.kl_histogram
        bins = zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True)
        filled += [edge for left, right, count in bins if count for edge in (left, right)]
        total = max(1, sum(histogram.counts))
        axes.stairs(
            [100 * count / total for count in histogram.counts],
            histogram.edges,
            linewidth=1.8,
            **_line(styles, row.label, theme),
        )
    if filled:
        axes.set_xlim(min(filled) - 0.5, max(filled) + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("KL per token, nats")
    axes.set_ylabel("tokens, %")
    axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=7)  # type: ignore[call-arg]
    _finish(figure, axes)


def draw_kl_by_position(
    figure: Canvas, compared: Sequence[tuple[Row, Distance]], styles: dict[str, int], theme: Theme
) -> None:
    """Mean KL over the position in the summary, where at least a tenth of the documents reach."""
    axes = figure.subplots()
    for row, distance in compared:
        enough = max(1, distance.documents // 10)
        reached = zip(distance.kl_by_position, distance.count_by_position, strict=True)
        points = [(position, kl) for position, (kl, n) in enumerate(reached) if n >= enough and kl > 0]
        axes.plot(
            [position for position, _ in points],
            [kl for _, kl in points],
            linewidth=1.6,
            **_line(styles, row.label, theme),
        )
    axes.set_yscale("log")
    axes.set_xlabel("token of the summary")
    axes.set_ylabel("mean KL, nats")
    _finish(figure, axes)


def draw_same_until(
    figure: Canvas, compared: Sequence[tuple[Row, Sequence[int]]], styles: dict[str, int], theme: Theme
) -> None:
    """The share of documents whose first differing token comes later; `compared` holds first divergences, -1: none."""
    axes = figure.subplots()
    end = max(max(first) for _, first in compared) + 2
    for row, first in compared:
        shares = [100 * sum(at < 0 or at > token for at in first) / len(first) for token in range(end)]
        axes.step(range(end), shares, where="post", linewidth=1.6, **_line(styles, row.label, theme))
    axes.set_xlim(0, max(1, end - 1))
    axes.set_ylim(0, 104)
    axes.set_xlabel("token of the summary")
    axes.set_ylabel("summaries, %")
    _finish(figure, axes)


def draw_latency(figure: Canvas, timed: Sequence[tuple[str, Speed]], styles: dict[str, int], theme: Theme) -> None:
    """Bars of the median latencies, a thin line to the 95th percentile."""
    panels = figure.subplots(1, 2, sharey=True)
    names = [_plain(label) for label, _ in timed]
    colours = [_colour(styles, label, theme) for label, _ in timed]
    first = [(speed.first_token_ms, speed.first_token_ms_p95) for _, speed in timed]
    further = [(speed.per_token_ms, speed.per_token_ms_p95) for _, speed in timed]
    for axes, title, values in (
        (panels[0], "first token, ms", first),
        (panels[1], "each further token, ms", further),
    ):
        axes.barh(names, [median for median, _ in values], color=colours, height=0.62)
        widest = max(max(pair) for pair in values)
        for index, (median, p95) in enumerate(values):
            axes.plot([median, max(median, p95)], [index, index], color=_INK[theme][0], linewidth=1)
            axes.text(max(median, p95) + 0.03 * widest, index, f"{median:.3g}", va="center", fontsize=9)
        axes.set_xlim(0, widest * 1.28)
        axes.xaxis.get_major_locator().set_params(nbins=4)
        axes.set_xlabel(title)
        axes.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    left = 14 + max(text_width(name, "regular", 10) for name in names)
    half = (_size(figure)[0] - left - 10) / 2
    _place(figure, panels[0], left, half - 10, 38)
    _place(figure, panels[1], left + half + 10, half - 10, 38)


def _line(styles: dict[str, int], label: str, theme: Theme) -> dict[str, Any]:
    dash = _LINES[styles[label] // len(_COLOURS[theme]) % len(_LINES)]
    return {"color": _colour(styles, label, theme), "linestyle": dash, "label": _plain(label)}


def _colour(styles: dict[str, int], label: str, theme: Theme) -> str:
    return _COLOURS[theme][styles[label] % len(_COLOURS[theme])]


def _plain(label: str) -> str:
    """Without a leading underscore, by which matplotlib would leave it out of the legend."""
    return label.lstrip("_")


def _finish(figure: Canvas, axes: Axes) -> None:
    """A legend below, in as many columns as fit, and the axes above it: nothing is hidden, nothing left to a solver."""
    handles, labels = axes.get_legend_handles_labels()
    width, _ = _size(figure)
    columns = int(width / (_LEGEND_HANDLE + max(text_width(label, "regular", _LEGEND_SIZE) for label in labels)))
    rows = math.ceil(len(labels) / max(1, columns))
    figure.legend(handles, labels, loc="lower center", ncol=math.ceil(len(labels) / rows), borderaxespad=0.2)
    _place(figure, axes, 56, width - 56 - 10, 44 + 1.6 * _LEGEND_SIZE * rows)


def _place(figure: Canvas, axes: Axes, left: float, width: float, bottom: float) -> None:
    """Put axes at `left` and `bottom`, up to the top; in points."""
    whole, height = _size(figure)
    axes.set_position((left / whole, bottom / height, width / whole, (height - bottom - 8) / height))


def _size(figure: Canvas) -> tuple[float, float]:
    """Width and height in points."""
    dots = figure.get_figure(root=True).dpi / 72
    return figure.bbox.width / dots, figure.bbox.height / dots
