"""Names, shapes and places an adapter or its base may come in: each merges to the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.model_folder import read_json
from export.merge import merge_adapter
from export.peft_adapter import _PARTS
from export.peft_types import TYPES, reference
from export.weights import FolderWeights
from runtimes.peft_keys import MERGEABLE_TYPES
from runtimes.torch_load import load_adapter
from tests.export.makers import edit_json, edit_tensors
from tests.export.peft_makers import logits, make_gpt2, make_peft, peft_merge
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_the_programs() -> None:
    assert (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8") == reference()


def test_every_type_of_peft_has_a_fate() -> None:
    from peft import PeftType

    assert set(TYPES) == {kind.value for kind in PeftType}
    merged = {kind for kind, fate in TYPES.items() if fate.merged}
    assert merged == set(MERGEABLE_TYPES) == set(_PARTS)
    assert all(fate.instead for fate in TYPES.values() if not fate.merged)


FORMS: dict[str, Callable[[str], str]] = {
    "with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "without PEFT's prefix": lambda key: key.removeprefix("base_model.model."),
    "wrapped by a trainer": lambda key: f"module.{key}",
    "from FSDP": lambda key: key.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
}


@pytest.mark.parametrize("form", FORMS)
def test_keys_in_other_forms(tmp_path: Path, llama_folder: Path, adapter_folder: Path, form: str) -> None:
    import torch

    folder = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))

    def rename(tensors: dict[str, Any]) -> None:
        for key in list(tensors):
            tensors[FORMS[form](key)] = tensors.pop(key)

    edit_tensors(folder / "adapter_model.safetensors", rename)
    assert set(FolderWeights.of_file(folder / "adapter_model.safetensors").names()) != set(
        FolderWeights.of_file(adapter_folder / "adapter_model.safetensors").names()
    )
    plain = merge_adapter(open_artifact(adapter_folder), tmp_path / "plain")
    assert (
        merge_adapter(open_artifact(folder), tmp_path / "merged").manifest.files_digest == plain.manifest.files_digest
    )
    own, usual = (
        load_adapter(open_artifact(path), base_weights=None, merge_dtype=None) for path in (folder, adapter_folder)
    )
    assert torch.equal(logits(own.model), logits(usual.model))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_doras_older_key(tmp_path: Path, llama_folder: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", llama_folder, use_dora=True, target_modules=["q_proj"])
    plain = merge_adapter(open_artifact(folder), tmp_path / "plain")
    edit_tensors(
        folder / "adapter_model.safetensors",
        lambda tensors: [
            tensors.update({f"{key}.default.weight": tensors.pop(key)}) for key in list(tensors) if "magnitude" in key
        ],
    )
    assert (
        merge_adapter(open_artifact(folder), tmp_path / "merged").manifest.files_digest == plain.manifest.files_digest
    )


def test_gpt2_as_its_first_folders_were_stored(tmp_path: Path) -> None:
    """Without the model's prefix, and with the causal mask as a buffer."""
    import torch
    from peft import LoraConfig

    base = make_gpt2(tmp_path / "base")
    config = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapter = make_peft(tmp_path / "adapter", base, config)
    plain = merge_adapter(open_artifact(adapter), tmp_path / "plain")

    def older(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 128, 128)

    edit_tensors(base / "model.safetensors", older)
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged")
    assert merged.manifest.files_digest == plain.manifest.files_digest
    assert "transformer.h.0.attn.c_attn.weight" in FolderWeights.open(merged.path).names()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (make_llama, {"target_modules": ["q_proj"]}),
        (make_llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        (make_llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (make_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 402]}),
        (make_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ],
)
def test_added_tokens(tmp_path: Path, make: Any, settings: dict[str, Any], tie: bool) -> None:
    """Tokens beyond the base's rows: the adapter brings the resized embeddings, and they are used."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make(tmp_path / "base", dtype="float32", tie=tie)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    adapter = make_peft(tmp_path / "adapter", base, config, rows=len(tokenizer))
    tokenizer.save_pretrained(adapter)
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32").path
    assert read_json(merged / "config.json")["vocab_size"] == len(tokenizer)
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    unmerged = load_adapter(open_artifact(adapter), base_weights=None, merge_dtype=None).model
    assert logits(whole).shape[-1] == len(tokenizer)
    assert torch.allclose(logits(whole), logits(unmerged), atol=2e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_resized_end_without_the_other(tmp_path: Path) -> None:
    """PEFT saves only the targeted one of two resized embeddings: the other's new rows are nowhere."""
    from peft import LoraConfig

    base = make_llama(tmp_path / "base", tie=False)
    config = LoraConfig(target_modules=["embed_tokens"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapter = open_artifact(make_peft(tmp_path / "adapter", base, config, rows=404))
    with pytest.raises(AssayError, match="only one of the two was resized"):
        merge_adapter(adapter, tmp_path / "merged")
    with pytest.raises(AssayError, match="only one of the two resized embeddings"):
        load_adapter(adapter, base_weights=None, merge_dtype=None)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adalora_whose_ranks_were_cut(tmp_path: Path) -> None:
    import torch
    from peft import AdaLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = make_llama(tmp_path / "base", dtype="float32")
    config = AdaLoraConfig(target_modules=["q_proj"], init_r=4, lora_alpha=9, total_step=9, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(0)
    kept = {0: [True, False, True, True], 1: [False] * 4}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.peft_config["default"].rank_pattern = {
        f"model.layers.{layer}.self_attn.q_proj.lora_E.default": mask for layer, mask in kept.items()
    }
    model.save_pretrained(tmp_path / "adapter")
    file = FolderWeights.of_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {file.shape(name) for name in file.names() if "lora_E" in name} == {(3, 1), (0, 1)}
    merged = merge_adapter(open_artifact(tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    own, before = FolderWeights.open(merged.path), FolderWeights.open(base)
    expected = peft_merge(base, tmp_path / "adapter")
    for name in own.names():
        assert torch.allclose(own.read(name), expected[name], rtol=2e-6, atol=2e-5), name
    changed = [name for name in own.names() if not torch.equal(own.read(name), before.read(name))]
    assert changed == ["model.layers.0.self_attn.q_proj.weight"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LoraConfig", {"target_modules": "all-linear", "use_dora": True, "init_lora_weights": False}),
        ("LoHaConfig", {"target_modules": ["v_proj"], "init_weights": False}),
        ("IA3Config", {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    ],
)
def test_the_stored_dtype_is_one_rounding_away(
    tmp_path: Path, llama_folder: Path, kind: str, settings: dict[str, Any], dtype: Any
) -> None:
    import peft
    import torch

    adapter = make_peft(tmp_path / "adapter", llama_folder, getattr(peft, kind)(task_type="CAUSAL_LM", **settings))
    merged = FolderWeights.open(merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype=dtype).path)
    expected = peft_merge(llama_folder, adapter)
    step = torch.finfo(getattr(torch, dtype)).eps
    for name in merged.names():
        rounded = expected[name].to(getattr(torch, dtype))
        same = merged.read(name) == rounded
        assert float(same.float().mean()) > 0.998, name  # a sum in another order may fall on the other side of a tie
        assert torch.allclose(merged.read(name).float(), rounded.float(), rtol=step, atol=1e-7), name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dora_onto_nf4_is_what_it_was_trained_on(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = make_llama(tmp_path / "base", dtype="float32")
    adapter = make_adapter(tmp_path / "adapter", base, use_dora=True)
    merged = merge_adapter(
        open_artifact(adapter), tmp_path / "merged", dtype="float32", base_weights="nf4", trained_on="nf4"
    )
    whole = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    unmerged = load_adapter(open_artifact(adapter), base_weights="nf4", merge_dtype=None).model
    other = load_adapter(open_artifact(adapter), base_weights="w16", merge_dtype=None).model
    assert torch.allclose(logits(whole), logits(unmerged), atol=2e-4)
    assert not torch.allclose(logits(whole), logits(other), atol=1e-2)


def test_a_config_that_says_less(tmp_path: Path, adapter_folder: Path, llama_folder: Path) -> None:
    """Adapters of PEFT's first versions have a handful of settings."""
    folder = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    kept = {"peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path"}
    names = [key for key in read_json(folder / "adapter_config.json") if key not in kept]
    edit_json(folder / "adapter_config.json", **dict.fromkeys(names))
    plain = merge_adapter(open_artifact(adapter_folder), tmp_path / "plain")
    assert (
        merge_adapter(open_artifact(folder), tmp_path / "merged").manifest.files_digest == plain.manifest.files_digest
    )


PEAK = """
import sys, resource
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
from contract.artifact import open_artifact
from export.merge import merge_adapter
for number, adapter in enumerate({adapters!r}):
    merge_adapter(open_artifact(adapter), Path({out!r}) / str(number))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    small = make_llama(tmp_path / "small", tie=False)
    large = make_llama(tmp_path / "large", tie=False, hidden_size=1024, vocab_size=50_000, layers=1)
    assert (large / "model.safetensors").stat().st_size > 200e6
    adapters = [
        str(make_adapter(tmp_path / f"{base.name}-adapter", base, target_modules=["q_proj", "lm_head"]))
        for base in (small, large)
    ]
    script = PEAK.format(root=str(ROOT), adapters=adapters, out=str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=300)
    before_mib, after_mib = map(int, done.stdout.split())
    assert after_mib - before_mib < 60  # one of its tensors is 98 MiB as stored, 195 MiB in float32
