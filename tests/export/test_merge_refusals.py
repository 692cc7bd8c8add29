"""What must not be merged is refused, each with its reason, and nothing is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, Parent, new_artifact, open_artifact
from contract.errors import AssayError
from export.merge import merge_adapter
from tests.export.makers import edit_json, edit_tensors
from tests.tiny import make_adapter, make_llama

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def adapter(tmp_path: Path, adapter_folder: Path) -> Path:
    """A copy of the adapter to damage."""
    return Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))


def refuse(adapter: Artifact | Path, out: Path, match: str, **options: Any) -> str:
    artifact = adapter if isinstance(adapter, Artifact) else open_artifact(adapter)
    with pytest.raises(AssayError, match=match) as error:
        merge_adapter(artifact, out, **options)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
    return str(error.value)


def infinite(tensors: dict[str, Any]) -> None:
    tensors[KEY.format("A")][0, 0] = float("inf")


def zero(tensors: dict[str, Any]) -> None:
    tensors[KEY.format("B")].zero_()


def lose_b(tensors: dict[str, Any]) -> None:
    del tensors[KEY.format("B")]


def stray(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = tensors[KEY.format("A")].clone()


def huge(tensors: dict[str, Any]) -> None:
    tensors[KEY.format("B")] *= 1e7


def tiny(tensors: dict[str, Any]) -> None:
    for name in tensors:
        tensors[name] *= 1e-6


def cut_rank(tensors: dict[str, Any]) -> None:
    tensors[KEY.format("A")] = tensors[KEY.format("A")][:4]
    tensors[KEY.format("B")] = tensors[KEY.format("B")][:, :4]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (infinite, r"q_proj.lora_A.weight: not finite"),
        (zero, r"q_proj.weight: its delta is zero"),
        (lose_b, r"q_proj.weight: .* without B"),
        (stray, r"the base has no model.layers.9"),
        (huge, r"do not fit into float16"),
        (tiny, r"changes nothing"),
        (cut_rank, r"the configuration says rank 8"),
    ],
)
def test_damaged_weights(tmp_path: Path, adapter: Path, damage: Callable[[dict[str, Any]], None], match: str) -> None:
    edit_tensors(adapter / "adapter_model.safetensors", damage)
    message = refuse(adapter, tmp_path / "merged", match)
    if damage is huge:
        assert "max " in message
        assert "--dtype bfloat16" in message
        merge_adapter(open_artifact(adapter), tmp_path / "wide", dtype="bfloat16")


def test_all_problems_are_named_at_once(tmp_path: Path, adapter: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        for change in (infinite, stray):
            change(tensors)
        tensors[KEY.format("B").replace("q_proj", "v_proj")].zero_()

    edit_tensors(adapter / "adapter_model.safetensors", damage)
    message = refuse(adapter, tmp_path / "merged", "does not fit its base")
    assert all(word in message for word in ("not finite", "layers.9", "v_proj.weight: its delta is zero"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA"),
        ({"peft_type": "PROMPT_TUNING"}, "soft prompts"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"trainable_token_indices": [1]}, "token rows"),
        ({"from_the_future": 3}, "not known here"),
        ({"base_model_name_or_path": "/nowhere/base"}, "no such model folder"),
        ({"base_model_name_or_path": None}, "does not name its base"),
    ],
)
def test_settings_that_cannot_be_merged(tmp_path: Path, adapter: Path, changes: dict[str, Any], match: str) -> None:
    edit_json(adapter / "adapter_config.json", **changes)
    refuse(adapter, tmp_path / "merged", match)


def test_wrong_base(tmp_path: Path, adapter: Path) -> None:
    other = make_llama(tmp_path / "other", hidden_size=128, layers=1)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    message = refuse(adapter, tmp_path / "merged", "does not fit its base")
    assert "model.layers.1" in message
    assert "[256, 256]" in message


def test_a_changed_base_is_not_the_one_recorded(tmp_path: Path, adapter_folder: Path) -> None:
    base = make_llama(tmp_path / "base")
    with new_artifact(
        tmp_path / "own", "adapter", "own", parents=[Parent("base", str(base), open_artifact(base).digest)]
    ) as draft:
        shutil.copytree(adapter_folder, draft.path, dirs_exist_ok=True)
    merge_adapter(draft.finished, tmp_path / "fine")
    edit_tensors(base / "model.safetensors", lambda tensors: tensors["model.norm.weight"].mul_(2))
    refuse(draft.finished, tmp_path / "merged", "not the base the adapter was trained on")


def test_a_flipped_byte_in_an_own_adapter(tmp_path: Path, adapter_folder: Path) -> None:
    with new_artifact(tmp_path / "own", "adapter", "own") as draft:
        shutil.copytree(adapter_folder, draft.path, dirs_exist_ok=True)
    weights = draft.finished.path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    refuse(draft.finished, tmp_path / "merged", "not intact")


def test_a_base_that_is_not_finite(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", layers=1)
    adapter = make_adapter(tmp_path / "adapter", base)
    edit_tensors(base / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    refuse(adapter, tmp_path / "merged", r"model.norm.weight: the base's weights are not finite")


def test_a_base_that_is_stored_quantized(tmp_path: Path) -> None:
    import torch

    base = make_llama(tmp_path / "base", layers=1)
    adapter = make_adapter(tmp_path / "adapter", base)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(base / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].to(torch.uint8)}))
    refuse(adapter, tmp_path / "merged", "stored quantized")


def test_more_tokens_than_rows(tmp_path: Path, adapter: Path, llama_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    refuse(adapter, tmp_path / "merged", "more tokens than the embeddings have rows")


def test_nf4_needs_to_know_the_training(tmp_path: Path, adapter: Path) -> None:
    refuse(adapter, tmp_path / "merged", "--trained-on nf4", base_weights="nf4")
    refuse(adapter, tmp_path / "merged", "not trained on NF4", base_weights="nf4", trained_on="w16")


def test_nothing_is_overwritten(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/precious").write_text("x")
    with pytest.raises(AssayError, match="nothing is overwritten"):
        merge_adapter(open_artifact(adapter), tmp_path / "merged")
    assert (tmp_path / "merged/precious").read_text() == "x"


def test_a_merge_that_does_not_load_again_leaves_nothing(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import merge

    write = merge.write_shards

    def lose_one(folder: Path, planned: Any, values: Any, shard_bytes: int) -> None:
        write(folder, planned[:-1], values, shard_bytes)

    monkeypatch.setattr(merge, "write_shards", lose_one)
    refuse(adapter, tmp_path / "merged", "does not load again as it was written")
