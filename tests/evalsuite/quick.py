"""Evaluations without what takes longest and is tested elsewhere: the encoder, and reports for people."""

from __future__ import annotations

import pytest

import evalsuite.report.content
import evalsuite.report.html
import evalsuite.report.pdf
import evalsuite.report.plots
import evalsuite.scorer


def figures_only(patch: pytest.MonkeyPatch) -> None:
    """Metrics, predictions, tables and verdicts are written as ever; reports are empty files."""
    patch.setattr(evalsuite.scorer, "bertscore_available", lambda: False)
    patch.setattr(evalsuite.report.content, "content", lambda *_, **__: None)
    patch.setattr(evalsuite.report.html, "write_report", lambda _, path: path.touch())
    patch.setattr(evalsuite.report.pdf, "write_pdf", lambda _, path: path.touch())
    patch.setattr(evalsuite.report.plots, "write_plots", lambda _, folder: folder.mkdir())
