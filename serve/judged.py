"""Is a text asked for in the way that was judged: in the recorded words, written by the artifact's own settings?

A verdict is about texts that the artifact wrote one way: greedily, or with its beams and penalties, up to its own
length, behind the prompt it was trained with. Of anything else (sampling, another prompt, another limit, stop strings)
nothing was measured, so nothing is claimed. What is compared is what the engine is about to do, not the request's
fields, so a field that somebody adds to the interface cannot slip by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from contract.prompt import Message, PromptSpec
from contract.runtime import GenerateParams

Mark = Literal["true", "false", "not-judged"]
PROVEN_HEADER = "x-assay-proven"
_STAND_IN = "\uf8f0\uf8f0"  # two characters that no prompt can hold (contract/prompt.py refuses them)


def mark_of(*, proven: bool, judged: bool) -> Mark:
    """The header's value.

    Args:
        proven: has the artifact a passing verdict?
        judged: is there a text in the response that was made in the judged way?
    """
    if not proven:
        return "false"
    return "true" if judged else "not-judged"


def as_judged(messages: Sequence[Message], params: GenerateParams, spec: PromptSpec, own: GenerateParams) -> bool:
    """Will this be written as the judged texts were?

    Args:
        messages: the turns.
        params: how the answer will be written, `max_new_tokens` among it.
        spec: the words the artifact was made for.
        own: how its summaries are written, and were judged.
    """
    return _writes(params) == _writes(own) and asks_as_judged(messages, spec)


def asks_as_judged(messages: Sequence[Message], spec: PromptSpec) -> bool:
    """Are these turns the recorded prompt's around some document, and nothing else?

    Surrounding white space does not count: every runtime takes it away from each turn.
    """
    turns = spec.messages(_STAND_IN)
    if len(turns) != len(messages):
        return False
    at = next(index for index, turn in enumerate(turns) if _STAND_IN in turn.content)
    before, _, after = turns[at].content.partition(_STAND_IN)
    before, after, said = before.lstrip(), after.rstrip(), messages[at].content.strip()
    if not said.startswith(before) or not said.endswith(after):
        return False
    document = said[len(before) : len(said) - len(after)]
    return bool(document.strip()) and _stripped(spec.messages(document)) == _stripped(messages)


def _writes(params: GenerateParams) -> GenerateParams:
    """The same without what changes nothing: greedy decoding and beams ask neither the seed nor top_p."""
    return params if params.temperature else replace(params, seed=0, top_p=1.0)


def _stripped(messages: Sequence[Message]) -> list[Message]:
    return [Message(message.role, message.content.strip()) for message in messages]
