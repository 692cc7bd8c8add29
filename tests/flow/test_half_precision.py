"""float16 is refused by what flows through a model on real prompts, whatever its weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from contract.artifact import open_artifact
from contract.errors import AssayError
from flow.half_precision import check_float16
from flow.merge_cli import merge
from tests.evalsuite.chain import examples
from tests.tiny import make_adapter
from tests.tiny_seq2seq import make_adapter_seq2seq, make_bart, make_t5

pytestmark = pytest.mark.engine

LAYER = "encoder.block.1.layer.1.DenseReluDense.wo"


def make_hot(folder: Path, factor: float) -> Path:
    """A T5 whose weights all fit into float16, and whose encoder's last layer writes values `factor` times as large."""
    from safetensors.torch import load_file, save_file

    make_t5(folder)
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    for name in ("wi_0", "wi_1", "wo"):
        tensors[f"encoder.block.1.layer.1.DenseReluDense.{name}.weight"] *= factor ** (1 / 3)
    assert max(float(tensor.abs().max()) for tensor in tensors.values()) < 65504 / 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check(base: Path, adapter: Path) -> dict[str, Any] | None:
    return check_float16(open_artifact(adapter), examples(4), base_weights="w16", threads=1)


def test_what_is_measured_is_what_flows(tmp_path: Path) -> None:
    """Against hooks on transformers' own model."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    base = make_t5(tmp_path / "base")
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    found = check(base, adapter)
    assert found is not None
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), adapter).merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    seen: list[float] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or "layer_norm" in name:
            module.register_forward_hook(
                lambda _, inputs, output: seen.extend((float(inputs[0].abs().max()), float(output.abs().max())))
            )
    from contract.prompt import PromptSpec

    with torch.inference_mode():
        for example in examples(4):
            [message] = PromptSpec().messages(example.document)
            model(
                **tokenizer(message.content.strip(), return_tensors="pt"),
                labels=tokenizer(example.references[0], return_tensors="pt")["input_ids"],
            )
    assert found["largest"] == pytest.approx(max(seen), rel=1e-3)
    assert found["prompts"] == 4


def test_beyond_the_range_is_refused(tmp_path: Path) -> None:
    base = make_hot(tmp_path / "base", 1e6)
    with pytest.raises(AssayError, match="cannot run in float16") as raised:
        check(base, make_adapter_seq2seq(tmp_path / "adapter", base))
    assert "bfloat16" in str(raised.value)
    assert "encoder" in str(raised.value)


def test_more_than_half_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def largest(factor: float) -> float:
        base = make_hot(tmp_path / f"base-{factor:g}", factor)
        found = check(base, make_adapter_seq2seq(tmp_path / f"adapter-{factor:g}", base, target_modules=["q"]))
        assert found is not None
        return float(found["largest"])

    small = largest(1e3)
    assert small < 65504 / 2
    assert "warning" not in capsys.readouterr().err
    assert 65504 / 2 < largest(1e3 * 49_000 / small) < 65504
    assert "more than half" in capsys.readouterr().err


def test_bart_is_measured_and_a_causal_base_is_not(tmp_path: Path, llama_folder: Path) -> None:
    base = make_bart(tmp_path / "base")
    found = check(base, make_adapter_seq2seq(tmp_path / "adapter", base))
    assert found is not None
    assert found["largest"] < 65504
    assert check(llama_folder, make_adapter(tmp_path / "causal", llama_folder)) is None


def test_the_command_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    base = make_hot(tmp_path / "base", 1e6)
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    result = CliRunner().invoke(merge, [str(adapter), "--out", str(tmp_path / "out"), "--threads", "1"])
    assert isinstance(result.exception, AssayError)
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(
        merge, [str(adapter), "--out", str(tmp_path / "out"), "--threads", "1", "--dtype", "bfloat16", "--json"]
    )
    assert result.exit_code == 0, result.exception


def test_the_manifest_says_what_was_measured(tmp_path: Path) -> None:
    base = make_t5(tmp_path / "base")
    adapter = make_adapter_seq2seq(tmp_path / "adapter", base)
    result = CliRunner().invoke(merge, [str(adapter), "--out", str(tmp_path / "out"), "--threads", "1"])
    assert result.exit_code == 0, result.exception
    activations = open_artifact(tmp_path / "out").manifest.measurements["activations"]
    assert activations["prompts"] == 16
    assert activations["origin"] == "embedded dialogues"
    assert 0 < activations["largest"] < 65504
