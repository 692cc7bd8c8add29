"""The report on paper: report.pdf, A4, with what report.html says; drawn by matplotlib, without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalsuite.report.content import Content
from evalsuite.report.examples import Shown
from evalsuite.report.glossary import GLOSSARY
from evalsuite.report.pdf_sheets import FAINT, INK, MARGIN, Block, Run, Sheets
from evalsuite.report.pdf_table import put_table
from evalsuite.report.plot_axes import settings
from evalsuite.report.plots import Sketch, sketches
from evalsuite.report.table import Table
from evalsuite.report.word_diff import Span
from evalsuite.report.words import bucket_name, data_warnings, documents_of, how_written, size

_TONES = {"pass": "#116932", "fail": "#a8201a", "inconclusive": "#865400", "none": FAINT}
_OUTCOMES = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive"}
_PLOT_HEIGHT = 300.0  # points: two plots with their words on a page
_SMALL = 7.6
_LONGEST_DOCUMENT = 160  # words


def write_pdf(told: Content, out_path: Path) -> None:
    """Write report.pdf: verdicts, tables, plots, failures, summaries side by side, environment and lineage.

    Args:
        told: from `content`.
        out_path: the file; replaced whole. The same input gives the same bytes.
    """
    import matplotlib

    with matplotlib.rc_context(settings("light")):
        pages(told).save(out_path, "Assay report")


def pages(told: Content) -> Sheets:
    """The pages, drawn."""
    sheets = Sheets(f"Assay report · {told.name}")
    _verdicts(sheets, told)
    _tables(sheets, told)
    _plots(sheets, sketches(told.results))
    _failures(sheets, told)
    _examples(sheets, told)
    _lineage(sheets, told)
    _glossary(sheets)
    return sheets


def _verdicts(sheets: Sheets, told: Content) -> None:
    sheets.page()
    headline = told.headline
    sheets.text([Run(f"Assay report · {told.name}", colour=FAINT)], after=2)
    sheets.text([Run(headline.word, "bold", _TONES[headline.outcome]), Run(f" {headline.sentence}", "bold")], size=18)
    required = [Run(f"   {label} {_OUTCOMES[o]}", "bold", _TONES[o]) for label, o in told.required.items()]
    sheets.text([Run("Required:", colour=FAINT), *(required or [Run(" nothing", colour=FAINT)])], after=0)
    sheets.text([Run(f"{told.results.data.documents:,} test documents", colour=FAINT)], after=6)
    for warning in data_warnings(told.results.data):
        sheets.text([Run(warning)], after=6)
    if told.warnings:
        sheets.heading("The summaries themselves are poor", 11)
        for warning in told.warnings:
            sheets.text([Run(warning)], indent=10, bullet=True)
    sheets.heading("In plain words")
    for answer in told.answers:
        sheets.need(45)
        sheets.text([Run(f"{answer.question} "), Run(answer.short, "bold", _TONES[answer.tone])], size=10, after=2)
        for line in answer.lines:
            sheets.text([Run(line)], size=8.2, indent=10, bullet=True, after=2)
        sheets.y += 4
    sheets.heading("Verdicts")
    for verdict, deciding in told.verdicts:
        sheets.need(60)
        outcome = Run(_OUTCOMES[verdict.outcome], "bold", _TONES[verdict.outcome])
        nearest = f"   all {len(verdict.reasons)} checks passed; nearest to their limits:"
        why = "   decided by:" if verdict.outcome != "pass" else nearest
        sheets.text([Run(f"{verdict.label} ", "bold"), outcome, Run(why, colour=FAINT)], size=10, after=2)
        for reason in deciding:
            sheets.text([Run(reason.text)], size=8.2, indent=10, bullet=True, after=2)
        sheets.text([Run(f"digest {verdict.digest[:12]}", colour=FAINT)], size=7, indent=10, after=6)


def _tables(sheets: Sheets, told: Content) -> None:
    small = "In small: the 95% bootstrap interval over documents. ↑ more is better, ↓ less is better."
    for title, words, table in (
        ("Comparison", small, told.comparison),
        ("More about the text", small, told.scores),
        ("More about the distance", "Both models read the same text and are compared at every token.", told.distances),
    ):
        if table is not None and table.lines:
            _table_page(sheets, title, words, table)
        if table is told.scores and table is not None:
            for metric, signature in told.results.signatures.items():
                sheets.text([Run(f"{metric}  ", "bold"), Run(signature, colour=FAINT)], size=7, after=1)


def _table_page(sheets: Sheets, title: str, words: str, table: Table) -> None:
    sheets.page(landscape=True)
    sheets.heading(title)
    sheets.text([Run(words, colour=FAINT)], size=8, after=6)
    put_table(sheets, table)
    sheets.y += 8


def _plots(sheets: Sheets, drawn: Sequence[Sketch]) -> None:
    for index, sketch in enumerate(drawn):
        if index % 2 == 0:
            figure = sheets.page()
        sheets.heading(sketch.title, 12)
        grid = figure.add_gridspec(
            3,
            3,
            width_ratios=(MARGIN, sheets.inner_width, MARGIN),
            height_ratios=(sheets.y, _PLOT_HEIGHT, sheets.height - sheets.y - _PLOT_HEIGHT),
            wspace=0,
            hspace=0,
        )
        sketch.draw(figure.add_subfigure(grid[1, 1]), "light")
        sheets.y += _PLOT_HEIGHT + 6
        sheets.text([Run(sketch.caption, colour=FAINT)], size=8)


def _failures(sheets: Sheets, told: Content) -> None:
    if told.buckets is None:
        return
    documents = f"{told.results.data.documents:,} summaries each"
    _table_page(sheets, "What went wrong", f"Summaries in each failure bucket, of {documents}.", told.buckets)
    for faulty in told.faulty:
        sheets.need(50)
        more = f"; {faulty.others:,} more like it" if faulty.others else ""
        where = Run(f"  {faulty.label}, {faulty.id}: {faulty.words}{more}", colour=FAINT)
        sheets.text([Run(bucket_name(faulty.bucket), "bold"), where], size=8.2, after=1)
        sheets.text(_marked(faulty.spans), size=8.2, indent=10, after=5)


def _examples(sheets: Sheets, told: Content) -> None:
    if not told.shown:
        return
    sheets.page()
    sheets.heading("Summaries side by side")
    other = f"Highlighted words are not in {told.reference or 'the reference artifact'}'s summary"
    sheets.text([Run(f"Documents chosen by rule. {other}, struck ones are only there.", colour=FAINT)], size=8)
    for shown in told.shown:
        _example(sheets, shown)


def _example(sheets: Sheets, shown: Shown) -> None:
    sheets.need(120)
    sheets.y += 4
    sheets.text([Run(shown.id, "bold"), Run(f"   {shown.why}", colour=FAINT)], size=9.5)
    left_width = 0.46 * sheets.inner_width
    right_width = sheets.inner_width - left_width - 14
    words = shown.document.split()
    cut = len(words) - _LONGEST_DOCUMENT
    document = shown.document if cut <= 0 else f"{' '.join(words[:_LONGEST_DOCUMENT])} … ({cut:,} more words)"

    def block(runs: Sequence[Run], width: float) -> Block:
        return sheets.wrap(runs, _SMALL, width)

    left = block([Run("Document", "bold", FAINT)], left_width) + block([Run(document)], left_width)
    for text in shown.references:
        left += block([Run("\nReference\n", "bold", FAINT), Run(text)], left_width)
    right = Block((), _SMALL)
    for summary in shown.told:
        tokens = "?" if summary.tokens is None else summary.tokens
        end = ", cut: it did not end by itself" if summary.stop == "length" else ""
        about = Run(f"   ROUGE-L {summary.rouge_l:.1f}, {tokens} tokens{end}\n", colour=FAINT)
        right += block([Run(", ".join(summary.labels), "bold"), about, *_marked(summary.spans), Run("\n")], right_width)
    sheets.columns([(MARGIN, left), (MARGIN + left_width + 14, right)])
    sheets.y += 8


def _marked(spans: Sequence[Span]) -> list[Run]:
    """Spans as runs, the white space in front of a marked one left unmarked."""
    runs = []
    for span in spans:
        colour = FAINT if span.kind == "missing" else INK
        runs += [Run(span.lead), Run(span.body, "regular", colour, "" if span.kind == "same" else span.kind)]
    return runs or [Run("(empty)", colour=FAINT)]


def _lineage(sheets: Sheets, told: Content) -> None:
    sheets.page()
    sheets.heading("Where it comes from")
    for origin in told.origins:
        row = origin.row
        sheets.need(40)
        facts = [row.kind, f"run by {row.engine}", size(row.size_bytes) if row.size_bytes else "", row.name]
        sheets.text([Run(f"{row.label}   ", "bold"), Run(", ".join(filter(None, facts)))], after=1)
        made = "; ".join(f"{parent.role} {parent.digest[:12]}" for parent in origin.parents)
        tools = ", ".join(f"{tool} {version}" for tool, version in sorted(origin.tools.items()))
        for text in (f"digest {row.digest}", row.path, made and f"made from {made}", tools and f"made with {tools}"):
            if text:
                sheets.text([Run(text, colour=FAINT)], size=7.4, indent=10, after=0)
        sheets.y += 5
    data, machine = told.results.data, told.results.environment
    sheets.heading("Data")
    left_out = f"{len(data.too_long):,} more are too long to be served and were not judged" if data.too_long else ""
    sheets.text(
        [
            Run(
                f"{documents_of(data)} of {data.document_words:.0f} words and references of "
                f"{data.reference_words:.0f} on average; {left_out or 'none was too long to be served'}. At "
                f"most {told.results.max_new_tokens} new tokens, {how_written(told.results)}. sha256 {data.sha256}"
            )
        ],
        size=8.2,
    )
    sheets.heading("Machine and programs")
    cores = f"{machine.cores} cores ({machine.threads} threads used)"
    memory = "memory unknown" if machine.memory_bytes is None else f"{size(machine.memory_bytes)} memory"
    about = f"{machine.cpu}, {cores}, {memory}; {machine.system}, Python {machine.python}"
    sheets.text([Run(about)], size=8.2)
    sheets.text([Run(" ".join(machine.cpu_features), colour=FAINT)], size=7.4)
    versions = ", ".join(f"{package} {version}" for package, version in sorted(machine.versions.items()))
    sheets.text([Run(versions, colour=FAINT)], size=7.4)
    sheets.heading("Limits")
    limits = [(Run(f"{name} ", "mono", FAINT), Run(f"{value};  ", "bold")) for name, value in told.limits]
    sheets.text([run for pair in limits for run in pair], size=7.4)


def _glossary(sheets: Sheets) -> None:
    sheets.heading("What the words mean")
    for term, text in GLOSSARY:
        sheets.need(24)
        sheets.text([Run(f"{term}  ", "bold"), Run(text)], size=8.6, after=5)
