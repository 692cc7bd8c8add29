"""Results, verdicts and predictions made by hand, as an evaluation of six artifacts would leave them."""

from __future__ import annotations

import math
import random
from pathlib import Path

from contract.artifact import Kind
from contract.verdict import Outcome, Reason, Verdict
from evalsuite.results import (
    Baseline,
    Comparison,
    DataInfo,
    Distance,
    Environment,
    Histogram,
    Interval,
    Noise,
    PathNoise,
    Prediction,
    Purpose,
    Results,
    Row,
    ServedPath,
    Speed,
    TargetSet,
    Task,
    write_predictions,
)

N = 300
LABELS = ("base", "adapter", "merged", "f16", "q8_0", "q4_k_m")
DIGEST = {label: f"{index:x}" * 64 for index, label in enumerate(LABELS)}


def around(mean: float, half: float, n: int = N) -> Interval:
    return Interval(mean, mean - half, mean + half, n)


SIGNATURES = {
    "rouge": "rouge_score 0.1.2, F1, stemmed",
    "bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
    "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.5.1",
}


def make_scores(rouge_l: float, *, invented: float = 0.08) -> dict[str, Interval]:
    """Every further metric, as far as a summary of this ROUGE-L would have it."""
    return {
        "bleu_sentence": around(rouge_l * 0.5, 1.2),
        "chrf_sentence": around(rouge_l + 3, 1.1),
        "meteor_exact_stem": around(rouge_l - 2, 1.4),
        "bertscore_f1": around(60 + rouge_l / 2, 0.7),
        "length_ratio": around(1.04, 0.02),
        "novelty_2": around(0.41, 0.02),
        "coverage": around(0.83, 0.01),
        "repetition": around(0.012, 0.004),
        "invented_numbers": around(invented, invented / 4),
        "invented_names": around(2 * invented, invented / 3),
    }


def make_task(rouge_l: float, facts: float | None, eos: float | None, buckets: dict[str, int] | None = None) -> Task:
    return Task(
        around(rouge_l + 6, 1.6),
        around(rouge_l * 0.6, 1.4),
        around(rouge_l, 1.5),
        around(rouge_l + 0.4, 1.5),
        facts,
        None if facts is None else 0.04,
        1423,
        eos,
        31.4,
        make_scores(rouge_l),
        {"bleu": rouge_l * 0.51, "chrf": rouge_l + 3.2},
        buckets or {},
    )


def make_distance(target_set: TargetSet, kl: float, top1: float) -> Distance:
    edges = tuple(-10 + 0.5 * index for index in range(23))
    centre = math.log10(kl) - 0.7
    counts = tuple(int(2000 * math.exp(-((edge + 0.25 - centre) ** 2) / 1.5)) for edge in edges[:-1])
    positions = 60
    return Distance(
        target_set,
        N,
        9420,
        around(kl, kl * 0.1),
        kl * 0.05,
        kl * 0.2,
        kl * 2,
        kl * 4,
        kl * 9,
        kl * 30,
        kl * 60,
        Interval(top1, max(0.0, top1 - 0.004), min(1.0, top1 + 0.004), N),
        0.001,
        0.01,
        2.4 * (1 + kl),
        2.4,
        Interval(1 + kl / 3, 1 + kl / 4, 1 + kl / 2, N),
        math.log1p(kl / 3),
        kl / 20,
        0.0021,
        Histogram(edges, counts),
        (kl,) * N,
        tuple(kl * (1 + 0.5 * math.sin(i / 3)) for i in range(positions)),
        tuple(max(1, N - 6 * i) for i in range(positions)),
    )


def make_served_path(distances: tuple[Distance, ...]) -> ServedPath:
    """A quantized file computes one column a little otherwise than many."""
    noise = tuple(PathNoise(one.target_set, one, one, one.kl.mean / 1e3, 0.07, 2.1e-15) for one in distances)
    return ServedPath(32, 3, noise, distances)


def make_comparison(
    purpose: Purpose, reference: str, kl: float, top1: float, rouge: Interval | None, noise: tuple[Noise, ...] = ()
) -> Comparison:
    distances = make_distance("gold", kl, top1), make_distance("greedy", kl * 0.8, top1)
    same = round(N * top1**20)
    return Comparison(
        purpose=purpose,
        reference_label=reference,
        reference_digest=DIGEST[reference],
        distances=distances,
        prompts=N + 9,
        prompt_ids_differ=0,
        prompt_difference=None,
        double_bos=0,
        stop_ids_missing=(),
        stop_ids_extra=(),
        stop_ids_extra_used=0,
        rouge_l_difference=rouge,
        eos_rate_difference=around(0.0, 0.0),
        same_text=same / N,
        same_ids=around(same / N, 0.02),
        first_divergence=(-1,) * same + tuple(7 * index % 31 for index in range(N - same)),
        noise=noise,
        served_path=make_served_path(distances) if purpose == "quantization" else None,
    )


def make_row(
    label: str,
    kind: Kind,
    quant: str | None,
    size: int,
    task: Task,
    comparisons: tuple[Comparison, ...],
    speed: float | None,
) -> Row:
    measured = (
        None
        if speed is None
        else Speed(
            load_s=0.31,
            first_token_ms=40 * speed,
            first_token_ms_p95=52 * speed,
            per_token_ms=3.2 * speed,
            per_token_ms_p95=4.1 * speed,
            tokens_per_s=210 / speed,
            documents_per_s=6.6 / speed,
            peak_rss_bytes=int(9e7 * speed),
            threads=2,
            documents=20,
            prompt_tokens=181,
            output_tokens=32,
        )
    )
    return Row(
        label,
        "reference" if label in ("base", "adapter") else "candidate",
        kind,
        "tiny",
        DIGEST[label],
        f"/runs/tiny/{label}",
        label == "base",
        "llama.cpp" if kind == "gguf" else "torch",
        quant,
        size,
        None if kind == "adapter" else 16.0 if kind == "merged" else 4.9,
        task,
        comparisons,
        measured,
    )


def make_results(*, poor: bool = False) -> Results:
    base = make_task(11.2, 0.08, 0.02, {"never_stopped": 294, "loops": 281, "too_long": 300})
    tuned = make_task(13.0, 0.09, 0.71) if poor else make_task(55.3, 0.83, 0.997, {"never_stopped": 1, "cut_off": 2})
    small = make_task(12.6, 0.09, 0.70) if poor else make_task(54.7, 0.82, 0.997, {"never_stopped": 1, "loops": 3})
    noise = tuple(Noise(target, 64, 2.1e-15, 7.9e-7, "float16") for target in ("gold", "greedy"))  # type: ignore[arg-type]
    rows = (
        make_row(
            "base",
            "merged",
            "f16",
            7_600_000,
            base,
            (make_comparison("training", "adapter", 2.9, 0.31, around(-1.8 if poor else -44.1, 1.7)),),
            1.4,
        ),
        make_row("adapter", "adapter", None, 1_100_000, tuned, (), 1.6),
        make_row(
            "merged",
            "merged",
            "f16",
            7_600_000,
            tuned,
            (
                make_comparison("base_change", "adapter", 0.041, 0.95, around(-0.2, 0.4)),
                make_comparison("merge_fidelity", "adapter", 8.8e-7, 0.9998, around(0.0, 0.05), noise),
            ),
            1.4,
        ),
        make_row(
            "f16",
            "gguf",
            "f16",
            7_700_000,
            tuned,
            (make_comparison("quantization", "merged", 2.2e-6, 0.9991, around(0.01, 0.05)),),
            0.8,
        ),
        make_row(
            "q8_0",
            "gguf",
            "q8_0",
            4_300_000,
            tuned,
            (make_comparison("quantization", "merged", 0.0009, 0.993, around(-0.04, 0.2)),),
            0.7,
        ),
        make_row(
            "q4_k_m",
            "gguf",
            "q4_k_m",
            3_100_000,
            small,
            (make_comparison("quantization", "merged", 0.034, 0.957, around(-0.61, 0.72)),),
            0.6,
        ),
    )
    baselines = (
        Baseline("lead-3", make_task(15.1, 0.4, None)),
        Baseline("oracle-extractive", make_task(38.0, 0.7, None)),
    )
    return Results(
        Environment(
            "A CPU of 2 GHz",
            ("avx2", "fma", "f16c"),
            2,
            2,
            16 << 30,
            "Linux 6.1",
            "3.11.9",
            {"torch": "2.13.0", "llama-cpp-python": "0.3.36"},
        ),
        DataInfo("e" * 64, N, (), 24.2, 121.7),
        96,
        rows,
        baselines,
        {
            "merge": {"rounding_multiple": 4.0},
            "quant": {"q4_k_m": {"max_kl_nats": 0.08}},
            "require": ["merged", "q4_k_m"],
        },
        ("merged", "q4_k_m"),
        SIGNATURES,
    )


def make_verdicts(**outcomes: Outcome) -> list[Verdict]:
    said: dict[str, Outcome] = {"merged": "pass", "f16": "pass", "q8_0": "pass", "q4_k_m": "pass", **outcomes}
    reasons = {
        label: (
            Reason("prompt_ids_differ", "pass", "all 309 prompts have the same ids", 0, 0, "prompts", 309),
            Reason(
                "kl_mean_gold" if label != "merged" else "merge_kl_gold",
                outcome,
                "mean KL from merged 0.034 nats on gold targets, at most 0.08 (95% interval 0.031 to 0.037)",
                0.034,
                0.08,
                "nats",
                300,
                0.031,
                0.037,
            ),
            Reason(
                "rouge_l_loss",
                "pass",
                "ROUGE-L: +0.61 points lost against merged, at most 2 (-0.11 to 1.33)",
                0.61,
                2,
                "points",
                300,
                -0.11,
                1.33,
            ),
        )
        for label, outcome in said.items()
    }
    return [Verdict(label, DIGEST[label], outcome, reasons[label], DIGEST["merged"]) for label, outcome in said.items()]


def make_predictions(folder: Path) -> Path:
    chance = random.Random(0)
    folder.mkdir()
    for label in DIGEST:
        rows = []
        for index in range(20):
            document = (
                f"Mara: Could we move the meeting to room {418 + index}? The projector here is broken again.\n"
                f"Olin: No, room {527 + index} is free. I will tell Kesto about it.\n"
                "Mara: <script>alert(1)</script> Great, and bring the & sign.\n"
                + "Olin: Then at nine, no, at ten.\n"
                * (index % 7)
            )
            truth = f"Mara asks Olin to move the meeting from room {418 + index}; they take room {527 + index} at ten."
            text = {
                "base": "Mara: Could we move the bus the bus the bus",
                "q4_k_m": truth.replace("asks", "tells"),
                "q8_0": truth.replace(" at ten", " at nine"),
            }.get(label, truth)
            rows.append(
                Prediction(
                    f"test-{index}",
                    document,
                    (truth, "They <b>move</b> the meeting."),
                    text,
                    "length" if label == "base" else "eos",
                    30,
                    {"rougeL": chance.uniform(20, 90)},
                    ("never_stopped", "loops") if label == "base" else (),
                )
            )
        write_predictions(folder / f"{label}.jsonl", rows)
    return folder
