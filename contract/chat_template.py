"""The one Jinja engine for chat templates: in a sandbox, with what transformers offers them and a pinned date.

Offered is what transformers offers (utils/chat_template_utils.py, apply_chat_template): its environment, filters,
functions and variables. Only the date is another: there it is today's.
"""

from __future__ import annotations

import json
from functools import lru_cache, partial
from typing import Any

from jinja2 import Environment, Template, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from contract.errors import AssayError, listed
from contract.pinned_date import formatted
from contract.stand_in import StandIn, StandIns, changed_text

# transformers passes these too, where a tokenizer has them, but no GGUF can say what they are
_NOT_EVERYWHERE = ("additional_special_tokens", "cls_token", "mask_token", "sep_token")


# The variable that holds a rendering's StandIns. No template can write this name.
STAND_INS = "stand-ins"


class _Environment(ImmutableSandboxedEnvironment):
    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As the sandbox does; but a macro that writes one text and nothing else gives its stand-in, not the number."""
        made = super().call(context, called, *args, **kwargs)
        stand_ins: StandIns | None = context.parent.get(STAND_INS)
        return stand_ins.again(made) if stand_ins is not None and type(made) is str else made


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant says: written as it is, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=16)  # compiling costs far more than rendering, and thousands of rows share a template
def compiled(template: str, date: str) -> Template:
    """A template ready to render. Its `strftime_now` knows the day `date` (ISO), at midnight.

    Raises:
        TemplateError, SyntaxError: it is no Jinja.
        AssayError: it asks for what not every runtime has.
    """
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters |= {"tojson": _to_json, "length": _length, "count": _length}
    environment.globals |= {"raise_exception": _refuse, "strftime_now": partial(formatted, date)}
    _refuse_unknown(environment, template)
    return environment.from_string(template)


def _refuse_unknown(environment: Environment, template: str) -> None:
    asked = meta.find_undeclared_variables(environment.parse(template)).intersection(_NOT_EVERYWHERE)
    if asked:
        raise AssayError(
            "the chat template asks for special tokens that not every runtime knows by these names",
            got=listed(sorted(asked)),
            expected="bos_token, eos_token, unk_token or pad_token",
            hint="write the token itself into the template, and set prompt.template in the recipe",
        )


def _refuse(message: Any) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _length(value: Any) -> int:
    if isinstance(value, StandIn):
        raise changed_text("it measures a text")
    return len(value)
