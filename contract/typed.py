"""JSON values back into typed dataclasses: a missing, unknown or wrongly typed field is an error, never a default."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def from_json(wanted: Any, value: Any) -> Any:
    """Rebuild a (nested) dataclass from what asdict and JSON made of it.

    Raises:
        TypeError: a value of another type than wanted, or a field that is missing or unknown.
    """
    if isinstance(wanted, type) and is_dataclass(wanted):
        if not isinstance(value, dict) or (unknown := set(value) - {f.name for f in fields(wanted)}):
            raise TypeError(f"{wanted.__name__}: unexpected {unknown if isinstance(value, dict) else value!r}")
        hints = get_type_hints(wanted)
        return wanted(**{name: from_json(hints[name], item) for name, item in value.items()})
    if get_origin(wanted) in (Union, types.UnionType):
        chosen = [option for option in get_args(wanted) if option is not type(None)]
        return None if value is None else from_json(chosen[0], value)
    if get_origin(wanted) is Literal and value not in get_args(wanted):
        raise TypeError(f"expected one of {get_args(wanted)}, got {value!r}")
    if get_origin(wanted) is dict and not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r}")
    if get_origin(wanted) is tuple and not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, got {value!r}")
    if get_origin(wanted) is dict and get_args(wanted)[1] is not Any:
        return {name: from_json(get_args(wanted)[1], item) for name, item in value.items()}
    if get_origin(wanted) is tuple:
        return tuple(from_json(get_args(wanted)[0], item) for item in value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (float, int, str, bool) and (
        not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)
    ):
        raise TypeError(f"expected {wanted.__name__}, got {value!r}")
    return value
