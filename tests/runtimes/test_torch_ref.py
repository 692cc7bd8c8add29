from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from contract.artifact import Parent, new_artifact, open_artifact
from contract.errors import AssayError
from contract.prompt import Message
from contract.runtime import Completion, GenerateParams, Runtime
from runtimes import load_runtime
from tests.tiny import make_adapter

pytestmark = pytest.mark.engine

# models this small gain nothing from a second thread, and lose much on a busy machine
load = partial(load_runtime, threads=1)

WORDS = ["Mara asks Olin to move the meeting to room 527.", "Bus 84.", "It costs 315 crowns, said the driver, " * 6]


@pytest.fixture(scope="module")
def reference(llama_folder: Path) -> Runtime:
    return load(open_artifact(llama_folder))


def prompts_of(runtime: Runtime) -> list[list[int]]:
    return [runtime.encode([Message("user", text)]) for text in WORDS]


def pairs_of(runtime: Runtime) -> list[tuple[list[int], list[int]]]:
    return [
        (runtime.encode([Message("user", text)]), runtime.encode_completion([Message("user", text)], "They agree."))
        for text in WORDS
    ]


def logits_of(runtime: Runtime) -> np.ndarray:
    return np.concatenate(list(runtime.score(pairs_of(runtime))))


def test_what_the_folder_declares(reference: Runtime) -> None:
    assert reference.stop_ids == {1, 4}
    assert (reference.bos_id, reference.context_length) == (0, 512)
    assert reference.encode([Message("user", "Hello")])[0] == 0
    assert reference.encode_completion([Message("user", "Hello")], "Hi")[-1] == 4
    assert reference.decode(reference.encode_raw(" room 527")) == " room 527"


def test_a_dropped_stop_id_is_not_repaired(tmp_path: Path, llama_folder: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "llama")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert load(open_artifact(folder)).stop_ids == {1}


def test_batches_equal_singles_and_keep_the_order(reference: Runtime) -> None:
    pairs = pairs_of(reference)
    together = list(reference.score(pairs))
    for pair, logits in zip(pairs, together, strict=True):
        [alone] = reference.score([pair])
        assert logits.shape == (len(pair[1]), reference.vocab_size)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, alone, atol=1e-5)
    params = GenerateParams(max_new_tokens=12)
    prompts = prompts_of(reference)
    assert [c.ids for c in reference.generate(prompts, params)] == [
        reference.generate([prompt], params)[0].ids for prompt in prompts
    ]


def test_score_predicts_what_generate_takes(reference: Runtime) -> None:
    prompt = prompts_of(reference)[0]
    [made] = reference.generate([prompt], GenerateParams(max_new_tokens=10, ignore_stop=True))
    [logits] = reference.score([(prompt, made.ids)])
    assert tuple(logits.argmax(1)) == made.ids
    assert made.stop == "length"


def test_a_stop_id_ends_the_answer(reference: Runtime) -> None:
    prompt = prompts_of(reference)[0]
    [free] = reference.generate([prompt], GenerateParams(max_new_tokens=10, ignore_stop=True))
    reference.stop_ids, kept = frozenset({free.ids[4]}), reference.stop_ids
    try:
        [made] = reference.generate([prompt], GenerateParams(max_new_tokens=10))
    finally:
        reference.stop_ids = kept
    assert made.stop == "eos"
    assert made.ids == free.ids[: free.ids.index(free.ids[4])]


def test_sampling_is_seeded_and_does_not_depend_on_neighbours(reference: Runtime) -> None:
    params = GenerateParams(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3)
    prompts = prompts_of(reference)
    ids = [c.ids for c in reference.generate(prompts, params)]
    assert ids[1] == reference.generate([prompts[1]], params)[0].ids
    assert ids != [c.ids for c in reference.generate(prompts, GenerateParams(8, 1.0, 0.9, seed=4))]
    nearly_greedy = reference.generate(prompts, GenerateParams(8, 1.0, top_p=1e-9))
    assert [c.ids for c in nearly_greedy] == [c.ids for c in reference.generate(prompts, GenerateParams(8))]


def test_stop_strings_are_cut_and_never_streamed(reference: Runtime) -> None:
    prompt = prompts_of(reference)[0]
    [free] = reference.generate([prompt], GenerateParams(max_new_tokens=20, ignore_stop=True))
    stop = free.text[8:11]
    params = GenerateParams(max_new_tokens=20, stop=(stop,))
    *pieces, last = reference.stream(prompt, params)
    assert isinstance(last, Completion)
    assert "".join(map(str, pieces)) == last.text == free.text[: free.text.index(stop)]
    assert last.stop == "eos"


def test_stream_equals_generate(reference: Runtime) -> None:
    params = GenerateParams(max_new_tokens=40)
    for prompt in prompts_of(reference):
        [made] = reference.generate([prompt], params)
        *pieces, last = reference.stream(prompt, params)
        assert isinstance(last, Completion)
        assert (last.ids, last.text, last.stop) == (made.ids, made.text, made.stop)
        assert "".join(map(str, pieces)) == made.text


def test_what_does_not_fit_is_refused(reference: Runtime) -> None:
    with pytest.raises(AssayError, match="no room"):
        reference.generate([[0] * 512], GenerateParams())
    with pytest.raises(AssayError, match="exceed the context"):
        reference.score([([0] * 500, [1] * 13)])
    with pytest.raises(AssayError, match="outside the model's vocabulary"):
        reference.generate([[reference.vocab_size]], GenerateParams())
    [made] = reference.generate([[0] * 510], GenerateParams(ignore_stop=True))
    assert len(made.ids) == 2


def test_adapter_runs_unmerged_and_merged_alike(adapter_folder: Path, reference: Runtime) -> None:
    adapter = open_artifact(adapter_folder)
    unmerged = logits_of(load(adapter))
    np.testing.assert_allclose(logits_of(load(adapter, merge_dtype="float32")), unmerged, atol=1e-4)
    rounded = logits_of(load(adapter, merge_dtype="bfloat16"))
    assert np.abs(rounded - unmerged).max() > 1e-4
    assert np.abs(logits_of(reference) - unmerged).max() > 0.1


def test_nf4_is_what_bitsandbytes_dequantizes(llama_folder: Path, adapter_folder: Path) -> None:
    import torch
    from bitsandbytes.nn import Linear4bit

    from runtimes.nf4 import dequantized_nf4

    torch.manual_seed(0)
    weight = torch.randn(256, 512)
    for double_quant in (False, True):
        layer = Linear4bit(
            512, 256, bias=False, compute_dtype=torch.float32, compress_statistics=double_quant, quant_type="nf4"
        )
        layer.load_state_dict({"weight": weight})
        layer.to("cpu")
        # the kernel's product with the identity is its dequantized weight
        values = layer(torch.eye(512)).T
        torch.testing.assert_close(dequantized_nf4(weight, double_quant), values, atol=1e-6, rtol=0)
    adapter = open_artifact(adapter_folder)
    w16, nf4 = (logits_of(load(adapter, base_weights=weights)) for weights in ("w16", "nf4"))
    assert np.abs(w16 - nf4).max() > 1e-3
    base = open_artifact(llama_folder)
    assert np.abs(logits_of(load(base)) - logits_of(load(base, base_weights="nf4"))).max() > 1e-3


def damage_adapter(folder: Path, rename: dict[str, str | None]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for old, new in rename.items():
        tensor = tensors.pop(old)
        if new:
            tensors[new] = tensor
    save_file(tensors, path)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("new", [None, KEY.replace("layers.0", "layers.7")])
def test_an_adapter_whose_keys_do_not_match_is_refused(tmp_path: Path, adapter_folder: Path, new: str | None) -> None:
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    damage_adapter(folder, {KEY: new})
    with pytest.raises(AssayError, match="do not match") as error:
        load(open_artifact(folder))
    assert "layers.0.self_attn.q_proj.lora_A" in str(error.value)


def test_a_folder_with_a_lost_tensor_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama_folder, tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssayError, match=r"layers\.1\.mlp\.down_proj\.weight: missing"):
        load(open_artifact(folder))


def test_a_truncated_folder_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "llama")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AssayError, match="do not make a model"):
        load(open_artifact(folder))


def with_one_more_token(llama_folder: Path, folder: Path) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|extra|>"]})
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def test_rows_an_adapter_brings_are_used(tmp_path: Path, llama_folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "adapter"
    size = with_one_more_token(llama_folder, folder)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    model.resize_token_embeddings(size)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder, save_embedding_layers=True)
    runtime = load(open_artifact(folder))
    assert runtime.vocab_size == size
    assert runtime.stop_ids == {1, 4}
    ids = [0, 7, size - 1, 9]
    with torch.no_grad():
        expected = adapted.eval()(torch.tensor([ids])).logits[0].numpy()
    [found] = runtime.score([(ids[:1], [*ids[1:], 1])])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_nobody_trained_are_not_made_up(tmp_path: Path, llama_folder: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", llama_folder)
    size = with_one_more_token(llama_folder, folder)
    runtime = load(open_artifact(folder))
    assert runtime.vocab_size == size - 1
    with pytest.raises(AssayError, match="outside the model's vocabulary"):
        runtime.generate([[size - 1]], GenerateParams())


def test_another_base_than_the_recorded_one_is_refused(
    tmp_path: Path, llama_folder: Path, adapter_folder: Path
) -> None:
    parent = Parent("base", str(llama_folder), open_artifact(llama_folder).digest)
    for name, parents in (("right", [parent]), ("wrong", [replace(parent, digest="0" * 64)])):
        with new_artifact(tmp_path / name, "adapter", name, parents=parents) as draft:
            shutil.copytree(adapter_folder, draft.path, dirs_exist_ok=True)
    load(open_artifact(tmp_path / "right"))
    with pytest.raises(AssayError, match="not the one the adapter was trained on"):
        load(open_artifact(tmp_path / "wrong"))


def test_an_adapter_runs_on_what_it_was_trained_on(tmp_path: Path, adapter_folder: Path) -> None:
    details = {"trained_on": {"quant": "nf4", "block_size": 64, "double_quant": False, "compute_dtype": "float32"}}
    with new_artifact(tmp_path / "nf4", "adapter", "nf4", details=details) as draft:
        shutil.copytree(adapter_folder, draft.path, dirs_exist_ok=True)
    single, double = open_artifact(tmp_path / "nf4"), open_artifact(adapter_folder)
    recorded = logits_of(load(single))
    np.testing.assert_array_equal(recorded, logits_of(load(single, base_weights="nf4")))
    assert np.abs(recorded - logits_of(load(double, base_weights="nf4"))).max() > 1e-5
    np.testing.assert_array_equal(logits_of(load(single, base_weights="w16")), logits_of(load(double)))


def test_kinds_and_flags_that_cannot_be(llama_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="merge_dtype is for adapters"):
        load(open_artifact(llama_folder), merge_dtype="float16")
    folder = shutil.copytree(adapter_folder, tmp_path / "prompt")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PROMPT_TUNING"}))
    with pytest.raises(AssayError, match="not run here"):
        load(open_artifact(folder))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"x")
    with pytest.raises(AssayError, match="has no tokenizer"):
        load(open_artifact(tmp_path / "onnx"))
