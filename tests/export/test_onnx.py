"""ONNX export: what is made of tiny models of each kind, that it is the same each time, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact
from contract.cpu import Cpu
from contract.errors import AssayError
from export.check_onnx_values import value_problems
from export.onnx_graph import SEQ2SEQ, OnnxGraph, read_graph
from export.onnx_int4 import quantize_int4
from export.onnx_int8 import int8_range, quantize_int8
from export.onnx_source import SourceTensors
from export.to_gguf import export_gguf
from export.to_onnx import PRECISIONS, export_onnx
from export.weights import FolderWeights
from tests.export.families import make_model
from tests.export.makers import edit_json, edit_tensors
from tests.tiny import make_adapter, make_llama
from tests.tiny_onnx import run_tracer
from tests.tiny_seq2seq import make_adapter_seq2seq, make_bart, make_t5

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
NO_VNNI = Cpu("old", "x86_64", ("avx2", "avx512f"))
VNNI = Cpu("new", "x86_64", ("avx2", "avx_vnni"))
MAKERS: dict[str, Any] = {
    "llama": lambda folder: make_llama(folder, dtype="float32"),
    "t5": make_t5,
    "t5-tied": lambda folder: make_t5(folder, v1_1=False),
    "bart": lambda folder: make_bart(folder, init_std=0.02),
}
Made = dict[str, Artifact]


@pytest.fixture(scope="module", params=MAKERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = MAKERS[request.param](tmp_path_factory.mktemp("model") / request.param)
    return folder


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("onnx") / model.name
    artifacts = export_onnx(open_artifact(model), out, precisions=PRECISIONS, check="logits", threads=1)
    return dict(zip(PRECISIONS, artifacts, strict=True))


def tensors(folder: Path) -> SourceTensors:
    return SourceTensors(FolderWeights.open(folder))


def graphs(artifact: Artifact) -> list[OnnxGraph]:
    return [read_graph(artifact.folder, name) for name in artifact.details["submodels"]]


def test_every_precision_agrees_with_torch(made: Made, model: Path) -> None:
    for precision, artifact in made.items():
        artifact.verify()
        assert (artifact.kind, artifact.details["precision"]) == ("onnx", precision)
        assert (artifact.folder / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
        figures = artifact.manifest.measurements["logits"]
        assert 0 <= figures["full"]["mean_kl_nats"] < 2
        assert figures["cached"]["positions"] == figures["full"]["positions"] > 50
    exact = made["fp32"].manifest.measurements["logits"]
    assert exact["full"]["max_abs"] < 1e-3
    assert exact["cached"]["max_abs"] < 1e-3
    assert exact["same_greedy"] == 1.0
    assert exact["same_beams"] == (None if model.name == "llama" else 1.0)


def test_the_manifest_says_what_was_made(made: Made, model: Path) -> None:
    names = ["model"] if model.name == "llama" else list(SEQ2SEQ)
    bits = [made[precision].details["bits_per_weight"] for precision in PRECISIONS]
    assert bits == sorted(bits, reverse=True)
    for artifact in made.values():
        assert list(artifact.details["submodels"]) == names
        fused = model.name == "llama" and artifact.details["precision"] != "fp16"
        assert artifact.details["opset"] == (23 if fused else 18)
        assert {Path(record.path).suffix for record in artifact.manifest.files} >= {".onnx", ".onnx_data"}
        assert [parent.role for parent in artifact.manifest.parents] == ["merged"]
    quantized = made["int8"].details
    assert quantized["quantization"]["kept_float"] == []
    for submodel in quantized["submodels"].values():
        assert submodel["operators"]["MatMulInteger"] > 0
    assert sum(one["operators"]["com.microsoft.MatMulNBits"] for one in made["int4"].details["submodels"].values()) > 0
    assert set(quantized["quantization"]["cpu"]) == {"model", "machine", "features"}


def test_a_weight_of_several_graphs_is_stored_once(made: Made, model: Path) -> None:
    weights = sum(values.nbytes for values in tensors_read(model).values())
    stored = {name: [one["data_bytes"] for one in made[name].details["submodels"].values()] for name in PRECISIONS}
    assert weights * 0.98 < sum(stored["fp32"]) < weights * 1.02
    if model.name != "llama":
        assert [sizes[-1] for sizes in stored.values()] == [0, 0, 0, 0]  # decoder_with_past_model has none of its own


def tensors_read(folder: Path) -> dict[str, np.ndarray]:
    source = tensors(folder)
    return {name: source.read(name) for name in source.names}


def test_another_process_writes_the_same_bytes(made: Made, model: Path, tmp_path: Path) -> None:
    if model.name not in ("llama", "bart"):
        pytest.skip("one model of each kind is enough")
    options = ["--out", tmp_path / "again", "--json", "--precision", ",".join(PRECISIONS)]
    done = subprocess.run(
        [sys.executable, "-m", "assay", "export", "onnx", model, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stderr
    again = {one["details"]["precision"]: one["digest"] for one in json.loads(done.stdout)["artifacts"]}
    assert again == {precision: artifact.digest for precision, artifact in made.items()}


_OPTIMUM = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
folder, kind, ids, seen = sys.argv[1:]
maker = ORTModelForCausalLM if kind == "llama" else ORTModelForSeq2SeqLM
model = maker.from_pretrained(folder, local_files_only=True)
given = {"input_ids": torch.tensor(json.loads(ids)), "attention_mask": torch.tensor(json.loads(seen))}
made = [model.generate(**given, max_new_tokens=12, num_beams=beams, do_sample=False).tolist() for beams in (1, 3)]
print(json.dumps(made))
"""


def test_optimums_own_class_writes_what_transformers_writes(made: Made, model: Path) -> None:
    """In a batch, padded on the side that the kind of model has it."""
    import torch
    import transformers

    causal = model.name == "llama"
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSeq2SeqLM
    theirs = auto.from_pretrained(model, dtype=torch.float32).eval()
    random, width = np.random.default_rng(3), 30
    ids, seen = np.full((3, width), 2), np.zeros((3, width), np.int64)
    for row, size in enumerate((width, 11, 3)):
        shown = slice(width - size, width) if causal else slice(0, size)
        ids[row, shown], seen[row, shown] = random.integers(5, 200, size), 1
    arguments = (str(made["fp32"].folder), model.name, json.dumps(ids.tolist()), json.dumps(seen.tolist()))
    ours = json.loads(run_tracer(_OPTIMUM, *arguments).splitlines()[-1])
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(seen), "max_new_tokens": 12}
    for beams, one in zip((1, 3), ours, strict=True):
        assert one == theirs.generate(**given, num_beams=beams, do_sample=False).tolist()


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_adapter_is_merged_first(kind: str, tmp_path: Path) -> None:
    base = MAKERS[kind](tmp_path / "base")
    adapter = (make_adapter if kind == "llama" else make_adapter_seq2seq)(tmp_path / "adapter", base)
    [artifact] = export_onnx(open_artifact(adapter), tmp_path / "out", precisions=["fp32"], check="structure")
    assert {parent.role for parent in artifact.manifest.parents} == {"adapter", "base"}
    assert artifact.details["merged_on"] == "w16"
    stored = {name: values for graph in graphs(artifact) for name, values in graph.weights.items()}
    before = tensors_read(base)
    name = next(name for name in before if name.endswith(("q_proj.weight", "SelfAttention.q.weight")))
    assert not np.array_equal(stored[f"{name}.T"].T, before[name])
    assert not (tmp_path / "out" / "fp32" / ".scratch").exists()


def test_int8_uses_seven_bits_where_eight_would_saturate(tmp_path: Path, llama_folder: Path) -> None:
    assert (int8_range(VNNI), int8_range(NO_VNNI), int8_range(Cpu("arm", "aarch64", ()))) == (127, 63, 127)
    [artifact] = export_onnx(open_artifact(llama_folder), tmp_path / "out", precisions=["fp32"])
    [graph], source = graphs(artifact), tensors(llama_folder)
    for most, cpu, reason in ((63, NO_VNNI, None), (127, VNNI, None), (127, NO_VNNI, "int8 products saturate")):
        made, _ = quantize_int8(graph, most)
        largest = max(int(np.abs(v.astype(int)).max()) for v in made.weights.values() if v.dtype == np.int8)
        assert largest == most
        problems, _ = value_problems([made], source, source.names, cpu)
        assert bool(problems) == bool(reason)
        assert all(str(reason) in problem for problem in problems)
    made, _ = quantize_int4(graph)  # its embeddings have 8 bits, and are only looked up
    assert max(int(np.abs(v.astype(int)).max()) for v in made.weights.values() if v.dtype == np.int8) == 127
    assert value_problems([made], source, source.names, NO_VNNI)[0] == []


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", dtype="float32")
    edit_tensors(
        folder / "model.safetensors", lambda t: t["model.layers.0.mlp.up_proj.weight"].__setitem__((0, 0), 7e4)
    )
    with pytest.raises(AssayError, match="do not fit into float16") as refusal:
        export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32", "fp16"])
    assert "model.layers.0.mlp.up_proj.weight.T (max 70000)" in str(refusal.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_float16_takes_squares_that_it_could_not_hold(tmp_path: Path) -> None:
    """Residual streams of hundreds, as trained models have them: their squares leave float16's range."""
    folder = make_llama(tmp_path / "m", dtype="float32", tie=False)
    edit_tensors(folder / "model.safetensors", lambda t: t["model.embed_tokens.weight"].mul_(1e4))
    [artifact] = export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp16"], check="logits", threads=1)
    assert artifact.manifest.measurements["logits"]["cached"]["mean_kl_nats"] < 1e-3


@pytest.mark.parametrize(
    ("family", "reason"), [("mistral-window", "attention over a window"), ("phi3-longrope", "longrope RoPE")]
)
def test_what_a_trace_cannot_hold_is_refused(family: str, reason: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / family, family)
    with pytest.raises(AssayError, match="cannot be exported to ONNX rightly") as refusal:
        export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"])
    assert reason in str(refusal.value)
    assert "assay export gguf" in str(refusal.value)


def test_an_architecture_optimum_does_not_know_is_one_message(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    edit_json(folder / "config.json", model_type="xlm-prophetnet", architectures=["Unknown"])
    with pytest.raises(AssayError) as refusal:
        export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"])
    assert refusal.value.exit_code == 2


def test_bart_as_gguf_is_refused_with_the_command_to_type(tmp_path: Path) -> None:
    folder = make_bart(tmp_path / "bart")
    with pytest.raises(AssayError, match=r"llama\.cpp cannot run") as refusal:
        export_gguf(open_artifact(folder), tmp_path / "out", quants=["f16"])
    assert f"assay export onnx {folder} --out DIR" in str(refusal.value)


def test_a_full_disk_is_not_called_the_models_fault(disk_of: Callable[[int], Path], llama_folder: Path) -> None:
    disk = disk_of(1)
    with pytest.raises(AssayError, match="could not be written") as refusal:
        export_onnx(open_artifact(llama_folder), disk, precisions=["fp32"], threads=1)
    assert "No space left" in str(refusal.value)
    assert "make room" in str(refusal.value.hint)
    assert list(disk.iterdir()) == []


def test_precisions_are_checked_first(tmp_path: Path, llama_folder: Path) -> None:
    model = open_artifact(llama_folder)
    with pytest.raises(AssayError, match="no such precision") as refusal:
        export_onnx(model, tmp_path / "out", precisions=["fp23"])  # type: ignore[list-item]
    assert 'did you mean "fp32"?' in str(refusal.value)
    with pytest.raises(AssayError, match="once each"):
        export_onnx(model, tmp_path / "out", precisions=["int8", "int8"])
    (tmp_path / "out" / "int8").mkdir(parents=True)
    (tmp_path / "out" / "int8" / "mine").write_text("mine")
    with pytest.raises(AssayError, match="nothing is overwritten"):
        export_onnx(model, tmp_path / "out", precisions=["int8"])


def test_a_folder_without_tokenizer_json_gets_one(tmp_path: Path) -> None:
    folder = make_t5(tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    [artifact] = export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"], check="logits", threads=1)
    assert (artifact.folder / "tokenizer.json").is_file()
