"""Which limits of an evaluation are looser or stricter than the defaults of this version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from contract.errors import listed
from contract.history import at_least_as_strict


@dataclass(frozen=True)
class Change:
    """A limit that is not the default: its dotted name, both values (None: there is none), and which way it goes."""

    name: str
    value: Any
    default: Any
    way: Literal["looser", "stricter", "other"]


def changed_limits(limits: Mapping[str, Any]) -> list[Change]:
    """The limits (of a verdict's basis) that are not this version's defaults; one that is missing limits nothing."""
    from contract.limits import GatePart

    defaults = GatePart().model_dump(mode="json", exclude={"require"})
    return list(_changes(limits, defaults, ""))


def _changes(limits: Mapping[str, Any], defaults: Mapping[str, Any], above: str) -> Iterator[Change]:
    for name in [*defaults, *(name for name in limits if name not in defaults)]:
        value, default = limits.get(name), defaults.get(name)
        if isinstance(default, Mapping) and isinstance(value, Mapping):
            yield from _changes(value, default, f"{above}{name}.")
        elif value != default:
            yield Change(above + name, value, default, _way(name, limits, defaults))


def _way(name: str, limits: Mapping[str, Any], defaults: Mapping[str, Any]) -> Literal["looser", "stricter", "other"]:
    ours = {name: limits[name]} if name in limits else {}
    theirs = {name: defaults[name]} if name in defaults else {}
    if at_least_as_strict(ours, theirs):
        return "stricter"
    return "looser" if at_least_as_strict(theirs, ours) else "other"


def wider_limits(limits: Mapping[str, Any]) -> list[str]:
    """One line that names the limits wider than this version's defaults; none where there are none."""
    wider = [f"{c.name} {c.value} (default {c.default})" for c in changed_limits(limits) if c.way == "looser"]
    return [f"Judged under limits wider than the defaults: {listed(wider)}."] if wider else []
