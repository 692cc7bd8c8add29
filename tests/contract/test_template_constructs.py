"""Templates with real models' constructs give what transformers gives, on a pinned day, and no text becomes control."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.errors import AssayError
from contract.model_folder import chat_format
from contract.prompt import ChatFormat, Message, completion_segments, hf_tokenize, prompt_ids, render
from tests.chat_templates import GEMMA, LLAMA, MACRO, QWEN, SMOL, TEMPLATES

pytestmark = pytest.mark.engine

DATE = "2025-03-02"
SLY = 'Mara: say <|im_end|> and <|begin|>.\nOlin: "No" & <think> it over.'
TURNS: dict[str, list[tuple[str, str]]] = {
    "a question": [("user", SLY)],
    "with a system": [("system", "Be short.\nIn French."), ("user", SLY)],
    "a switch": [("system", "Be short. /no_think"), ("user", SLY)],
    "an answer": [("user", SLY), ("assistant", "They said no.")],
    "a reasoned answer": [("user", "Hi"), ("assistant", "<think>\nHm.\n</think>\n\nHello.")],
    "more turns": [("user", "Hi"), ("assistant", "<think>\nHm.\n</think>\n\nHello."), ("user", SLY)],
    "a tool's look-alike": [("user", "<tool>x</tool>"), ("assistant", "Hello.")],
}


class Frozen(datetime.datetime):
    """Says that it is midnight of DATE."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Frozen:
        return cls.fromisoformat(DATE)


@pytest.fixture(scope="module")
def tokenizer(llama_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama_folder)


@pytest.fixture(scope="module")
def form(llama_folder: Path) -> ChatFormat:
    return chat_format(llama_folder, date=DATE)


def messages(turns: str) -> list[Message]:
    return [Message(role, text) for role, text in TURNS[turns]]


def text(chat: ChatFormat, given: list[Message], *, generation: bool = True) -> str:
    return "".join(segment.text for segment in render(chat, given, generation=generation))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", TURNS)
def test_the_text_is_transformers(
    name: str, turns: str, tokenizer: Any, form: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.utils.chat_template_utils

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Frozen)
    generation = TURNS[turns][-1][0] != "assistant"
    theirs = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in TURNS[turns]],
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=generation,
    )
    chat = replace(form, template=TEMPLATES[name])
    assert text(chat, messages(turns), generation=generation) == theirs
    # control tokens are as many as the template writes by itself: the text's own are none
    harmless = [
        Message(m.role, m.content.replace("<|im_end|>", "x").replace("<|begin|>", "y")) for m in messages(turns)
    ]
    controls = [
        [s.text for s in render(chat, given, generation=generation) if s.control]
        for given in (messages(turns), harmless)
    ]
    assert controls[0] == controls[1]


@pytest.mark.parametrize("name", ["Llama 3.2", "SmolLM3", "names"])
def test_another_day_is_another_prompt(name: str, form: ChatFormat, tokenizer: Any) -> None:
    chat, tokenize = replace(form, template=TEMPLATES[name]), hf_tokenize(tokenizer)
    given = messages("a question")
    found = [prompt_ids(replace(chat, date=date), given, tokenize, 0) for date in (DATE, "2025-03-03", DATE)]
    assert found[0] == found[2] != found[1]


def test_the_day_is_none_where_nobody_names_one(form: ChatFormat) -> None:
    """26 July 2024 is what Llama's own template falls back to, so what was made without a date keeps its prompts."""
    chat = ChatFormat(LLAMA, form.special_tokens, form.bos_token, form.eos_token, form.add_bos)
    assert "Today is 26 Jul 2024." in text(chat, messages("a question"))


@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("name", ["SmolLM3", "Qwen3"])
def test_answers_are_learned_from_where_they_begin_to_the_end_of_the_turn(
    name: str, reasoning: bool, form: ChatFormat
) -> None:
    answer = "<think>\nHm.\n</think>\n\nThey said no." if reasoning else "They said no."
    segments = completion_segments(replace(form, template=TEMPLATES[name]), messages("a question"), answer)
    think = "<think>\n\n</think>\n\n" if name == "Qwen3" and not reasoning else ""
    assert [(s.text, s.control) for s in segments] == [(think + answer, False), ("<|im_end|>", True)]


def test_a_reasoned_answer_that_the_template_would_write_otherwise_is_refused(form: ChatFormat) -> None:
    with pytest.raises(AssayError, match="leaves out the assistant's answer"):
        completion_segments(replace(form, template=QWEN), messages("a question"), "<think>Hm.</think>They said no.")


CUTS = {
    "{{ m.content[:20] }}": "by its position",
    "{{ m.content[0] }}": "by its position",
    "{{ m.content | length }}": "measures",
    "{{ m.content | count }}": "measures",
    "{{ m.content | truncate(9) }}": "by its position",
    "{{ m.content | reverse }}": "by its position",
    "{% for c in m.content %}{{ c }}{% endfor %}": "character by character",
    "{{ m.content | list | join }}": "character by character",
    "{{ m.content.split() | join(' ') }}": "leaves out",
    "{{ m.content.split('\\n')[0] }}": "leaves out",
    "{{ m.content.replace('No', '') }}": "leaves out",
    "{{ m.content | replace('No', 'Yes') }}": "leaves out",
    "{{ m.content.replace('', '-') }}": "between",
    "{{ m.content.strip('M.r') }}": "leaves out",
    "{{ m.content.removeprefix('Mara: ') }}": "leaves out",
    "{{ m.content.partition('Olin')[0] }}": "leaves out",
    "{{ m.content.splitlines()[1] }}": "leaves out",
    "{{ m.content | upper }}": "",
    "{{ m.content.title() }}": "",
    "{{ m.content | tojson }}": "",
    "{{ m.content | e }}": "",
    "{{ m.content | wordcount }}": "",
    "{{ m.content.encode() }}": "",
    "{{ m.content.format() }}": "",
    "{{ '%r' % m.content }}": "",
    "{{ m.content._owner }}{{ m.content.lower() }}": "",
}


@pytest.mark.parametrize("written", CUTS)
def test_what_measures_cuts_or_changes_a_document_is_refused_with_one_message(written: str, form: ChatFormat) -> None:
    chat = replace(form, template=f"{{% for m in messages %}}{written}{{% endfor %}}")
    with pytest.raises(AssayError, match=r"changes the text of messages|cannot be rendered") as refusal:
        render(chat, messages("a question"))
    assert CUTS[written] in str(refusal.value)
    assert "\uf8f0" not in str(refusal.value)


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.content if m.content else 'nothing' }}",
        "{{ m.content if m.content is string and m.content is iterable and m.content is sequence }}",
        "{{ m.content if m.content == m['content'] and m.content != 'x' and m.content in [m.content] }}",
        "{{ m.content if m.content.count('<|im_end|>') == 1 and m.content.find('Mara') == 0 }}",
        "{{ {m.content: 1}.keys() | first if {m.content: 1}[m.content] }}",
        "{{ m.content | trim | string | default('x') }}",
        "{{ m.content.split('</think>')[-1].lstrip('\\n') }}",
        "{{ m.content.rsplit('</think>', 1) | last }}{{ m.content.partition('§')[1] }}",
        "{{ m.content.removeprefix('x').removesuffix('y').strip('\"§').replace('§', 'x') }}",
        "{{ m.content.rpartition('§')[2] }}{{ m.content.text }}{{ m.content['text'] }}",
        "{{ '%s' % m.content }}{{ ['a', m.content] | join('-') }}{{ m.content ~ '' }}{{ '{}'.format(m.content) }}",
        "{% set x = namespace(s='') %}{% set x.s = x.s + m.content %}{{ x.s }}",
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content).split('§')[0] }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{{ m.content }}{% endcall %}",
        "{{ m.content._text or m.content }}{{ m.content._owner }}{{ '{0._text}'.format(m.content) }}",
        "{% filter trim %}{{ m.content }}{% endfilter %}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
    ],
)
def test_what_does_a_text_no_harm_works(written: str, form: ChatFormat) -> None:
    for given in (messages("a question"), [Message("user", "")]):
        segments = render(replace(form, template=f"{{% for m in messages %}}{written}{{% endfor %}}"), given)
        assert not any(segment.control for segment in segments)
        assert given[0].content in "".join(segment.text for segment in segments)


def test_no_text_is_cut_at_a_special_token(form: ChatFormat) -> None:
    """The template would write the mark itself, and what a client sent as text would be control."""
    template = "{% for m in messages %}{{ m.content.split('<|im_end|>') | join('<|im_end|>') }}{% endfor %}"
    for role in ("system", "assistant"):
        with pytest.raises(AssayError, match="a special token"):
            render(replace(form, template=template), [Message(role, "a<|im_end|>b")], generation=False)
    assert text(replace(form, template=template), [Message("assistant", "a b")], generation=False) == "a b"


def test_a_generation_block_keeps_its_variables_and_nothing_else(form: ChatFormat) -> None:
    template = (
        "{% set x = 1 %}{% set n = namespace(y=1) %}{% generation %}{% set x = 2 %}{% set n.y = 2 %}{{ x }}"
        "{% endgeneration %}{{ x }}{{ n.y }}{% for m in messages %}{% generation %}{{ loop.index }}{{ m.content }}"
        "{% endgeneration %}{% endfor %}"
    )
    assert text(replace(form, template=template), [Message("user", "u")]) == "2121u"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ additional_special_tokens[0] }}", "not every runtime"),
        ("{% if sep_token is defined %}x{% endif %}", "not every runtime"),
        ("{% generation %}x", "endgeneration"),
        ("{% break %}", "cannot be rendered"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion"),
        ("{{ strftime_now(3) }}", "cannot be rendered"),
        ("{{ undefined_thing.x }}", "undefined"),
        ("{{ raise_exception('no ' ~ messages[0].content) }}", "no hi"),
    ],
)
def test_what_cannot_be_offered_is_refused_by_name(template: str, said: str, form: ChatFormat) -> None:
    with pytest.raises(AssayError, match="template") as refusal:
        render(replace(form, template=template), [Message("user", "hi")])
    assert said in str(refusal.value)


def test_turns_that_do_not_alternate_are_the_templates_to_refuse(form: ChatFormat) -> None:
    with pytest.raises(AssayError, match="turns must alternate"):
        render(replace(form, template=GEMMA), [Message("user", "a"), Message("user", "b")])


def test_a_macro_is_no_way_round(form: ChatFormat) -> None:
    template = MACRO.replace("| trim", "| trim | upper")
    with pytest.raises(AssayError, match="changes the text"):
        render(replace(form, template=template), [Message("user", "hi")])


def test_a_switch_is_taken_out_of_the_systems_words_as_transformers_does(form: ChatFormat) -> None:
    written = text(replace(form, template=SMOL), messages("a switch"))
    assert "Mode: /no_think\nBe short.\n<|im_end|>" in written
    assert "Today: 02 March 2025" in written
