"""A model in, ONNX artifacts out: one per precision, each read back and checked before it is taken for one."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from contract.artifact import Artifact, Draft, new_artifact, refuse_existing, tool_versions
from contract.artifact_prompt import prompt_of
from contract.errors import AssayError, did_you_mean, listed
from contract.model_folder import TOKENIZER_FILES

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Check = Literal["structure", "logits"]
_COPIED = (*TOKENIZER_FILES, "config.json", "generation_config.json")
_SCRATCH = ".scratch"


def export_onnx(
    model: Artifact,
    out: Path,
    *,
    precisions: Sequence[Precision],
    check: Check = "structure",
    strict: bool = False,
    threads: int = 2,
    name: str | None = None,
) -> list[Artifact]:
    """Export a causal or encoder-decoder model to ONNX, with key-value cache. On an error no artifact is made.

    Args:
        model: a merged artifact, a plain Hugging Face folder, or an adapter (merged in float32 first).
        out: each artifact becomes a folder in here, named after its precision.
        precisions: any of `PRECISIONS`.
        check: "structure" reads graphs and weights back; "logits" also runs them against torch, with and without cache.
        strict: refuse a precision that some weight matrices cannot take, and int8 in a reduced range.
        threads: for the logits check.
        name: of the artifacts; the model's own by default.

    Returns:
        One artifact per precision, in the order asked for.

    Raises:
        AssayError: an artifact is there already, or the model cannot be expressed.
        CheckFailed: what was written is not what was to be written, and nothing is left behind; or it does not behave
            like its source, and is set aside beside its place (docs/artifacts.md).
    """
    from export.check_failed import setting_aside
    from export.check_onnx import check_structure
    from export.gguf_tokenizer import load_tokenizer
    from export.onnx_folder import check_folder
    from export.onnx_graph import facts, write_graphs
    from export.onnx_precision import convert
    from export.onnx_reference import rows_of
    from export.onnx_source import SourceTensors
    from export.onnx_trace import trace
    from export.onnx_tracer.overlay import overlay_versions
    from export.source import open_model
    from export.weights import FolderWeights

    _refuse_precisions(precisions, out)
    name = name or model.name
    if not re.fullmatch(r"[\w][\w. -]*", name):
        raise AssayError("not a name for an artifact", got=name, expected="letters, digits, dot, dash and underscore")
    opened = open_model(model)
    out.mkdir(parents=True, exist_ok=True)
    tools = tool_versions("onnx", "onnxruntime", "onnxruntime-gpu", "torch", "transformers")
    tools |= {f"tracer {package}": version for package, version in overlay_versions().items()}
    with ExitStack() as stack:
        drafts: dict[Precision, Draft] = {
            precision: stack.enter_context(
                new_artifact(
                    out / precision,
                    "onnx",
                    name,
                    parents=opened.parents,
                    details={**opened.details, "precision": precision},
                    tools=tools,
                )
            )
            for precision in precisions
        }
        scratch = drafts[precisions[0]].path / _SCRATCH  # goes with the draft if this process is killed
        (scratch / "graphs").mkdir(parents=True)
        known = {scratch / "merged": model.path, **{draft.path: out / name for name, draft in drafts.items()}}
        stack.enter_context(_named(known))
        folder = _merged(model, scratch / "merged")
        source = SourceTensors(FolderWeights.open(folder))
        check_folder(folder, source)
        if check == "logits":
            rows_of(folder, load_tokenizer(folder), prompt_of(model))  # refuses before the work what it would after it
        print(f"tracing {name}", file=sys.stderr)
        graphs = trace(folder, scratch / "graphs", source)
        for precision, draft in drafts.items():
            print(f"writing {name} in {precision}", file=sys.stderr)
            made, how = convert(graphs, precision)
            _tell(how, precision, strict, str(model.path))
            write_graphs(draft.path, made)
            _copy_words(folder, draft.path)
            draft.details |= {**facts(draft.path, made, source.values), "quantization": how}
            draft.details |= check_structure(draft.path, folder, source)
        if check == "logits":
            from export.check_onnx_logits import check_logits

            paths: dict[str, Path] = {precision: draft.path for precision, draft in drafts.items()}
            with setting_aside(drafts):
                measured = check_logits(folder, paths, prompt_of(model), threads)
            for precision, draft in drafts.items():
                draft.measurements["logits"] = measured[precision]
        shutil.rmtree(scratch)
    return [draft.finished for draft in drafts.values()]


def _merged(model: Artifact, folder: Path) -> Path:
    """The folder of a model; an adapter is merged into `folder` first, in float32."""
    from export.merge import merge_adapter

    return merge_adapter(model, folder, dtype="float32").folder if model.kind == "adapter" else model.folder


@contextmanager
def _named(known: Mapping[Path, Path]) -> Iterator[None]:
    """Let errors name what the caller knows instead of folders that are gone when they are read."""

    def mended(text: str | None) -> str | None:
        for gone, name in known.items():
            text = text and text.replace(str(gone), str(name))
        return text

    try:
        yield
    except AssayError as error:
        raise type(error)(
            error.what, where=mended(error.where), expected=error.expected, got=mended(error.got), hint=error.hint
        ) from None


def _copy_words(source: Path, folder: Path) -> None:
    """Tokenizer and configuration, byte for byte; a tokenizer.json, which the runtime reads, is made where none is."""
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / "tokenizer.json").is_file():
        from export.gguf_tokenizer import load_tokenizer

        load_tokenizer(source).backend_tokenizer.save(str(folder / "tokenizer.json"))


def _tell(how: dict[str, Any], precision: str, strict: bool, where: str) -> None:
    """Say what a precision could not be, or with `strict` refuse it."""
    said = []
    if how.get("kept_float"):
        said.append(f"{len(how['kept_float'])} weight matrices stay in float32: {listed(how['kept_float'])}")
    if how.get("range") == "reduced":
        said.append("weights use 7 bits, because this processor adds int8 products in 16 bits (no VNNI)")
    for sentence in said:
        print(f"note: {precision}: {sentence}", file=sys.stderr)
    if said and strict:
        raise AssayError(
            f"{precision} is not what this model or machine can take",
            where=where,
            got="; ".join(said),
            hint="leave out --strict, or take fp32",
        )


def _refuse_precisions(precisions: Sequence[str], out: Path) -> None:
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise AssayError(
            "no such precision",
            got=listed(unknown),
            expected=", ".join(PRECISIONS),
            hint=did_you_mean(unknown[0], PRECISIONS),
        )
    if not precisions or len(set(precisions)) != len(precisions):
        raise AssayError("precisions are given once each, and at least one", got=", ".join(precisions) or "none")
    for precision in precisions:
        refuse_existing(out / precision)
