"""`assay doctor`: is this machine fit, and does a tiny model survive the round trip on it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import open_artifact
from contract.cpu import read_flags, usable_cores
from contract.errors import AssayError
from contract.memory import installed_bytes
from export.onnx_tracer.overlay import overlay_versions, pinned_versions
from flow.drift import Drift, drift_here

if TYPE_CHECKING:
    from contract.recipe import Recipe

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "gguf",
    "llama_cpp_python",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "evaluate",
    "rouge_score",
    "fastapi",
)
_CPU_FEATURES = ("avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "f16c", "fma", "asimd", "sve")


def examine() -> dict[str, Any]:
    """Versions, CPU, memory, disk and the round trip; `problems` lists what must be mended."""
    versions = {package: _version(package) for package in PACKAGES}
    tracer = {package: overlay_versions().get(package) for package in pinned_versions()}
    versions |= {f"{package} (traces ONNX)": version for package, version in tracer.items()}
    moved = drift_here()
    problems = [f"{each} (in Assay's checkout: make setup)" for each in moved.outside]
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one"
        )
    disk = shutil.disk_usage(Path.cwd())
    if disk.free < 2e9:
        problems.append(f"only {disk.free / 1e9:.1f} GB of disk free here")
    trip = _round_trip()
    if trip["problem"]:
        problems.append(f"round trip: {trip['problem']}")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": os.cpu_count(),
        "memory_bytes": installed_bytes(),
        "disk_free_bytes": disk.free,
        "cuda": _cuda(),
        "versions": versions,
        "drift": asdict(moved),
        "round_trip": trip,
        "problems": problems,
    }


def try_recipe(findings: dict[str, Any], recipe: Recipe, data: str | None) -> dict[str, Any]:
    """The findings, with what became of a small twin of the recipe's model; what stops it is a problem."""
    from flow.gguf_base import imported_apart
    from flow.preflight import preflight
    from trainer.data import load_splits

    try:
        splits = load_splits(recipe, data)
        with imported_apart(recipe, threads=usable_cores()) as ready:
            seconds = round(preflight(ready, splits, threads=usable_cores()), 1)
    except AssayError as error:
        return findings | {"preflight_s": None, "problems": [*findings["problems"], str(error)]}
    return findings | {"preflight_s": seconds}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    model, flags = read_flags()
    return {"model": model, "features": [feature for feature in _CPU_FEATURES if feature in flags]}


def _cuda() -> str | None:
    if _version("torch") is None:
        return None
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _round_trip() -> dict[str, Any]:
    """The embedded base to Q4_K_M, checked against torch, loaded, one answer generated."""
    from export.check_failed import CheckFailed

    started = time.monotonic()
    base = Path(__file__).resolve().parent.parent / "assets" / "tiny-base"
    try:
        from contract.prompt import Message
        from contract.runtime import GenerateParams
        from export.to_gguf import export_gguf
        from runtimes import load_runtime

        with tempfile.TemporaryDirectory() as folder:
            made = export_gguf(open_artifact(base), Path(folder), quants=["q4_k_m"], check="logits")[0]
            runtime = load_runtime(made)
            try:
                completion = runtime.generate(
                    [runtime.encode([Message("user", "Hello")])], GenerateParams(max_new_tokens=8)
                )[0]
            finally:
                runtime.close()
            return {
                "problem": None,
                "tokens": len(completion.ids),
                "bits_per_weight": made.details["bits_per_weight"],
                "seconds": round(time.monotonic() - started, 1),
            }
    except CheckFailed as error:  # where it was set aside is gone
        return {"problem": f"{error.what}: {error.got}", "seconds": round(time.monotonic() - started, 1)}
    except (AssayError, ImportError) as error:
        return {"problem": str(error), "seconds": round(time.monotonic() - started, 1)}


def as_text(findings: dict[str, Any]) -> str:
    """For a person."""
    f = findings
    lines = [
        f"Python      {f['python']} on {f['platform']}",
        f"CPU         {f['cpu']['model']}, {f['threads']} threads, {' '.join(f['cpu']['features'])}",
        f"CUDA        {f['cuda'] or 'none; training and proof run on the CPU'}",
        "memory      " + ("unknown" if f["memory_bytes"] is None else f"{f['memory_bytes'] / 1e9:.1f} GB"),
        f"disk free   {f['disk_free_bytes'] / 1e9:.1f} GB here",
    ]
    lines += [f"{name:<18}{version or 'not installed'}" for name, version in f["versions"].items()]
    lines += Drift(**f["drift"]).lines()
    trip = f["round_trip"]
    if not trip["problem"]:
        lines.append(
            f"round trip  embedded base → Q4_K_M ({trip['bits_per_weight']:.2f} bits per weight) → llama.cpp: "
            f"agrees with torch, {trip['seconds']} s"
        )
    if f.get("preflight_s") is not None:
        lines.append(f"preflight   a small twin of the recipe's model gets all the way, {f['preflight_s']} s")
    lines += [f"PROBLEM     {problem}" for problem in f["problems"]] or ["nothing to mend"]
    return "\n".join(lines)
