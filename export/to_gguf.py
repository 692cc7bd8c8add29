"""A model in, GGUF artifacts out: one per quantization, each read back and checked before it is taken for one."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact, Draft, new_artifact, refuse_existing, tool_versions
from contract.errors import AssayError, did_you_mean, listed
from export.quantize import FLOATS, IMATRIX_FILE, LADDER, NEED_MATRIX, uses_matrix

if TYPE_CHECKING:
    from export.gguf_file import FloatType, GgufPlan
    from export.imatrix import Calibration
    from export.source import Source

Check = Literal["structure", "logits"]
QUANTS = tuple(LADDER)
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
    pre_tokenizer: str | None = None,
    imatrix: Calibration | None = None,
) -> list[Artifact]:
    """Export a model of a known family (docs/families.md) to GGUF. On an error no artifact is made.

    Args:
        model: a merged artifact, a plain Hugging Face folder, or an adapter (merged in float32 while it is read).
        out: each artifact becomes a folder in here, named after its quantization.
        quants: any of the ladder, `export.quantize.LADDER`.
        check: "structure" reads every tensor back and compares token ids; "logits" also compares with torch.
        strict: refuse a quantization that some tensors cannot take, and a tokenizer llama.cpp is known to read
            otherwise in places.
        threads: for quantizing and for the logits check.
        name: of the files; the model's own by default.
        pre_tokenizer: llama.cpp's name for the way text is cut, where it is not recognised. Ids are compared anyway.
        imatrix: training examples; quantization weighs errors with an importance matrix of their text. Each artifact
            keeps the matrix in its folder for measurements.

    Returns:
        One artifact per quantization, in the order asked for.

    Raises:
        AssayError: an artifact is there already, the model cannot be expressed, or the examples are not its training
            split.
        CheckFailed: what was written does not behave like its source. Nothing is left behind.
    """
    from export.check_gguf import check_structure, check_tokenizer
    from export.gguf_file import plan_gguf, write_vocabulary
    from export.quantize import types_found
    from export.source import open_model

    _refuse_quants(quants, out, with_matrix=imatrix is not None)
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
        plan = plan_gguf(source, pre_tokenizer)
        _say_notes(plan)
        write_vocabulary(scratch / "vocabulary.gguf", plan, source)
        _tell(check_tokenizer(scratch / "vocabulary.gguf", plan), plan, strict, source.where)
        matrix = None
        if imatrix is not None:
            matrix = scratch / IMATRIX_FILE
            weighed = {quant: draft for quant, draft in drafts.items() if uses_matrix(quant)}
            _make_matrix(model, plan, source, imatrix, matrix, weighed, threads)
        _write(paths, plan, source, name, scratch / "floats.gguf", threads, matrix)
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
            draft.details |= {
                "tensor_types": types.tensor_types,
                "bits_per_weight": types.bits_per_weight,
                "fallbacks": types.fallbacks,
                "tokenizer": plan.tables.pre,
                **({"notes": list(plan.model.notes)} if plan.model.notes else {}),
                **check_structure(paths[quant], plan, source),
            }
        if check == "logits":
            from export.check_logits import check_logits

            half = plan.model.half_precision_activation
            measured = check_logits(model, paths, threads, half_precision_activation=half)
            for quant, draft in drafts.items():
                draft.measurements["logits"] = measured[quant]
        shutil.rmtree(scratch)
    return [draft.finished for draft in drafts.values()]


def _make_matrix(
    model: Artifact,
    plan: GgufPlan,
    source: Source,
    calibration: Calibration,
    path: Path,
    drafts: Mapping[str, Draft],
    threads: int,
) -> None:
    """Write the importance matrix to `path`, with a copy and a record for every artifact that is made with it."""
    from export.imatrix import make_imatrix

    print("computing the importance matrix", file=sys.stderr)
    made = make_imatrix(model, plan, source, calibration, path, threads=threads)
    for draft in drafts.values():
        shutil.copyfile(path, draft.measured / IMATRIX_FILE)
        draft.details["imatrix"] = made


def _write(
    paths: Mapping[str, Path],
    plan: GgufPlan,
    source: Source,
    name: str,
    floats_path: Path,
    threads: int,
    matrix: Path | None,
) -> None:
    """Write the float files, then quantize from one of them, which is written to `floats_path` if nobody wants it."""
    from export.gguf_file import write_gguf
    from export.quantize import quantize

    def write(path: Path, float_type: FloatType) -> None:
        write_gguf(path, plan, source, float_type, name=name, license_name=source.license_name)

    for float_type in FLOATS:
        if float_type in paths:
            print(f"writing {paths[float_type].name}", file=sys.stderr)
            write(paths[float_type], float_type)
    quantized = [quant for quant in paths if quant not in FLOATS]
    lossless = _lossless(source)
    if quantized and lossless not in paths:
        write(floats_path, lossless)
    for quant in quantized:
        print(f"quantizing {paths[quant].name}", file=sys.stderr)
        weighed_by = matrix if uses_matrix(quant) else None
        quantize(paths.get(lossless, floats_path), paths[quant], quant, threads, weighed_by)


def _lossless(source: Source) -> FloatType:
    """What quantized files are made from: nothing may be lost before."""
    stored = {source.weights.dtype(name) for name in source.weights.names()}
    return "f16" if stored == {"F16"} else "bf16" if stored == {"BF16"} else "f32"


def _tell(found: Mapping[str, Any], plan: GgufPlan, strict: bool, where: str) -> None:
    """Say where llama.cpp reads text, or stops, otherwise than torch.

    Raises:
        AssayError: `strict`, and it is known to read some text otherwise.
    """
    if found["extra_stop_ids"]:
        print(f"note: llama.cpp also stops at {found['extra_stop_ids']}", file=sys.stderr)
    if "tokenizer_differences" in found:
        kind = plan.tables.pre if plan.tables.model == "gpt2" else "SentencePiece"
        sentence = f"llama.cpp's {kind} cuts some text otherwise: {plan.tables.differs_where}"
        if strict:
            raise AssayError(
                sentence, where=where, got=listed(found["tokenizer_differences"]), hint="leave out --strict"
            )
        print(f"note: {sentence}", file=sys.stderr)


def _refuse_quants(quants: Sequence[str], out: Path, *, with_matrix: bool) -> None:
    for quant in quants:
        if quant in NEED_MATRIX and not with_matrix:
            raise AssayError(
                f"{quant} needs an importance matrix, and there is none",
                expected=", ".join(name for name in QUANTS if name not in NEED_MATRIX),
                hint="llama.cpp picks the values of this type by how much each weight matters; give the training "
                "split with --imatrix (in a recipe: export.gguf.imatrix: true), or take iq4_xs or q2_k",
            )
    if with_matrix and quants and not any(uses_matrix(quant) for quant in quants):
        raise AssayError("none of these types uses an importance matrix", got=", ".join(quants))
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


def _say_notes(plan: GgufPlan) -> None:
    for note in plan.model.notes:
        print(f"note: {note}", file=sys.stderr)
    if plan.tables.notes:
        print(f"note: added tokens: {listed(plan.tables.notes)}", file=sys.stderr)
    if plan.tables.normalizes_nfc:
        print(
            "note: the tokenizer composes characters (NFC) first; llama.cpp does not, and only assay makes up for it",
            file=sys.stderr,
        )
