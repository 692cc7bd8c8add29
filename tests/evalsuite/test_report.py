"""The report: one file, nothing from outside, everything a user wrote escaped, and words that follow the figures."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from contract.verdict import Reason
from evalsuite.report.content import content
from evalsuite.report.examples import examples_shown, read_all
from evalsuite.report.html import write_report
from evalsuite.report.terminal import text_table
from evalsuite.report.word_diff import word_diff
from evalsuite.report.words import answers, figure, size, task_warnings
from evalsuite.results import Comparison, NearDuplicate, Results, read_predictions, write_predictions
from tests.evalsuite.made_results import LABELS, N, around, make_predictions, make_results, make_verdicts

VOID = {"meta", "br", "img", "source"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects text, tags and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    @property
    def outside(self) -> list[str]:
        """Addresses of anything but the images inside the page."""
        return [address for address in self.addresses if not address.startswith("data:image/svg+xml;base64,")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_predictions(tmp_path_factory.mktemp("report") / "predictions")


@pytest.fixture(scope="module")
def html(predictions: Path) -> str:
    out = predictions.parent / "report.html"
    write_report(content(make_results(), make_verdicts(q8_0="inconclusive"), predictions), out)
    return out.read_text(encoding="utf-8")


def test_it_is_one_file_with_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert page.addresses
    assert set(page.outside) <= {"#glossary"}
    assert 'id="glossary"' in html
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import|https?://", html)


def test_it_names_every_artifact_and_verdict(html: str) -> None:
    text = Page(html).text
    for label in LABELS:
        assert label in text
    assert text.count("✓ pass") > 3
    assert "? inconclusive" in text
    assert "Proven." in text  # q8_0 is not required
    assert "lead-3" in text
    assert "Did training help?" in text
    assert "ROUGE-L went from 11.2 to 55.3: +44.1 points (95% interval +42.4 to +45.8, 300 documents)" in text


def test_what_users_wrote_is_escaped(predictions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}\ud800".replace("\ud800", "\ufffd")
    rows = [
        replace(row, id=f"{evil}{row.id}", document=evil, prediction=evil + row.prediction, references=(evil,))
        for row in read_predictions(predictions / "adapter.jsonl")
    ]
    write_predictions(folder / "adapter.jsonl", rows)
    write_predictions(folder / "q4_k_m.jsonl", [replace(row, prediction=evil + " else") for row in rows])
    results = make_results()
    hostile = replace(results, rows=tuple(replace(row, name=evil, path=evil) for row in results.rows))
    write_report(content(hostile, make_verdicts(), folder), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert set(page.outside) <= {"#glossary"}
    assert evil in page.text


def test_a_required_artifact_that_fails_or_is_missing_is_not_proven(predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    results = replace(make_results(), rows=())  # no plots to draw
    for verdicts, says in (
        (make_verdicts(q4_k_m="fail"), "has failed"),
        (make_verdicts(merged="inconclusive"), "not be told"),
        ([v for v in make_verdicts() if v.label != "q4_k_m"], "not be told"),
        ([], "not be told"),
    ):
        write_report(content(results, verdicts, predictions), out)
        text = Page(out.read_text(encoding="utf-8")).text
        assert "Not proven." in text
        assert says in text


def test_poor_summaries_are_called_poor(predictions: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(content(make_results(poor=True), make_verdicts(), predictions), out)
    text = Page(out.read_text(encoding="utf-8")).text
    assert "The summaries themselves are poor" in text
    assert "ROUGE-L of adapter is 13.0, which is not above lead-3 (15.1)" in text
    assert "Only 9% of the references' names and numbers are right" in text
    assert not task_warnings(make_results())


def test_joined_rows_and_near_duplicates_are_told(predictions: Path, tmp_path: Path) -> None:
    def told(results: Results) -> str:
        out = tmp_path / "report.html"
        write_report(content(results, make_verdicts(), predictions), out)
        return Page(out.read_text(encoding="utf-8")).text

    results = make_results()
    plain = told(results)
    assert f"{N} documents of 122 words" in plain
    assert "nearly another one" not in plain + text_table(results)
    near = tuple(NearDuplicate(f"d{at}", "d0", 0.9) for at in range(1, 8))
    results = replace(results, data=replace(results.data, rows=3 * N, near_duplicates=7, nearest=near))
    warning = f"7 of {N} documents are nearly another one: d1 (as d0, 0.90), d2 (as d0, 0.90)"
    for text in (told(results), text_table(results)):
        assert f"{N} documents in {3 * N} rows" in text
        assert warning in text
        assert "d5 (as d0, 0.90) …. Intervals take documents for independent, so they are too narrow here." in text


def test_failures_are_counted_and_shown_with_the_fault_marked(html: str) -> None:
    text = Page(html).text
    assert "What went wrong" in text
    assert "ran into the token limit instead of ending; 19 more like it" in text
    assert "wrong language" not in text  # nobody did
    assert "move the bus <mark>the bus the bus</mark>" in html  # loops
    assert "the bus the bus the <mark>bus</mark>" in html  # never stopped


def test_tables_scroll_in_a_box_of_their_own(html: str) -> None:
    tables = re.findall(r"<table[^>]*>", html)
    assert len(tables) > 5
    assert len(re.findall(r'<div class="scroll"[^>]*><table', html)) == len(tables)


def test_signatures_stand_with_the_figures(html: str) -> None:
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1" in Page(html).text


def test_artifacts_that_wrote_the_same_are_named_together(predictions: Path) -> None:
    results = make_results()
    shown = examples_shown(results, read_all(results, predictions))
    assert [told.labels for told in shown[0].told] == [
        ("base",),
        ("adapter", "merged", "f16"),
        ("q8_0",),
        ("q4_k_m",),
    ]
    assert [(span.text, span.kind) for span in shown[0].told[3].spans if span.kind != "same"] == [
        (" asks", "missing"),
        (" tells", "added"),
    ]
    assert all(span.kind == "same" for told in shown[0].told[:2] for span in told.spans)


def shorts(results: Results, verdicts: Any) -> list[str]:
    return [answer.short for answer in answers(results, verdicts)]


def test_answers_follow_the_figures() -> None:
    good = make_results()
    assert shorts(good, make_verdicts()) == ["Yes", "Yes, within rounding", "f16, q8_0, q4_k_m"]
    assert shorts(make_results(poor=True), make_verdicts(merged="fail", q4_k_m="fail")) == [
        "Yes, but not enough",
        "No",
        "f16, q8_0",
    ]
    assert shorts(good, make_verdicts(f16="fail", q8_0="fail", q4_k_m="inconclusive"))[2] == "Nothing"
    changed_base = Reason("base_change_kl_gold", "fail", "mean KL 0.4 nats, at most 0.25")
    merged = [replace(v, reasons=(*v.reasons, changed_base)) for v in make_verdicts() if v.label == "merged"]
    assert shorts(good, merged)[1] == "The merge is, the change of base before it is not"
    assert shorts(replace(good, rows=good.rows[3:]), make_verdicts())[:2] == ["Not measured", "Not measured"]

    def trained(mean: float) -> Results:
        def changed(comparison: Comparison) -> Comparison:
            return replace(comparison, rouge_l_difference=around(mean, 1.0))  # base minus adapter

        base = replace(good.rows[0], comparisons=tuple(map(changed, good.rows[0].comparisons)))
        return replace(good, rows=(base, *good.rows[1:]))

    assert shorts(trained(0.5), make_verdicts())[0] == "It cannot be told"
    assert shorts(trained(5.0), make_verdicts())[0] == "No, it made summaries worse"


def test_training_is_read_the_same_from_the_adapters_side() -> None:
    good = make_results()
    base, adapter = good.rows[:2]
    comparison = replace(base.comparisons[0], reference_label="base", rouge_l_difference=around(44.1, 1.7))
    turned = replace(
        good, rows=(replace(base, comparisons=()), replace(adapter, comparisons=(comparison,)), *good.rows[2:])
    )
    assert answers(turned, [])[0] == answers(good, [])[0]


def test_it_can_be_written_of_very_little(tmp_path: Path) -> None:
    good = make_results()
    alone = replace(
        good.rows[3],
        comparisons=(),
        speed=None,
        bits_per_weight=None,
        task=replace(good.rows[3].task, facts_right=None, facts_right_shuffled=None, eos_rate=None, tokens_mean=None),
    )
    out = tmp_path / "report.html"
    write_report(content(replace(good, rows=(alone,), baselines=(), require=()), [], tmp_path / "none"), out)
    text = Page(out.read_text(encoding="utf-8")).text
    assert "Nothing was required to pass" in text
    assert "Nothing was judged" in text


def test_words_that_differ_are_told_apart() -> None:
    spans = word_diff("Mara takes room 418 at ten", "Mara takes  room 527 at ten now")
    assert [(span.text, span.kind) for span in spans] == [
        ("Mara takes  room", "same"),
        (" 418", "missing"),
        (" 527", "added"),
        (" at ten", "same"),
        (" now", "added"),
    ]
    assert "".join(span.text for span in spans if span.kind != "missing") == "Mara takes  room 527 at ten now"
    assert (spans[2].lead, spans[2].body) == (" ", "527")
    assert word_diff("", "") == []
    assert [span.kind for span in word_diff("a b", "")] == ["missing"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.034, "0.034"),
        (8.8e-7, "8.8·10⁻⁷"),
        (-2e-5, "-2.0·10⁻⁵"),
        (12.345, "12.3"),
        (54321.0, "54,321"),
        (1.5e7, "1.5·10⁷"),
    ],
)
def test_figures_read_well(value: float, text: str) -> None:
    assert figure(value) == text


def test_sizes_carry_their_unit() -> None:
    assert [size(n) for n in (900, 3_100_000, 2_350_000_000)] == ["0.9 kB", "3.1 MB", "2.35 GB"]
    assert N == 300


def test_the_headline_goes_by_what_counts_with_all_earlier_evaluations(tmp_path: Path) -> None:
    against = ['q4_k_m: the evaluation of yesterday on 300 documents says "fail"']
    counted = make_verdicts(q4_k_m="fail")
    told = content(make_results(), make_verdicts(), tmp_path / "none", against, counted)
    assert told.headline.word == "Not proven."
    assert told.required["q4_k_m"] == "fail"
    assert against[0] in told.warnings
