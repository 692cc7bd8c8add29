"""The gate's word on what an endpoint reports of itself: which artifact it serves, and how long its prompts were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from contract.verdict import Reason
from evalsuite.results import Comparison, Served

if TYPE_CHECKING:
    from contract.limits import ServedLimits


def told_counts(comparison: Comparison, served: Served, limits: ServedLimits) -> Iterator[Reason]:
    """Exact figures, so no interval. What was not reported is inconclusive, never a pass."""
    other = comparison.reference_label
    if served.digest is not None:
        same = served.digest == comparison.reference_digest
        said = f"that of {other}" if same else f"not that of {other}: another file, or the same under another name"
        text = f"it says it serves digest {served.digest[:12]}, which is {said}"
        yield Reason("served_digest_differs", "pass" if same else "inconclusive", text)
    yield _exact(
        "served_prompt_tokens_differ", comparison.prompt_ids_differ, "prompts", _prompts(comparison, served), comparison
    )
    text = f"{served.truncated} documents were cut before the model saw them"
    if served.truncated:
        text += f" ({served.truncation}): raise the server's context (num_ctx in Ollama, -c in llama-server)"
    yield _exact("served_truncated", served.truncated, "documents", text, comparison)
    yield from _control_text(served, limits)


def _exact(code: str, found: int, unit: str, text: str, comparison: Comparison) -> Reason:
    """Nothing may be found, and all must have been reported."""
    silent = comparison.served.counts_unreported if comparison.served else 0
    told = comparison.prompts - silent
    if silent and not found:
        text = f"token counts were not reported for {silent} of {comparison.prompts} prompts (usage.prompt_tokens)"
        return Reason(code, "inconclusive", text, silent, 0, "prompts", told)
    return Reason(code, "fail" if found else "pass", text, found, 0, unit, told)


def _prompts(comparison: Comparison, served: Served) -> str:
    differ, offset = comparison.prompt_ids_differ, served.offset
    if not differ:
        return f"no prompt has another number of tokens than with {comparison.reference_label}"
    if not offset:
        return f"{differ} prompts have other token counts ({comparison.prompt_difference}): another tokenizer"
    cause = {
        1: "BOS twice (the template writes it and the server adds it), or a template of one token more",
        -1: "BOS missing, or a template of one token less",
    }.get(offset, "another template or system turn" if offset > 0 else "another template, or cached tokens left out")
    return f"{differ} prompts differ, most by {offset:+d} ({comparison.prompt_difference}): {cause}"


def _control_text(served: Served, limits: ServedLimits) -> Iterator[Reason]:
    more = served.control_text_tokens
    if more is None:
        if not limits.allow_control_text:
            yield Reason("served_control_text", "inconclusive", "whether text becomes control tokens was not reported")
    elif more == 0:
        yield Reason("served_control_text", "pass", "text that looks like control tokens stays text", 0, 0, "tokens")
    else:
        yield Reason(
            "served_control_text",
            "pass" if limits.allow_control_text else "fail",
            f"text that looks like control tokens becomes some ({more:+d} tokens): a document can end its own turn",
            more,
            None,
            "tokens",
        )
