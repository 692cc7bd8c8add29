"""A model in, GGUF artifacts out: one per quantization, each read back and checked before it is taken for one."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact, Draft, FileRecord, new_artifact, refuse_existing, sha256_of, tool_versions
from contract.errors import AssayError, did_you_mean, listed
from export.quantize import IMATRIX_FILE, LADDER, NEED_MATRIX, uses_matrix

if TYPE_CHECKING:
    from export.gguf_file import GgufFile, GgufPlan
    from export.imatrix import Calibration, MadeMatrix
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
    imatrix: Calibration | MadeMatrix | None = None,
) -> list[Artifact]:
    """Export a model of a known family (docs/families.md) to GGUF; all are checked before one is put in its place.

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
            keeps the matrix in its folder for measurements. Or a matrix that an earlier export of this model made.

    Returns:
        One artifact per quantization, in the order asked for.

    Raises:
        AssayError: an artifact is there already, the model cannot be expressed, or the examples are not its training
            split.
        CheckFailed: what was written is not what was to be written, and nothing is left behind; or it does not behave
            like its source, and is set aside beside its place (docs/artifacts.md).
    """
    from export.check_failed import setting_aside
    from export.check_gguf import check_structure
    from export.gguf_file import plan_gguf
    from export.gguf_tokenizer import refuse_broken_template
    from export.gguf_write import write_ggufs
    from export.quantize import types_found
    from export.source import open_model, say_trained_on_nf4

    refuse_quants(quants, with_matrix=imatrix is not None)
    for quant in quants:
        refuse_existing(out / quant)
    name = name or model.name
    if not re.fullmatch(r"[\w][\w. -]*", name):
        raise AssayError(
            "not a name for a file",
            got=name,
            expected="letters, digits, dot, dash and underscore",
            hint="give another with --name",
        )
    opened = open_model(model)
    if model.kind == "adapter":
        say_trained_on_nf4(model)
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
        if plan.special.chat_template and plan.model.arch != "t5":
            refuse_broken_template(plan.tokenizer, plan.special.chat_template, source.where)
        _say_notes(plan)
        _tell(_check_vocabulary(scratch / "vocabulary.gguf", plan, source, name), plan, strict, source.where)
        planned = _planned_without_fallbacks(paths, plan, source, with_matrix=imatrix is not None) if strict else None
        matrix = None
        if imatrix is not None:
            if plan.model.arch == "t5":
                raise AssayError(
                    "no importance matrix is computed for a model with an encoder",
                    where=source.where,
                    hint="leave out --imatrix (in a recipe: export.gguf.imatrix: false), and the types that need one",
                )
            matrix = scratch / IMATRIX_FILE
            weighed = {quant: draft for quant, draft in drafts.items() if uses_matrix(quant)}
            _make_matrix(model, plan, source, imatrix, matrix, weighed, threads)
        print(f"writing {', '.join(path.name for path in paths.values())}", file=sys.stderr)
        write_ggufs(
            paths,
            plan,
            source,
            name=name,
            license_name=source.license_name,
            threads=threads,
            imatrix=matrix,
            planned=planned,
        )
        for quant, draft in drafts.items():
            types = types_found(paths[quant], quant)
            if types.fallbacks:
                print(types.fallback_sentence(quant), file=sys.stderr)
            draft.details |= {
                "tensor_types": types.tensor_types,
                "bits_per_weight": types.bits_per_weight,
                "fallbacks": types.fallbacks,
                "tokenizer": plan.tables.pre,
                **({"notes": list(plan.model.notes)} if plan.model.notes else {}),
            }
            with ThreadPoolExecutor(max_workers=1) as beside:
                hashing = beside.submit(sha256_of, paths[quant])
                used = matrix if uses_matrix(quant) else None
                draft.details |= check_structure(paths[quant], plan, source, threads, used)
                draft.hashed = [FileRecord(paths[quant].name, hashing.result(), paths[quant].stat().st_size)]
        if check == "logits":
            from export.check_logits import check_logits

            half = plan.model.half_precision_activation
            with setting_aside(drafts):
                measured = check_logits(source, paths, threads, half_precision_activation=half)
            for quant, draft in drafts.items():
                draft.measurements["logits"] = measured[quant]
        shutil.rmtree(scratch)
    return [draft.finished for draft in drafts.values()]


def _make_matrix(
    model: Artifact,
    plan: GgufPlan,
    source: Source,
    wanted: Calibration | MadeMatrix,
    path: Path,
    drafts: Mapping[str, Draft],
    threads: int,
) -> None:
    """Write the importance matrix to `path`, with a copy and a record for every artifact that is made with it."""
    from export.imatrix import MadeMatrix, make_imatrix

    if isinstance(wanted, MadeMatrix):
        made = wanted.copy_to(path)
    else:
        print("computing the importance matrix", file=sys.stderr)
        made = make_imatrix(model, plan, source, wanted, path, threads=threads)
    for draft in drafts.values():
        shutil.copyfile(path, draft.measured / IMATRIX_FILE)
        draft.details["imatrix"] = made


def _check_vocabulary(path: Path, plan: GgufPlan, source: Source, name: str) -> dict[str, Any]:
    """Compare token ids before any tensor is written, in a file of the name to come.

    Raises:
        CheckFailed: llama.cpp makes other ids.
        AssayError: it cannot load the tokenizer, or not under this name: it treats some ("phi-3") specially.
    """
    from export.check_gguf import check_tokenizer
    from export.gguf_file import write_vocabulary

    write_vocabulary(path, plan, source, name=name)
    try:
        return check_tokenizer(path, plan)
    except AssayError as refused:
        write_vocabulary(path, plan, source)
        try:
            check_tokenizer(path, plan)
        except AssayError as error:  # the file is gone by then
            raise type(error)(error.what, where=source.where, got=error.got, hint=error.hint) from None
        raise AssayError(
            "llama.cpp does not read this model's tokenizer under this name, which it treats specially",
            where=source.where,
            got=f"{name}: {refused.got}",
            hint="give another with --name",
        ) from None


def _planned_without_fallbacks(
    paths: Mapping[str, Path], plan: GgufPlan, source: Source, *, with_matrix: bool
) -> dict[str, GgufFile]:
    """Each file as it will be; raises where some tensors cannot take what a quantization has for them."""
    from export.gguf_write import plan_file
    from export.quantize import types_of

    planned = {}
    for quant, path in paths.items():
        planned[quant] = file = plan_file(path, quant, plan, source, with_matrix=with_matrix and uses_matrix(quant))
        kinds = file.tensor_types
        types = types_of(quant, [(tensor.name, kinds[tensor.name], tensor.shape[::-1]) for tensor in plan.tensors])
        if types.fallbacks:
            raise AssayError(
                f"{quant} is not what this model can take",
                where=source.where,
                got=types.fallback_sentence(quant),
                hint="leave out --strict, or take q8_0 or f16",
            )
    return planned


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


def refuse_quants(quants: Sequence[str], *, with_matrix: bool) -> None:
    """Raise where `quants` are not a list of types that can be made, with or without an importance matrix."""
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


def _say_notes(plan: GgufPlan) -> None:
    for note in plan.model.notes:
        print(f"note: {note}", file=sys.stderr)
    if plan.tables.notes:
        print(f"note: added tokens: {listed(plan.tables.notes)}", file=sys.stderr)
    if plan.tables.merges_spaces:
        print(
            "note: the tokenizer makes one space of many and puts none before a text; llama.cpp does not do both, and "
            "only assay makes up for it",
            file=sys.stderr,
        )
    if plan.tables.normalizes_nfc:
        print(
            "note: the tokenizer composes characters (NFC) first; llama.cpp does not, and only assay makes up for it",
            file=sys.stderr,
        )
