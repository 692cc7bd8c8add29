"""Importance matrices are llama-imatrix's, of training text only."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact, sha256_of
from contract.errors import AssayError
from contract.example import Example, sha256_of_rows
from export.gguf_file import plan_gguf
from export.gguf_write import write_ggufs
from export.imatrix import Calibration, calibration_ids, check_split, make_imatrix, matrix_of_ids
from export.imatrix_file import ImportanceMatrix, read_imatrix, write_imatrix
from export.quantize import quiet_llama
from export.source import Source, open_model
from tests.export.engine_imatrix import engine_sums
from tests.export.families import make_model
from tests.tiny import TEXT, make_llama

pytestmark = pytest.mark.engine

EXAMPLES = [Example(f"e{number}", f"{TEXT[0]} {number}", (TEXT[1], f"Room {number}.")) for number in range(40)]


def opened(folder: Path, scratch: Path) -> tuple[Artifact, Source, Any]:
    model = open_artifact(folder)
    scratch.mkdir(exist_ok=True)
    source = open_model(model).source(scratch)
    return model, source, plan_gguf(source)


def matrix(source: Source, plan: Any, ids: Sequence[int], chunk_tokens: int, bos: int | None) -> ImportanceMatrix:
    scratch = Path(tempfile.gettempdir())  # nothing is left there
    return matrix_of_ids(source, plan, ids, scratch, chunk_tokens=chunk_tokens, bos=bos, data="train", threads=1)


@pytest.mark.parametrize("name", ["llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"])
def test_values_are_those_llama_cpp_itself_sees(tmp_path: Path, name: str) -> None:
    folder = make_llama(tmp_path / "model", tie=False) if name == "llama" else make_model(tmp_path / "model", name)
    _, source, plan = opened(folder, tmp_path / "scratch")
    write_ggufs({"f32": tmp_path / "f32.gguf"}, plan, source, name="m")
    ids = calibration_ids(plan, source, Calibration(EXAMPLES), 230)
    assert len(ids) == 230
    ours = matrix(source, plan, ids, 96, plan.special.bos)
    with quiet_llama():
        expected, counts = engine_sums(tmp_path / "f32.gguf", ids, 96, plan.special.bos)
    assert ours.sums.keys() == expected.keys()
    assert set(counts.values()) == {ours.tokens} == {192}
    assert (ours.chunks, ours.chunk_tokens) == (2, 96)
    # llama.cpp's table of half-precision GELU values is behind Gemma's and GPT-2's
    tolerance = 1e-3 if name in ("gemma2", "gemma3", "gpt2") else 1e-5
    for tensor, sums in ours.sums.items():
        assert sums.dtype == np.float32
        np.testing.assert_allclose(sums, expected[tensor], rtol=tolerance, atol=tolerance * expected[tensor].mean())


def test_values_are_sums_of_squares_of_a_plain_forward(tmp_path: Path, llama_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    _, source, plan = opened(llama_folder, tmp_path / "scratch")
    ids = list(range(5, 69))
    found = matrix(source, plan, ids, 32, 0)
    torch_model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    query, key = np.zeros(256), np.zeros(256)
    for start in (0, 32):
        chunk = torch.tensor([[0, *ids[start + 1 : start + 32]]])
        with torch.no_grad():
            states = torch_model(chunk, output_hidden_states=True).hidden_states
            seen = torch_model.model.layers[1].input_layernorm(states[1])[0]
        query += (seen.double() ** 2).sum(0).numpy()
        key += (seen.double() ** 2).sum(0).numpy()
    np.testing.assert_allclose(found.sums["blk.1.attn_q.weight"], query, rtol=1e-5)
    np.testing.assert_allclose(found.sums["blk.1.attn_k.weight"], key, rtol=1e-5)
    assert len(found.sums) == 14
    assert "output.weight" not in found.sums
    assert "token_embd.weight" not in found.sums


def test_an_adapter_is_seen_merged(tmp_path: Path, llama_folder: Path, adapter_folder: Path) -> None:
    from export.merge import merge_adapter

    ids = list(range(5, 69))
    merged = merge_adapter(open_artifact(adapter_folder), tmp_path / "merged", dtype="float32")
    found = matrix(*opened(adapter_folder, tmp_path / "a")[1:], ids, 32, None)
    expected = matrix(*opened(merged.path, tmp_path / "b")[1:], ids, 32, None)
    base = matrix(*opened(llama_folder, tmp_path / "c")[1:], ids, 32, None)
    for name, sums in expected.sums.items():
        np.testing.assert_allclose(found.sums[name], sums, rtol=1e-4)
    assert not np.allclose(found.sums["blk.1.ffn_down.weight"], base.sums["blk.1.ffn_down.weight"], rtol=0.01)


def test_text_is_prompt_and_summary_as_trained(tmp_path: Path, llama_folder: Path) -> None:
    from transformers import AutoTokenizer

    _, source, plan = opened(llama_folder, tmp_path / "scratch")
    source = replace(source, details={"prompt": {"user": "Short: {document}"}})
    ids = calibration_ids(plan, source, Calibration(EXAMPLES[:1]), 10_000)
    text = AutoTokenizer.from_pretrained(llama_folder).decode(ids)
    turns = [
        f"<|begin|><|im_start|>user\nShort: {TEXT[0]} 0<|im_end|>\n<|im_start|>assistant\n{summary}<|im_end|>"
        for summary in EXAMPLES[0].references
    ]
    assert text == "".join(turns)


def test_examples_are_taken_in_the_seeds_order(tmp_path: Path, llama_folder: Path) -> None:
    _, source, plan = opened(llama_folder, tmp_path / "scratch")
    streams = [calibration_ids(plan, source, Calibration(EXAMPLES, seed=seed), 300) for seed in (0, 0, 1)]
    assert streams[0] == streams[1] != streams[2]
    assert len(streams[0]) == 300


def test_the_file_is_read_back_and_has_llama_cpps_keys(tmp_path: Path) -> None:
    from gguf import GGUFReader

    sums = {f"blk.{layer}.ffn_up.weight": np.arange(32, dtype=np.float32) + layer for layer in (1, 0)}
    written = ImportanceMatrix(sums, 1024, 2, 512, "train sha256:ab")
    for name in ("a", "b"):
        write_imatrix(tmp_path / name, written)
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    reader = GGUFReader(tmp_path / "a")
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["train sha256:ab"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 512,
    }
    names = [tensor.name for tensor in reader.tensors]
    assert names == [f"blk.{layer}.ffn_up.weight.{part}" for layer in (0, 1) for part in ("in_sum2", "counts")]
    found = read_imatrix(tmp_path / "a")
    assert replace(found, sums={}) == replace(written, sums={})
    for name, values in sums.items():
        assert np.array_equal(found.sums[name], values)
        assert np.array_equal(found.means()[name], values / np.float32(1024))


@pytest.mark.parametrize("damage", ["text", "model", "nan", "negative", "no tokens"])
def test_what_is_no_matrix_is_refused(tmp_path: Path, llama_folder: Path, damage: str) -> None:
    path = tmp_path / "imatrix.gguf"
    sums = np.ones(32, dtype=np.float32)
    match damage:
        case "text":
            path.write_text("not a matrix at all, only some words " * 4)
        case "model":
            _, source, plan = opened(llama_folder, tmp_path / "scratch")
            write_ggufs({"f16": path}, plan, source, name="m")
        case "nan" | "negative":
            sums[3] = float("nan") if damage == "nan" else -1.0
    if damage in ("nan", "negative", "no tokens"):
        write_imatrix(
            path, ImportanceMatrix({"blk.0.ffn_up.weight": sums}, 0 if damage == "no tokens" else 9, 1, 9, "")
        )
    with pytest.raises(AssayError, match="matrix"):
        read_imatrix(path)


def record_splits(folder: Path, **splits: str) -> Artifact:
    """The model as Assay's own, with splits recorded."""
    model = open_artifact(folder)
    return replace(model, manifest=replace(model.manifest, data_sha256=splits), foreign=False)


def test_only_the_recorded_training_split_is_taken(llama_folder: Path) -> None:
    splits = {"train": EXAMPLES[:20], "valid": EXAMPLES[20:30], "test": EXAMPLES[30:]}
    model = record_splits(llama_folder, **{name: sha256_of_rows(rows) for name, rows in splits.items()})
    found = check_split(model, splits["train"])
    assert found == {"data_sha256": sha256_of_rows(splits["train"]), "split": "train"}
    for name in ("valid", "test"):
        with pytest.raises(AssayError, match=f"the model's {name} split; .* training text only"):
            check_split(model, splits[name])
    for rows in (splits["train"][:-1], [*splits["train"], splits["test"][0]]):
        with pytest.raises(AssayError, match="not the training split"):
            check_split(model, rows)


def test_a_split_whose_ids_were_prefixed_is_known(llama_folder: Path) -> None:
    splits = {"train": EXAMPLES[:20], "test": EXAMPLES[20:]}
    prefixed = {name: [replace(row, id=f"{name}-{row.id}") for row in rows] for name, rows in splits.items()}
    model = record_splits(llama_folder, **{name: sha256_of_rows(rows) for name, rows in prefixed.items()})
    assert check_split(model, splits["train"])["split"] == "train"
    with pytest.raises(AssayError, match="test split"):
        check_split(model, splits["test"])


def test_a_merged_model_asks_its_adapter(tmp_path: Path, adapter_folder: Path) -> None:
    from export.merge import merge_adapter

    merged = merge_adapter(open_artifact(adapter_folder), tmp_path / "merged", dtype="float32")
    parent = merged.parent("adapter")
    assert parent is not None
    adapter = open_artifact(adapter_folder)
    files = [vars(record) for record in adapter.manifest.files]
    copy = tmp_path / "adapter"
    copy.mkdir()
    for record in adapter.manifest.files:
        (copy / record.path).write_bytes((adapter_folder / record.path).read_bytes())
    body = {"schema": 1, "kind": "adapter", "name": "a", "files": files, "parents": [], "recipe_sha256": None}
    body |= {"data_sha256": {"train": "0", "test": sha256_of_rows(EXAMPLES)}, "tools": {}, "details": {}}
    (copy / "manifest.json").write_text(json.dumps({**body, "measurements": {}, "digest": adapter.digest}))
    parents = tuple(replace(one, path=str(copy)) if one.role == "adapter" else one for one in merged.manifest.parents)
    merged = replace(merged, manifest=replace(merged.manifest, parents=parents, schema=1))
    with pytest.raises(AssayError, match="test split"):
        check_split(merged, EXAMPLES)


def test_a_model_without_recorded_splits_says_so(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_split(open_artifact(llama_folder), EXAMPLES)["split"] is None
    assert "was not checked" in capsys.readouterr().err


def test_the_same_text_gives_the_same_file(tmp_path: Path, llama_folder: Path) -> None:
    model, source, plan = opened(llama_folder, tmp_path / "scratch")
    calibration = Calibration(EXAMPLES, chunks=2)
    found = [make_imatrix(model, plan, source, calibration, tmp_path / name, threads=1) for name in ("a", "b")]
    assert found[0] == found[1]
    assert found[0] == {
        "sha256": sha256_of(tmp_path / "a"),
        "chunks": 2,
        "chunk_tokens": 512,
        "tokens": 1024,
        "seed": 0,
        "data_sha256": sha256_of_rows(EXAMPLES),
        "split": None,
    }


def test_little_text_makes_one_short_chunk_and_says_so(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, source, plan = opened(llama_folder, tmp_path / "scratch")
    made = make_imatrix(model, plan, source, Calibration(EXAMPLES[:1]), tmp_path / "imatrix.gguf", threads=1)
    assert made["chunks"] == 1
    assert 16 < made["chunk_tokens"] == made["tokens"] < 512
    assert f"made from {made['tokens']} tokens, which is very little" in capsys.readouterr().err


def test_too_little_text_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    _, source, plan = opened(llama_folder, tmp_path / "scratch")
    for count, chunk_tokens in ((31, 32), (15, 15)):
        with pytest.raises(AssayError, match="too little text"):
            matrix(source, plan, list(range(5, 5 + count)), chunk_tokens, None)


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from tests.export.makers import edit_tensors

    folder = make_llama(tmp_path / "model", dtype="float32")
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors[name].fill_(3e38))
    _, source, plan = opened(folder, tmp_path / "scratch")
    with pytest.raises(AssayError, match=r"activations are not finite[\s\S]*ffn_down"):
        matrix(source, plan, list(range(5, 37)), 32, None)
