"""A folder that does not make the model its files say is refused before it is traced: by name, with nothing left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from export.check_failed import CheckFailed
from export.onnx_folder import check_folder
from export.onnx_source import SourceTensors
from export.to_onnx import _named, export_onnx
from export.weights import FolderWeights
from tests.export.makers import edit_json, edit_tensors
from tests.tiny import make_llama
from tests.tiny_seq2seq import make_adapter_seq2seq, make_bart, make_t5

pytestmark = pytest.mark.engine

MAKERS: dict[str, Any] = {"t5": make_t5, "bart": make_bart, "llama": make_llama}
_NORM = "encoder.block.0.layer.0.layer_norm.weight"
_KEY = "decoder.block.0.layer.0.SelfAttention.k.weight"
_BIAS = "model.encoder.layers.0.fc1.bias"
_UP = "model.layers.1.mlp.up_proj.weight"
Change = Callable[[Path], object]


def tensors(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: edit_tensors(folder / "model.safetensors", change)


def generation(**values: Any) -> Change:
    return lambda folder: edit_json(folder / "generation_config.json", **values)


def without_start(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / name, decoder_start_token_id=None)


REFUSALS: list[tuple[str, Change, str]] = [
    ("t5", tensors(lambda t: t.pop(_NORM)), f"{_NORM}: missing"),
    ("bart", tensors(lambda t: t.pop(_BIAS)), f"{_BIAS}: missing"),
    ("llama", tensors(lambda t: t.pop(_UP)), f"{_UP}: missing"),
    ("t5", tensors(lambda t: t.update(foo=t[_NORM] + 1)), "foo: the model has no such tensor"),
    ("bart", lambda f: edit_json(f / "config.json", encoder_ffn_dim=64), f"{_BIAS}: [128], must be [64]"),
    ("t5", tensors(lambda t: t[_KEY].__setitem__((0, 0), float("nan"))), f"weights are not finite\n.*\n  got: {_KEY}"),
    ("llama", tensors(lambda t: t[_UP].__setitem__((0, 0), float("-inf"))), f"not finite\n.*\n  got: {_UP}"),
    ("t5", without_start, "nothing says what the decoder starts with"),
    ("t5", generation(decoder_start_token_id=9999), "decoder_start_token_id: 9999, the embeddings have"),
    ("bart", generation(forced_bos_token_id=9999), "forced_bos_token_id: 9999, the embeddings have"),
    ("t5", lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer cannot be loaded"),
]


@pytest.mark.parametrize(("kind", "change", "reason"), REFUSALS)
def test_the_reason_is_named_and_nothing_left(kind: str, change: Change, reason: str, tmp_path: Path) -> None:
    import re

    folder = MAKERS[kind](tmp_path / "model")
    change(folder)
    with pytest.raises(AssayError) as refusal:
        export_onnx(open_artifact(folder), tmp_path / "out", precisions=["fp32"])
    assert refusal.value.exit_code == 2
    expected = reason if "\n" in reason else re.escape(reason)
    assert re.search(expected, str(refusal.value))
    assert str(refusal.value.where).startswith(str(folder))
    assert list((tmp_path / "out").iterdir()) == []


def test_what_transformers_makes_up_or_computes_may_be_missing_or_stored(tmp_path: Path) -> None:
    """BART's bias of the logits, T5's other names of its embeddings, angles that old folders of Llama store."""
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "bart": lambda t: t.pop("final_logits_bias"),
        "t5": lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"].clone()}),
        "llama": lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": t["model.norm.weight"][:32].clone()}
        ),
    }
    for kind, change in changes.items():
        folder = MAKERS[kind](tmp_path / kind)
        tensors(change)(folder)
        check_folder(folder, SourceTensors(FolderWeights.open(folder)))


def test_a_context_too_short_for_the_check_is_said_of_what_was_given(tmp_path: Path) -> None:
    """The adapter's merged form is gone by then."""
    adapter = make_adapter_seq2seq(tmp_path / "adapter", make_t5(tmp_path / "base", n_positions=16))
    with pytest.raises(AssayError, match="the context is too short") as refusal:
        export_onnx(open_artifact(adapter), tmp_path / "out", precisions=["fp32"], check="logits", threads=1)
    assert refusal.value.exit_code == 2
    assert refusal.value.where == str(adapter / "config.json")


def test_a_check_that_fails_names_the_output() -> None:
    draft, out = Path("out/.fp32.partial-7"), Path("out/fp32")
    with pytest.raises(CheckFailed) as no, _named({draft: out}):
        raise CheckFailed("no", where=str(draft / "model.onnx"), got=f"{draft}: cut short", hint="again")
    assert (no.value.where, no.value.got, no.value.hint) == ("out/fp32/model.onnx", "out/fp32: cut short", "again")
