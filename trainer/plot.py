"""The loss curve of a training as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_loss(log: Sequence[dict[str, Any]], best_step: int, path: Path) -> None:
    """Training and validation loss (nats per token) against the optimizer step, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in log if key in row]
        axes.plot([step for step, _ in points], [loss for _, loss in points], style, label=label)
    axes.axvline(best_step, color="grey", linestyle=":", label=f"best: step {best_step}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
