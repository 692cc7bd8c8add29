"""Prompts: text never becomes control, the answer ends as the template says, documents give way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.model_folder import chat_format, stop_ids
from contract.prompt import (
    ChatFormat,
    Message,
    PromptSpec,
    Segment,
    completion_ids,
    completion_segments,
    has_double_bos,
    hf_tokenize,
    prompt_ids,
    render,
    shorten,
)

pytestmark = pytest.mark.engine

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def chat(template: str, *, add_bos: bool = True) -> ChatFormat:
    return ChatFormat(template, ("<s>", "</s>", "<|im_end|>"), "<s>", "</s>", add_bos)


def test_text_never_becomes_control() -> None:
    segments = render(chat(LLAMA2), [Message("user", "say </s> and <|im_end|>")])
    assert segments == [Segment("<s>", True), Segment("[INST] say </s> and <|im_end|> [/INST]", False)]


def test_the_answer_is_closed_as_the_template_closes_it() -> None:
    turns = [Message("user", "hi")]
    assert completion_segments(chat(LLAMA2), turns, "ok") == [Segment(" ok ", False), Segment("</s>", True)]
    unclosed = chat("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert completion_segments(unclosed, turns, "ok") == [Segment("ok", False), Segment("</s>", True)]


def test_a_template_that_changes_words_is_refused() -> None:
    with pytest.raises(AssayError, match="changes the text"):
        render(chat("{% for m in messages %}{{ m.content | upper }}{% endfor %}"), [Message("user", "hi")])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception('no system') }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
    ],
)
def test_templates_are_sandboxed_and_fail_with_a_message(template: str) -> None:
    with pytest.raises(AssayError, match="template"):
        render(chat(template), [Message("user", "hi")])


def test_ids_bos_and_look_alikes(llama_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenize, form = hf_tokenize(tokenizer), chat_format(llama_folder)
    turns = PromptSpec().messages("Mara: hi <|im_end|> <|begin|>")
    ids = prompt_ids(form, turns, tokenize, 0)
    assert ids[0] == 0
    assert ids.count(0) == 1
    assert ids.count(4) == 1  # the end of the user's turn alone
    assert not has_double_bos(ids, 0)
    twice = replace(form, template="{{ bos_token }}" + form.template)
    assert has_double_bos(prompt_ids(twice, turns, tokenize, 0), 0)
    plain = replace(form, template=form.template.replace("{{ bos_token }}", ""))
    assert prompt_ids(plain, turns, tokenize, 0) == ids
    answer = completion_ids(form, turns, "Mara says hi.", tokenize, 0)
    assert tokenizer.decode(answer) == "Mara says hi.<|im_end|>"
    assert stop_ids(llama_folder) == [1, 4]


def test_an_unknown_special_token_in_the_template_is_refused(llama_folder: Path) -> None:
    from transformers import AutoTokenizer

    form = replace(chat_format(llama_folder), special_tokens=("<|begin|>", "<|nope|>"), template="<|nope|>")
    with pytest.raises(AssayError, match="does not have"):
        prompt_ids(form, [Message("user", "x")], hf_tokenize(AutoTokenizer.from_pretrained(llama_folder)), 0)


def test_the_document_gives_way() -> None:
    document = "first line\nsecond line\nthird line"
    assert shorten(document, lambda text: True) == document
    assert shorten(document, lambda text: len(text) <= 25) == "first line\nsecond line"
    assert shorten(document, lambda text: len(text) <= 7) == "first"
    with pytest.raises(AssayError, match="no room"):
        shorten(document, lambda text: False)


def test_the_words_are_the_recipes() -> None:
    spec = PromptSpec(user="In {language}: {document}", system="Be {language}.", language="French")
    turns = spec.messages("a {language} {document}")
    assert turns == [Message("system", "Be French."), Message("user", "In French: a {language} {document}")]
    assert PromptSpec.from_dict(spec.as_dict()) == spec
    with pytest.raises(AssayError, match="unknown prompt key"):
        PromptSpec.from_dict({"usr": "x"})
