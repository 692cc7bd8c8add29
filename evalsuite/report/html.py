"""The report: one HTML file that says what was found, and needs nothing beside it."""

from __future__ import annotations

import base64
from pathlib import Path

from contract.files import write_whole
from evalsuite.report.content import Content
from evalsuite.report.glossary import GLOSSARY
from evalsuite.report.plots import draw_plots
from evalsuite.report.words import bucket_name, data_warnings, documents_of, how_written, size


def write_report(told: Content, out_path: Path) -> None:
    """Write report.html: verdicts, answers, tables, plots, failures, summaries side by side, environment and lineage.

    Args:
        told: from `content`.
        out_path: the file; replaced whole.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, data_uri=_data_uri, bucket_name=bucket_name)
    html = environment.get_template("report.html.jinja").render(
        **vars(told),
        plots=draw_plots(told.results),
        glossary=GLOSSARY,
        how_written=how_written(told.results),
        documents=documents_of(told.results.data),
        data_warnings=data_warnings(told.results.data),
    )
    write_whole(out_path, html, errors="replace")  # a lone surrogate in user text has no UTF-8 form


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
