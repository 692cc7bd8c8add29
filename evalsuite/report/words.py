"""What the figures mean, in plain words: did training help, is the merge lossless, what is fit to ship."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from contract.verdict import Outcome, Verdict, worst
from evalsuite.results import Comparison, DataInfo, Distance, Interval, Results, Row

Tone = Literal["pass", "fail", "inconclusive", "none"]
_POOR_FACTS_LEAD = 0.1  # names and numbers right, over what chance gives, below which nothing much was understood
_POOR_EOS_RATE = 0.9
_NAMED = 5  # near-duplicates named in a warning


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a word or a few, and the figures behind it."""

    question: str
    short: str
    tone: Tone
    lines: tuple[str, ...]


def answers(results: Results, verdicts: Sequence[Verdict]) -> list[Answer]:
    """The three questions of an evaluation, and a fourth where an endpoint was asked."""
    by_digest = {verdict.label: verdict for verdict in verdicts}
    served = [_serving(row, by_digest.get(row.label)) for row in results.rows if row.kind == "endpoint"]
    return [_training(results), _merging(results, by_digest), _shipping(results, by_digest), *served]


def figure(value: float) -> str:
    """A figure with three significant digits: 0.0000012 becomes 1.2·10⁻⁶."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def size(size_bytes: int) -> str:
    """Bytes as kB, MB or GB (powers of 1000, as disks are sold)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3g} {unit}"
    return f"{size_bytes / 1e3:.3g} kB"


def bucket_name(bucket: str) -> str:
    """A failure bucket's name as people write it: "cut off"."""
    return bucket.replace("_", " ")


def trained_pair(results: Results) -> tuple[Row, Row, Interval | None] | None:
    """The row before training, the one after, and ROUGE-L after minus before; None where they were not compared."""
    for row in results.rows:
        for comparison in row.comparisons:
            if comparison.purpose == "training":
                other = _row(results, comparison.reference_label)
                change = comparison.rouge_l_difference
                if other is None:
                    continue
                if row.kind == "adapter":
                    return other, row, change
                return row, other, change and Interval(-change.mean, -change.high, -change.low, change.n)
    return None


def task_warnings(results: Results) -> list[str]:
    """Plain words where the summaries themselves are poor, however faithful the artifacts are to each other."""
    row = _subject(results)
    if row is None:
        return []
    task, said = row.task, []
    for baseline in results.baselines:
        other = baseline.task.rougeL
        if task.rougeL.mean <= other.mean:
            said.append(
                f"ROUGE-L of {row.label} is {task.rougeL.mean:.1f}, which is not above {baseline.label} "
                f"({other.mean:.1f}), a summary that needs no model."
            )
        elif task.rougeL.low <= other.mean:
            said.append(
                f"ROUGE-L of {row.label} is {task.rougeL.mean:.1f}, not clearly above {baseline.label} "
                f"({other.mean:.1f}): the 95% interval begins at {task.rougeL.low:.1f}."
            )
    facts, chance = task.facts_right, task.facts_right_shuffled or 0.0
    if facts is not None and facts < chance + _POOR_FACTS_LEAD:
        said.append(
            f"Only {facts:.0%} of the references' names and numbers are right, where summaries of other "
            f"documents get {chance:.0%}."
        )
    if task.eos_rate is not None and task.eos_rate < _POOR_EOS_RATE:
        said.append(
            f"Only {task.eos_rate:.0%} of the summaries end by themselves; the others were cut at "
            f"{results.max_new_tokens} tokens."
        )
    return said


def data_warnings(data: DataInfo) -> list[str]:
    """Plain words where documents are so alike that they are worth less than their number."""
    if not data.near_duplicates:
        return []
    named = ", ".join(f"{near.id} (as {near.other_id}, {near.jaccard:.2f})" for near in data.nearest[:_NAMED])
    more = " …" if data.near_duplicates > _NAMED else ""
    return [
        f"{data.near_duplicates} of {data.documents} documents are nearly another one: {named}{more}. "
        "Intervals take documents for independent, so they are too narrow here."
    ]


def documents_of(data: DataInfo) -> str:
    """How many documents, and of how many rows where rows were joined: "500 documents in 1,500 rows"."""
    rows = f" in {data.rows:,} rows" if data.rows > data.documents else ""
    return f"{data.documents:,} document{'' if data.documents == 1 else 's'}{rows}"


def how_written(results: Results) -> str:
    """How the summaries were written: "greedy", or what the recipe set beyond that."""
    return ", ".join(f"{name} {value}" for name, value in results.generate.items()) or "greedy"


def _subject(results: Results) -> Row | None:
    """The row whose summaries stand for the fine-tuned model: the adapter, else what everything is compared with."""
    for wanted in ("adapter", "merged"):
        for row in results.rows:
            if row.label.startswith(wanted):
                return row
    return next(iter([row for row in results.rows if row.label != "base"]), None)


def _row(results: Results, label: str) -> Row | None:
    return next((row for row in results.rows if row.label == label), None)


def _training(results: Results) -> Answer:
    question = "Did training help?"
    pair = trained_pair(results)
    if pair is None:
        return Answer(question, "Not measured", "none", ("The model before training was not among what was scored.",))
    before, after, change = pair
    lines = [
        f"ROUGE-L went from {before.task.rougeL.mean:.1f} to {after.task.rougeL.mean:.1f}"
        + (
            f": {change.mean:+.1f} points (95% interval {change.low:+.1f} to {change.high:+.1f}, "
            f"{change.n:,} documents)."
            if change
            else "."
        )
    ]
    facts = before.task.facts_right, after.task.facts_right
    if facts[0] is not None and facts[1] is not None:
        lines.append(f"Names and numbers right: {facts[0]:.0%} before, {facts[1]:.0%} after.")
    ends = before.task.eos_rate, after.task.eos_rate
    if ends[0] is not None and ends[1] is not None:
        lines.append(f"Summaries that end by themselves: {ends[0]:.1%} before, {ends[1]:.1%} after.")
    if change is None:
        return Answer(question, "Not measured with an interval", "none", tuple(lines))
    if change.low > 0 and task_warnings(results):
        return Answer(question, "Yes, but not enough", "inconclusive", tuple(lines))
    if change.low > 0:
        return Answer(question, "Yes", "pass", tuple(lines))
    if change.high < 0:
        return Answer(question, "No, it made summaries worse", "fail", tuple(lines))
    return Answer(question, "It cannot be told", "inconclusive", tuple(lines))


def _comparisons(row: Row, purpose: str) -> list[Comparison]:
    return [comparison for comparison in row.comparisons if comparison.purpose == purpose]


def _by_target(distance: Distance) -> str:
    return "reference summaries" if distance.target_set == "gold" else "its own greedy summaries"


def _merging(results: Results, verdicts: dict[str, Verdict]) -> Answer:
    question = "Is merging lossless?"
    outcomes: list[Outcome] = []
    moved: list[Outcome] = []
    lines: list[str] = []
    for row in results.rows:
        for comparison in _comparisons(row, "merge_fidelity"):
            verdict = verdicts.get(row.label)
            if verdict is not None:
                outcomes += [reason.outcome for reason in verdict.reasons if reason.code.startswith("merge_kl")]
                moved += [reason.outcome for reason in verdict.reasons if reason.code.startswith("base_change")]
            lines += _merge_lines(row, comparison)
        for comparison in _comparisons(row, "base_change"):
            lines += [
                f"Before that, the adapter was moved from the weights it was trained on to other base weights: "
                f"mean KL {figure(distance.kl.mean)} nats, same first choice for {distance.top1.mean:.1%} of "
                f"{distance.tokens:,} tokens ({_by_target(distance)}). That is a change of base, judged by the "
                "recipe's limits, and not lossless."
                for distance in comparison.distances
                if distance.target_set == "gold"
            ]
    if not lines:
        return Answer(question, "Not measured", "none", ("No merged model was compared with its adapter.",))
    if not outcomes:
        return Answer(question, "Not judged", "none", tuple(lines))
    outcome = worst(outcomes)
    if outcome == "pass" and moved and worst(moved) != "pass":
        return Answer(question, "The merge is, the change of base before it is not", worst(moved), tuple(lines))
    short = {"pass": "Yes, within rounding", "fail": "No", "inconclusive": "It cannot be told"}[outcome]
    return Answer(question, short, outcome, tuple(lines))


def _merge_lines(row: Row, comparison: Comparison) -> Iterator[str]:
    noise = {entry.target_set: entry for entry in comparison.noise}
    for distance in comparison.distances:
        line = (
            f"{row.label} against the unmerged {comparison.reference_label} on the same base weights: mean KL "
            f"{figure(distance.kl.mean)} nats over {distance.tokens:,} tokens ({_by_target(distance)})"
        )
        if distance.target_set in noise:
            entry = noise[distance.target_set]
            line += (
                f"; rounding to {entry.dtype} costs {figure(entry.rounding_kl)} by itself, and the measurement's "
                f"own noise is {figure(entry.self_noise_kl)}"
            )
        yield line + "."
    if comparison.same_text is not None:
        yield f"{comparison.same_text:.1%} of the summaries are the same, character for character."


def _shipping(results: Results, verdicts: dict[str, Verdict]) -> Answer:
    question = "What is fit to ship?"
    lines, fit, outcomes = [], [], []
    for row in results.rows:
        if row.kind not in ("gguf", "onnx") or row.label not in verdicts:
            continue
        outcome = verdicts[row.label].outcome
        outcomes.append(outcome)
        said = {"pass": "fit", "fail": "not fit", "inconclusive": "cannot be told"}[outcome]
        if outcome == "pass":
            fit.append(row.label)
        lines.append(f"{row.label}: {said}. {'; '.join(_shipping_figures(row, results))}.")
    for artifact in (each for each in results.unloadable if each.kind != "adapter"):
        outcomes.append("fail")
        lines.append(f"{artifact.label}: not fit. It could not be loaded: {artifact.error}.")
    if not lines:
        return Answer(question, "Not measured", "none", ("No GGUF and no ONNX artifact was judged.",))
    if fit:
        return Answer(question, ", ".join(fit), "pass" if len(fit) == len(outcomes) else "inconclusive", tuple(lines))
    outcome = worst(outcomes)
    return Answer(question, "Nothing" if outcome == "fail" else "It cannot be told", outcome, tuple(lines))


def _serving(row: Row, verdict: Verdict | None) -> Answer:
    question = "Is what is served what was proven?"
    lines = [f"{row.name} at {row.path} ({row.engine}), asked for the same summaries."]
    for comparison in _comparisons(row, "serving"):
        lines += _serving_figures(comparison)
    if verdict is None:
        return Answer(question, "Not judged", "none", tuple(lines))
    said = {"pass": "Yes", "fail": "No", "inconclusive": "It cannot be told"}[verdict.outcome]
    return Answer(question, said, verdict.outcome, tuple(lines))


def _serving_figures(comparison: Comparison) -> Iterator[str]:
    served, other = comparison.served, comparison.reference_label
    if served is None:
        return
    parted = (
        f"; the others part at word {served.divergence_words + 1:.0f}" if served.divergence_words is not None else ""
    )
    yield f"Texts equal to those of {other}, character for character: {served.same_text.mean:.1%}{parted}."
    if served.digest not in (None, comparison.reference_digest):
        yield f"It says it serves another digest than that of {other}: another file, or the same under another name."
    if served.text_difference:
        yield f"For example {served.text_difference}."
    if served.same_stop is not None:
        yield f"Stopped for the same reason: {served.same_stop.mean:.1%}."
    told = comparison.prompts - served.counts_unreported
    if not told:
        yield "How long the prompts were was not reported."
    else:
        more = f" ({comparison.prompt_difference})" if comparison.prompt_difference else ""
        yield f"Prompts with another token count: {comparison.prompt_ids_differ} of {told}{more}."
        yield f"Documents cut before the model saw them: {served.truncation or 'none'}."
    if served.control_text_tokens:
        yield "Text that looks like control tokens becomes control tokens: a document can end its own turn."
    if served.completion_tokens_differ:
        yield f"{served.completion_tokens_differ} equal texts took another number of tokens: something was left out."


def _shipping_figures(row: Row, results: Results) -> Iterator[str]:
    yield size(row.size_bytes)
    if row.stored is not None:
        yield row.stored.rstrip(".")
    for comparison in _comparisons(row, "quantization"):
        reference = _row(results, comparison.reference_label)
        if reference is not None and reference.kind != "adapter":
            yield f"{row.size_bytes / reference.size_bytes:.0%} of {reference.label}"
        for distance in comparison.distances:
            if distance.target_set == "gold":
                yield (
                    f"mean KL {figure(distance.kl.mean)} nats, same first choice for {distance.top1.mean:.1%} of "
                    f"{distance.tokens:,} tokens"
                )
        change = comparison.rouge_l_difference
        if change is not None:
            yield (
                f"ROUGE-L {change.mean:+.2f} points against {comparison.reference_label} (95% interval "
                f"{change.low:+.2f} to {change.high:+.2f}, {change.n:,} documents)"
            )
    if row.speed is not None:
        yield f"{row.speed.tokens_per_s:.0f} tokens/s on {row.speed.threads} threads"
