"""The gate: from scores and limits to verdicts. A pure function; nothing is read, run or written here.

Figures with an interval are judged by all of it: pass if the whole 95% interval (evalsuite/judged.py) is within the
limit, fail if all of it is beyond, otherwise inconclusive. Ruined documents, which a mean hides, are counted
(evalsuite/ruined.py). Task scores are judged by non-inferiority. Merge fidelity is arithmetic, not sampling, and is
judged by its mean. Fewer than 20 documents never pass, and what was compared with an artifact that did not pass does
not pass either. What was not measured has not passed.

Reason codes (stable): prompt_ids_differ, double_bos, stop_ids_differ, not_finite, vocabulary_differs, merge_kl_gold,
merge_kl_greedy, merge_ruined_documents, base_change_kl_gold, base_change_kl_greedy, base_change_top1_gold,
base_change_top1_greedy, base_change_ruined_documents, base_change_rouge_l_loss, kl_mean_gold, kl_mean_greedy,
top1_gold, top1_greedy, ruined_documents, perplexity_ratio, rouge_l_loss, eos_rate_loss, served_path,
too_few_documents, documents_too_long, no_limits, not_measured, no_reference, lineage_not_found, reference_not_passed;
of an endpoint served_digest_differs,
served_prompt_tokens_differ, served_truncated, served_control_text, served_text_differs, served_stop_differs,
served_rouge_l_loss; of what has no figures at all not_loadable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from contract.sample_size import FEWEST_DOCUMENTS
from contract.shares import documents_for_share
from contract.verdict import Above, Outcome, Reason, Verdict, worst
from evalsuite.results import Comparison, DataInfo, Distance, Interval, Results, Row, Unloadable
from evalsuite.ruined import ruined_documents
from evalsuite.served.gate import told_counts
from evalsuite.served_path import KL_FLOOR_NATS, SERVED_KINDS, differs
from evalsuite.stats import at_least, at_most, documents_needed, non_inferior

if TYPE_CHECKING:
    from contract.limits import GatePart


# Rounding costs one document thousands of times what it costs another, and still nothing: F16's own limit of the mean.
MERGE_RUINED_NATS = 1e-4


def judge(results: Results, gate: GatePart) -> list[Verdict]:
    """A verdict for every candidate, in the order of the rows, then for what could not be loaded."""
    rows = {row.digest: row for row in results.rows}
    verdicts = {row.digest: _verdict(row, results, gate) for row in results.rows if row.role == "candidate"}
    verdicts |= {artifact.digest: _not_loadable(artifact) for artifact in results.unloadable}
    settled: dict[str, Verdict] = {}

    def settle(digest: str, below: frozenset[str] = frozenset()) -> Verdict:
        """A chain is as strong as its weakest link: Q4_K_M near a bad merge is not good."""
        if digest not in settled:
            verdict = verdicts[digest]
            chain: tuple[Above, ...] = ()
            if verdict.compared_with is not None:
                chain = _chain(verdict, below | {digest})
            settled[digest] = weakened(replace(verdict, chain=chain), chain)
        return settled[digest]

    def _chain(verdict: Verdict, below: frozenset[str]) -> tuple[Above, ...]:
        above = verdict.compared_with
        if above is None:
            return ()
        if above in verdicts and above not in below:
            found = settle(above, below)
            return (Above(found.label, above, found.outcome), *found.chain)
        if above in rows and above not in below:
            return (Above(rows[above].label, above, None),)
        return (Above("what it was compared with", above, "inconclusive"),)  # not here, or a circle: nobody judged it

    return [settle(digest) for digest in verdicts]


def weakened(verdict: Verdict, chain: Sequence[Above], why: str = "whose own verdict is") -> Verdict:
    """The verdict, no better than the nearest of `chain` that did not pass."""
    weak = next((above for above in chain if above.outcome not in ("pass", None)), None)
    if weak is None or weak.outcome is None:
        return verdict
    text = f"it was compared with {weak.label}, {why} {weak.outcome}"
    reason = Reason("reference_not_passed", weak.outcome, text)
    return replace(verdict, outcome=worst([verdict.outcome, weak.outcome]), reasons=(*verdict.reasons, reason))


def _not_loadable(artifact: Unloadable) -> Verdict:
    reason = Reason("not_loadable", "fail", f"it could not be loaded: {artifact.error}")
    return Verdict(artifact.label, artifact.digest, "fail", (reason,))


def required(rows: Sequence[Row], gate: GatePart | None, unloadable: Sequence[Unloadable] = ()) -> tuple[str, ...]:
    """The labels that must pass: by the recipe; beside an endpoint those of them that were judged, and the endpoint.

    Without a gate, all that were judged.
    """
    judged = [row.label for row in rows if row.role == "candidate"] + [artifact.label for artifact in unloadable]
    if gate is None:
        return tuple(judged)
    served = tuple(row.label for row in rows if row.kind == "endpoint")
    return (*(label for label in gate.require if label in judged or not served), *served)


def _verdict(row: Row, results: Results, gate: GatePart) -> Verdict:
    judged = [comparison for comparison in row.comparisons if comparison.purpose != "training"]
    reasons = [reason for comparison in judged for reason in _reasons(row, comparison, gate)]
    if not judged:
        text = "there is nothing to compare it with: give --reference, or the artifact it was made from"
        reasons.append(Reason("no_reference", "inconclusive", text))
    if row.lost is not None:
        text = f"it was made from {row.lost}, which is not here: list that one too, or give it as --reference"
        reasons.append(Reason("lineage_not_found", "inconclusive", text))
    if judged and results.data.documents < FEWEST_DOCUMENTS:
        n = results.data.documents
        text = f"{n} documents are too little data to pass on"
        reasons.append(Reason("too_few_documents", "inconclusive", text, n, FEWEST_DOCUMENTS, "documents", n))
    reasons.append(_too_long(results.data))
    compared_with = judged[0].reference_digest if judged else None
    return Verdict(row.label, row.digest, worst([r.outcome for r in reasons]), tuple(reasons), compared_with)


def _unmeasured(comparison: Comparison) -> Iterator[Reason]:
    """What a comparison of this purpose must have found; a figure that is not there was never within its limit."""
    if comparison.vocabulary or comparison.not_finite_tokens:
        return  # that alone fails
    lacking = []
    if comparison.purpose != "serving":
        there = {distance.target_set for distance in comparison.distances}
        lacking += [f"distances on {name} targets" for name in ("gold", "greedy") if name not in there]
    if comparison.purpose in ("base_change", "quantization"):
        lacking += ["ROUGE-L"] if comparison.rouge_l_difference is None else []
        lacking += ["how many summaries end by themselves"] if comparison.eos_rate_difference is None else []
    if comparison.purpose == "serving":
        lacking += ["what the endpoint answers"] if comparison.served is None else []
        lacking += ["ROUGE-L"] if comparison.rouge_l_difference is None else []
    if not comparison.prompts:
        lacking.append("prompts")
    if lacking:
        text = f"not measured against {comparison.reference_label}: {', '.join(lacking)}"
        yield Reason("not_measured", "inconclusive", text)


def _too_long(data: DataInfo) -> Reason:
    """Documents that serving refuses are not judged: a verdict says so, and is none on the few that are left."""
    left_out, documents = len(data.too_long), data.documents + len(data.too_long)
    text = f"all {documents} documents can be served"
    if left_out:
        text = f"{data.documents} of {documents} documents were judged: {left_out} are too long to be served"
    outcome: Outcome = "inconclusive" if 2 * left_out > documents else "pass"
    return Reason("documents_too_long", outcome, text, left_out, documents // 2, "documents", documents)


def _reasons(row: Row, comparison: Comparison, gate: GatePart) -> Iterator[Reason]:
    yield from _unmeasured(comparison)
    if comparison.purpose not in ("base_change", "serving"):  # one compares the adapter with itself, one has no ids
        yield from _interface(comparison)
    if comparison.vocabulary:
        ours, theirs = comparison.vocabulary[1], comparison.vocabulary[0]
        yield Reason(
            "vocabulary_differs",
            "fail",
            f"its vocabulary has {ours} tokens, the reference's {theirs}",
            ours,
            theirs,
            "tokens",
        )
    elif comparison.not_finite_tokens:
        yield Reason(
            "not_finite",
            "fail",
            f"{comparison.not_finite_tokens} tokens have logits that are not finite",
            comparison.not_finite_tokens,
            0,
            "tokens",
        )
    match comparison.purpose:
        case "merge_fidelity":
            yield from _merge(comparison, gate)
        case "base_change":
            limits = gate.base_change
            yield from _distances(comparison, "base_change_", limits.max_kl_nats, limits.min_top1_agreement, gate)
            yield from _rouge(comparison, "base_change_rouge_l_loss", limits.max_rouge_l_loss)
        case "quantization":
            yield from _quantization(row, comparison, gate)
        case "serving":
            yield from _serving(comparison, gate)
    if comparison.eos_rate_difference is not None:
        yield _loss(
            "eos_rate_loss",
            comparison.eos_rate_difference,
            gate.max_eos_rate_loss,
            "share",
            "summaries that end by themselves",
            comparison,
        )


def _interface(comparison: Comparison) -> Iterator[Reason]:
    """What goes in and what ends it: exact, so no interval."""
    n, differ = comparison.prompts, comparison.prompt_ids_differ
    text = (
        f"all {n} prompts have the same ids"
        if not differ
        else (f"{differ} of {n} prompts have other ids: {comparison.prompt_difference}")
    )
    yield Reason("prompt_ids_differ", "fail" if differ else "pass", text, differ, 0, "prompts", n)
    double = comparison.double_bos
    yield Reason(
        "double_bos",
        "fail" if double else "pass",
        f"{double} of {n} prompts begin with BOS twice" if double else "no prompt begins with BOS twice",
        double,
        0,
        "prompts",
        n,
    )
    missing, used = len(comparison.stop_ids_missing), comparison.stop_ids_extra_used
    said = []
    if missing:
        said.append(f"it does not stop at {_ids(comparison.stop_ids_missing)} as the reference does")
    if comparison.stop_ids_extra:
        said.append(f"it also stops at {_ids(comparison.stop_ids_extra)}, met {used} times inside summaries")
    yield Reason(
        "stop_ids_differ",
        "fail" if missing or used else "pass",
        "; ".join(said) or "the same stop ids",
        missing + used,
        0,
        "ids",
    )


def _ids(ids: Sequence[int]) -> str:
    return "token " + ", ".join(str(i) for i in ids)


def _merge(comparison: Comparison, gate: GatePart) -> Iterator[Reason]:
    noise = {entry.target_set: entry for entry in comparison.noise}
    limits = []
    for distance in comparison.distances:
        floor = noise.get(distance.target_set)
        if floor is None:
            yield Reason("no_limits", "inconclusive", "the noise that a merge is held against was not measured")
            continue
        rounding = floor.rounding_kl if floor.rounding_high is None else floor.rounding_high
        limit = KL_FLOOR_NATS + floor.self_noise_kl + gate.merge.rounding_multiple * rounding
        limits.append(limit)
        outcome: Outcome = "pass" if distance.kl.mean <= limit else "fail"
        text = (
            f"mean KL(adapter‖merged) {distance.kl.mean:.3g} nats on {distance.target_set} targets; allowed "
            f"{limit:.3g}: self-noise {floor.self_noise_kl:.2g} + {gate.merge.rounding_multiple:g} × "
            f"{rounding:.2g} that rounding to {floor.dtype} may cost by itself ({floor.rounding_kl:.2g} on "
            f"{floor.documents} documents)"
        )
        yield Reason(
            f"merge_kl_{distance.target_set}",
            outcome,
            text,
            distance.kl.mean,
            limit,
            "nats",
            distance.documents,
            distance.kl.low,
            distance.kl.high,
        )
    if limits and len(limits) == len(comparison.distances):
        yield ruined_documents(
            "merge_ruined_documents", comparison.distances, limits, gate.max_ruined_share, least_nats=MERGE_RUINED_NATS
        )


def _quantization(row: Row, comparison: Comparison, gate: GatePart) -> Iterator[Reason]:
    yield from _served_path(row, comparison)
    limits = gate.limits_of(row.kind, row.quant)
    if limits is None:
        yield Reason("no_limits", "inconclusive", f"the recipe has no limits for {row.quant or 'an unknown type'}")
        return
    yield from _distances(comparison, "", limits.max_kl_nats, limits.min_top1_agreement, gate)
    for many in comparison.distances:
        if many.target_set == "gold":
            distance, how = judged_distance(comparison, many)
            beside = f" ({many.perplexity_ratio.mean:.4f} many at once)" if how else ""
            ratio = distance.perplexity_ratio
            yield _reason(
                "perplexity_ratio",
                at_most(ratio, limits.max_perplexity_ratio),
                ratio,
                limits.max_perplexity_ratio,
                "",
                f"perplexity of the gold summaries{how} {distance.perplexity:.4g}, "
                f"{ratio.mean:.4f} times {comparison.reference_label}'s{beside}, at most",
            )
    yield from _rouge(comparison, "rouge_l_loss", limits.max_rouge_l_loss)


def _serving(comparison: Comparison, gate: GatePart) -> Iterator[Reason]:
    served, limits = comparison.served, gate.served
    if served is None:
        return
    yield from told_counts(comparison, served, limits)
    parted = f" ({served.text_difference})" if served.text_difference else ""
    text = _reason(
        "served_text_differs",
        at_least(served.same_text, limits.min_same_text),
        served.same_text,
        limits.min_same_text,
        "share",
        f"{served.same_text.mean:.1%} of the texts are those of {comparison.reference_label}{parted}, at least",
        _least_documents(1 - served.same_text.mean, 1 - limits.min_same_text, served.same_text.n),
    )
    if text.outcome != "pass" and not comparison.prompt_ids_differ + served.truncated + served.counts_unreported:
        cause = "; prompts agree, so look for other weights, or for a repeat penalty that the server sets by itself"
        text = replace(text, text=text.text + cause)
    yield text
    if served.same_stop is None:
        silent = f"why it stopped was not reported for {served.stops_unreported} documents (finish_reason)"
        yield Reason("served_stop_differs", "inconclusive", silent, served.stops_unreported, 0, "documents")
    else:
        yield _reason(
            "served_stop_differs",
            at_least(served.same_stop, limits.min_same_text),
            served.same_stop,
            limits.min_same_text,
            "share",
            f"{served.same_stop.mean:.1%} of the texts stopped for the same reason as those of "
            f"{comparison.reference_label}, at least",
            _least_documents(1 - served.same_stop.mean, 1 - limits.min_same_text, served.same_stop.n),
        )
    yield from _rouge(comparison, "served_rouge_l_loss", limits.max_rouge_l_loss)


def _served_path(row: Row, comparison: Comparison) -> Iterator[Reason]:
    """What serving differs by from the way many documents are measured: noise of its own, and said in any case."""
    path = comparison.served_path
    if row.kind not in SERVED_KINDS or not comparison.distances:
        return
    if path is None:
        yield Reason("served_path", "inconclusive", "it was not run the way it is served, one text at a time")
        return
    if path.not_finite_tokens:
        text = f"{path.not_finite_tokens} tokens have logits that are not finite, one text at a time as it is served"
        yield Reason("not_finite", "fail", text, path.not_finite_tokens, 0, "tokens")
        return
    if not {distance.target_set for distance in comparison.distances} <= {noise.target_set for noise in path.noise}:
        yield Reason("served_path", "inconclusive", "it was not scored the way it is served, token by token")
        return
    kl = " and ".join(f"{noise.kl:.2g} nats on {noise.target_set} targets" for noise in path.noise)
    largest = max(noise.logit_difference for noise in path.noise)
    own = [noise.reference_noise_kl for noise in path.noise if noise.reference_noise_kl is not None]
    beside = f"is {max(own):.2g} nats" if own else "was not measured"
    text = (
        f"{path.documents} documents one at a time, as it is served, are {kl} from the same many at once (mean KL), "
        f"logits up to {largest:.2g}; the reference's own noise {beside}; "
        f"{path.texts_differ} of the texts differ"
        + (", so all were written one at a time" if path.texts_differ else "")
    )
    yield Reason("served_path", "pass", text, max(noise.kl for noise in path.noise), None, "nats", path.documents)


def judged_distance(comparison: Comparison, distance: Distance) -> tuple[Distance, str]:
    """The figures of a target set that are judged, and a word on them: those of serving, where they are others."""
    path = comparison.served_path
    noise = [one for one in path.noise if one.target_set == distance.target_set] if path else []
    if path is None or not any(map(differs, noise)):
        return distance, ""
    served = [one for one in path.distances if one.target_set == distance.target_set]
    return (served or [noise[0].served])[0], " as it is served, one text at a time"


def _distances(comparison: Comparison, prefix: str, max_kl: float, min_top1: float, gate: GatePart) -> Iterator[Reason]:
    other = f"{comparison.reference_label}" if not prefix else f"{comparison.reference_label} on its training base"
    kl_code = f"{prefix}kl" if prefix else "kl_mean"
    for many in comparison.distances:
        distance, how = judged_distance(comparison, many)
        where = f"on {distance.target_set} targets{how}"
        kl_many, top1_many = (
            f" ({figure} many at once)" if how else "" for figure in (f"{many.kl.mean:.3g}", f"{many.top1.mean:.2%}")
        )
        yield _reason(
            f"{kl_code}_{distance.target_set}",
            at_most(distance.kl, max_kl),
            distance.kl,
            max_kl,
            "nats",
            f"mean KL from {other} {distance.kl.mean:.3g} nats {where}{kl_many}, at most",
        )
        yield _reason(
            f"{prefix}top1_{distance.target_set}",
            at_least(distance.top1, min_top1),
            distance.top1,
            min_top1,
            "share",
            f"same first choice as {other} for {distance.top1.mean:.2%} of tokens {where}{top1_many}, at least",
        )
    if comparison.distances:
        judged = [judged_distance(comparison, many)[0] for many in comparison.distances]
        yield ruined_documents(f"{prefix}ruined_documents", judged, [max_kl] * len(judged), gate.max_ruined_share)


def _rouge(comparison: Comparison, code: str, margin: float) -> Iterator[Reason]:
    if comparison.rouge_l_difference is not None:
        yield _loss(code, comparison.rouge_l_difference, margin, "points", "ROUGE-L", comparison)


def _loss(code: str, difference: Interval, margin: float, unit: str, what: str, comparison: Comparison) -> Reason:
    """A loss that may not exceed `margin`: the reason's figures are losses, so their sign is turned."""
    outcome = non_inferior(difference, margin)
    loss = Interval(0.0 - difference.mean, 0.0 - difference.high, 0.0 - difference.low, difference.n)  # never -0
    text = f"{what}: {loss.mean:+.3g} {unit} lost against {comparison.reference_label}, at most"
    needed = _least_documents(loss.mean, margin, loss.n) if unit == "share" else None
    return _reason(code, outcome, loss, margin, unit, text, needed)


def _reason(
    code: str, outcome: Outcome, found: Interval, limit: float, unit: str, text: str, needed: str | None = None
) -> Reason:
    """`needed`: how many documents would decide, where that is known exactly."""
    text = f"{text} {limit:g} (95% interval {found.low:.3g} to {found.high:.3g}, {found.n} documents)"
    if outcome == "inconclusive":
        about = documents_needed(found, limit)
        rule = f": about {about:,} documents would decide" if about else ""
        text += "; too close to call" + (needed or rule)
    return Reason(code, outcome, text, found.mean, limit, unit, found.n, found.low, found.high)


def _least_documents(faulty: float, allowed: float, n: int) -> str | None:
    """The least number of documents that would pass if no more of them had the fault; None where that says nothing."""
    count = max(0, round(faulty * n))
    least = documents_for_share(allowed, count) if faulty <= allowed else None
    if least is None or least <= n:
        return None
    return f": {least:,} documents would decide, were no more than {count} of them at fault"
