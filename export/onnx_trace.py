"""Traces a model into ONNX graphs through Optimum, and brings them into one form: bare, named after the source."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from contract.loaded_model import no_bars, settle_head
from contract.model_config import as_written_by_4, ropes
from contract.model_folder import plain_causal, read_json
from contract.own_process import own_module
from export.onnx_dimensions import settle_dimensions
from export.onnx_graph import CAUSAL, OPSET, SEQ2SEQ, OnnxGraph, read_graph
from export.onnx_source import SourceTensors
from export.onnx_tracer.overlay import overlay_environment

if TYPE_CHECKING:
    import numpy as np
    import onnx

_MADE_WHILE_RUNNING = ("longrope", "dynamic")  # RoPE whose angles depend on the length: a trace keeps one


def submodels_of(folder: Path) -> tuple[str, ...]:
    """The names of a model's graphs: one for a causal model, three for an encoder and its decoder."""
    return SEQ2SEQ if read_json(folder / "config.json").get("is_encoder_decoder") else CAUSAL


def trace(folder: Path, scratch: Path, source: SourceTensors) -> list[OnnxGraph]:
    """Export a model folder in float32, with key-value cache.

    Args:
        folder: a Hugging Face folder.
        scratch: an empty folder that must outlive the graphs: their weights are mapped from it.
        source: the folder's tensors; initializers are named after them.

    Raises:
        AssayError: Optimum has no way to export the architecture, or a trace cannot hold what it does.
    """
    _export(folder, scratch)
    return [_normal(read_graph(scratch, name), source) for name in submodels_of(folder)]


def _export(folder: Path, out: Path) -> None:
    """Have the folder traced by Optimum in a process of its own, from a config in words that its transformers reads."""
    _refuse_untraceable(folder)
    environment = overlay_environment()
    written = out / "source"
    written.mkdir()
    config = as_written_by_4(read_json(folder / "config.json"))
    (written / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")):
        (written / path.name).symlink_to(path.resolve())
    command = own_module("export.onnx_tracer.child", str(written), str(out), str(OPSET))
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    shutil.rmtree(written)
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        told = {"error": f"the process that traces ended with {done.returncode}"}
    if told.get("errno") in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(told["errno"], os.strerror(told["errno"]))  # the disk's fault, which the draft tells
    if "error" in told:
        raise AssayError(
            "Optimum does not export this model",
            where=str(folder),
            got=told["error"],
            hint="GGUF may take it: assay export gguf MODEL --out DIR",
        )


def load_model(folder: Path) -> Any:
    """The folder's model in transformers, in float32.

    Raises:
        AssayError: the folder makes none.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    seq2seq = submodels_of(folder) == SEQ2SEQ
    with _made_of(folder), _quiet():
        model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True
        )
    settle_head(model, folder)
    return model


@contextlib.contextmanager
def _made_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise AssayError(
            "the folder does not make a model",
            where=str(folder),
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}",
        ) from None


def _refuse_untraceable(folder: Path) -> None:
    from transformers import AutoConfig

    with _made_of(folder), _quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    problems = []
    if not config.is_encoder_decoder and not plain_causal(config):
        problems.append("attention over a window: the traced graph would look at everything")
    kinds = {str(rope.kind) for rope in ropes(config.to_dict(), str(folder / "config.json")).values()}
    for kind in sorted(kinds & set(_MADE_WHILE_RUNNING)):
        problems.append(f"{kind} RoPE: its angles depend on the text's length, and a traced graph has one set of them")
    if problems:
        raise AssayError(
            "this model cannot be exported to ONNX rightly",
            where=str(folder / "config.json"),
            got=listed(problems),
            hint="take GGUF instead: assay export gguf MODEL --out DIR",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep tracers' warnings and progress from the user; what they print goes to stderr only if it fails."""
    said = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("transformers", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), no_bars():
            warnings.simplefilter("ignore")
            yield
    except Exception:
        sys.stderr.write(said.getvalue())
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _normal(graph: OnnxGraph, source: SourceTensors) -> OnnxGraph:
    """The same graph without what does not compute, and with initializers that say which tensor they are."""
    proto = graph.proto
    proto.doc_string = proto.graph.doc_string = ""
    proto.graph.name = graph.name
    del proto.metadata_props[:], proto.graph.value_info[:]
    for node in graph.nodes:
        node.doc_string = ""
        del node.metadata_props[:]
    _rename(graph, source)
    _drop_identities(graph)
    _split_gemm(graph)
    settle_dimensions(graph)
    return graph


def _rename(graph: OnnxGraph, source: SourceTensors) -> None:
    """Name initializers after the tensor that has their values; what is none keeps its name, and the check sees it."""
    import numpy as np

    new = {}
    weights: dict[str, np.ndarray] = {}
    for old, values in graph.weights.items():
        name = source.name_of(values) if values.dtype == np.float32 else None
        new[old] = name or old
        weights[new[old]] = values
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = new.get(name, name)
    graph.set_weights(dict(sorted(weights.items())))


def _drop_identities(graph: OnnxGraph) -> None:
    """A tensor that several layers share reaches them through Identity, behind which it would not be seen."""
    outputs = {output.name for output in graph.proto.graph.output}
    stands_for = {
        node.output[0]: node.input[0]
        for node in graph.nodes
        if node.op_type == "Identity" and node.input[0] in graph.weights and node.output[0] not in outputs
    }
    kept = [node for node in graph.nodes if node.output[0] not in stands_for]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = stands_for.get(name, name)
    graph.set_nodes(kept)


def _split_gemm(graph: OnnxGraph) -> None:
    """A·B + C as two nodes, so that quantizers, which know products, take all linear layers alike."""
    import onnx

    nodes: list[onnx.NodeProto] = []
    weights = dict(graph.weights)
    for node in graph.nodes:
        values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        plain = values.get("alpha", 1.0) == 1.0 and values.get("beta", 1.0) == 1.0 and not values.get("transA")
        if node.op_type != "Gemm" or not plain or node.input[1] not in weights:
            nodes.append(node)
            continue
        left, right, *added = node.input
        if values.get("transB"):
            turned = right.removesuffix(".T") if right.endswith(".T") else f"{right}.T"
            weights[turned] = weights[right].T
            right = turned
        product = f"{node.output[0]}_product" if added else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [left, right], [product], name=f"{node.name}/MatMul"))
        if added:
            nodes.append(onnx.helper.make_node("Add", [product, added[0]], [node.output[0]], name=f"{node.name}/Add"))
    graph.set_nodes(nodes)
    used = {name for node in nodes for name in node.input}
    graph.set_weights({name: values for name, values in sorted(weights.items()) if name in used})
