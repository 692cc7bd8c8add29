"""Reads an ONNX folder back: its graphs by the standard's own checker, their cache, and every weight by its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.cpu import this_cpu
from contract.errors import AssayError, listed
from contract.model_folder import read_json
from export.check_failed import CheckFailed
from export.check_onnx_cache import cache_names, cache_problems
from export.check_onnx_values import value_problems
from export.onnx_graph import CAUSAL, OnnxGraph, opset_of, read_graph
from export.onnx_source import SourceTensors
from export.onnx_trace import submodels_of

if TYPE_CHECKING:
    import onnx

_SIDES = ("decoder.", "encoder.")


def check_structure(folder: Path, source_folder: Path, source: SourceTensors) -> dict[str, Any]:
    """Compare an ONNX folder with the model folder it was made from.

    Args:
        folder: the artifact's.
        source_folder: config.json says what must be there.
        source: the tensors.

    Returns:
        "relative_error", the largest per kind of storage.

    Raises:
        CheckFailed: naming every sub-model, input, output and weight that is not as it must be.
    """
    names = submodels_of(source_folder)
    missing = [f"{name}.onnx: missing" for name in names if not (folder / f"{name}.onnx").is_file()]
    extra = sorted(path.name for path in folder.glob("*.onnx") if path.stem not in names)
    _raise([*missing, *(f"{name}: not expected" for name in extra)], folder)
    try:
        graphs = [read_graph(folder, name) for name in names]
    except AssayError as error:
        raise CheckFailed(error.what, where=error.where, got=error.got) from None
    problems = [problem for graph in graphs for problem in _graph_problems(folder, graph)]
    problems += _interface_problems(graphs, source_folder)
    found, errors = value_problems(graphs, source, _model_tensors(source_folder, source), this_cpu())
    _raise([*problems, *found], folder)
    return {"relative_error": errors}


def _raise(problems: list[str], folder: Path) -> None:
    if problems:
        raise CheckFailed("the ONNX folder is not what it was made from", where=str(folder), got=listed(problems, 20))


def _graph_problems(folder: Path, graph: OnnxGraph) -> list[str]:
    import onnx

    problems = []
    try:
        onnx.checker.check_model(str(folder / f"{graph.name}.onnx"))
    except onnx.checker.ValidationError as error:
        problems.append(f"{graph.name}: {str(error).strip().splitlines()[0]}")
    opsets = {item.domain: item.version for item in graph.proto.opset_import}
    expected = opset_of(graph)
    if opsets.get("") != expected:
        problems.append(f"{graph.name}: operators of opset {opsets.get('')}, they must be of {expected}")
    if unknown := sorted(set(opsets) - {"", "com.microsoft"}):
        problems.append(f"{graph.name}: operators of {listed(unknown)}")
    return problems


def _interface_problems(graphs: list[OnnxGraph], source_folder: Path) -> list[str]:
    """Inputs, outputs and cache as the config makes them."""
    config = _config(source_folder)
    by_name = {graph.name: graph for graph in graphs}
    if tuple(by_name) == CAUSAL:
        [graph] = graphs
        problems = _missing(graph, ("input_ids", "attention_mask"), ("logits",))
        problems += cache_problems(graph, graph, cache_names(config.num_hidden_layers))
    else:
        encoder, first, later = graphs
        problems = [
            *_missing(encoder, ("input_ids", "attention_mask"), ("last_hidden_state",)),
            *_missing(first, ("input_ids", "encoder_hidden_states", "encoder_attention_mask"), ("logits",)),
            *_missing(later, ("input_ids", "encoder_attention_mask"), ("logits",)),
        ]
        layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None)
        problems += cache_problems(first, later, cache_names(layers or config.num_hidden_layers, _SIDES))
    rows = _rows(graphs[-1].proto.graph.output)
    expected = config.get_text_config().vocab_size
    if rows is not None and rows != expected:
        problems.append(f"{graphs[-1].name}: logits of {rows} tokens, the config has {expected}")
    return problems


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise AssayError(
            "the configuration cannot be read", where=str(folder), got=str(error).splitlines()[0]
        ) from None


def _missing(graph: OnnxGraph, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> list[str]:
    there = {item.name for item in graph.proto.graph.input}, {item.name for item in graph.proto.graph.output}
    problems = [f"{graph.name}: no input {name}" for name in inputs if name not in there[0]]
    return problems + [f"{graph.name}: no output {name}" for name in outputs if name not in there[1]]


def _rows(outputs: Any) -> int | None:
    logits: onnx.ValueInfoProto | None = next((item for item in outputs if item.name == "logits"), None)
    if logits is None:
        return None
    last = logits.type.tensor_type.shape.dim[-1]
    return int(last.dim_value) if last.HasField("dim_value") else None


def _model_tensors(folder: Path, source: SourceTensors) -> list[str]:
    """Tensors of the folder that the model has; old folders store more, which is computed nowadays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    seq2seq = bool(read_json(folder / "config.json").get("is_encoder_decoder"))
    with torch.device("meta"):
        model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_config(_config(folder))
    known = set(model.state_dict())
    return [name for name in source.names if name in known or f"{model.base_model_prefix}.{name}" in known]
