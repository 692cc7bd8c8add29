"""What an endpoint serves beside the local artifact it claims to be: texts, stops and token counts, as a row.

Of a prompt an endpoint tells only how many tokens it had: enough to see a template that differs, BOS twice, or a
context that cuts long documents off.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from contract.artifact import Artifact
from contract.artifact_prompt import recorded_prompt
from contract.errors import AssayError, listed
from evalsuite.cache import Cache
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.judged import difference_of_rouge, difference_of_shares, interval_of_share
from evalsuite.results import Comparison, Prediction, Row, Served, Stop
from evalsuite.scorer import Scored, TaskScorer
from evalsuite.served.ask import ask
from evalsuite.served.endpoint import Answer, Endpoint
from evalsuite.served.prompt_counts import prompt_counts
from evalsuite.walk import Visit

_STOPS: dict[str | None, Stop] = {"stop": "eos", "length": "length"}
_EXCERPT = 30  # characters


@dataclass(frozen=True)
class Local:
    """The artifact that is said to be served: how long its prompts are (documents, then hard texts), its summaries."""

    label: str
    digest: str
    prompt_tokens: Sequence[int]
    predictions: Sequence[Prediction]


def claimed(endpoint: Endpoint, artifacts: Sequence[Artifact], reference: Artifact | None) -> Artifact:
    """The local artifact that the endpoint claims to be: of the digest it reports, else the only one, else reference.

    Raises:
        AssayError: it cannot be told.
    """
    by_digest = {artifact.digest: artifact for artifact in (*artifacts, reference) if artifact is not None}
    if endpoint.digest in by_digest:
        return by_digest[endpoint.digest]
    if len(artifacts) == 1:
        return artifacts[0]
    if reference is not None:
        return reference
    raise AssayError(
        "which of the local artifacts is served?",
        where=endpoint.url,
        expected="one local artifact, or one whose digest the endpoint reports",
        got=listed(str(artifact.path) for artifact in artifacts),
        hint="--reference ARTIFACT",
    )


def endpoint_digest(endpoint: Endpoint) -> str:
    """What an endpoint is known by: its address and the model's name, for it has no files."""
    return hashlib.sha256(f"{endpoint.url} {endpoint.model}".encode()).hexdigest()


def score_endpoint(
    endpoint: Endpoint,
    visit: Visit,
    summaries: Sequence[Prediction],
    scorer: TaskScorer,
    max_new_tokens: int,
    cache: Cache,
) -> tuple[Row, Scored]:
    """Ask the endpoint for what the local artifact was asked for; its row, and its summaries with their scores.

    Args:
        endpoint: from `connect`.
        visit: of the local artifact.
        summaries: the local artifact's.
        scorer: of the same examples.
        max_new_tokens: per summary.
        cache: keeps the answers, as ANSWERS.

    Raises:
        AssayError: the endpoint fails.
    """
    artifact, documents = visit.node.artifact, visit.targets.documents
    answers = ask(endpoint, recorded_prompt(artifact) or visit.targets.spec, documents, max_new_tokens, cache)
    told = answers[: len(documents)]
    scored = scorer.score(
        [answer.text for answer in told],
        [_STOPS.get(answer.finish_reason, "unknown") for answer in told],
        [answer.completion_tokens for answer in told],
        documents,
    )
    local = Local(
        visit.node.label,
        artifact.digest,
        [len(ids) for ids in visit.prompts[: len(visit.targets.documents) + len(HARD_TEXTS)]],
        summaries,
    )
    row = Row(
        label="served" if local.label != "served" else "served-2",
        role="candidate",
        kind="endpoint",
        name=endpoint.model,
        digest=endpoint_digest(endpoint),
        path=endpoint.url,
        foreign=True,
        engine=endpoint.engine,
        quant=None,
        size_bytes=0,
        bits_per_weight=None,
        task=scored.task,
        comparisons=(compare(local, scored.predictions, answers, endpoint.digest),),
        speed=None,
    )
    return row, scored


def compare(
    local: Local, predictions: Sequence[Prediction], answers: Sequence[Answer], digest: str | None
) -> Comparison:
    """What came back against the local artifact's own prompts and summaries; `digest` is what the endpoint reports."""
    both = list(zip(predictions, local.predictions, strict=True))
    parted = [(ours, theirs) for ours, theirs in both if ours.prediction != theirs.prediction]
    positions = [_parting(ours.prediction, theirs.prediction) for ours, theirs in parted]
    same_text = interval_of_share([ours.prediction == theirs.prediction for ours, theirs in both])
    unreported = sum(answer.finish_reason is None for answer in answers[: len(both)])
    ended, theirs_ended = ([p.stop == "eos" for p in side] for side in (predictions, local.predictions))
    counts = prompt_counts(
        local.prompt_tokens, [answer.prompt_tokens for answer in answers], [p.id for p in predictions]
    )
    return Comparison(
        purpose="serving",
        reference_label=local.label,
        reference_digest=local.digest,
        distances=(),
        prompts=len(answers),
        prompt_ids_differ=counts.differ,
        prompt_difference=counts.difference,
        double_bos=0,
        stop_ids_missing=(),
        stop_ids_extra=(),
        stop_ids_extra_used=0,
        rouge_l_difference=difference_of_rouge([a.rouge_l for a, _ in both], [b.rouge_l for _, b in both]),
        eos_rate_difference=None if unreported else difference_of_shares(ended, theirs_ended),
        same_text=same_text.mean,
        same_ids=None,
        first_divergence=(),
        served=Served(
            digest=digest,
            same_text=same_text,
            text_difference=_difference(*parted[0]) if parted else None,
            divergence_characters=statistics.median(at for at, _ in positions) if parted else None,
            divergence_words=statistics.median(word for _, word in positions) if parted else None,
            same_stop=None if unreported else interval_of_share([a.stop == b.stop for a, b in both]),
            stops_unreported=unreported,
            counts_unreported=counts.unreported,
            offset=counts.offset,
            truncated=counts.truncated,
            truncation=counts.truncation,
            control_text_tokens=counts.control_text,
            completion_tokens_differ=_completion_tokens_differ(both),
        ),
    )


def _parting(ours: str, theirs: str) -> tuple[int, int]:
    """How many characters, and how many whole words, two texts have in common before they part."""
    return _common(ours, theirs), _common(ours.split(), theirs.split())


def _common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    both = enumerate(zip(ours, theirs, strict=False))
    return next((index for index, (a, b) in both if a != b), min(len(ours), len(theirs)))


def _difference(ours: Prediction, theirs: Prediction) -> str:
    at, word = _parting(ours.prediction, theirs.prediction)
    said, wanted = (text.prediction[at : at + _EXCERPT] for text in (ours, theirs))
    return f"document {ours.id}, at character {at + 1} (word {word + 1}): {said!r} instead of {wanted!r}"


def _completion_tokens_differ(both: Sequence[tuple[Prediction, Prediction]]) -> int | None:
    """Documents of the same text with another count; some servers count the token that ends the text, some do not."""
    differ = told = 0
    for ours, theirs in both:
        if ours.tokens is not None and theirs.tokens is not None and ours.prediction == theirs.prediction:
            told += 1
            differ += ours.tokens - theirs.tokens not in ((0, 1) if theirs.stop == "eos" else (0,))
    return differ if told else None
