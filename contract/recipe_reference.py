"""The recipe reference as Markdown, made from the schema: `python -m contract.recipe_reference > docs/recipe.md`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from contract.recipe import Recipe

HEAD = """# Recipe reference

A recipe holds everything that changes the model. Paths in it are relative to the recipe's own folder. An unknown key
is refused, with the nearest known one. Where and how it runs (output folder, device, threads) is the command line's.

This page is made from the schema (`python -m contract.recipe_reference > docs/recipe.md`); a test holds it true.
"""


def reference() -> str:
    """The whole page."""
    lines = [HEAD]
    for path, model in _sections(Recipe, ""):
        lines.append(f"## {f'`{path}`' if path else 'Top level'}\n")
        lines.append(f"{(model.__doc__ or '').strip()}\n")
        lines.append("| key | type | default | meaning |\n|---|---|---|---|")
        for name, field in model.model_fields.items():
            kind = _type_name(field.annotation)
            text = (field.description or "").replace("|", "\\|")
            lines.append(f"| `{name}` | {kind} | {_default(field)} | {text} |")
        lines.append("")
    return "\n".join(lines)


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for inner, key in _models_in(field.annotation):
            yield from _sections(inner, f"{path}.{name}{key}".lstrip("."))


def _models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    elif typing.get_origin(annotation) is dict:
        yield from ((model, ".TYPE") for model, _ in _models_in(typing.get_args(annotation)[1]))
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models_in(part)


def _type_name(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in args)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is list:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"mapping of {_type_name(args[0])} to section"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]


def _default(field: Any) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return "see below"
    if isinstance(default, dict):
        parts = [
            f"{name}: " + ", ".join(f"{key} {value}" for key, value in limits.model_dump().items())
            for name, limits in default.items()
        ]
        return "<br>".join(parts)
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return f"`[{', '.join(str(item) for item in default)}]`"
    return f"`{default!r}`" if isinstance(default, str) else f"`{default}`"


if __name__ == "__main__":
    print(reference(), end="")
