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
from export.peft_types import TYPES
from tests.export.makers import edit_json, edit_tensors
from tests.export.peft_makers import make_gpt2, make_peft
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine

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


def lose_a_module(tensors: dict[str, Any]) -> None:
    for side in "AB":
        del tensors[KEY.format(side)]


def second_adapter(tensors: dict[str, Any]) -> None:
    for number, name in enumerate(sorted(tensors)):
        other = "one" if number % 2 else "two"
        tensors[name.replace(".weight", f".{other}.weight")] = tensors.pop(name)


def packed(tensors: dict[str, Any]) -> None:
    tensors[KEY.format("B")] = tensors[KEY.format("B")].char()


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
        (lose_a_module, r"layers.0.self_attn.q_proj: targeted, but not in the file"),
        (second_adapter, r"several adapters in one file: one, two"),
        (packed, r"q_proj.lora_B.weight: stored as I8"),
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
        ({"use_dora": True}, "magnitude vector disagree"),
        ({"lora_bias": True}, "the bias of its B disagree"),
        ({"use_dora": True, "lora_bias": True}, "use_dora and lora_bias"),
        ({"peft_type": "IA3"}, "not a part of a IA3 adapter"),
        ({"peft_type": "WONDER"}, "not known"),
        ({"lora_alpha": None}, "lora_alpha: None, not what a LORA adapter needs"),
        ({"r": 0}, "r: 0, not above 0"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"rank_pattern": {"q_proj": "four"}}, "not a number for each name"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"target_parameters": ["mlp.experts"]}, "fused experts"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"trainable_token_indices": [1]}, "model.embed_tokens.weight: trained, but not in the file"),
        ({"from_the_future": 3}, "not known here"),
        ({"base_model_name_or_path": "/nowhere/base"}, "no such model folder"),
        ({"base_model_name_or_path": None}, "does not name its base"),
    ],
)
def test_settings_that_cannot_be_merged(tmp_path: Path, adapter: Path, changes: dict[str, Any], match: str) -> None:
    edit_json(adapter / "adapter_config.json", **changes)
    refuse(adapter, tmp_path / "merged", match)


@pytest.mark.parametrize("kind", [kind for kind, fate in TYPES.items() if not fate.merged])
def test_types_that_cannot_be_merged(tmp_path: Path, adapter: Path, kind: str) -> None:
    edit_json(adapter / "adapter_config.json", peft_type=kind)
    message = refuse(adapter, tmp_path / "merged", f"{kind}: ")
    assert TYPES[kind].why in message
    assert TYPES[kind].instead in message


def damage_dora(tensors: dict[str, Any]) -> None:
    del tensors[KEY.format("A").replace("lora_A.weight", "lora_magnitude_vector")]


def damage_ia3(tensors: dict[str, Any]) -> None:
    name = "base_model.model.model.layers.0.self_attn.v_proj.ia3_l"
    tensors[name] = tensors[name][:-1]


def damage_rows(tensors: dict[str, Any]) -> None:
    name = "base_model.model.model.embed_tokens.trainable_tokens_delta"
    tensors[name] = tensors[name][:1]


def damage_lokr(tensors: dict[str, Any]) -> None:
    name = "base_model.model.model.layers.1.self_attn.v_proj.lokr_w2_a"
    tensors[name.replace("w2_a", "w2_c")] = tensors.pop(name)


def damage_norm(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.model.norm.ln_tuning_layers.weight"].fill_(float("nan"))


OTHERS: list[tuple[str, dict[str, Any], Any, str]] = [
    (
        "LoraConfig",
        {"target_modules": ["q_proj"], "use_dora": True},
        damage_dora,
        "q_proj.weight: use_dora and its magn",
    ),
    ("IA3Config", {"target_modules": ["v_proj"], "feedforward_modules": []}, damage_ia3, r"a vector of \[127, 1\]"),
    ("TrainableTokensConfig", {"token_indices": [1, 40]}, damage_rows, "for 2 trained tokens"),
    ("LoKrConfig", {"target_modules": ["v_proj"], "r": 2}, damage_lokr, "lokr_w2_c: "),
    ("LNTuningConfig", {"target_modules": ["norm"]}, damage_norm, "norm.ln_tuning_layers.weight: not finite"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "settings", "damage", "match"), OTHERS)
def test_damaged_adapters_of_other_types(
    tmp_path: Path, kind: str, settings: dict[str, Any], damage: Callable[[dict[str, Any]], None], match: str
) -> None:
    import peft

    base = make_llama(tmp_path / "base")
    folder = make_peft(tmp_path / "adapter", base, getattr(peft, kind)(task_type="CAUSAL_LM", **settings))
    edit_tensors(folder / "adapter_model.safetensors", damage)
    refuse(folder, tmp_path / "merged", match)


def test_an_adapter_as_training_begins_changes_nothing(tmp_path: Path, llama_folder: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    config = peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    refuse(tmp_path / "adapter", tmp_path / "merged", "changes nothing")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tied_delta_that_vanishes_changes_nothing(tmp_path: Path, llama_folder: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", llama_folder, target_modules=["embed_tokens"], ensure_weight_tying=True)

    def shrink(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "lora_" in name:
                tensors[name] *= 1e-6

    edit_tensors(folder / "adapter_model.safetensors", shrink)
    refuse(folder, tmp_path / "merged", "changes nothing")


def test_conv1d_has_no_nf4_form(tmp_path: Path) -> None:
    import peft

    base = make_gpt2(tmp_path / "base")
    folder = make_peft(tmp_path / "adapter", base, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    refuse(folder, tmp_path / "merged", "Conv1D", base_weights="nf4", trained_on="nf4")


def test_a_base_whose_tensors_are_not_its_configs(tmp_path: Path, adapter: Path) -> None:
    base = make_llama(tmp_path / "base")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(base / "model.safetensors", lambda tensors: tensors.update({"model.extra": tensors.pop(name)}))
    message = refuse(adapter, tmp_path / "merged", "not those of its config.json")
    assert f"{name}: missing" in message
    assert "model.extra: the model has no such tensor" in message


def test_a_base_cut_short(tmp_path: Path, adapter: Path) -> None:
    base = make_llama(tmp_path / "base")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuse(adapter, tmp_path / "merged", "a weights file cannot be read")


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


def test_a_changed_base_of_our_own(tmp_path: Path, adapter: Path, llama_folder: Path) -> None:
    """Its manifest still gives the digest that the adapter was trained on."""
    with new_artifact(tmp_path / "base", "merged", "base") as draft:
        shutil.copytree(llama_folder, draft.path, dirs_exist_ok=True)
    base = draft.finished
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base.path))
    with new_artifact(tmp_path / "own", "adapter", "own", parents=[Parent("base", str(base.path), base.digest)]) as own:
        shutil.copytree(adapter, own.path, dirs_exist_ok=True)
    merge_adapter(own.finished, tmp_path / "fine")
    edit_tensors(base.path / "model.safetensors", lambda tensors: tensors["model.norm.weight"].mul_(2))
    for trained in (own.finished, adapter):
        assert "model.safetensors" in refuse(trained, tmp_path / "merged", "the artifact is not intact")


def test_what_is_no_adapter(tmp_path: Path, llama_folder: Path) -> None:
    message = refuse(llama_folder, tmp_path / "merged", "this is no adapter")
    assert str(llama_folder) in message
    assert "got: merged" in message


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


@pytest.mark.parametrize("reached", ["not", "by the template", "as the end"])
def test_a_control_token_without_a_row(tmp_path: Path, adapter: Path, llama_folder: Path, reached: str) -> None:
    """Text models keep those of their siblings that see; refused where a prompt could hold one."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    if reached == "by the template":
        tokenizer.chat_template += "<image>"
    if reached == "as the end":
        tokenizer.eos_token = "<image>"
    tokenizer.save_pretrained(adapter)
    if reached != "not":
        refuse(adapter, tmp_path / "merged", "more tokens than the embeddings have rows")
        return
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged")
    assert "tokenizer: <image> kept without an embedding; no prompt can hold them" in merged.details["cleaning"]


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

    def lose_one(folder: Path, planned: Any, values: Any, shard_bytes: int) -> Any:
        return write(folder, planned[:-1], values, shard_bytes)

    monkeypatch.setattr(merge, "write_shards", lose_one)
    refuse(adapter, tmp_path / "merged", "does not load again as it was written")


def test_bytes_that_do_not_read_back_are_not_written_off(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import shards

    write = shards.write_at

    def drop_a_byte(descriptor: int, view: memoryview, offset: int) -> None:
        write(descriptor, view, offset)
        if len(view) > 100_000:
            write(descriptor, memoryview(bytes([view[7] ^ 1])), offset + 7)

    monkeypatch.setattr(shards, "write_at", drop_a_byte)
    refuse(adapter, tmp_path / "merged", "does not read back as it was written")
