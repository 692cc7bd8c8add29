"""Hand-made results: a merged model and a Q4_K_M with plausible figures, for tests of what reads them."""

from __future__ import annotations

from typing import Any

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
    Results,
    Row,
    ServedPath,
    Speed,
    Task,
)


def interval(mean: float, half: float = 0.0, n: int = 100) -> Interval:
    return Interval(mean, mean - half, mean + half, n)


def task(rouge_l: float = 50.0) -> Task:
    return Task(
        interval(rouge_l + 3, 2),
        interval(rouge_l - 20, 2),
        interval(rouge_l, 2),
        interval(rouge_l + 1, 2),
        0.8,
        0.05,
        400,
        0.99,
        31.5,
    )


def distance(target_set: Any = "gold", kl: float = 0.01, half: float = 0.001, **changes: Any) -> Distance:
    values: dict[str, Any] = {
        "target_set": target_set,
        "documents": 100,
        "tokens": 3000,
        "kl": interval(kl, half),
        "kl_se": half / 2,
        "kl_median": kl / 2,
        "kl_p90": kl * 2,
        "kl_p95": kl * 3,
        "kl_p99": kl * 6,
        "kl_p999": kl * 10,
        "kl_max": kl * 20,
        "top1": interval(0.97, 0.005),
        "top1_se": 0.002,
        "delta_p_rms": 0.02,
        "perplexity": 3.06,
        "perplexity_reference": 3.0,
        "perplexity_ratio": interval(1.02, 0.005),
        "log_perplexity_ratio": 0.0198,
        "log_perplexity_ratio_se": 0.002,
        "log_perplexity_covariance": 0.0001,
        "kl_histogram": Histogram((-9.0, -6.0, -3.0, 0.0), (10, 990, 2000)),
        "kl_by_document": (kl,) * 100,
        "kl_by_position": (kl, kl, kl / 2),
        "count_by_position": (100, 100, 40),
    }
    return Distance(**{**values, **changes})


def served_path(**changes: Any) -> ServedPath:
    """The two ways agree, unless something is changed."""
    noise = tuple(PathNoise(name, distance(name), distance(name), 0.0, 0.0) for name in ("gold", "greedy"))
    return ServedPath(**{"documents": 32, "texts_differ": 0, "noise": noise, **changes})


def comparison(purpose: Any = "quantization", reference: str = "merged", **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "purpose": purpose,
        "reference_label": reference,
        "reference_digest": reference * 8,
        "distances": (distance("gold"), distance("greedy")),
        "prompts": 120,
        "prompt_ids_differ": 0,
        "prompt_difference": None,
        "double_bos": 0,
        "stop_ids_missing": (),
        "stop_ids_extra": (),
        "stop_ids_extra_used": 0,
        "rouge_l_difference": interval(-0.2, 0.4),
        "eos_rate_difference": interval(0.0),
        "same_text": 0.7,
        "same_ids": interval(0.7, 0.1),
        "first_divergence": (-1,) * 70 + (5,) * 30,
        "served_path": served_path() if purpose == "quantization" else None,
    }
    return Comparison(**{**values, **changes})


def row(label: str, *comparisons: Comparison, **changes: Any) -> Row:
    kind = {"base": "merged", "adapter": "adapter", "merged": "merged"}.get(label, "gguf")
    values: dict[str, Any] = {
        "label": label,
        "role": "reference" if label in ("base", "adapter") else "candidate",
        "kind": kind,
        "name": f"tiny-{label}",
        "digest": label * 8,
        "path": f"run/{label}",
        "foreign": False,
        "engine": "llama.cpp" if kind == "gguf" else "torch",
        "quant": label if kind == "gguf" else "f16",
        "size_bytes": 7_000_000,
        "bits_per_weight": 5.1 if kind == "gguf" else None,
        "task": task(),
        "comparisons": comparisons,
        "speed": Speed(0.4, 12.0, 14.0, 2.0, 2.5, 450.0, 9.0, 90_000_000, 2, 6, 240, 48),
    }
    return Row(**{**values, **changes})


def merge_comparison(kl: float = 2e-7, **changes: Any) -> Comparison:
    noise = tuple(Noise(name, 32, 1e-14, 1e-7, "float16") for name in ("gold", "greedy"))
    values = {"noise": noise, "distances": (distance("gold", kl, kl / 10), distance("greedy", kl, kl / 10)), **changes}
    return comparison("merge_fidelity", "adapter", **values)


def results(*rows: Row, **changes: Any) -> Results:
    rows = rows or (
        row("base", comparison("training", "adapter")),
        row("adapter"),
        row("merged", merge_comparison(), comparison("base_change", "adapter")),
        row("q4_k_m", comparison()),
    )
    values: dict[str, Any] = {
        "environment": Environment("A CPU", ("avx2", "fma"), 2, 2, 8 << 30, "Linux", "3.11", {"torch": "2.13.0"}),
        "data": DataInfo("ab" * 32, 100, ("d7",), 22.0, 180.0),
        "max_new_tokens": 64,
        "rows": rows,
        "baselines": (Baseline("lead-3", task(20.0)),),
        "limits": {},
        "require": tuple(r.label for r in rows if r.role == "candidate"),
    }
    return Results(**{**values, **changes})
