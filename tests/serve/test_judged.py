"""What was asked for in the judged way, and what was not: every difference that could change a text."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from contract.errors import AssayError
from contract.prompt import Message, PromptSpec
from contract.runtime import GenerateParams
from serve.blank import refuse_blank
from serve.judged import as_judged, asks_as_judged, mark_of

DOCUMENT = "Mara: Is room 418 free?\nOlin: No, take 527."
SPECS = [
    PromptSpec(),
    PromptSpec(user="{document}"),
    PromptSpec(user="Sum up: {document}", system="Be brief."),
    PromptSpec(user="  Document:\n{document}\n\nSummary in {language}:\n", language="German", system="In {language}."),
    PromptSpec(user="{document} {document}"),
    PromptSpec(user="no place for it"),
]
OWN = GenerateParams(40)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("document", [DOCUMENT, "x", "{document}", "Sum up: Sum up: x", " x ", "Summary in German:"])
def test_the_recorded_prompt_around_any_document_is_recognized(spec: PromptSpec, document: str) -> None:
    messages = spec.messages(document)
    assert asks_as_judged(messages, spec)
    assert asks_as_judged([Message(turn.role, turn.content.strip()) for turn in messages], spec)


@pytest.mark.parametrize("spec", SPECS)
def test_any_other_turn_or_word_is_another_prompt(spec: PromptSpec) -> None:
    turns = spec.messages(DOCUMENT)
    user = turns[-1]
    others = [
        [],
        [*turns, user],
        [user, *turns],
        [*turns, Message("assistant", "Yes.")],
        [*turns[:-1], Message("assistant", user.content)],
        [*turns[:-1], Message("system", user.content)],
    ]
    if spec.system:
        others += [turns[1:], [Message("system", "Be verbose."), user], [Message("user", turns[0].content), user]]
    else:
        others += [[Message("system", "You are helpful."), user]]
    if spec.user != "{document}":
        others += [[*turns[:-1], Message("user", DOCUMENT)]]
        if not spec.user.startswith("{document}"):
            others += [[*turns[:-1], Message("user", f"Please. {user.content.strip()}")]]
            others += [[*turns[:-1], Message("user", user.content.replace(DOCUMENT, " \n"))]]  # nothing to sum up
    assert [messages for messages in others if asks_as_judged(messages, spec)] == []


def test_words_before_and_behind_do_not_overlap() -> None:
    spec = PromptSpec(user="aba{document}aba")
    for said, judged in (("aba", False), ("ababa", False), ("abaaba", False), ("abaxaba", True)):
        assert asks_as_judged([Message("user", said)], spec) == judged, said


OTHER: dict[str, Any] = {
    "max_new_tokens": 41,
    "temperature": 0.1,
    "ignore_stop": True,
    "stop": ("\n",),
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "min_new_tokens": 5,
}


def test_any_other_setting_is_another_way_to_write() -> None:
    spec = SPECS[2]
    messages = spec.messages(DOCUMENT)
    assert as_judged(messages, OWN, spec, OWN)
    assert set(OTHER) | {"seed", "top_p"} == {field.name for field in fields(GenerateParams)}  # none is forgotten
    for name, value in OTHER.items():
        assert not as_judged(messages, replace(OWN, **{name: value}), spec, OWN), name
        own = replace(OWN, **{name: value})
        assert as_judged(messages, own, spec, own)
        assert not as_judged(messages, OWN, spec, own)


def test_a_seed_changes_nothing_that_is_greedy_and_everything_that_is_sampled() -> None:
    spec = SPECS[0]
    messages = spec.messages(DOCUMENT)
    assert as_judged(messages, replace(OWN, seed=7, top_p=0.5), spec, OWN)
    sampled = replace(OWN, temperature=0.7)
    assert not as_judged(messages, replace(sampled, seed=7), spec, sampled)
    assert not as_judged(messages, replace(sampled, top_p=0.5), spec, sampled)


def test_the_mark() -> None:
    said = {(proven, judged): mark_of(proven=proven, judged=judged) for proven in (0, 1) for judged in (0, 1)}
    assert said == {(0, 0): "false", (0, 1): "false", (1, 0): "not-judged", (1, 1): "true"}


@pytest.mark.parametrize("text", ["", " ", "\n\t\r ", "\u3000\u2003", "\u200b\u200d", "\ufeff \u00ad\u2060\u202e"])
def test_what_a_reader_would_not_see_is_no_document(text: str) -> None:
    with pytest.raises(AssayError, match="the document is empty"):
        refuse_blank(text)


@pytest.mark.parametrize("text", ["x", " .", "\u200bx", "字", "\U0001f9d1\u200d\U0001f680", "\x00", "\u0301"])
def test_anything_else_is(text: str) -> None:
    refuse_blank(text)
