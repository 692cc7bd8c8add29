"""How many tokens an endpoint says its prompts had, against the local ones: another template, or documents cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evalsuite.hard_texts import CONTROL_TEXT, HARD_TEXTS

# Fewer tokens mean a document cut off only where texts too short to be cut show that the tokenizers agree: this share
# of the hard texts has one and the same offset.
_CONSISTENT = 0.75


@dataclass(frozen=True)
class PromptCounts:
    """What the counts tell; the fields are those of `Served` and `Comparison`."""

    unreported: int
    offset: int
    differ: int
    difference: str | None
    truncated: int
    truncation: str | None
    control_text: int | None


def prompt_counts(local: Sequence[int], told: Sequence[int | None], ids: Sequence[str]) -> PromptCounts:
    """Compare counts of the documents' prompts, then the hard texts'.

    A context that is too small caps counts: a document was cut if it has fewer tokens than its offset explains, and
    whole it would have had more than any prompt has. The text of control-token look-alikes is told apart, for most
    servers let user text become control tokens.

    Args:
        local: tokens per prompt by the local artifact, documents first, then HARD_TEXTS.
        told: the same by the endpoint; None where it did not say.
        ids: the documents' ids.
    """
    names = [f"document {name}" for name in ids] + [f"the hard text {text[:24]!r}" for text in HARD_TEXTS]
    deltas = [None if theirs is None else theirs - ours for ours, theirs in zip(local, told, strict=True)]
    control = len(ids) + HARD_TEXTS.index(CONTROL_TEXT)
    plain = [d for i, d in enumerate(deltas) if i >= len(ids) and i != control and d is not None]
    offset, consistent = _offset(plain or [d for d in deltas[: len(ids)] if d is not None])
    most = max((count for count in told if count is not None), default=0)
    cut: list[tuple[int, int, int]] = []  # tokens lost, tokens told, document
    differ: list[int] = []
    for index, (ours, theirs) in enumerate(zip(local, told, strict=True)):
        if theirs is None:
            continue
        lost = ours + offset - theirs
        if index == control and lost > 0:
            continue
        if index < len(ids) and consistent and lost > 0 and ours + offset > most:
            cut.append((lost, theirs, index))
        elif theirs != ours:
            differ.append(index)
    control_delta = deltas[control]
    return PromptCounts(
        unreported=sum(delta is None for delta in deltas),
        offset=offset,
        differ=len(differ),
        difference=f"{names[differ[0]]} has {told[differ[0]]} tokens, not {local[differ[0]]}" if differ else None,
        truncated=len(cut),
        truncation=_worst(cut, names),
        control_text=control_delta - offset if control_delta is not None and consistent else None,
    )


def _offset(deltas: Sequence[int]) -> tuple[int, bool]:
    """The most frequent one, and whether it is that of nearly all."""
    if not deltas:
        return 0, False
    offset, count = min(Counter(deltas).items(), key=lambda item: (-item[1], abs(item[0])))
    consistent = count >= _CONSISTENT * len(deltas)
    return (offset, True) if consistent else (0, False)


def _worst(cut: Sequence[tuple[int, int, int]], names: Sequence[str]) -> str | None:
    if not cut:
        return None
    lost, theirs, index = max(cut)
    return f"{names[index]} has {theirs} tokens of {theirs + lost}"
