"""The gate's word as JUnit XML, which CI servers show as tests: a suite for each artifact, a test for each check.

Jenkins, GitLab and the usual GitHub reporters agree on what is used here: testsuites, testsuite, properties, testcase,
failure, skipped. A check that is inconclusive is a failure too, for CI must not go on; its type says which. Artifacts
that nobody requires cannot stop CI, as they cannot stop the gate: what speaks against them is told as skipped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from contract.verdict import Reason, Verdict, is_required, missing, proven
from evalsuite.report.figures import figure_of

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def junit(verdicts: Sequence[Verdict], require: Sequence[str], *, said_yes: bool, against: Sequence[str] = ()) -> str:
    """The whole file. It has a failure exactly where the gate says no.

    Args:
        verdicts: of one evaluation.
        require: the labels that must pass.
        said_yes: the gate's word on all of it.
        against: what earlier evaluations say against what passes here, a line each.
    """
    suites = [_gate(verdicts, require, said_yes, against)]
    suites += [_suite(verdict, is_required(verdict, require)) for verdict in verdicts]
    root = ET.Element("testsuites", {"name": "assay gate", **_counts(suites)})
    root.extend(suites)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _gate(verdicts: Sequence[Verdict], require: Sequence[str], said_yes: bool, against: Sequence[str]) -> ET.Element:
    suite = _new_suite("assay gate")
    for label in require:
        case = _case(suite, "gate", f"required: {label}")
        if missing(verdicts, [label]):
            _say(case, "failure", "missing", f"{label} is required, and was not judged")
        elif not proven(verdicts, [label]):
            _say(case, "failure", "not_proven", f"{label} is required, and did not pass")
    for line in against:
        case = _case(suite, "gate", f"earlier: {line.partition(':')[0]}")
        if said_yes:
            ET.SubElement(case, "skipped", {"message": _text(f"nobody requires it: {line}")})
        else:
            _say(case, "failure", "earlier", line)
    if not said_yes and suite.find("testcase/failure") is None:
        why = "nothing is required, and nothing was judged" if not require else "what is required is not proven"
        _say(_case(suite, "gate", "proven"), "failure", "not_proven", why)
    suite.attrib |= _counts([suite])
    return suite


def _suite(verdict: Verdict, required: bool) -> ET.Element:
    suite = _new_suite(verdict.label)
    properties = ET.SubElement(suite, "properties")
    told = {"verdict": verdict.outcome, "digest": verdict.digest, "required": "yes" if required else "no"}
    for name, value in told.items():
        ET.SubElement(properties, "property", {"name": name, "value": _text(value)})
    seen: Counter[str] = Counter()
    for reason in verdict.reasons:
        seen[reason.code] += 1
        again = f" ({seen[reason.code]})" if seen[reason.code] > 1 else ""  # reporters tell cases by their names
        case = _case(suite, verdict.label, reason.code + again)
        if reason.outcome != "pass":
            _against(case, reason.outcome, _sentence(reason), required)
    if verdict.outcome != "pass" and not any(reason.outcome == verdict.outcome for reason in verdict.reasons):
        text = f"the verdict is {verdict.outcome}, and no check says why"
        _against(_case(suite, verdict.label, "verdict"), verdict.outcome, text, required)
    suite.attrib |= _counts([suite])
    return suite


def _against(case: ET.Element, outcome: str, text: str, required: bool) -> None:
    if required:
        _say(case, "failure", outcome, text)
    else:
        ET.SubElement(case, "skipped", {"message": _text(f"{outcome}, but nobody requires it: {text}")})


def _sentence(reason: Reason) -> str:
    figure = figure_of(reason)
    return "; ".join([reason.text, *(f"{name} {value}" for name, value in figure.items() if value)])


def _new_suite(name: str) -> ET.Element:
    return ET.Element("testsuite", {"name": _text(name)})


def _case(suite: ET.Element, group: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", {"classname": _text(f"assay.{group}"), "name": _text(name), "time": "0"})


def _say(case: ET.Element, tag: str, kind: str, text: str) -> None:
    ET.SubElement(case, tag, {"type": kind, "message": _text(text)}).text = _text(text)


def _counts(suites: Sequence[ET.Element]) -> dict[str, str]:
    found = {name: sum(len(list(suite.iter(tag))) for suite in suites) for name, tag in _COUNTED.items()}
    return {**{name: str(count) for name, count in found.items()}, "errors": "0", "time": "0"}


_COUNTED = {"tests": "testcase", "failures": "failure", "skipped": "skipped"}


def _text(text: str) -> str:
    """Without the characters that XML cannot hold in any form; they are told as escapes."""
    return _FORBIDDEN.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode(), text)
