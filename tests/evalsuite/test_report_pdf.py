"""report.pdf: all that it must say, within its pages, the same every time, and quiet whatever users wrote."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.report.content import content
from evalsuite.report.font import printable
from evalsuite.report.pdf import pages, write_pdf
from evalsuite.report.pdf_sheets import Run, Sheets
from evalsuite.results import NearDuplicate, Results, read_predictions, write_predictions
from tests.evalsuite.made_results import LABELS, make_predictions, make_results, make_verdicts

BEYOND_THE_FONT = "摘要 สรุป सारांश 🎉"


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_predictions(tmp_path_factory.mktemp("report") / "predictions")


@pytest.fixture(scope="module")
def sheets(predictions: Path) -> Sheets:
    return pages(content(make_results(), make_verdicts(q8_0="inconclusive"), predictions))


def texts(figure: Any) -> Iterator[Any]:
    from matplotlib.text import Text

    return (text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible())


def said(sheets: Sheets) -> str:
    return "\n".join(text.get_text() for figure in sheets.figures for text in texts(figure))


def test_it_says_what_was_found(sheets: Sheets) -> None:
    text = said(sheets).replace("\u00a0", " ")
    for wanted in (
        *LABELS,
        "Proven.",
        "✓ pass",
        "? inconclusive",
        "Did training help? ",
        "lead-3",
        "ROUGE-Lsum ↑",
        "KL, 99.9% of tokens below ↓",
        "BERTScore, F1 ↑",
        "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
        "Quality against size",
        "Where in the summary artifacts drift",
        "never stopped",
        "Summaries side by side",
        "What the words mean",
        "A CPU of 2 GHz, 2 cores (2 threads used), 17.2 GB memory; Linux 6.1, Python 3.11.9",
    ):
        assert wanted in text, wanted
    assert re.search(r"quant\.q4_k_m\.max_kl_nats", text)


def test_near_duplicates_are_told(predictions: Path) -> None:
    results = make_results()
    near = (NearDuplicate("d8", "d3", 0.93),)
    results = replace(results, data=replace(results.data, rows=900, near_duplicates=1, nearest=near))
    text = " ".join(said(pages(content(results, make_verdicts(), predictions))).replace("\u00a0", " ").split())
    assert "1 of 300 documents are nearly another one: d8 (as d3, 0.93)" in text
    assert "300 documents in 900 rows of 122 words" in text


def test_nothing_leaves_the_page_or_covers_something_else(sheets: Sheets) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for figure in sheets.figures:
        renderer = FigureCanvasAgg(figure).get_renderer()
        written = [text for text in figure.texts if text.get_text().strip()]
        with matplotlib.rc_context({"text.hinting": "no_hinting"}):  # as in a PDF: letters are not moved to pixels
            boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in written]
        for text, box in boxes:
            assert min(box.x0, box.y0, figure.bbox.width - box.x1, figure.bbox.height - box.y1) > 0, text
        for (first, one), (second, other) in combinations(boxes, 2):
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            down = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(across, down) < 2 * figure.dpi / 72, (first, second)


def test_a_wide_table_goes_on_in_further_pieces(predictions: Path) -> None:
    good = make_results()
    rows = tuple(replace(good.rows[3], label=f"wide{index}") for index in range(17))
    text = said(pages(content(replace(good, rows=rows), [], predictions)))
    assert all(f"wide{index}" in text for index in range(17))


def test_words_that_differ_are_marked(predictions: Path) -> None:
    from matplotlib.patches import Rectangle

    def highlighted(folder: Path) -> int:
        found = pages(content(make_results(), make_verdicts(), folder))
        boxes = [patch for figure in found.figures for patch in figure.findobj(Rectangle)]
        return sum(patch.get_facecolor()[:3] == pytest.approx((1.0, 0.898, 0.604), abs=0.01) for patch in boxes)

    assert highlighted(predictions) > highlighted(predictions / "nothing here") == 0


def test_the_same_input_gives_the_same_bytes(predictions: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first.pdf", tmp_path / "again.pdf"
    for path in (first, again):
        write_pdf(content(make_results(), make_verdicts(), predictions), path)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes().startswith(b"%PDF-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pdf", "first.pdf"]


def test_what_the_font_lacks_is_replaced_quietly_and_said(
    predictions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    rows = read_predictions(predictions / "adapter.jsonl")
    hard = [*HARD_TEXTS, BEYOND_THE_FONT, "$\\frac{1}{0$ x^y_z", "\x00\x07", "long" * 300, ""]
    for label, suffix in (("adapter", ""), ("q4_k_m", " else")):
        written = [
            replace(row, id=text[:9], document=text, prediction=text + suffix, references=(text,))
            for row, text in zip(rows * 2, hard, strict=False)
        ]
        write_predictions(folder / f"{label}.jsonl", written)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_pdf(content(make_results(), make_verdicts(), folder), tmp_path / "report.pdf")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "shown", "replaced"),
    [
        ("Mara’s “room” – 527 €, Ödön, Привет, ½", "Mara’s “room” – 527 €, Ödön, Привет, ½", False),
        ("摘要 of it", "□□ of it", True),
        ("a\tb\r\nc\rd", "a   b\nc\nd", False),
        ("a\x00b\x1b", "ab", False),
        ("\ud800", "□", True),
    ],
)
def test_characters_are_shown_replaced_or_dropped(text: str, shown: str, replaced: bool) -> None:
    assert printable(text, "regular") == (shown, replaced)


def test_a_page_says_in_its_footer_that_characters_were_replaced(tmp_path: Path) -> None:
    sheets = Sheets("made by hand")
    sheets.page()
    sheets.text([Run("all of it known")])
    sheets.page()
    sheets.text([Run(BEYOND_THE_FONT)])
    sheets.save(tmp_path / "two.pdf", "two")
    first, second = (" ".join(text.get_text() for text in texts(figure)) for figure in sheets.figures)
    assert "stands for a character" in second
    assert "stands for a character" not in first
    assert "page 2 of 2" in second


def test_text_breaks_where_it_must(predictions: Path) -> None:
    sheets = Sheets("")
    sheets.page()
    block = sheets.wrap([Run("one two "), Run("three\nfour", "bold"), Run(" " + "x" * 60)], 10, 60)
    lines = ["".join(run.text for run in line) for line in block.lines]
    assert lines[:3] == ["one two ", "three", "four "]
    assert "".join(lines[3:]) == "x" * 60
    assert len(lines) > 6
    assert sheets.wrap([], 10, 60).lines == ((),)


def test_it_can_be_written_of_very_little(tmp_path: Path) -> None:
    good = make_results()
    alone = replace(good.rows[3], comparisons=(), speed=None, bits_per_weight=None)
    nothing: Results = replace(good, rows=(), baselines=(), require=())
    for results in (replace(good, rows=(alone,), baselines=(), require=()), nothing):
        write_pdf(content(results, [], tmp_path / "none"), tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").stat().st_size > 5000
