"""A PEFT LoRA adapter in, a GGUF LoRA adapter out, for llama.cpp to put on a GGUF of the adapter's base."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, Parent, new_artifact, refuse_existing, tool_versions
from contract.errors import AssayError
from contract.model_folder import chat_format, license_of
from export.lora_gguf_file import LoraType
from export.source import say_trained_on_nf4


def export_lora_gguf(adapter: Artifact, out: Path, *, dtype: LoraType = "f32", name: str | None = None) -> Artifact:
    """Write an adapter in llama.cpp's own format, and read it back. On an error no artifact is made.

    Args:
        adapter: Assay's own, or a plain PEFT folder, of a type that docs/adapters.md calls LoRA GGUF.
        out: the artifact's folder.
        dtype: how the matrices are stored.
        name: of the file; the adapter's own by default.

    Returns:
        The artifact; exporting the same again gives the same digest.

    Raises:
        AssayError: the artifact is there already, or the adapter is more than A and B of weights that llama.cpp
            applies adapters to; every reason is named.
        CheckFailed: what was written is not what the adapter adds. Nothing is left behind.
    """
    from export.adapted import open_adapted
    from export.check_lora_gguf import check_lora
    from export.lora_gguf_file import write_lora
    from export.lora_gguf_plan import plan_lora, refuse_kind

    refuse_existing(out)
    name = name or adapter.name
    if not re.fullmatch(r"[\w][\w. -]*", name):
        raise AssayError(
            "not a name for a file",
            got=name,
            expected="letters, digits, dot, dash and underscore",
            hint="give another with --name",
        )
    if adapter.kind != "adapter":
        raise AssayError(
            "only an adapter can become a LoRA GGUF", where=str(adapter.path), got=adapter.kind, expected="adapter"
        )
    refuse_kind(adapter.folder)
    model = open_adapted(adapter)
    say_trained_on_nf4(adapter)
    if model.base_config.get("is_encoder_decoder"):
        raise AssayError(
            "llama.cpp puts no adapter on a model with an encoder",
            where=str(adapter.path),
            got=str(model.base_config.get("model_type")),
            hint=f"merge it: assay merge {adapter.path} --out DIR",
        )
    plan = plan_lora(model)
    _say_chat(adapter, model.base_folder)
    kept = ("prompt", "generate", "license")
    details: dict[str, Any] = {key: adapter.details[key] for key in kept if key in adapter.details}
    if model.trained_on is not None:
        details["trained_on"] = model.trained_on
    parents = (model.base, Parent("adapter", str(adapter.path.resolve()), adapter.digest))
    tools = tool_versions("gguf", "torch", "transformers")
    with new_artifact(out, "gguf-lora", name, parents=parents, tools=tools, details=details) as draft:
        path = draft.path / f"{name}-{dtype.upper()}-LoRA.gguf"
        write_lora(
            path,
            plan,
            model.weights,
            dtype,
            where=str(adapter.path),
            name=name,
            license_name=adapter.details.get("license") or license_of(model.base_folder),
        )
        ranks = Counter(pair.rank for pair in plan.pairs)
        draft.details |= {
            "architecture": plan.arch,
            "dtype": dtype,
            "alpha": plan.alpha,
            "weights": len(plan.pairs),
            "ranks": {str(rank): ranks[rank] for rank in sorted(ranks)},
            "folded": plan.folded,
            "relative_error": round(check_lora(path, plan, model.weights, dtype), 9),
        }
    return draft.finished


def _say_chat(adapter: Artifact, base: Path) -> None:
    """A LoRA GGUF has no chat template: the base's GGUF brings one, and it may be another than was trained with."""
    own = chat_format(adapter.folder)
    if not own.plain and own.template != chat_format(base).template:
        print(
            "note: the adapter was trained with another chat template than its base's; the host must be given it",
            file=sys.stderr,
        )
