"""`assay run` makes ONNX folders where the recipe asks for them, scores and gates them; GGUF may be left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.recipe import load_recipe
from flow.cli import run_command
from flow.preflight import make_twin, preflight
from flow.run import run_recipe
from tests.flow.test_run import recipe, rows
from tests.tiny import write_jsonl
from tests.tiny_seq2seq import make_bart, make_t5
from trainer.data import load_splits

pytestmark = pytest.mark.engine

ONNX = {"gguf": None, "onnx": {"precisions": ["fp32", "int8"], "check": "structure"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count, start in (("train", 24, 0), ("valid", 6, 500), ("test", 20, 600)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(count, start))
    return tmp_path


def test_onnx_alone_all_the_way(folder: Path, llama_folder: Path) -> None:
    gate = {"require": ["merged", "onnx-int8"], "onnx": {"int8": {"max_kl_nats": 1e-12}}}
    loaded = load_recipe(recipe(folder, llama_folder, export=ONNX, gate=gate))
    made = run_recipe(loaded, folder / "run", threads=1, until="onnx")
    assert made.done == ["adapter", "merged", "onnx/fp32, onnx/int8"]
    assert list(made.artifacts) == ["base", "adapter", "merged", "onnx-fp32", "onnx-int8"]
    assert (folder / "run" / "onnx" / "int8" / "model.onnx").is_file()

    result = run_recipe(loaded, folder / "run", threads=1)
    assert result.done == ["eval"]
    assert result.verdicts is not None
    verdicts = {verdict.label: verdict for verdict in result.verdicts}
    assert list(verdicts) == ["merged", "onnx-fp32", "onnx-int8"]
    reasons = {label: {r.code: r.outcome for r in verdict.reasons} for label, verdict in verdicts.items()}
    assert reasons["onnx-fp32"]["kl_mean_gold"] == "pass"
    assert reasons["onnx-int8"]["kl_mean_gold"] == "fail"
    assert reasons["onnx-int8"]["prompt_ids_differ"] == "pass"
    assert not result.proven


def test_a_t5_trained_in_full_all_the_way(folder: Path) -> None:
    base = make_t5(folder / "base")
    path = recipe(
        folder,
        base,
        train={"method": "full", "max_steps": 3, "learning_rate": 1e-4},
        merge={"dtype": "float32"},
        export=ONNX,
        gate={"require": ["onnx-fp32", "onnx-int8"]},
    )
    result = run_recipe(load_recipe(path), folder / "run", threads=1)
    assert result.done == ["merged", "onnx/fp32, onnx/int8", "eval"]
    assert list(result.artifacts) == ["base", "merged", "onnx-fp32", "onnx-int8"]
    assert (folder / "run" / "onnx" / "int8" / "decoder_with_past_model.onnx").is_file()
    assert result.verdicts is not None
    codes = {v.label: {reason.code: reason.outcome for reason in v.reasons} for v in result.verdicts}
    assert list(codes) == ["onnx-fp32", "onnx-int8"]
    for reasons in codes.values():
        assert (reasons["prompt_ids_differ"], reasons["kl_mean_gold"]) == ("pass", "pass")
    assert run_recipe(load_recipe(path), folder / "run", threads=1).done == []


@pytest.mark.parametrize(
    ("export", "until", "key"), [({"onnx": None}, "onnx", "onnx: {precisions"), (ONNX, "gguf", "gguf: {quants")]
)
def test_a_last_stage_that_makes_nothing_is_refused(
    export: dict[str, object], until: str, key: str, folder: Path, llama_folder: Path
) -> None:
    path = recipe(folder, llama_folder, export=export, gate={"require": ["merged"]})
    with pytest.raises(AssayError, match=f"the recipe exports no {until.upper()}") as refusal:
        run_command.main([str(path), "--out", str(folder / "run"), "--until", until], standalone_mode=False)
    assert refusal.value.exit_code == 2
    assert key in str(refusal.value)
    assert not (folder / "run").exists()


def test_preflight_sends_the_twin_through_onnx(folder: Path, llama_folder: Path) -> None:
    loaded = load_recipe(recipe(folder, llama_folder, export=ONNX, gate={"require": ["merged"]}))
    assert preflight(loaded, load_splits(loaded), device="cpu", threads=1) > 0


@pytest.mark.parametrize("make", [make_t5, make_bart])
def test_an_encoder_decoder_has_a_twin(make: object, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    assert callable(make)
    base = make(tmp_path / "base", d_model=128)
    twin = AutoModelForSeq2SeqLM.from_pretrained(make_twin(base, tmp_path / "twin"))
    config, small = AutoConfig.from_pretrained(base), twin.config
    assert small.d_model < config.d_model
    assert small.vocab_size == config.vocab_size
    assert small.decoder_start_token_id == config.decoder_start_token_id
