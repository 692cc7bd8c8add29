"""What token counts tell: another template, documents cut off, look-alikes of control tokens, another tokenizer."""

from __future__ import annotations

from evalsuite.hard_texts import CONTROL_TEXT, HARD_TEXTS
from evalsuite.served.prompt_counts import prompt_counts

DOCUMENTS = (120, 700, 90, 2100, 260)
IDS = [f"d{n}" for n in range(len(DOCUMENTS))]
LOCAL = (*DOCUMENTS, *(20 + n for n in range(len(HARD_TEXTS))))
CONTROL = len(DOCUMENTS) + HARD_TEXTS.index(CONTROL_TEXT)


def test_equal_counts() -> None:
    found = prompt_counts(LOCAL, LOCAL, IDS)
    assert (found.differ, found.truncated, found.offset, found.control_text, found.unreported) == (0, 0, 0, 0, 0)
    assert found.difference is None
    assert found.truncation is None


def test_one_token_more_everywhere() -> None:
    found = prompt_counts(LOCAL, [count + 1 for count in LOCAL], IDS)
    assert (found.differ, found.truncated, found.offset, found.control_text) == (
        len(LOCAL),
        0,
        1,
        0,
    )
    assert found.difference == "document d0 has 121 tokens, not 120"


def test_a_capped_context() -> None:
    for cap, cut in ((512, 2), (64, 5)):
        found = prompt_counts(LOCAL, [min(count, cap) for count in LOCAL], IDS)
        assert (found.truncated, found.differ, found.offset) == (cut, 0, 0)
        assert found.truncation == f"document d3 has {cap} tokens of 2100"


def test_a_capped_context_and_double_bos() -> None:
    found = prompt_counts(LOCAL, [min(count + 1, 512) for count in LOCAL], IDS)
    assert (found.truncated, found.offset) == (2, 1)
    assert found.differ == len(LOCAL) - 2


def test_half_the_context_thrown_away() -> None:
    told = [count if count < 512 else 512 - (count % 200) for count in LOCAL]
    assert prompt_counts(LOCAL, told, IDS).truncated == 2


def test_look_alikes_that_become_control_tokens_are_told_apart() -> None:
    told = [count - 9 if index == CONTROL else count for index, count in enumerate(LOCAL)]
    found = prompt_counts(LOCAL, told, IDS)
    assert (found.control_text, found.differ) == (-9, 0)
    told = [count + 9 if index == CONTROL else count for index, count in enumerate(LOCAL)]
    assert prompt_counts(LOCAL, told, IDS).differ == 1, "more tokens are not what that does"


def test_another_tokenizer_is_not_taken_for_a_cut() -> None:
    told = [count + (index * 7) % 5 - 2 for index, count in enumerate(LOCAL)]
    found = prompt_counts(LOCAL, told, IDS)
    assert (found.truncated, found.offset, found.control_text) == (0, 0, None)
    assert found.differ == sum(a != b for a, b in zip(LOCAL, told, strict=True))


def test_what_is_not_told_is_counted() -> None:
    told: list[int | None] = list(LOCAL)
    told[0] = told[-1] = None
    found = prompt_counts(LOCAL, told, IDS)
    assert (found.unreported, found.differ) == (2, 0)
    silent = prompt_counts(LOCAL, [None] * len(LOCAL), IDS)
    assert (silent.unreported, silent.control_text, silent.truncated) == (len(LOCAL), None, 0)
