"""A model in, GGUF artifacts out: one per quantization, each read back and checked before it is taken for one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from contract.artifact import Artifact, Draft, new_artifact, refuse_existing, tool_versions
from contract.errors import AssayError, did_you_mean, listed

Check = Literal["structure", "logits"]
QUANTS = ("f32", "f16", "q8_0", "q4_k_m")


def export_gguf(model: Artifact, out: Path, *, quants: Sequence[str], check: Check = "structure", strict: bool = False,
                threads: int = 2, name: str | None = None) -> list[Artifact]:
    """Export a Llama-family model to GGUF.

    Args:
        model: a merged artifact, a plain Hugging Face folder, or an adapter (merged in float32 while it is read).
        out: each artifact becomes a folder in here, named after its quantization.
        quants: any of f32, f16, q8_0, q4_k_m.
        check: "structure" reads every tensor back and compares token ids; "logits" also compares with torch.
        strict: refuse a quantization that some tensors cannot take.
        threads: for quantizing and for the logits check.
        name: of the files; the model's own by default.

    Returns:
        One artifact per quantization, in the order asked for.

    Raises:
        AssayError: an artifact is there already, or the model cannot be expressed.
        CheckFailed: what was written does not behave like its source. Nothing is left behind.
    """
    from export.gguf_file import plan_gguf, write_gguf
    from export.source import open_source

    unknown = [quant for quant in quants if quant not in QUANTS]
    if unknown or not quants or len(set(quants)) != len(quants):
        raise AssayError("no such quantization", got=listed(unknown) or f"{', '.join(quants)!r}",
                         expected=", ".join(QUANTS), hint=did_you_mean(unknown[0], QUANTS) if unknown else None)
    for quant in quants:
        refuse_existing(out / quant)
    name = name or model.name
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        source = open_source(model, Path(scratch))
        plan = plan_gguf(source)
        drafts: list[Draft] = []
        for quant in quants:
            draft = stack.enter_context(new_artifact(
                out / quant, "gguf", name, parents=source.parents, details={**source.details, "quant": quant},
                tools=tool_versions("gguf", "llama-cpp-python", "torch", "transformers")))
            drafts.append(draft)
            path = draft.path / f"{name}-{quant.upper()}.gguf"
            print(f"writing {path.name}", file=sys.stderr)
            if quant in ("f32", "f16"):
                write_gguf(path, plan, source, quant, name=name)
    return [draft.finished for draft in drafts]
