"""The gate's word as Markdown, for a page that CI shows ($GITHUB_STEP_SUMMARY): GitHub's flavour, tables only."""

from __future__ import annotations

import re
from collections.abc import Sequence

from contract.plain import plain
from contract.verdict import Reason, Verdict, is_required, missing
from evalsuite.report.figures import figure_of

_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive"}
_ORDER = ("fail", "inconclusive", "pass")
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#!|&~@:\"$]")  # what could begin markup, a link, a mention, a formula
_CODE = re.compile(r"[\w.+-]+", re.ASCII)


def step_summary(
    verdicts: Sequence[Verdict], require: Sequence[str], *, said_yes: bool, against: Sequence[str] = ()
) -> str:
    """The whole page; arguments as `evalsuite.report.junit.junit`."""
    needed = ", ".join(map(_code, require)) or "nothing"
    lines = [f"### {'✅ proven' if said_yes else '❌ NOT proven'}", "", f"Required: {needed}."]
    if lacking := missing(verdicts, require):
        lines += ["", f"Not judged, though required: {', '.join(map(_code, lacking))}."]
    if against:
        lines += ["", "Earlier evaluations speak against it:", "", *(f"- {_escaped(line)}" for line in against)]
    lines += ["", *_table(("artifact", "verdict", "required", "digest"), [_about(v, require) for v in verdicts])]
    header = ("artifact", "check", "outcome", "figure", "n", "95 % interval", "limit", "in words")
    rows = [_check(verdict, reason) for verdict in verdicts for reason in _worst_first(verdict)]
    return "\n".join([*lines, "", *_table(header, rows)]) + "\n"


def _about(verdict: Verdict, require: Sequence[str]) -> list[str]:
    required = "yes" if is_required(verdict, require) else "no"
    return [_code(verdict.label), _MARKS[verdict.outcome], required, _code(verdict.digest[:12])]


def _check(verdict: Verdict, reason: Reason) -> list[str]:
    figure = [_escaped(value) for value in figure_of(reason).values()]
    return [_code(verdict.label), _code(reason.code), _MARKS[reason.outcome], *figure, _escaped(reason.text)]


def _worst_first(verdict: Verdict) -> list[Reason]:
    return sorted(verdict.reasons, key=lambda reason: _ORDER.index(reason.outcome))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _code(text: str) -> str:
    return f"`{text}`" if _CODE.fullmatch(text) else _escaped(text)


def _escaped(text: str) -> str:
    """Text that stays text: what has a meaning in Markdown or HTML becomes a character reference."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", plain(" ".join(text.split())))
