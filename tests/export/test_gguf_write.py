"""Quantizing while writing: the bytes are llama.cpp's own, whatever the blocks, the threads and the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from export import adapted, weights
from export.check_gguf import check_structure
from export.ggml import TypeCannotHold
from export.gguf_file import GgufPlan, exact_type, plan_gguf
from export.gguf_write import write_ggufs
from export.imatrix_file import ImportanceMatrix, write_imatrix
from export.quantize import FLOATS, LADDER, NEED_MATRIX, uses_matrix
from export.source import Source, open_model
from tests.export.families import make_model
from tests.export.llama_quantize import llama_quantize
from tests.export.makers import edit_tensors
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine

QUANTIZED = [quant for quant in LADDER if quant not in FLOATS]
SLOW = ("iq4_nl", "iq4_xs")  # seconds for a few million values


def opened(folder: Path, scratch: Path) -> tuple[Source, GgufPlan]:
    scratch.mkdir()
    source = open_model(open_artifact(folder)).source(scratch)
    return source, plan_gguf(source)


def write(quants: list[str], plan: GgufPlan, source: Source, folder: Path, **options: Any) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    paths = {quant: folder / f"{quant}.gguf" for quant in quants}
    write_ggufs(paths, plan, source, name="m", **options)
    return paths


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Metadata and tensors, whatever their order."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    metadata = {key: (field.types, field.contents()) for key, field in reader.fields.items() if "." in key}
    tensors = {
        tensor.name: (tensor.tensor_type.name, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    return metadata, tensors


def some_matrix(plan: GgufPlan) -> ImportanceMatrix:
    """Of every matrix in a block, columns of very different weight."""
    random = np.random.default_rng(0)
    sums = {
        tensor.name: random.lognormal(size=tensor.shape[-1]).astype(np.float32)
        for tensor in plan.tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    return ImportanceMatrix(sums, 512, 1, 512, "train sha256:0")


def test_every_type_is_what_llama_cpp_makes_of_a_file(tmp_path: Path) -> None:
    """Eight layers, so that mixtures that depend on a layer's place show."""
    folder = make_llama(tmp_path / "model", layers=8, tie=False, vocab_size=512)
    source, plan = opened(folder, tmp_path / "scratch")
    assert exact_type(source) == "f16"
    plain = [quant for quant in QUANTIZED if quant not in (*NEED_MATRIX, *SLOW)]
    made = write(["f16", *plain], plan, source, tmp_path / "made", threads=2)
    for quant in plain:
        llama_quantize(made["f16"], tmp_path / "expected.gguf", quant)
        assert contents(made[quant]) == contents(tmp_path / "expected.gguf"), quant


def test_every_type_with_an_importance_matrix_is(tmp_path: Path) -> None:
    source, plan = opened(make_llama(tmp_path / "model", layers=1), tmp_path / "scratch")
    matrix = some_matrix(plan)
    write_imatrix(tmp_path / "imatrix.gguf", matrix)
    made = write(["f16", *QUANTIZED], plan, source, tmp_path / "made", imatrix=tmp_path / "imatrix.gguf")
    for quant in QUANTIZED:
        llama_quantize(made["f16"], tmp_path / "expected.gguf", quant, matrix if uses_matrix(quant) else None)
        assert contents(made[quant]) == contents(tmp_path / "expected.gguf"), quant


@pytest.mark.parametrize("name", ["gemma2", "phi3", "gpt2", "qwen3"])
def test_every_family_is(tmp_path: Path, name: str) -> None:
    source, plan = opened(make_model(tmp_path / "model", name, dtype="bfloat16"), tmp_path / "scratch")
    made = write(["bf16", "q4_k_m", "q8_0", "iq4_nl"], plan, source, tmp_path / "made")
    for quant in ("q4_k_m", "q8_0", "iq4_nl"):
        llama_quantize(made["bf16"], tmp_path / "expected.gguf", quant)
        assert contents(made[quant]) == contents(tmp_path / "expected.gguf"), quant


def test_an_adapter_is_quantized_from_float32(tmp_path: Path, llama_folder: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", llama_folder)
    source, plan = opened(adapter, tmp_path / "scratch")
    made = write(["f32", "q4_k_m", "q6_k"], plan, source, tmp_path / "made")
    for quant in ("q4_k_m", "q6_k"):
        llama_quantize(made["f32"], tmp_path / "expected.gguf", quant)
        assert contents(made[quant]) == contents(tmp_path / "expected.gguf"), quant


@pytest.mark.parametrize("adapter", [False, True])
def test_blocks_and_threads_change_nothing_and_no_tensor_is_read_whole(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool
) -> None:
    folder = make_adapter(tmp_path / "adapter", llama_folder) if adapter else llama_folder
    source, plan = opened(folder, tmp_path / "scratch")
    quants = ["f32", "f16", "bf16", "q8_0", "q4_k_m"]
    whole = write(quants, plan, source, tmp_path / "whole")
    read: list[int] = []
    rows = weights.FolderWeights.read_rows

    def watched(own: weights.FolderWeights, name: str, start: int, stop: int) -> Any:
        found = rows(own, name, start, stop)
        if own.folder == llama_folder:
            read.append(found.numel())
        return found

    monkeypatch.setattr(weights.FolderWeights, "read_rows", watched)
    monkeypatch.setattr(adapted.AdaptedWeights, "read", None)
    monkeypatch.setattr(weights, "BLOCK_VALUES", 256 * 16)
    small = write(quants, plan, source, tmp_path / "small", threads=3)
    for quant in quants:
        assert small[quant].read_bytes() == whole[quant].read_bytes(), quant
        check_structure(small[quant], plan, source, threads=2)
    head = 64  # rows of one attention head stay together
    assert max(read) <= 256 * head


@pytest.mark.parametrize(("quant", "value"), [("f16", 1e6), ("q4_k_m", float("nan")), ("q8_0", float("inf"))])
def test_a_value_that_cannot_be_stored_is_refused(tmp_path: Path, quant: str, value: float) -> None:
    folder = make_llama(tmp_path / "model", dtype="float32")

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    edit_tensors(folder / "model.safetensors", change)
    source, plan = opened(folder, tmp_path / "scratch")
    with pytest.raises(AssayError, match=r"too large for float16|not finite") as error:
        write([quant], plan, source, tmp_path / "made", threads=2)
    assert "model.layers.1.mlp.up_proj.weight" in str(error.value.where)


@pytest.mark.parametrize("quant", ["q4_0", "q8_0", "q4_k_m", "iq4_xs"])
def test_a_scale_that_overflows_is_the_weights_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], quant: str
) -> None:
    folder = make_llama(tmp_path / "model", dtype="float32", layers=1)

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = -1e12

    edit_tensors(folder / "model.safetensors", change)
    source, plan = opened(folder, tmp_path / "scratch")
    capfd.readouterr()
    with pytest.raises(TypeCannotHold, match=r"^a weight is too large for I?Q") as error:
        write([quant], plan, source, tmp_path / "made")
    assert (error.value.got, error.value.hint) == ("1e+12", "export f32 or bf16")
    assert "model.layers.0.mlp.up_proj.weight" in str(error.value.where)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", ["short", "missing"])
def test_a_matrix_of_another_model_is_refused(tmp_path: Path, llama_folder: Path, damage: str) -> None:
    source, plan = opened(llama_folder, tmp_path / "scratch")
    sums = dict(some_matrix(plan).sums)
    if damage == "short":
        sums["blk.1.ffn_up.weight"] = sums["blk.1.ffn_up.weight"][:-1]
    else:
        del sums["blk.1.ffn_up.weight"]
    write_imatrix(tmp_path / "imatrix.gguf", ImportanceMatrix(sums, 512, 1, 512, "train"))
    with pytest.raises(AssayError, match="not of this model") as error:
        write(["q4_k_m"], plan, source, tmp_path / "made", imatrix=tmp_path / "imatrix.gguf")
    assert "model.layers.1.mlp.up_proj.weight" in str(error.value.where)
