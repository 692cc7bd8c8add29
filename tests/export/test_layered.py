"""A model run layer by layer gives the logits of the whole model, whatever its family and its weights' source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import open_artifact
from export.layered import LayeredModel
from export.source import Source, open_model
from export.spool import Spool
from export.torch_reference import source_logits, source_words
from tests.export.families import FAMILIES, make_model
from tests.export.makers import edit_tensors
from tests.export.peft_makers import make_peft
from tests.tiny import TEXT, make_adapter, make_llama
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

TEXTS = [[5, 9, 30, 40, 50, 7] * 25, list(range(5, 60)), [7]]  # beyond a sliding window of 96, and one id alone
SMALL = {"hidden_size": 64, "intermediate_size": 96}


def opened(folder: Path, scratch: Path) -> Source:
    scratch.mkdir()
    return open_model(open_artifact(folder)).source(scratch)


def layered(source: Source, texts: Sequence[Sequence[int]], scratch: Path) -> list[np.ndarray]:
    model = LayeredModel(source)
    with Spool(scratch, [(len(text), model.rows) for text in texts]) as logits:
        model.run(texts, scratch, logits)
        return [logits.get(number) for number in range(len(texts))]


def whole(network: Any, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    import torch

    with torch.inference_mode():
        return [network.eval()(torch.tensor([text])).logits[0].numpy() for text in texts]


def loaded(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if getattr(network.config, "attn_logit_softcapping", None) is not None:
        network.set_attn_implementation("eager")
    return network


def assert_equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], most: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.1
        np.testing.assert_allclose(one, other, rtol=0, atol=most)


@pytest.mark.parametrize("name", ["llama", "tied llama", *FAMILIES])
def test_every_family_is_what_it_is_in_whole(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    if "llama" in name:
        make_llama(folder, tie=name.startswith("tied"), attention_bias=True, max_shard_size="500KB")
    else:
        make_model(folder, name, dtype="bfloat16" if name == "gemma3" else "float32")
    texts = [*TEXTS, list(range(5, 400)) + [8] * 135] if name == "phi3-longrope" else TEXTS  # and beyond its border
    found = layered(opened(folder, tmp_path / "scratch"), texts, tmp_path / "scratch")
    assert_equal(found, whole(loaded(folder), texts))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_names_without_the_models_prefix_are_known(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "gpt2")

    def shorten(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("transformer.")]:
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    expected = whole(loaded(folder), TEXTS)
    edit_tensors(folder / "model.safetensors", shorten)
    assert_equal(layered(opened(folder, tmp_path / "scratch"), TEXTS, tmp_path / "scratch"), expected)


QKV = ["q_proj", "v_proj"]
ADAPTERS: dict[str, tuple[bool, dict[str, Any], int | None]] = {  # is the base tied, LoRA's settings, rows
    "dora": (True, {"target_modules": "all-linear", "use_dora": True}, None),
    "rslora": (False, {"target_modules": QKV, "use_rslora": True, "rank_pattern": {"v_proj": 2}}, None),
    "resized embeddings": (True, {"target_modules": QKV}, 531),
    "both resized": (False, {"target_modules": QKV, "modules_to_save": ["embed_tokens", "lm_head"]}, 531),
    "a head no longer tied": (True, {"target_modules": ["lm_head", "q_proj"]}, None),
    "rows of tied tokens": (True, {"target_modules": QKV, "trainable_token_indices": [5, 40]}, None),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {tie: make_llama(folder / f"tied-{tie}", tie=tie, dtype="float32", **SMALL) for tie in (True, False)}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_merged_on_the_way(tmp_path: Path, bases: dict[bool, Path], case: str) -> None:
    """Against PEFT's own adapter, unmerged."""
    from peft import LoraConfig

    from runtimes.torch_load import load_adapter

    tie, settings, rows = ADAPTERS[case]
    config = LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    folder = make_peft(tmp_path / "adapter", bases[tie], config, rows=rows)
    reference = load_adapter(open_artifact(folder), base_weights="w16", merge_dtype=None).model
    texts = [*TEXTS, [rows - 1, 5, rows - 1]] if rows else TEXTS
    found = layered(opened(folder, tmp_path / "scratch"), texts, tmp_path / "scratch")
    assert found[0].shape[1] == (rows or reference.get_input_embeddings().weight.shape[0])
    assert_equal(found, whole(reference, texts), 2e-5)


@pytest.mark.parametrize("v1_1", [True, False])
def test_encoder_and_decoder_pass_one_after_the_other(tmp_path: Path, v1_1: bool) -> None:
    """Relative positions are the first layer's, and the others' too; a tied head is scaled."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    folder = make_t5(tmp_path / "model", v1_1=v1_1)
    pairs = [(TEXTS[0], [0, 5, 9, 30]), ([7, 8, 1], [0]), ([9, 1], TEXTS[1])]
    source = opened(folder, tmp_path / "scratch")
    model = LayeredModel(source)
    with Spool(tmp_path, [(len(target), model.rows) for _, target in pairs]) as logits:
        model.run_pairs(pairs, tmp_path, logits)
        found = [logits.get(number) for number in range(len(pairs))]
    network = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        inputs = [{"input_ids": torch.tensor([a]), "decoder_input_ids": torch.tensor([b])} for a, b in pairs]
        assert_equal(found, [network(**one).logits[0].numpy() for one in inputs], most=2e-5)


def test_the_reference_is_the_torch_runtimes(tmp_path: Path, adapter_folder: Path) -> None:
    """Ids, stop ids and logits, of an adapter and of a T5, as the runtime that has the whole model gives them."""
    from contract.prompt import PromptSpec
    from runtimes import load_runtime

    for folder in (adapter_folder, make_t5(tmp_path / "t5")):
        source = opened(folder, tmp_path / f"{folder.name}-scratch")
        words = source_words(source, PromptSpec().date)
        runtime = load_runtime(
            open_artifact(folder), threads=1, base_weights="w16" if folder == adapter_folder else None
        )
        messages = [PromptSpec().messages(text) for text in TEXT]
        pairs = [(runtime.encode(one), runtime.encode_completion(one, "They take room 527.")) for one in messages]
        assert [(words.encode(one), words.encode_completion(one, "They take room 527.")) for one in messages] == pairs
        assert words.stop_ids == runtime.stop_ids
        with source_logits(source, pairs, tmp_path, 1, words.form) as logits:
            assert_equal([logits.get(number) for number in range(3)], list(runtime.score(pairs)), 2e-5)


def test_conv1d_weights_are_merged_as_they_lie(tmp_path: Path) -> None:
    from runtimes.torch_load import load_adapter

    folder = make_adapter(tmp_path / "adapter", make_model(tmp_path / "base", "gpt2"), fan_in_fan_out=True)
    reference = load_adapter(open_artifact(folder), base_weights="w16", merge_dtype=None).model
    found = layered(opened(folder, tmp_path / "scratch"), TEXTS, tmp_path / "scratch")
    assert_equal(found, whole(reference, TEXTS), 2e-5)


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_one_layer_is_there_at_a_time(tmp_path: Path, name: str) -> None:
    """And of the embeddings and the head, nothing while layers are at work."""
    source = opened(make_model(tmp_path / "model", name), tmp_path / "scratch")
    model = LayeredModel(source)
    seen: dict[str, set[str]] = {}

    def look(layer: str) -> Any:
        def hook(*_: Any) -> None:
            there = {key for key, value in model.network.named_parameters() if value.device.type != "meta"}
            seen.setdefault(layer, set()).update(there)

        return hook

    layers = {key for key, _ in model.network.named_modules() if key.rpartition(".")[2].isdigit()}
    parameters = {key for key, _ in model.network.named_parameters()}
    for layer in layers:  # a pre-hook of a part of it: layers that are passed by do not call theirs
        part = next(
            key for key, _ in model.network.get_submodule(layer).named_modules() if "norm" in key or "ln" in key
        )
        model.network.get_submodule(f"{layer}.{part}").register_forward_pre_hook(look(layer))
    model.run(TEXTS, tmp_path)
    assert seen.keys() == layers
    for layer, there in seen.items():
        own = {key for key in parameters if key.startswith(f"{layer}.")}
        others = {key for key in there - own if any(key.startswith(f"{other}.") for other in layers)}
        assert own <= there
        assert not others
        assert not any("embed_tokens" in key or "wte" in key or "lm_head" in key for key in there)


def test_a_model_can_be_run_again(tmp_path: Path, llama_folder: Path) -> None:
    """Memory of layers is used again; nothing of an earlier run shines through."""
    source = opened(llama_folder, tmp_path / "scratch")
    model = LayeredModel(source)
    found = []
    for texts in (TEXTS[:1], TEXTS[1:2], TEXTS[:1]):
        with Spool(tmp_path, [(len(text), model.rows) for text in texts]) as logits:
            model.run(texts, tmp_path, logits)
            found.append(logits.get(0))
    assert np.array_equal(found[0], found[2])
    assert_equal(found[:2], whole(loaded(llama_folder), TEXTS[:2]))


def test_a_spool_keeps_arrays_apart_and_leaves_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path, [(2, 3), (4,), (1, 1, 5)]) as spool:
        arrays = [
            np.random.default_rng(number).random(shape).astype(np.float32)
            for number, shape in enumerate([(2, 3), (4,), (1, 1, 5)])
        ]
        for number in (2, 0, 1):
            spool.put(number, arrays[number])
        spool.put(0, arrays[0].T.reshape(2, 3) * 2)
        assert np.array_equal(spool.get(0), arrays[0].T.reshape(2, 3) * 2)
        assert np.array_equal(spool.get(1), arrays[1])
        assert np.array_equal(spool.get(2), arrays[2])
        with pytest.raises(AssertionError):
            spool.put(1, arrays[0])
        assert list(tmp_path.iterdir()) == []
    with Spool(tmp_path, [(2,), (3,)]) as spool:
        spool.put(0, np.ones(2, np.float32))
        with pytest.raises(AssertionError, match="never put"):
            spool.get(1)
