"""The schema of an evaluation (metrics.json and predictions/LABEL.jsonl): typed, versioned, written and read back.

Units: shares and agreements are 0..1, ROUGE is 0..100, KL is in nats per token, times and sizes carry theirs
in the name. Every difference is "this artifact minus the one it is compared with".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from contract.artifact import Kind
from contract.errors import AssayError
from contract.files import read_versioned, refuse_constant, write_whole
from contract.typed import from_json

RESULTS_SCHEMA = 3
METRICS_FILE = "metrics.json"
CSV_FILE = "metrics.csv"
REPORT_FILE = "report.html"
PDF_FILE = "report.pdf"
PLOTS_FOLDER = "plots"
PREDICTIONS_FOLDER = "predictions"
SIGNED_FOLDER = "signed"

Purpose = Literal["training", "merge_fidelity", "base_change", "quantization", "serving"]
RowKind = Literal[Kind, "endpoint"]  # an endpoint is served by a URL: it has no files, so no size, speed or quant
Role = Literal["reference", "candidate"]
TargetSet = Literal["gold", "greedy"]
Stop = Literal["eos", "length", "unknown"]


@dataclass(frozen=True)
class Interval:
    """A mean (or a difference of means) with its 95% interval over documents: in a comparison the one that is judged
    (evalsuite/judged.py), in scores a bootstrap's (evalsuite/stats.py)."""

    mean: float
    low: float
    high: float
    n: int  # documents


@dataclass(frozen=True)
class Environment:
    """The machine and the programs that were measured."""

    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    threads: int
    memory_bytes: int | None  # None: the system does not tell
    system: str
    python: str
    versions: dict[str, str]  # package -> version


@dataclass(frozen=True)
class NearDuplicate:
    """A document that is nearly an earlier one; both were scored."""

    id: str
    other_id: str
    jaccard: float  # similarity of their sets of 8-word shingles, 0.8 or more


@dataclass(frozen=True)
class DataInfo:
    """The documents that were scored."""

    sha256: str  # of the examples as rows, in order
    documents: int  # that were judged
    too_long: tuple[str, ...]  # ids of those that were not, as serving would refuse them: nothing is cut to fit
    reference_words: float  # mean length of the first reference
    document_words: float
    rows: int = 0  # of the data; rows of one document are one document. 0: not counted
    near_duplicates: int = 0  # documents that are nearly an earlier one
    nearest: tuple[NearDuplicate, ...] = ()  # the most alike of them, at most 20


@dataclass(frozen=True)
class Task:
    """How good the summaries are, whatever made them."""

    rouge1: Interval
    rouge2: Interval
    rougeL: Interval  # noqa: N815 -- the metric's name
    rougeLsum: Interval  # noqa: N815
    facts_right: float | None  # share of the references' names and numbers that the prediction has; None: no facts
    facts_right_shuffled: float | None  # the same with predictions rolled on by one document: what chance gives
    facts: int  # how many names and numbers that is of
    eos_rate: float | None  # share that ended by itself; None where nothing was generated
    tokens_mean: float | None  # generated tokens per summary
    scores: dict[str, Interval] = field(default_factory=dict)  # every further metric, a mean over documents, by name
    corpus: dict[str, float] = field(default_factory=dict)  # bleu, chrf: one figure for all documents, 0..100
    buckets: dict[str, int] = field(default_factory=dict)  # kinds of failure -> how many summaries have it


@dataclass(frozen=True)
class Speed:
    """Greedy decoding of a fixed number of tokens, one document at a time, in a process of its own, after a warm-up."""

    load_s: float  # from a fresh process's first import of the engine to a loaded model
    first_token_ms: float  # p50 over documents
    first_token_ms_p95: float
    per_token_ms: float  # p50 over documents of (total - first token) / (tokens - 1)
    per_token_ms_p95: float
    tokens_per_s: float  # output tokens over total time, prompt included
    documents_per_s: float  # one document at a time, at the fixed output length
    peak_rss_bytes: int  # VmHWM, mapped weights included
    threads: int
    documents: int
    prompt_tokens: int  # mean per document
    output_tokens: int  # per document


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; len(edges) == len(counts) + 1."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Distance:
    """Teacher-forced distance over one set of target ids, after llama.cpp's perplexity tool (--kl-divergence).

    Per token KL(reference‖artifact) over the vocabulary; top-1: same argmax; Δp: p_artifact(token) -
    p_reference(token).
    """

    target_set: TargetSet
    documents: int
    tokens: int
    kl: Interval  # mean per token, nats; the interval is over documents
    kl_se: float  # standard error over tokens
    kl_median: float
    kl_p90: float
    kl_p95: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    top1: Interval  # share of tokens
    top1_se: float  # sqrt(p(1-p)/(n-1)) over tokens
    delta_p_rms: float
    perplexity: float
    perplexity_reference: float
    perplexity_ratio: Interval
    log_perplexity_ratio: float  # ln(perplexity / perplexity_reference), nats per token
    log_perplexity_ratio_se: float  # over tokens, from both variances and their covariance
    log_perplexity_covariance: float  # of the two mean negative log-likelihoods, nats²
    kl_histogram: Histogram  # edges in log10(nats), the first bin also takes everything below
    kl_by_document: tuple[float, ...]  # mean per document, in the order of the data; what counts the ruined ones
    kl_by_position: tuple[float, ...]  # mean at target position 0, 1, …; at most 128 positions
    count_by_position: tuple[int, ...]  # documents that reach it


@dataclass(frozen=True)
class Noise:
    """What the merge limit is made of, on a subset: the instrument's own noise, and what rounding alone costs."""

    target_set: TargetSet
    documents: int
    self_noise_kl: float  # the adapter against itself with another batch size
    rounding_kl: float  # the adapter merged by PEFT in float32 ‖ the same rounded to the stored dtype
    dtype: str
    rounding_high: float | None = None  # upper end of its 95% interval, since a merge is judged on other documents too


@dataclass(frozen=True)
class PathNoise:
    """Some documents of one target set, computed as an artifact is served and as most of it is measured."""

    target_set: TargetSet
    served: Distance  # from the reference: one document at a time, the prompt as generation reads it, token by token
    batched: Distance  # from the reference: the same documents as they were scored among all, many at once
    kl: float  # mean KL(batched‖served) per token, nats: the noise of the path
    logit_difference: float  # the largest between the two
    reference_noise_kl: float | None = None  # the reference's own (`Noise.self_noise_kl`); None: it was not measured


@dataclass(frozen=True)
class ServedPath:
    """An export the way `assay serve` runs it, beside the way in which many documents are measured at once."""

    documents: int  # written and scored both ways first, spread over all lengths
    texts_differ: int | None  # of these: other tokens, or another end; then all summaries were written one by one
    noise: tuple[PathNoise, ...]  # gold, greedy; empty where `not_finite_tokens` says why
    distances: tuple[Distance, ...] = ()  # gold, greedy, of all documents as it is served; empty: the noise is small
    not_finite_tokens: int = 0  # tokens with a logit that is not finite, as it is served


@dataclass(frozen=True)
class Served:
    """An endpoint beside the local artifact it claims to be: same messages, greedy. Token counts are its `usage`."""

    digest: str | None  # of the artifact it says it serves; None: it says nothing
    same_text: Interval  # share of documents whose text is the local one, character for character, ends stripped
    text_difference: str | None  # the first one in words
    divergence_characters: float | None  # where texts that differ part: the median over them
    divergence_words: float | None
    same_stop: Interval | None  # share of documents that ended for the same reason; None: not told of all
    stops_unreported: int  # documents without finish_reason
    counts_unreported: int  # prompts without usage.prompt_tokens
    offset: int  # tokens that prompts have more than the local ones, where nothing was cut: the most frequent figure
    truncated: int  # documents whose end or beginning never reached the model
    truncation: str | None  # the worst one in words
    control_text_tokens: int | None  # tokens that a text full of control-token look-alikes has more; None: not told
    completion_tokens_differ: int | None  # documents of the same text with other completion counts; None: not told


@dataclass(frozen=True)
class Comparison:
    """One artifact against another: the same ids for both, taken from the reference."""

    purpose: Purpose
    reference_label: str
    reference_digest: str
    distances: tuple[Distance, ...]  # gold, greedy; empty where `not_finite_tokens` or `vocabulary` says why
    prompts: int  # prompts encoded by both: every document and the built-in hard texts
    prompt_ids_differ: int  # serving: prompts of another token count, truncated ones apart, for no more is told
    prompt_difference: str | None  # the first difference in words
    double_bos: int  # prompts of this artifact that begin with BOS twice
    stop_ids_missing: tuple[int, ...]
    stop_ids_extra: tuple[int, ...]
    stop_ids_extra_used: int  # tokens inside the targets that this artifact would take for the end
    rouge_l_difference: Interval | None
    eos_rate_difference: Interval | None
    same_text: float | None  # share of summaries equal to the reference's, character for character
    same_ids: Interval | None  # share of greedy answers equal to the reference's, token for token
    first_divergence: tuple[int, ...]  # per document the first token that differs, -1 for none; at most 2,000
    not_finite_tokens: int = 0  # tokens for which either side has a non-finite logit
    vocabulary: tuple[int, int] | None = None  # (reference's, artifact's) where they differ
    noise: tuple[Noise, ...] = ()  # merge_fidelity only
    served: Served | None = None  # serving only
    served_path: ServedPath | None = None  # quantization only, of what can be served


@dataclass(frozen=True)
class Row:
    """One artifact: what it is and everything measured of it."""

    label: str  # "base", "adapter", "merged", "f16", "q8_0", "q4_k_m" …
    role: Role  # a reference is what others are compared with; a candidate gets a verdict
    kind: RowKind
    name: str
    digest: str
    path: str
    foreign: bool
    engine: str
    quant: str | None  # "q4_k_m", "f16" …; for a folder its dtype as a quant name
    size_bytes: int
    bits_per_weight: float | None
    task: Task
    comparisons: tuple[Comparison, ...]
    speed: Speed | None
    lost: str | None = None  # what it was made from, where that is not here to be compared with
    stored: str | None = None  # what the name of its type does not say: tensors that are stored in other types


@dataclass(frozen=True)
class Unloadable:
    """An artifact that could not be loaded: it gets a verdict, and has no figures."""

    label: str
    kind: RowKind
    name: str
    digest: str
    path: str
    foreign: bool
    quant: str | None
    size_bytes: int
    error: str  # what is wrong with it


@dataclass(frozen=True)
class Baseline:
    """Summaries that need no model."""

    label: str  # "lead-3"
    task: Task


@dataclass(frozen=True)
class Results:
    """Everything one evaluation found. `limits` and `require` are what it was judged by at the time."""

    environment: Environment
    data: DataInfo
    max_new_tokens: int
    rows: tuple[Row, ...]
    baselines: tuple[Baseline, ...]
    limits: dict[str, Any]  # the recipe's gate part
    require: tuple[str, ...]  # labels that must pass
    signatures: dict[str, str] = field(default_factory=dict)  # metric -> how it was computed
    unloadable: tuple[Unloadable, ...] = ()
    generate: dict[str, Any] = field(default_factory=dict)  # how summaries were written, where not plainly greedily
    schema: int = field(default=RESULTS_SCHEMA)

    def row(self, label: str) -> Row:
        """The row of that label.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(label)


@dataclass(frozen=True)
class Prediction:
    """One generated summary, as a line of predictions/LABEL.jsonl."""

    id: str
    document: str  # as the model saw it, whole
    references: tuple[str, ...]
    prediction: str
    stop: Stop  # unknown: an endpoint did not say
    tokens: int | None  # None: an endpoint did not say
    scores: dict[str, float]  # every metric of this one summary, by name
    buckets: tuple[str, ...]  # kinds of failure

    @property
    def rouge_l(self) -> float:
        """ROUGE-L, 0..100."""
        return self.scores["rougeL"]


def write_results(path: Path, results: Results) -> None:
    """Write metrics.json whole or not at all; a non-finite number is refused (ValueError)."""
    body = json.dumps(asdict(results), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, body + "\n")


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote; `path` is metrics.json or its folder.

    Raises:
        AssayError: there is none, or it is of another version or damaged.
    """
    path = path / METRICS_FILE if path.is_dir() else path
    return read_versioned(path, "evaluation", RESULTS_SCHEMA, partial(from_json, Results))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write JSON Lines that `read_predictions` reads back."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for prediction in predictions:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions/LABEL.jsonl.

    Raises:
        AssayError: there is no such file, or a line is not one of ours.
    """
    if not path.is_file():
        raise AssayError("there are no predictions", where=str(path), hint="run assay eval first")
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = from_json(Prediction, json.loads(line.decode(), parse_constant=refuse_constant))
                row.scores["rougeL"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise AssayError(
                    "a line is not a prediction",
                    where=f"{path}:{number}",
                    got=f"{type(error).__name__}: {error}",
                    hint="run assay eval again",
                ) from None
            rows.append(row)
    return rows
