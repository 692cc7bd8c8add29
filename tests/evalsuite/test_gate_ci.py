"""What `assay gate` leaves for CI: JUnit XML, Markdown, and signatures of what passed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from contract.history import begin, last_evaluation
from contract.verdict import Outcome, Reason, Verdict
from evalsuite.report.junit import junit
from evalsuite.report.step_summary import step_summary
from evalsuite.results import read_results
from tests.evalsuite.made import comparison, distance
from tests.kit.signing import assay, evaluate, make_evaluation, make_key, sign

# What the reporters agree on: the elements and attributes of Jenkins' junit-10.xsd that are used, and no others.
SCHEMA = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:attributeGroup name="counts">
    <xs:attribute name="name" type="xs:string" use="required"/>
    <xs:attribute name="tests" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="failures" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="errors" type="xs:nonNegativeInteger" use="required"/>
    <xs:attribute name="skipped" type="xs:nonNegativeInteger"/>
    <xs:attribute name="time" type="xs:decimal"/>
  </xs:attributeGroup>
  <xs:complexType name="said" mixed="true">
    <xs:attribute name="message" type="xs:string"/><xs:attribute name="type" type="xs:string"/>
  </xs:complexType>
  <xs:element name="testsuites"><xs:complexType>
    <xs:sequence><xs:element ref="testsuite" maxOccurs="unbounded"/></xs:sequence><xs:attributeGroup ref="counts"/>
  </xs:complexType></xs:element>
  <xs:element name="testsuite"><xs:complexType><xs:sequence>
    <xs:element name="properties" minOccurs="0"><xs:complexType><xs:sequence>
      <xs:element name="property" maxOccurs="unbounded"><xs:complexType>
        <xs:attribute name="name" use="required"/><xs:attribute name="value" use="required"/>
      </xs:complexType></xs:element>
    </xs:sequence></xs:complexType></xs:element>
    <xs:element name="testcase" minOccurs="0" maxOccurs="unbounded"><xs:complexType>
      <xs:choice minOccurs="0">
        <xs:element name="failure" type="said"/><xs:element name="skipped" type="said"/>
      </xs:choice>
      <xs:attribute name="name" use="required"/><xs:attribute name="classname" use="required"/>
      <xs:attribute name="time" type="xs:decimal"/>
    </xs:complexType></xs:element>
  </xs:sequence><xs:attributeGroup ref="counts"/></xs:complexType></xs:element>
</xs:schema>"""


def reason(outcome: Outcome = "pass", code: str = "kl_mean_gold", text: str = "mean KL 0.01 nats") -> Reason:
    return Reason(code, outcome, text, 0.0123456, 0.08, "nats", 300, 0.009, 0.011)


def verdict(label: str, *reasons: Reason, outcome: Outcome = "pass") -> Verdict:
    return Verdict(label, "a" * 64, outcome, reasons or (reason(outcome),))


def parsed(text: str) -> ET.Element:
    """The file as a reporter sees it, held against the schema; counts must be those of what is in it."""
    lxml = pytest.importorskip("lxml.etree")
    lxml.XMLSchema(lxml.fromstring(SCHEMA)).assertValid(lxml.fromstring(text.encode()))
    root = ET.fromstring(text)
    for element in (root, *root.iter("testsuite")):
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
            assert element.attrib[name] == str(len(list(element.iter(tag))))
    for suite in root:
        names = [(case.attrib["classname"], case.attrib["name"]) for case in suite.iter("testcase")]
        assert len(set(names)) == len(names)
    return root


def failures(root: ET.Element) -> dict[str, str]:
    """Of a required label or a check -> type."""
    found = {}
    for suite in root:
        for case in suite.iter("testcase"):
            if (failure := case.find("failure")) is not None:
                found[f"{suite.attrib['name']}/{case.attrib['name']}"] = failure.attrib["type"]
    return found


def test_junit_has_a_suite_for_each_artifact_and_a_case_for_each_reason() -> None:
    verdicts = [verdict("merged"), verdict("q4_k_m", reason(), reason(code="top1_gold"), reason(code="top1_gold"))]
    root = parsed(junit(verdicts, ["merged", "q4_k_m"], said_yes=True))
    assert [suite.attrib["name"] for suite in root] == ["assay gate", "merged", "q4_k_m"]
    assert [case.attrib["name"] for case in root[2].iter("testcase")] == ["kl_mean_gold", "top1_gold", "top1_gold (2)"]
    assert failures(root) == {}
    assert root[2].find("properties/property[@name='digest']").attrib["value"] == "a" * 64  # type: ignore[union-attr]


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_what_is_no_pass_makes_ci_red(outcome: Outcome) -> None:
    root = parsed(junit([verdict("q4_k_m", outcome=outcome)], ["q4_k_m"], said_yes=False))
    assert failures(root) == {"assay gate/required: q4_k_m": "not_proven", "q4_k_m/kl_mean_gold": outcome}
    said = root[1].find("testcase/failure").attrib["message"]  # type: ignore[union-attr]
    assert said == "mean KL 0.01 nats; value 0.01235 nats; n 300; interval 0.009 to 0.011; limit 0.08 nats"


def test_what_nobody_requires_cannot_stop_ci_and_is_told() -> None:
    root = parsed(junit([verdict("q4_k_m"), verdict("q3_k_m", outcome="fail")], ["q4_k_m"], said_yes=True))
    assert failures(root) == {}
    [told] = root.iter("skipped")
    assert told.attrib["message"].startswith("fail, but nobody requires it: mean KL")


@pytest.mark.parametrize(
    ("verdicts", "require", "against", "expected"),
    [
        ([verdict("merged")], ["merged", "q8_0"], [], {"assay gate/required: q8_0": "missing"}),
        ([verdict("merged")], ["merged"], ["merged: it said fail"], {"assay gate/earlier: merged": "earlier"}),
        ([], [], [], {"assay gate/proven": "not_proven"}),
        (
            [verdict("q4_k_m"), verdict("q4_k_m-2", outcome="fail")],
            ["q4_k_m"],
            [],
            {"assay gate/required: q4_k_m": "not_proven", "q4_k_m-2/kl_mean_gold": "fail"},
        ),
        (
            [Verdict("merged", "a" * 64, "inconclusive", ())],
            ["merged"],
            [],
            {"assay gate/required: merged": "not_proven", "merged/verdict": "inconclusive"},
        ),
    ],
)
def test_whenever_the_gate_says_no_something_is_red(
    verdicts: list[Verdict], require: list[str], against: list[str], expected: dict[str, str]
) -> None:
    assert failures(parsed(junit(verdicts, require, said_yes=False, against=against))) == expected
    assert "NOT proven" in step_summary(verdicts, require, said_yes=False, against=against)


HOSTILE = 'a\x00b\x1b[31m <script> & "quoted" | `code` \ud800 \ufffe [x](https://x.test) **bold** @you\nnext #1 $x$'


def test_junit_takes_any_text() -> None:
    root = parsed(junit([verdict(HOSTILE, reason("fail", text=HOSTILE), outcome="fail")], [HOSTILE], said_yes=False))
    said = root[1].find("testcase/failure").text or ""  # type: ignore[union-attr]
    assert '<script> & "quoted" | `code` \\ud800 \\ufffe' in said
    assert "a\\x00b\\x1b[31m" in said


def test_markdown_is_a_table_whatever_the_text() -> None:
    page = step_summary(
        [verdict("q4_k_m", reason("fail", text=HOSTILE), outcome="fail")], [HOSTILE], said_yes=False, against=[HOSTILE]
    )
    assert page.encode()
    lines = page.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("| `q4_k_m` | `kl")}) == 1
    header = next(line for line in lines if "95 % interval" in line)
    row = next(line for line in lines if line.startswith("| `q4_k_m` | `kl_mean_gold`"))
    assert row.count("|") == header.count("|") == 9
    assert "| ❌ fail | 0.01235 nats | 300 | 0.009 to 0.011 | 0.08 nats |" in row
    for mark in ("<script>", "[x](", "**", "`code`", "@you", "https://", "\x1b", "$x$"):
        assert mark not in page
    assert "&#60;script&#62; &#38; &#34;quoted&#34; &#124; &#96;code&#96;" in row


def test_markdown_tells_the_worst_first() -> None:
    made = verdict("q4_k_m", reason(), reason("inconclusive", "top1_gold"), reason("fail", "eos_rate_loss"))
    page = step_summary([replace(made, outcome="fail")], ["q4_k_m", "q8_0"], said_yes=False)
    assert re.findall(r"\| `q4_k_m` \| `(\w+)` \| \S+ (\w+)", page) == [
        ("eos_rate_loss", "fail"),
        ("top1_gold", "inconclusive"),
        ("kl_mean_gold", "pass"),
    ]
    assert "Not judged, though required: `q8_0`." in page


def test_the_gate_writes_and_signs_what_passed(tmp_path: Path) -> None:
    far = comparison(distances=(distance("gold", 0.9), distance("greedy", 0.9)))
    out, artifacts = make_evaluation(tmp_path, "q8_0", q8_0=far)
    key = make_key(tmp_path)
    files = {"--junit": tmp_path / "ci" / "gate.xml", "--markdown": tmp_path / "ci" / "gate.md"}
    options = [each for pair in files.items() for each in pair]
    code, _, err = assay("gate", out, "--sign", key, *options)
    assert code == 0, err
    assert failures(parsed(files["--junit"].read_text())) == {}
    assert "### ✅ proven" in files["--markdown"].read_text()
    assert sorted(path.name for path in (out / "signed").iterdir()) == ["merged.dsse.json", "q4_k_m.dsse.json"]
    assert not artifacts["q8_0"].signed_path.exists(), "it failed, and nobody requires it"
    for label in ("merged", "q4_k_m"):
        beside = artifacts[label].signed_path
        assert beside.read_text() == (out / "signed" / f"{label}.dsse.json").read_text()
        code, said, _ = assay("verify", beside, artifacts[label].path, "--key", key.with_suffix(".pub"), "--json")
        claim = json.loads(said)["claim"]
        assert (code, claim["verdict"]["label"]) == (0, label)
        assert claim["basis"]["documents"] == 100
        assert claim["basis"]["metrics_sha256"] == last_evaluation(out).basis.metrics_sha256
    assert assay("gate", out, "--sign", key)[0] == 0, "signing again replaces the bundles"


def test_a_gate_that_says_no_writes_for_ci_and_signs_nothing(tmp_path: Path) -> None:
    far = comparison(distances=(distance("gold", 0.9), distance("greedy", 0.9)))
    out, artifacts = make_evaluation(tmp_path, q4_k_m=far)
    code, _, err = assay("gate", out, "--sign", make_key(tmp_path), "--junit", tmp_path / "g.xml")
    assert (code, "nothing was signed" in err) == (1, True)
    assert failures(parsed((tmp_path / "g.xml").read_text()))["q4_k_m/kl_mean_gold"] == "fail"
    assert not (out / "signed").exists()
    assert not artifacts["merged"].signed_path.exists(), "it passed; the gate's word is no all the same"


def test_figures_that_were_edited_are_not_signed(tmp_path: Path) -> None:
    out, artifacts = make_evaluation(tmp_path)
    path = out / "metrics.json"
    path.write_text(path.read_text().replace('"tokens": 3000', '"tokens": 3001'))
    assert assay("gate", out, "--sign", make_key(tmp_path))[0] == 2
    assert not artifacts["q4_k_m"].signed_path.exists()


def test_an_artifact_that_was_changed_is_not_signed(tmp_path: Path) -> None:
    out, artifacts = make_evaluation(tmp_path)
    file = artifacts["q4_k_m"].gguf_path
    file.write_bytes(file.read_bytes() + b"1")
    assert assay("gate", out, "--sign", make_key(tmp_path))[0] == 2
    assert not artifacts["merged"].signed_path.exists()


def test_other_limits_than_those_written_down_are_not_signed(tmp_path: Path) -> None:
    out, artifacts = make_evaluation(tmp_path)
    recipe = tmp_path / "loose.yaml"
    text = (Path(__file__).resolve().parents[2] / "recipes" / "tiny.yaml").read_text()
    recipe.write_text(re.sub(r"(?ms)^gate:.*?(?=^\S|\Z)", "", text) + "\ngate: {max_eos_rate_loss: 0.4}\n")
    code, _, err = assay("gate", out, "--recipe", recipe, "--sign", make_key(tmp_path))
    assert (code, "not what the evaluation wrote down" in err) == (1, True), err
    assert not artifacts["q4_k_m"].signed_path.exists()


def test_what_a_later_evaluation_took_away_is_not_signed(tmp_path: Path) -> None:
    out, artifacts = make_evaluation(tmp_path)
    made = read_results(out)
    far = comparison(distances=(distance("gold", 0.9), distance("greedy", 0.9)))
    far = replace(far, reference_digest=artifacts["merged"].digest)
    rows = [replace(each, comparisons=(far,)) if each.label == "q4_k_m" else each for each in made.rows]
    (tmp_path / "later").mkdir()
    evaluate(tmp_path / "later", replace(made, rows=tuple(rows)), data_sha256="7" * 64, time_utc="2026-02-01T00:00:00Z")
    assert assay("gate", out, "--sign", make_key(tmp_path))[0] == 1
    assert not artifacts["q4_k_m"].signed_path.exists()


def test_the_word_of_another_evaluation_is_not_this_ones_to_sign(tmp_path: Path) -> None:
    """Both pass; the later one is what counts, so it is the one to sign."""
    out, artifacts = make_evaluation(tmp_path)
    later = tmp_path / "later"
    later.mkdir()
    evaluate(later, read_results(out), data_sha256="7" * 64, time_utc="2026-02-01T00:00:00Z")
    key = make_key(tmp_path)
    code, _, err = assay("gate", out, "--sign", key)
    assert (code, "another evaluation counts" in err) == (1, True)
    assert not artifacts["q4_k_m"].signed_path.exists()
    assert assay("gate", later, "--sign", key)[0] == 0


def test_an_evaluation_that_was_begun_again_is_not_signed(tmp_path: Path) -> None:
    out, artifacts = make_evaluation(tmp_path)
    again = replace(last_evaluation(out), verdicts=(), finished=False)
    begin(out / "verdict.json", again)
    assert assay("gate", out, "--sign", make_key(tmp_path))[0] == 2
    assert not artifacts["q4_k_m"].signed_path.exists()


def test_a_key_that_cannot_sign_is_one_message(tmp_path: Path) -> None:
    out, _ = make_evaluation(tmp_path)
    for key in (tmp_path / "none.key", make_key(tmp_path).with_suffix(".pub"), make_key(tmp_path, "l", password="x")):
        code, _, err = assay("gate", out, "--sign", key)
        assert (code, err.count("assay: ")) == (2, 1)
    assert not (out / "signed").exists()


def test_what_lies_in_a_bundles_place_is_kept(tmp_path: Path) -> None:
    out, artifacts = make_evaluation(tmp_path)
    artifacts["merged"].signed_path.write_text("mine")
    assert assay("gate", out, "--sign", make_key(tmp_path))[0] == 2
    assert artifacts["merged"].signed_path.read_text() == "mine"


def test_a_new_bundle_takes_an_old_ones_place(tmp_path: Path) -> None:
    out, artifacts = make_evaluation(tmp_path)
    old = sign(artifacts["q4_k_m"], make_key(tmp_path, "old")).read_text()
    assert assay("gate", out, "--sign", make_key(tmp_path))[0] == 0
    assert artifacts["q4_k_m"].signed_path.read_text() != old
