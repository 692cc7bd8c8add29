"""The date that templates are told: English everywhere, the same in every time zone, and only real days."""

from __future__ import annotations

import locale
import subprocess
import sys
import time
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.pinned_date import DEFAULT_DATE, formatted, is_iso_date
from contract.prompt import PromptSpec
from contract.recipe import load_recipe

FORMATS = (
    "%a %A %b %B %h %c %x %X %r %p %P %d %e %-d %y %Y %C %G %V %u %w %U %W %j "
    "%H %I %k %l %M %S %f %D %F %R %T %% %%A %z%Z|"
)


def test_it_is_strftime_of_midnight() -> None:
    assert locale.setlocale(locale.LC_TIME) == "C"
    for days in range(0, 400, 7):
        day = date(2023, 12, 28) + timedelta(days)
        assert formatted(day.isoformat(), FORMATS) == datetime(day.year, day.month, day.day).strftime(FORMATS)


def test_names_in_capitals_and_with_modifiers() -> None:
    assert formatted("2025-03-02", "%^a %^B %-d %Ey %Od %Ex") == "SUN MARCH 2 25 02 03/02/25"


def test_the_time_zone_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        found.add(formatted("2025-03-02", "%s %c %Z%z"))
    monkeypatch.undo()
    time.tzset()
    assert found == {"1740873600 Sun Mar  2 00:00:00 2025 "}


def test_another_locale_does_not_show(tmp_path: Path) -> None:
    """In a process of its own: a locale is the whole process's."""
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")], capture_output=True
    )
    if made.returncode:
        pytest.skip("there is no German locale here to make")
    code = (
        "import locale, datetime; locale.setlocale(locale.LC_ALL, 'de_DE.UTF-8')\n"
        "from contract.pinned_date import formatted\n"
        "print(datetime.datetime(2025, 3, 2).strftime('%A'), formatted('2025-03-02', '%A %B %a %b %c %x'))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env={"LOCPATH": str(tmp_path), "PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert said.stdout.strip() == "Sonntag Sunday March Sun Mar Sun Mar  2 00:00:00 2025 03/02/25", said.stderr


@pytest.mark.parametrize(
    "text",
    ["2025-02-30", "20250302", "2025-W09-7", "2025-3-2", "today", "", " 2025-03-02", "2025-03-02T00:00", None, 3],
)
def test_what_is_no_day(text: object) -> None:
    assert not is_iso_date(text)
    with pytest.raises(AssayError, match="date"):
        PromptSpec.from_dict({"date": text})


def test_old_records_have_the_default_and_new_ones_say_it() -> None:
    old = {"user": "Sum up: {document}", "system": None, "language": "English", "template": None}
    spec = PromptSpec.from_dict(old)
    assert spec.date == DEFAULT_DATE
    assert spec.as_dict() == {**old, "date": DEFAULT_DATE}


@pytest.mark.parametrize("written", ["2025-03-02", "'2025-03-02'"])
def test_a_recipe_names_a_day_with_and_without_quotes(tmp_path: Path, written: str) -> None:
    (tmp_path / "r.yaml").write_text(f"name: t\nmodel: {{base: x}}\nprompt: {{date: {written}}}\n")
    assert load_recipe(tmp_path / "r.yaml").prompt.spec().date == "2025-03-02"


@pytest.mark.parametrize("written", ["2025-03-02 10:00:00", "tomorrow", "2025-02-30", "null", "2025"])
def test_a_recipe_with_no_real_day_is_refused(tmp_path: Path, written: str) -> None:
    (tmp_path / "r.yaml").write_text(f"name: t\nmodel: {{base: x}}\nprompt: {{date: {written}}}\n")
    with pytest.raises(AssayError, match=r"prompt\.date|out of range"):
        load_recipe(tmp_path / "r.yaml")
