"""From what was found on the walk to rows: task scores beside comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contract.runtime import Completion
from evalsuite.identity import stored_otherwise
from evalsuite.judged import difference_of_rouge, difference_of_shares, interval_of_share
from evalsuite.results import Comparison, Interval, Prediction, Purpose, Row, Speed
from evalsuite.scorer import Scored, TaskScorer
from evalsuite.visit import Visit, noise_of, served_path_of

_MOST_POSITIONS = 2_000


def score_visit(visit: Visit, scorer: TaskScorer) -> Scored:
    """The summaries of a visit that has some."""
    assert visit.completions is not None
    return scorer.score(
        [completion.text for completion in visit.completions],
        [completion.stop for completion in visit.completions],
        [len(completion.ids) for completion in visit.completions],
        visit.targets.documents,
    )


def row_of(visit: Visit, scored: Mapping[str, Scored], speed: Speed | None) -> Row:
    """The row of a visit; `scored` holds what was scored of every visit that has summaries, by its key."""
    node, artifact = visit.node, visit.node.artifact
    comparisons = []
    above = visit.above
    if above is not None and node.purpose is not None:
        comparisons.append(_comparison(visit, visit, above, node.purpose, scored))
        if not above.node.is_row and above.above is not None:  # an adapter on other weights than its own
            comparisons.append(_comparison(visit, above, above.above, "base_change", scored))
    return Row(
        label=node.label,
        role=node.role,
        kind=artifact.kind,
        name=artifact.name,
        digest=artifact.digest,
        path=str(artifact.path.absolute()),
        foreign=artifact.foreign,
        engine=visit.engine,
        quant=node.quant,
        size_bytes=artifact.size_bytes,
        bits_per_weight=node.bits_per_weight,
        task=scored[visit.key].task,
        comparisons=tuple(comparisons),
        speed=speed,
        lost=node.lost,
        stored=stored_otherwise(artifact),
    )


def _comparison(
    ours: Visit, measured: Visit, reference: Visit, purpose: Purpose, scored: Mapping[str, Scored]
) -> Comparison:
    """Of `measured`'s logits and `ours`' summaries with those of `reference`."""
    interface = ours.found.interface
    rouge_l: Interval | None = None
    eos: Interval | None = None
    same: float | None = None
    same_ids: Interval | None = None
    first: tuple[int, ...] = ()
    if reference.completions is not None and ours.completions is not None:
        predictions, others = scored[ours.key].predictions, scored[reference.key].predictions
        rouge_l = difference_of_rouge([p.rouge_l for p in predictions], [p.rouge_l for p in others])
        eos = difference_of_shares(_ended(predictions), _ended(others))
        same = sum(a.prediction == b.prediction for a, b in zip(predictions, others, strict=True)) / len(predictions)
        first = tuple(map(_first_divergence, ours.completions, reference.completions))
        same_ids = interval_of_share([at < 0 for at in first])
    return Comparison(
        purpose=purpose,
        reference_label=reference.node.label,
        reference_digest=reference.node.artifact.digest,
        distances=measured.found.distances,
        prompts=interface.prompts,
        prompt_ids_differ=interface.prompt_ids_differ,
        prompt_difference=interface.prompt_difference,
        double_bos=interface.double_bos,
        stop_ids_missing=interface.stop_ids_missing,
        stop_ids_extra=interface.stop_ids_extra,
        stop_ids_extra_used=interface.stop_ids_extra_used,
        rouge_l_difference=rouge_l,
        eos_rate_difference=eos,
        same_text=same,
        same_ids=same_ids,
        first_divergence=first[:_MOST_POSITIONS],
        not_finite_tokens=measured.found.not_finite_tokens,
        vocabulary=measured.found.vocabulary,
        noise=noise_of(measured) if purpose == "merge_fidelity" else (),
        served_path=served_path_of(ours) if purpose == "quantization" else None,
    )


def _ended(predictions: Sequence[Prediction]) -> list[bool]:
    return [prediction.stop == "eos" for prediction in predictions]


def _first_divergence(ours: Completion, theirs: Completion) -> int:
    """The first token that differs, or where one answer ends before the other; -1 where they are the same."""
    both = zip(ours.ids, theirs.ids, strict=False)
    shorter = min(len(ours.ids), len(theirs.ids))
    at = next((index for index, (a, b) in enumerate(both) if a != b), shorter)
    same = at == len(ours.ids) == len(theirs.ids) and ours.stop == theirs.stop
    return -1 if same else at
