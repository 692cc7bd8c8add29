"""From what was found on the walk to rows: task scores, comparisons, predictions."""

from __future__ import annotations

from collections.abc import Sequence

from contract.example import Example
from contract.runtime import Completion
from evalsuite.facts import facts_right, facts_right_shuffled
from evalsuite.results import Baseline, Comparison, Interval, Prediction, Purpose, Row, Speed, Task
from evalsuite.stats import interval_of_mean, paired_difference
from evalsuite.text import METRICS, lead_3, rouge
from evalsuite.walk import Visit, noise_of


def predictions_of(visit: Visit, examples: Sequence[Example]) -> list[Prediction]:
    """One per example; empty where the node generated nothing."""
    found = []
    for example, document, completion in zip(examples, visit.targets.documents, visit.completions or (), strict=False):
        text = completion.text.strip()
        found.append(
            Prediction(
                example.id,
                document,
                example.references,
                text,
                completion.stop,
                len(completion.ids),
                rouge(example.references, text)["rougeL"],
            )
        )
    return found


def task_of(examples: Sequence[Example], texts: Sequence[str], completions: Sequence[Completion] | None) -> Task:
    """Scores of one text per example; `completions` is None for texts no model wrote."""
    scores = [rouge(example.references, text) for example, text in zip(examples, texts, strict=True)]
    intervals = {metric: interval_of_mean([score[metric] for score in scores]) for metric in METRICS}
    references = [example.references for example in examples]
    documents = [example.document for example in examples]
    right = facts_right(references, documents, texts)
    return Task(
        rouge1=intervals["rouge1"],
        rouge2=intervals["rouge2"],
        rougeL=intervals["rougeL"],
        rougeLsum=intervals["rougeLsum"],
        facts_right=right.share,
        facts_right_shuffled=facts_right_shuffled(references, documents, texts).share if len(texts) > 1 else None,
        facts=right.facts,
        eos_rate=None if completions is None else sum(c.stop == "eos" for c in completions) / len(completions),
        tokens_mean=None if completions is None else sum(len(c.ids) for c in completions) / len(completions),
    )


def baselines_of(examples: Sequence[Example]) -> tuple[Baseline, ...]:
    """What the first three sentences of the document score."""
    return (Baseline("lead-3", task_of(examples, [lead_3(example.document) for example in examples], None)),)


def row_of(
    visit: Visit,
    predictions: Sequence[Prediction],
    found: dict[str, Sequence[Prediction]],
    examples: Sequence[Example],
    speed: Speed | None,
) -> Row:
    """The row of a visit; `found` holds every row's predictions by label."""
    node = visit.node
    comparisons = []
    if visit.above is not None and node.purpose is not None:
        between = not visit.above.node.is_row
        # an adapter on other weights than its own has summaries only where something is compared with them
        others = (
            None
            if visit.above.completions is None
            else (predictions_of(visit.above, examples) if between else found[visit.above.node.label])
        )
        comparisons.append(_comparison(visit, visit, visit.above, node.purpose, predictions, others))
        if between and visit.above.above is not None:
            root = visit.above.above
            comparisons.append(
                _comparison(visit, visit.above, root, "base_change", predictions, found[root.node.label])
            )
    artifact = node.artifact
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
        task=task_of(examples, [prediction.prediction for prediction in predictions], visit.completions),
        comparisons=tuple(comparisons),
        speed=speed,
    )


def _comparison(
    ours: Visit,
    measured: Visit,
    reference: Visit,
    purpose: Purpose,
    predictions: Sequence[Prediction],
    others: Sequence[Prediction] | None,
) -> Comparison:
    interface = ours.interface
    rouge_l: Interval | None = None
    eos: Interval | None = None
    same: float | None = None
    if others:
        rouge_l = paired_difference([p.rouge_l for p in predictions], [p.rouge_l for p in others])
        eos = paired_difference([float(p.stop == "eos") for p in predictions], [float(p.stop == "eos") for p in others])
        same = sum(a.prediction == b.prediction for a, b in zip(predictions, others, strict=True)) / len(predictions)
    return Comparison(
        purpose=purpose,
        reference_label=reference.node.label,
        reference_digest=reference.node.artifact.digest,
        distances=measured.distances,
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
        not_finite_tokens=measured.not_finite_tokens,
        vocabulary=measured.vocabulary,
        noise=noise_of(measured) if purpose == "merge_fidelity" else (),
    )
