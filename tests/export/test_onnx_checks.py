"""The ONNX checks say no: artifacts that are damaged, their manifests in order, each refused for the right reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.prompt import PromptSpec
from export.check_failed import CheckFailed
from export.check_onnx import check_structure
from export.check_onnx_logits import check_logits
from export.onnx_graph import OnnxGraph, read_graph, write_graphs
from export.onnx_source import SourceTensors
from export.onnx_trace import submodels_of
from export.to_onnx import export_onnx
from export.weights import FolderWeights
from tests.tiny import make_llama
from tests.tiny_seq2seq import make_bart, make_t5

pytestmark = pytest.mark.engine

MAKERS: dict[str, Any] = {
    "llama": lambda folder: make_llama(folder, dtype="float32"),
    "t5": make_t5,
    "bart": lambda folder: make_bart(folder, init_std=0.02),
}
Damage = Callable[[dict[str, OnnxGraph]], None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("models") / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def made(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    out = tmp_path_factory.mktemp("onnx")
    wanted: dict[str, Any] = {"llama": ["fp32", "int8", "int4"], "t5": ["fp32", "fp16"], "bart": ["fp32"]}
    return {
        (name, precision): artifact.folder
        for name, precisions in wanted.items()
        for precision, artifact in zip(
            precisions, export_onnx(open_artifact(models[name]), out / name, precisions=precisions), strict=True
        )
    }


def damaged(folder: Path, out: Path, damage: Damage) -> Artifact:
    """A whole artifact, its manifest in order, of graphs that were changed."""
    original = open_artifact(folder)
    graphs = {name: read_graph(folder, name) for name in submodels_of(folder)}
    damage(graphs)
    with new_artifact(out, "onnx", "damaged", details=original.details) as draft:
        for path in folder.iterdir():
            if path.suffix not in (".onnx", ".onnx_data") and path.name != "manifest.json":
                shutil.copy(path, draft.path)
        write_graphs(draft.path, list(graphs.values()))
    draft.finished.verify()
    return draft.finished


def refusal(folder: Path, model: Path) -> str:
    with pytest.raises(CheckFailed) as no:
        check_structure(folder, model, SourceTensors(FolderWeights.open(model)))
    assert no.value.exit_code == 1
    return str(no.value)


def changed(graph: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(graphs: dict[str, OnnxGraph]) -> None:
        weights = dict(graphs[graph].weights)
        weights[name] = change(np.array(weights[name]))
        graphs[graph].set_weights(weights)

    return damage


def turned(values: np.ndarray) -> np.ndarray:
    values[3, 5] = -values[3, 5]
    return values


def swapped_inputs(graph: str, first: str, second: str) -> Damage:
    """What takes the one takes the other."""

    def damage(graphs: dict[str, OnnxGraph]) -> None:
        other = {first: second, second: first}
        for node in graphs[graph].nodes:
            for at, name in enumerate(node.input):
                node.input[at] = other.get(name, name)

    return damage


def swapped_outputs(graph: str, first: str, second: str) -> Damage:
    """What makes the one makes the other, for all that follow."""

    def damage(graphs: dict[str, OnnxGraph]) -> None:
        other = {first: second, second: first}
        for node in graphs[graph].nodes:
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    names[at] = other.get(name, name)

    return damage


def swapped_appended(graph: str, first: str, second: str) -> Damage:
    """Each goes on from its own cache, with what was computed for the other."""

    def damage(graphs: dict[str, OnnxGraph]) -> None:
        makers = {name: node for node in graphs[graph].nodes for name in node.output}
        one, two = makers[first], makers[second]
        assert one.op_type == two.op_type
        assert one.op_type in ("Concat", "Attention")
        # an Attention node makes keys as its output 1 of its input 1, values as its output 2 of its input 2
        at, to = (
            list(node.output).index(name) if node.op_type == "Attention" else 1
            for node, name in ((one, first), (two, second))
        )
        one.input[at], two.input[to] = two.input[to], one.input[at]

    return damage


def taken_from(taker: int, at: int, maker: int, other: int) -> Damage:
    """An Attention node of a causal graph takes what another, or itself, takes elsewhere."""

    def damage(graphs: dict[str, OnnxGraph]) -> None:
        attentions = [node for node in graphs["model"].nodes if node.op_type == "Attention"]
        attentions[taker].input[at] = attentions[maker].input[other]

    return damage


def swapped_queries(graphs: dict[str, OnnxGraph]) -> None:
    """Queries where keys belong, and keys where queries do."""
    node = next(node for node in graphs["model"].nodes if node.op_type == "Attention")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def without_past(graphs: dict[str, OnnxGraph]) -> None:
    """An attention that forgets what was before."""
    del next(node for node in graphs["model"].nodes if node.op_type == "Attention").input[4:]


def mixed_as_key(graphs: dict[str, OnnxGraph]) -> None:
    """What an attention mixes becomes its keys."""
    node = next(node for node in graphs["model"].nodes if node.op_type == "Attention")
    node.output[0], node.output[1] = node.output[1], node.output[0]


def without_output(graph: str, name: str) -> Damage:
    def damage(graphs: dict[str, OnnxGraph]) -> None:
        outputs = graphs[graph].proto.graph.output
        outputs.remove(next(item for item in outputs if item.name == name))

    return damage


def other_opset(graphs: dict[str, OnnxGraph]) -> None:
    next(iter(graphs.values())).proto.opset_import[0].version = 17


def other_dims(graphs: dict[str, OnnxGraph]) -> None:
    graphs["model"].proto.graph.input[3].type.tensor_type.shape.dim[1].dim_value = 4


def saturated(graphs: dict[str, OnnxGraph]) -> None:
    graph = graphs["model"]
    name = "model.layers.1.mlp.up_proj.weight.T"
    scale = graph.weights[f"{name}.scale"] / 2
    stored = graph.weights[f"{name}.int8"].astype(np.float32)
    most = np.abs(stored).max()  # 127, or 63 on a processor that needs a bit free
    values = np.rint(stored * 2).clip(-most, most).astype(np.int8)
    graph.set_weights({**graph.weights, f"{name}.scale": scale, f"{name}.int8": values})


def swapped_layers(graphs: dict[str, OnnxGraph]) -> None:
    """The right weights, each in the other's place."""
    q, k = ("model.decoder.layers.0.self_attn.q_proj.weight.T", "model.decoder.layers.0.self_attn.k_proj.weight.T")
    swapped_inputs("decoder_with_past_model", q, k)(graphs)


_UP = "model.layers.0.mlp.up_proj.weight.T"
_WO = "decoder.block.1.layer.2.DenseReluDense.wo.weight.T"
DAMAGES: list[tuple[str, str, Damage, str]] = [
    ("llama", "fp32", changed("model", _UP, turned), f"{_UP} is not its tensor: 1 of 65536 values"),
    ("llama", "int8", changed("model", f"{_UP}.int8", turned), f"{_UP}.int8 is more than int8's rounding away"),
    ("llama", "int8", changed("model", f"{_UP}.scale", lambda v: v * 1.5), "more than int8's rounding away"),
    ("llama", "int8", changed("model", f"{_UP}.zero", lambda v: v + 1), "zero points other than 0"),
    ("llama", "int8", saturated, "model.layers.1.mlp.up_proj.weight.T.int8 is saturated"),
    ("llama", "int4", changed("model", f"{_UP}.int4", lambda v: v ^ 0x88), "more than int4's rounding away"),
    ("llama", "int4", changed("model", f"{_UP}.zero", lambda v: v ^ 0x11), "more than int4's rounding away"),
    (
        "t5",
        "fp32",
        changed("decoder_with_past_model", _WO, turned),
        f"decoder_with_past_model: {_WO} is not its tensor",
    ),
    (
        "t5",
        "fp16",
        changed("encoder_model", "encoder.block.0.layer.0.SelfAttention.q.weight.T", turned),
        "more than float16's",
    ),
    (
        "bart",
        "fp32",
        swapped_layers,
        "layers.0.self_attn.q_proj multiplies with model.decoder.layers.0.self_attn.k_proj",
    ),
    (
        "llama",
        "fp32",
        swapped_inputs("model", "past_key_values.0.key", "past_key_values.0.value"),
        "present.0.key goes on from past_key_values.0.value",
    ),
    (
        "llama",
        "fp32",
        swapped_inputs("model", "past_key_values.0.key", "past_key_values.1.key"),
        "past_key_values.0.key is used in layer 1",
    ),
    (
        "bart",
        "fp32",
        swapped_inputs("decoder_with_past_model", "past_key_values.1.encoder.key", "past_key_values.1.encoder.value"),
        "past_key_values.1.encoder.key is used as a value",
    ),
    (
        "t5",
        "fp32",
        swapped_inputs("decoder_with_past_model", "past_key_values.0.decoder.key", "past_key_values.0.encoder.key"),
        "present.0.decoder.key goes on from past_key_values.0.encoder.key",
    ),
    (
        "t5",
        "fp32",
        swapped_outputs("decoder_model", "present.0.decoder.key", "present.0.decoder.value"),
        "decoder_model: present.0.decoder.key is used as a value",
    ),
    (
        "t5",
        "fp16",
        swapped_outputs("decoder_model", "present.0.encoder.key", "present.1.encoder.key"),
        "decoder_model: present.0.encoder.key is used in layer 1",
    ),
    (
        "bart",
        "fp32",
        swapped_outputs("decoder_model", "present.1.decoder.value", "present.1.encoder.value"),
        "decoder_model: present.1.decoder.value is made by model/decoder/layers.1/encoder_attn/v_proj/MatMul",
    ),
    (
        "llama",
        "fp32",
        swapped_appended("model", "present.0.key", "present.0.value"),
        "model: present.0.key is made by model/layers.0/self_attn/v_proj/MatMul",
    ),
    (
        "llama",
        "int4",
        swapped_appended("model", "present.0.key", "present.1.key"),
        "model: present.0.key is made by model/layers.1/self_attn/k_proj/MatMul",
    ),
    (
        "t5",
        "fp32",
        swapped_appended("decoder_with_past_model", "present.0.decoder.value", "present.1.decoder.value"),
        "present.0.decoder.value is made by decoder/block.1/layer.0/SelfAttention/v/MatMul",
    ),
    (
        "llama",
        "fp32",
        swapped_queries,
        "model: present.0.key is made by model/layers.0/self_attn/q_proj/MatMul, model: past_key_values.0.key meets "
        "what model/layers.0/self_attn/k_proj/MatMul makes",
    ),
    (
        "llama",
        "int4",
        taken_from(0, 2, 0, 0),
        "model: present.0.value is made by model/layers.0/self_attn/q_proj/MatMul",
    ),
    (
        "llama",
        "int8",
        taken_from(1, 0, 0, 0),
        "model: past_key_values.1.key meets what model/layers.0/self_attn/q_proj/MatMul",
    ),
    (
        "bart",
        "fp32",
        swapped_inputs(
            "decoder_model",
            "/model/decoder/layers.0/self_attn/q_proj/Add_output_0",
            "/model/decoder/layers.0/encoder_attn/q_proj/Add_output_0",
        ),
        "decoder_model: present.0.decoder.key meets what model/decoder/layers.0/encoder_attn/q_proj/MatMul makes",
    ),
    ("llama", "fp32", without_past, "model: present.0.key goes on from nothing"),
    ("llama", "fp32", mixed_as_key, "model: present.0.key goes on from nothing"),
    ("llama", "fp32", without_output("model", "present.1.value"), "model: no output present.1.value"),
    (
        "t5",
        "fp32",
        without_output("decoder_model", "present.0.encoder.key"),
        "decoder_model: no output present.0.encoder.key",
    ),
    ("bart", "fp32", other_opset, "encoder_model: operators of opset 17, they must be of 18"),
    ("llama", "fp32", other_opset, "model: operators of opset 17, they must be of 23"),
    (
        "llama",
        "fp32",
        swapped_inputs("model", "past_key_values.1.key", "past_key_values.1.value"),
        "past_key_values.1.key is used as a value",
    ),
    (
        "llama",
        "int8",
        swapped_inputs("model", "past_key_values.0.value", "past_key_values.1.value"),
        "present.0.value goes on from past_key_values.1.value",
    ),
    (
        "llama",
        "fp32",
        other_dims,
        "model makes present.0.key as float [*, 2, *, 64], model takes it as float [*, 4, *, 64]",
    ),
]


@pytest.mark.parametrize(("model", "precision", "damage", "reason"), DAMAGES)
def test_damage_is_seen(
    model: str,
    precision: str,
    damage: Damage,
    reason: str,
    models: dict[str, Path],
    made: dict[tuple[str, str], Path],
    tmp_path: Path,
) -> None:
    artifact = damaged(made[model, precision], tmp_path / "damaged", damage)
    assert reason in refusal(artifact.folder, models[model])


def test_graphs_that_were_only_written_again_pass(
    models: dict[str, Path], made: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    for (model, precision), folder in made.items():
        artifact = damaged(folder, tmp_path / model / precision, lambda graphs: None)
        check_structure(artifact.folder, models[model], SourceTensors(FolderWeights.open(models[model])))
        assert artifact.manifest.files_digest == open_artifact(folder).manifest.files_digest


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("decoder_with_past_model.onnx", "decoder_with_past_model.onnx: missing"),
        ("decoder_model.onnx", "decoder_model.onnx: missing"),
        ("encoder_model.onnx_data", "an ONNX graph cannot be read"),
    ],
)
def test_a_missing_file_is_named(
    name: str, reason: str, models: dict[str, Path], made: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made["t5", "fp32"], tmp_path / "copy"))
    (folder / name).unlink()
    assert reason in refusal(folder, models["t5"])


def test_a_file_cut_short_or_replaced_is_one_message(
    models: dict[str, Path], made: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    for number, cut in enumerate((lambda data: data[:-2048], lambda data: b"no graph" * 99)):
        folder = Path(shutil.copytree(made["llama", "fp32"], tmp_path / str(number)))
        path = folder / ("model.onnx_data" if number == 0 else "model.onnx")
        path.write_bytes(cut(path.read_bytes()))
        assert "cannot be read" in refusal(folder, models["llama"])


def test_a_tensor_of_the_source_that_no_graph_has_is_named(
    models: dict[str, Path], made: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """A folder whose source gained a bias since: the graphs lack it."""
    from tests.export.makers import edit_tensors

    source = Path(shutil.copytree(models["bart"], tmp_path / "source"))
    name = "model.decoder.layers.1.fc2.bias"
    edit_tensors(source / "model.safetensors", lambda tensors: tensors[name].add_(0.5))
    said = refusal(made["bart", "fp32"], source)
    assert f"{name}: in no graph" in said or f"{name} is not its tensor" in said


def constant_damage(graph: str, part: str, factor: float) -> Damage:
    """Change a constant of the computation, which is no weight: an epsilon, a scale."""

    def damage(graphs: dict[str, OnnxGraph]) -> None:
        for node in graphs[graph].nodes:
            if node.op_type == "Constant" and part in node.name and node.attribute[0].name == "value":
                values = onnx.numpy_helper.to_array(node.attribute[0].t)
                if values.dtype == np.float32 and values.size == 1 and 0 < abs(values) < 1e30:
                    node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(factor)))
                    return
        raise AssertionError(f"no such constant in {graph}")

    return damage


def test_what_only_running_shows_is_seen(
    models: dict[str, Path], made: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    damage = constant_damage("decoder_with_past_model", "", 3.0)
    artifact = damaged(made["t5", "fp32"], tmp_path / "damaged", damage)
    check_structure(artifact.folder, models["t5"], SourceTensors(FolderWeights.open(models["t5"])))
    with pytest.raises(CheckFailed, match="does not compute what its source does") as no:
        check_logits(models["t5"], {"fp32": artifact.folder}, PromptSpec(), threads=1)
    assert "fp32: with cache: logits differ" in str(no.value)
    assert "without cache: logits" not in str(no.value)


def without_mask(graph: OnnxGraph) -> None:
    """Every position sees every other."""
    for node in graph.nodes:
        if node.op_type == "Attention":
            node.input[3] = ""


def other_scale(graph: OnnxGraph) -> None:
    """Weights of attention a little flatter than they should be."""
    [scale] = [
        item
        for node in graph.nodes
        if node.op_type == "Attention" and ".1/" in node.name
        for item in node.attribute
        if item.name == "scale"
    ]
    scale.f *= 0.95


def keys_not_rotated(graph: OnnxGraph) -> None:
    """Keys are cached as they are, without their positions."""
    makers = {node.output[0]: node for node in graph.nodes}
    node = next(node for node in graph.nodes if node.op_type == "Attention")
    assert makers[node.input[1]].op_type == "RotaryEmbedding"
    node.input[1] = makers[node.input[1]].input[0]


@pytest.mark.parametrize("damage", [without_mask, other_scale, keys_not_rotated])
def test_an_attention_that_computes_something_else_is_seen(
    damage: Callable[[OnnxGraph], None], models: dict[str, Path], made: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    artifact = damaged(made["llama", "fp32"], tmp_path / "damaged", lambda graphs: damage(graphs["model"]))
    with pytest.raises(CheckFailed, match="does not compute what its source does") as no:
        check_logits(models["llama"], {"fp32": artifact.folder}, PromptSpec(), threads=1)
    assert "fp32: without cache: logits differ" in str(no.value)
    assert "fp32: with cache: logits differ" in str(no.value)


def test_other_ids_and_stop_ids_are_seen(
    models: dict[str, Path], made: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    from tests.export.makers import edit_json

    folder = Path(shutil.copytree(made["llama", "fp32"], tmp_path / "copy"))
    edit_json(folder / "generation_config.json", eos_token_id=[1])
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant"))
    with pytest.raises(CheckFailed) as no:
        check_logits(models["llama"], {"fp32": folder}, PromptSpec(), threads=1)
    assert "prompts have other ids in onnxruntime" in str(no.value)
    assert "torch stops at [1, 4], onnxruntime at [1]" in str(no.value)
