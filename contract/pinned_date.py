"""The date that chat templates are told: pinned, so that the same words give the same prompt on any day and machine."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

# What Llama 3.1's and 3.2's own templates fall back to where a host offers them no date. So an artifact made before
# templates were told one keeps the prompts it was trained with.
DEFAULT_DATE = "2024-07-26"

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
# strftime directives that a locale would change, as the C locale has them
_COMPOSED = {"c": "%a %b %e %H:%M:%S %Y", "x": "%m/%d/%y", "X": "%H:%M:%S", "r": "%I:%M:%S %p"}
_DIRECTIVE = re.compile("%([-_0^#]*)[EO]?([A-Za-z%])")


def is_iso_date(text: object) -> bool:
    """Is it a day as 2024-07-26, and no other spelling of ISO 8601?"""
    try:
        return isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def formatted(day: str, pattern: str) -> str:
    """Midnight of `day` (ISO) as strftime writes it, with English names whatever the locale is.

    Raises:
        TypeError, ValueError: `pattern` is no text, or none that strftime takes.
    """
    midnight = datetime.fromisoformat(day)
    names = {
        "a": _DAYS[midnight.weekday()][:3],
        "A": _DAYS[midnight.weekday()],
        "b": _MONTHS[midnight.month - 1][:3],
        "h": _MONTHS[midnight.month - 1][:3],
        "B": _MONTHS[midnight.month - 1],
        "p": "AM",
        "P": "am",
        "s": str(int(midnight.replace(tzinfo=UTC).timestamp())),  # else the machine's time zone would show
    }

    def fixed(match: re.Match[str]) -> str:
        flags, letter = match.groups()
        if letter in _COMPOSED:
            return _DIRECTIVE.sub(fixed, _COMPOSED[letter])
        if letter in names:
            return names[letter].upper() if "^" in flags else names[letter]
        return f"%{flags}{letter}"

    return midnight.strftime(_DIRECTIVE.sub(fixed, pattern))
