"""The report's plots as SVG, drawn without a display and byte for byte the same for the same results."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from evalsuite.results import Distance, Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Theme = Literal["light", "dark"]
_INK = {"light": ("#1d2430", "#d4d9e2"), "dark": ("#e6e9ef", "#3a4250")}  # text, grid
_COLOURS = {
    "light": ("#5b6472", "#1f6feb", "#c2410c", "#15803d", "#7c3aed", "#be185d", "#0e7490", "#a16207"),
    "dark": ("#9aa4b2", "#6aa7ff", "#ff9254", "#4ade80", "#b794f6", "#f472b6", "#22d3ee", "#fbbf24"),
}
_MARKERS = "osD^vPX*"
_WIDTH_IN, _HEIGHT_IN = 5.4, 3.7  # small, so that text stays readable when a phone scales it down


@dataclass(frozen=True)
class Plot:
    """One figure in both themes. `alt` says in words what is to be seen."""

    title: str
    caption: str
    alt: str
    light: bytes  # SVG
    dark: bytes


def draw_plots(results: Results) -> list[Plot]:
    """Every plot for which `results` has figures."""
    styles = {row.label: index for index, row in enumerate(results.rows)}
    whole = [row for row in results.rows if row.kind != "adapter"]
    compared = [(row, distance) for row in results.rows if (distance := _distance(row)) is not None]
    timed = [row for row in results.rows if row.speed is not None]
    plots = []
    if whole:
        texts = "; ".join(f"{r.label}: {r.size_bytes / 1e6:.3g} MB, ROUGE-L {r.task.rougeL.mean:.1f}" for r in whole)
        plots.append(
            _plot(
                "Quality against size",
                "ROUGE-L (0-100, more is better) with 95% intervals over documents, against the size of the files. "
                "An adapter needs its base beside it and is left out.",
                texts,
                lambda axes, theme: _quality(axes, whole, results, styles, theme),
            )
        )
    if compared:
        texts = "; ".join(f"{row.label}: median {d.kl_median:.2g}, mean {d.kl.mean:.2g} nats" for row, d in compared)
        plots.append(
            _plot(
                "How far each artifact is from its reference",
                "Share of tokens by KL divergence, on the reference summaries. Further left is nearer; what is nearer "
                "than the left edge counts there.",
                texts,
                lambda axes, theme: _kl_distribution(axes, compared, styles, theme),
            )
        )
    if timed:
        texts = "; ".join(
            f"{row.label}: first {row.speed.first_token_ms:.3g} ms, then {row.speed.per_token_ms:.3g} ms"
            for row in timed
            if row.speed
        )
        plots.append(
            _plot(
                "Latency",
                "Median time to the first token and for each token after it, one document at a time. Less is better.",
                texts,
                lambda figure, theme: _latency(figure, timed, styles, theme),
                panels=2,
            )
        )
    if any(distance.kl_by_position for _, distance in compared):
        plots.append(
            _plot(
                "Where in the summary artifacts drift",
                "Mean KL at each token of the reference summaries; positions that few summaries reach are left out.",
                f"one line each for {', '.join(row.label for row, _ in compared)}",
                lambda axes, theme: _kl_by_position(axes, compared, styles, theme),
            )
        )
    return plots


def _distance(row: Row) -> Distance | None:
    """An artifact's distance from what it was made from, on the gold targets; not for what training changed."""
    for comparison in row.comparisons:
        if comparison.purpose in ("merge_fidelity", "quantization"):
            for distance in comparison.distances:
                if distance.target_set == "gold":
                    return distance
    return None


def _plot(title: str, caption: str, alt: str, draw: Callable[[Any, Theme], None], panels: int = 1) -> Plot:
    return Plot(title, caption, alt, _svg(draw, "light", panels), _svg(draw, "dark", panels))


def _svg(draw: Callable[[Any, Theme], None], theme: Theme, panels: int) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, grid = _INK[theme]
    settings = {
        "svg.hashsalt": "assay",
        "svg.fonttype": "path",
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
        "legend.fontsize": 9,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, panels, sharey=True)
        draw(axes, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _colour(styles: dict[str, int], label: str, theme: Theme) -> str:
    return _COLOURS[theme][styles[label] % len(_COLOURS[theme])]


def _legend(axes: Axes) -> None:
    """Below the plot, so that it hides no point and no label runs into another."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncol=min(4, len(labels)))


def _quality(axes: Axes, rows: Sequence[Row], results: Results, styles: dict[str, int], theme: Theme) -> None:
    ink, _ = _INK[theme]
    for row in rows:
        task = row.task.rougeL
        axes.errorbar(
            row.size_bytes / 1e6,
            task.mean,
            yerr=[[task.mean - task.low], [task.high - task.mean]],
            capsize=3,
            marker=_MARKERS[styles[row.label] % len(_MARKERS)],
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=1.8,
            linestyle="none",
            color=_colour(styles, row.label, theme),
            label=row.label,
        )
    for index, baseline in enumerate(results.baselines):
        axes.axhline(
            baseline.task.rougeL.mean,
            color=ink,
            linewidth=1,
            linestyle=("--", ":", "-.")[index % 3],
            label=baseline.label,
        )
    sizes = [row.size_bytes / 1e6 for row in rows]
    axes.set_xlim(0, max(sizes) * 1.1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("size of the files, MB")
    axes.set_ylabel("ROUGE-L")
    _legend(axes)


def _kl_distribution(
    axes: Axes, compared: Sequence[tuple[Row, Distance]], styles: dict[str, int], theme: Theme
) -> None:
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
            color=_colour(styles, row.label, theme),
            label=row.label,
        )
    if filled:
        axes.set_xlim(min(filled) - 0.5, max(filled) + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("KL per token, nats")
    axes.set_ylabel("tokens, %")
    axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=7)  # type: ignore[call-arg]
    _legend(axes)


def _latency(panels: Sequence[Axes], rows: Sequence[Row], styles: dict[str, int], theme: Theme) -> None:
    names = [row.label for row in rows]
    colours = [_colour(styles, name, theme) for name in names]
    speeds = [row.speed for row in rows if row.speed is not None]
    for axes, title, values in (
        (panels[0], "first token, ms", [speed.first_token_ms for speed in speeds]),
        (panels[1], "each further token, ms", [speed.per_token_ms for speed in speeds]),
    ):
        bars = axes.barh(names, values, color=colours, height=0.62)
        axes.bar_label(bars, labels=[f"{value:.3g}" for value in values], padding=3, fontsize=9)
        axes.set_xlim(0, max(values) * 1.28)
        axes.xaxis.get_major_locator().set_params(nbins=4)  # type: ignore[call-arg]
        axes.set_xlabel(title)
        axes.grid(axis="y", visible=False)
    panels[0].invert_yaxis()


def _kl_by_position(axes: Axes, compared: Sequence[tuple[Row, Distance]], styles: dict[str, int], theme: Theme) -> None:
    for row, distance in compared:
        enough = max(1, distance.documents // 10)
        points = [
            (position, kl)
            for position, (kl, count) in enumerate(
                zip(distance.kl_by_position, distance.count_by_position, strict=True)
            )
            if count >= enough and kl > 0
        ]
        axes.plot(
            [position for position, _ in points],
            [kl for _, kl in points],
            linewidth=1.6,
            color=_colour(styles, row.label, theme),
            label=row.label,
        )
    axes.set_yscale("log")
    axes.set_xlabel("token of the summary")
    axes.set_ylabel("mean KL, nats")
    _legend(axes)
