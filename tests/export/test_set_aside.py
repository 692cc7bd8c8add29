"""An export that does not compute what its source does: exit 1, set aside, unservable, whole or not at all."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import assay
from contract import set_aside
from contract.artifact import open_artifact, sha256_of
from contract.errors import AssayError
from contract.failed import FAILED_FILE
from export import check_onnx, gguf_family, gguf_file, onnx_graph
from export.check_failed import CheckFailed
from export.source import Source
from export.to_gguf import export_gguf
from export.to_onnx import export_onnx
from tests.export.killing import kill_at_random_moments
from tests.export.makers import edit_tensors
from tests.tiny_seq2seq import make_bart

pytestmark = pytest.mark.engine

MOMENTS = 30


@pytest.fixture
def swapped_heads(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A flaw of the converter: structure agrees with itself, torch does not."""
    monkeypatch.setattr(gguf_family, "interleave_halves", lambda tensor, heads: tensor)
    return monkeypatch


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["assay", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            assay.main()
        return end.value.code, capsys.readouterr().err

    return run


def failures(aside: Path) -> dict[str, tuple[float, float]]:
    rows = json.loads((aside / FAILED_FILE).read_text())["failures"]
    return {row["code"]: (row["figure"], row["limit"]) for row in rows}


def test_a_gguf_is_set_aside_and_refused_everywhere(
    tmp_path: Path,
    llama_folder: Path,
    swapped_heads: pytest.MonkeyPatch,
    command: Callable[..., tuple[object, str]],
) -> None:
    out = tmp_path / "gguf"
    export = ["export", "gguf", llama_folder, "--out", out, "--quant", "q8_0,f16", "--check", "logits"]
    code, said = command(*export)
    aside = out / "f16.failed"
    assert code == 1
    assert "the GGUF does not compute what its source does" in said
    assert f"set aside in {aside};" in said
    assert list(out.iterdir()) == [aside], "the other one had not failed, and is not kept without it"
    assert sorted(path.name for path in aside.iterdir()) == [FAILED_FILE, "llama-F16.gguf"]
    [(name, (figure, limit))] = failures(aside).items()
    assert (name, limit) == ("mean_kl_nats", 1e-4)
    assert figure > limit
    told = json.loads((aside / FAILED_FILE).read_text())
    assert told["measurements"]["logits"]["mean_kl_nats"] == figure
    assert told["details"]["quant"] == "f16"

    (tmp_path / "data.jsonl").write_text('{"id": "1", "document": "d", "summary": "s"}\n')
    for path in (aside, aside / "llama-F16.gguf"):
        for words in (
            ["inspect", path],
            ["serve", path, "--allow-unproven"],
            ["summarize", path, tmp_path / "data.jsonl"],
            ["generate", path, "--prompt", "x"],
            ["eval", path, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "eval"],
            ["export", "ollama", path, "--out", tmp_path / "ollama"],
        ):
            code, said = command(*words)
            assert code == 2, words
            assert said.count("assay: this failed its check when it was exported") == 1, (words, said)
            assert "mean_kl_nats" in said

    assert command(*export)[0] == 1
    assert list(out.iterdir()) == [aside], "the same bytes again"
    swapped_heads.undo()
    made = export_gguf(open_artifact(llama_folder), out, quants=["f16"], threads=1, check="logits")
    assert sorted(path.name for path in out.iterdir()) == ["f16", "f16.failed"]
    assert open_artifact(out / "f16", verify=True).digest == made[0].digest


def test_an_onnx_folder_is_set_aside(tmp_path: Path, command: Callable[..., tuple[object, str]]) -> None:
    """Every weight fits into float16; what the first feed-forward layer makes of them does not."""
    folder = make_bart(tmp_path / "m", init_std=0.02)
    name = "model.encoder.layers.0.fc1.weight"
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors[name].mul_(5e5))
    out = tmp_path / "onnx"
    code, said = command("export", "onnx", folder, "--out", out, "--precision", "fp32,fp16", "--check", "logits")
    aside = out / "fp16.failed"
    assert code == 1
    assert re.search(r"fp16: activations at model\.encoder\.layers\.0\.fc\d reach", said)
    assert f"set aside in {aside}" in said
    assert aside in out.iterdir()
    assert {"encoder_model.onnx", "tokenizer.json", FAILED_FILE} <= {path.name for path in aside.iterdir()}
    assert not list(aside.rglob("manifest.json"))
    assert not list(aside.rglob(".*"))
    figure, limit = failures(aside)["activations_too_large"]
    assert figure > limit == 65504
    for path in (aside, aside / "encoder_model.onnx"):
        with pytest.raises(AssayError, match="failed its check"):
            open_artifact(path)


def test_a_graph_that_does_not_load_is_set_aside(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_graph.write_graphs

    def broken(folder: Path, graphs: list[onnx_graph.OnnxGraph]) -> None:
        graphs[0].nodes[0].op_type = "NoSuchOperator"
        real(folder, graphs)

    monkeypatch.setattr(onnx_graph, "write_graphs", broken)
    monkeypatch.setattr(check_onnx, "check_structure", lambda *_: {})  # which sees it first
    with pytest.raises(CheckFailed, match=r"fp32: onnxruntime does not load the graph") as no:
        export_onnx(open_artifact(llama_folder), tmp_path, precisions=["fp32"], check="logits", threads=1)
    assert "set aside" in str(no.value.hint)
    assert list(failures(tmp_path / "fp32.failed")) == ["not_loadable"]
    assert ".partial-" not in (tmp_path / "fp32.failed" / FAILED_FILE).read_text()


def test_a_gguf_that_does_not_load_is_set_aside(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp wants a tensor that the plan has not."""
    planned = gguf_file.plan_gguf

    def short(source: Source, pre_tokenizer: str | None) -> gguf_file.GgufPlan:
        plan = planned(source, pre_tokenizer)
        return replace(plan, tensors=[t for t in plan.tensors if t.name != "output_norm.weight"])

    monkeypatch.setattr(gguf_file, "plan_gguf", short)
    with pytest.raises(CheckFailed, match=r"f16: llama\.cpp cannot load the file"):
        export_gguf(open_artifact(llama_folder), tmp_path, quants=["f16"], check="logits", threads=1)
    assert list(failures(tmp_path / "f16.failed")) == ["not_loadable"]


def test_without_room_for_the_record_it_is_still_a_no(
    tmp_path: Path, llama_folder: Path, swapped_heads: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    swapped_heads.setattr(set_aside, "sync", full)
    with pytest.raises(CheckFailed, match="could not be set aside") as no:
        export_gguf(open_artifact(llama_folder), tmp_path, quants=["f16"], check="logits", threads=1)
    assert no.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_killed_at_random_moments(tmp_path: Path, llama_folder: Path) -> None:
    kill_at_random_moments(
        llama_folder,
        tmp_path,
        MOMENTS,
        setup="import contextlib\nfrom export import gguf_family\nfrom export.to_gguf import export_gguf\n"
        "gguf_family.interleave_halves = lambda tensor, heads: tensor",
        work="with contextlib.suppress(AssayError): export_gguf(model, out, quants=['f16'], check='logits', threads=1)",
    )
    whole = caught = 0
    for folder in (tmp_path / "warm", *(tmp_path / str(number) for number in range(MOMENTS))):
        left = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        assert left in ([], ["f16.failed"]) or [name.startswith(".f16.partial-") for name in left] == [True]
        whole, caught = whole + ("f16.failed" in left), caught + (left not in ([], ["f16.failed"]))
        if "f16.failed" in left:
            told = json.loads((folder / "f16.failed" / FAILED_FILE).read_text())
            assert [sha256_of(folder / "f16.failed" / file["path"]) for file in told["files"]] == [
                file["sha256"] for file in told["files"]
            ]
    assert whole >= 1
    assert caught >= 5
