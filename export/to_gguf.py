"""A model in, GGUF artifacts out: one per quantization, each read back and checked before it is taken for one."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from contract.artifact import Artifact, Draft, new_artifact, refuse_existing, tool_versions
from contract.errors import AssayError, did_you_mean, listed

Check = Literal["structure", "logits"]
QUANTS = ("f32", "f16", "q8_0", "q4_k_m")
_SCRATCH = ".scratch"


def export_gguf(
    model: Artifact,
    out: Path,
    *,
    quants: Sequence[str],
    check: Check = "structure",
    strict: bool = False,
    threads: int = 2,
    name: str | None = None,
) -> list[Artifact]:
    """Export a Llama-family model to GGUF. On an error none of them is made.

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
    from export.check_gguf import check_structure
    from export.gguf_file import FloatType, plan_gguf, write_gguf
    from export.quantize import quantize, types_found
    from export.source import open_model

    _refuse_quants(quants, out)
    name = name or model.name
    if not re.fullmatch(r"[\w][\w. -]*", name):
        raise AssayError("not a name for a file", got=name, expected="letters, digits, dot, dash and underscore")
    opened = open_model(model)
    out.mkdir(parents=True, exist_ok=True)
    tools = tool_versions("gguf", "llama-cpp-python", "torch", "transformers")
    with ExitStack() as stack:
        drafts: dict[str, Draft] = {
            quant: stack.enter_context(
                new_artifact(
                    out / quant,
                    "gguf",
                    name,
                    parents=opened.parents,
                    details={**opened.details, "quant": quant},
                    tools=tools,
                )
            )
            for quant in quants
        }
        paths = {quant: draft.path / f"{name}-{quant.upper()}.gguf" for quant, draft in drafts.items()}
        scratch = drafts[quants[0]].path / _SCRATCH  # goes with the draft if this process is killed
        scratch.mkdir()
        source = opened.source(scratch)
        plan = plan_gguf(source)
        _say_notes(plan.tables.notes, plan.tables.normalizes_nfc)

        floats: FloatType = "f16" if source.all_float16 else "f32"  # what is quantized: nothing may be lost before
        for float_type in ("f32", "f16"):
            if float_type in paths:
                print(f"writing {paths[float_type].name}", file=sys.stderr)
                write_gguf(paths[float_type], plan, source, float_type, name=name, license_name=source.license_name)
        quantized = [quant for quant in quants if quant not in ("f32", "f16")]
        if quantized and floats not in paths:
            write_gguf(scratch / "floats.gguf", plan, source, floats, name=name, license_name=source.license_name)
        for quant in quantized:
            print(f"quantizing {paths[quant].name}", file=sys.stderr)
            quantize(paths.get(floats, scratch / "floats.gguf"), paths[quant], quant, threads)

        for quant, draft in drafts.items():
            types = types_found(paths[quant], quant)
            if types.fallbacks:
                sentence = types.fallback_sentence(quant)
                print(sentence, file=sys.stderr)
                if strict:
                    raise AssayError(
                        f"{quant} is not what this model can take",
                        where=source.where,
                        got=sentence,
                        hint="leave out --strict, or take q8_0 or f16",
                    )
            found = check_structure(paths[quant], plan, source)
            draft.details |= {
                "tensor_types": types.tensor_types,
                "bits_per_weight": types.bits_per_weight,
                "fallbacks": types.fallbacks,
                "tokenizer": plan.tables.pre,
                **found,
            }
            if found["extra_stop_ids"]:
                print(f"note: llama.cpp also stops at {found['extra_stop_ids']}", file=sys.stderr)
        if check == "logits":
            from export.check_logits import check_logits

            measured = check_logits(model, paths, threads)
            for quant, draft in drafts.items():
                draft.measurements["logits"] = measured[quant]
        shutil.rmtree(scratch)
    return [draft.finished for draft in drafts.values()]


def _refuse_quants(quants: Sequence[str], out: Path) -> None:
    unknown = [quant for quant in quants if quant not in QUANTS]
    if unknown:
        raise AssayError(
            "no such quantization",
            got=listed(unknown),
            expected=", ".join(QUANTS),
            hint=did_you_mean(unknown[0], QUANTS),
        )
    if not quants or len(set(quants)) != len(quants):
        raise AssayError("quantizations are given once each, and at least one", got=", ".join(quants) or "none")
    for quant in quants:
        refuse_existing(out / quant)


def _say_notes(notes: Sequence[str], normalizes_nfc: bool) -> None:
    if notes:
        print(f"note: added tokens llama.cpp treats more simply: {listed(notes)}", file=sys.stderr)
    if normalizes_nfc:
        print(
            "note: the tokenizer composes characters (NFC) first; llama.cpp does not, so send composed text",
            file=sys.stderr,
        )
