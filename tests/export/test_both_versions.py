"""Folders by transformers 5, and the same in the words of version 4: one model in every engine, or a refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from export.merge import merge_adapter
from export.to_gguf import export_gguf
from export.to_onnx import export_onnx
from runtimes import load_runtime
from tests.export.makers import edit_json
from tests.tiny import make_adapter, make_llama
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

ROPE = {"rope_theta": 500000.0, "rope_type": "default"}
HALF = 1e-2  # llama.cpp looks T5's GELU up in a table of half-precision values; logits go to about ±10
PROMPT, TARGET = [0, 30, 40, 90, 120, 200, 3, 77, 21, 35, 8, 99, 12, 54, 61, 17], [5, 9, 7]


def by_torch(folder: Path, scratch: Path) -> np.ndarray:
    return scored(folder)


def by_gguf(folder: Path, scratch: Path) -> np.ndarray:
    [made] = export_gguf(open_artifact(folder), scratch / "gguf", quants=["f32"], threads=1)
    return scored(made.path, kv_dtype="f32")


def by_onnx(folder: Path, scratch: Path) -> np.ndarray:
    [made] = export_onnx(open_artifact(folder), scratch / "onnx", precisions=["fp32"], threads=1)
    return scored(made.path)


# an engine's way from a folder to logits, and how near it must come
ENGINES: dict[str, tuple[Callable[[Path, Path], np.ndarray], float]] = {
    "torch": (by_torch, 1e-5),
    "gguf": (by_gguf, HALF),
    "onnx": (by_onnx, 5e-5),
}


def scored(path: Path, **options: Any) -> np.ndarray:
    """Logits of TARGET behind PROMPT, [3, rows]."""
    runtime = load_runtime(open_artifact(path), threads=1, **options)
    try:
        return np.array(next(iter(runtime.score([(PROMPT, TARGET)]))))
    finally:
        runtime.close()


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))


def llama(folder: Path) -> Path:
    made = make_llama(folder, tie=False, dtype="float32", rope_parameters=dict(ROPE))
    assert read(made / "config.json")["rope_parameters"] == ROPE
    assert "rope_theta" not in read(made / "config.json")
    return made


def t5(folder: Path) -> Path:
    made = make_t5(folder)
    config = read(made / "config.json")
    assert (config["tie_word_embeddings"], config["scale_decoder_outputs"]) == (True, False)
    return made


def in_words_of_4(folder: Path, twin: Path) -> Path:
    """The folder as version 4 would have written it."""
    shutil.copytree(folder, twin)
    config = read(twin / "config.json")
    if rope := config.pop("rope_parameters", None):
        kind, theta = rope.pop("rope_type"), rope.pop("rope_theta")
        scaling = None if kind == "default" else {"rope_type": kind, **rope}
        config |= {"rope_theta": theta, "rope_scaling": scaling}
    config.pop("scale_decoder_outputs", None)
    write(twin / "config.json", config | {"tie_word_embeddings": False, "transformers_version": "4.57.1"})
    words = read(twin / "tokenizer_config.json")
    words.pop("backend")
    words["additional_special_tokens"] = words.pop("extra_special_tokens", [])
    kinds = {"TokenizersBackend": "PreTrainedTokenizerFast", "T5Tokenizer": "T5TokenizerFast"}
    write(twin / "tokenizer_config.json", words | {"tokenizer_class": kinds[words["tokenizer_class"]]})
    return twin


@pytest.fixture(scope="module", params=[llama, t5], ids=["llama", "t5"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder and its twin."""
    tmp = tmp_path_factory.mktemp(request.param.__name__)
    folder = request.param(tmp / "by-5")
    return folder, in_words_of_4(folder, tmp / "by-4")


def by_transformers(folder: Path) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = read(folder / "config.json")
    with torch.inference_mode():
        if config["model_type"] == "t5":
            model = AutoModelForSeq2SeqLM.from_pretrained(folder)
            decoder = torch.tensor([[0, *TARGET[:-1]]])
            return model(input_ids=torch.tensor([PROMPT]), decoder_input_ids=decoder).logits[0].numpy()
        model = AutoModelForCausalLM.from_pretrained(folder)
        return model(input_ids=torch.tensor([[*PROMPT, *TARGET[:-1]]])).logits[0, len(PROMPT) - 1 :].numpy()


@pytest.mark.parametrize("engine", ENGINES)
def test_both_forms_are_one_model(pair: tuple[Path, Path], engine: str, tmp_path: Path) -> None:
    way, near = ENGINES[engine]
    by_5, by_4 = (way(folder, tmp_path / folder.name) for folder in pair)
    assert by_5.std() > 0.1
    np.testing.assert_allclose(by_5, by_4, rtol=0, atol=1e-6)
    np.testing.assert_allclose(by_5, by_transformers(pair[0]), rtol=0, atol=near)


def test_another_base_or_head_would_have_shown(tmp_path: Path) -> None:
    """What the pairs are compared with tells these faults."""
    folder = llama(tmp_path / "llama")
    right = scored(folder)
    edit_json(folder / "config.json", rope_parameters={**ROPE, "rope_theta": 10000.0})
    assert np.abs(scored(folder) - right).max() > 0.02
    folder = t5(tmp_path / "t5")
    right = scored(folder)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    np.testing.assert_allclose(scored(folder), right, rtol=0, atol=1e-6)
    _drop_head(folder)
    assert np.abs(scored(folder) - right).max() > 0.02


def _drop_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_t5_that_stores_no_head_has_its_embeddings_unscaled(tmp_path: Path) -> None:
    """As transformers 5 makes a T5 1.1 from nothing."""
    folder = t5(tmp_path / "t5")
    _drop_head(folder)
    right = by_transformers(folder)
    np.testing.assert_allclose(scored(folder), right, rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_gguf(folder, tmp_path), right, rtol=0, atol=HALF)
    np.testing.assert_allclose(by_onnx(folder, tmp_path), right, rtol=0, atol=5e-5)


def test_an_adapter_merges_into_a_folder_that_both_versions_read(tmp_path: Path) -> None:
    folder = llama(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, adapter / name)
    edit_json(adapter / "tokenizer_config.json", extra_special_tokens=["<|im_start|>"])
    right, near = scored(adapter, base_weights="w16"), 3e-5
    merged = merge_adapter(open_artifact(adapter), tmp_path / "merged", dtype="float32").path
    np.testing.assert_allclose(scored(merged), right, rtol=0, atol=near)
    for name, of in (("adapter", adapter), ("merged", merged)):
        np.testing.assert_allclose(by_onnx(of, tmp_path / f"{name}-by-onnx"), right, rtol=0, atol=near)
    words_of_tokens = read(merged / "tokenizer_config.json")
    assert words_of_tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert words_of_tokens["additional_special_tokens"] == ["<|im_start|>"]
    assert not {"backend", "extra_special_tokens"} & set(words_of_tokens)
    config = read(merged / "config.json")
    for words in (("rope_theta", "rope_scaling"), ("rope_parameters",)):
        half = tmp_path / words[0]
        shutil.copytree(merged, half)
        (half / "manifest.json").unlink()
        write(half / "config.json", {key: value for key, value in config.items() if key not in words})
        np.testing.assert_allclose(scored(half), right, rtol=0, atol=near)


CONTRADICTIONS = {
    "two bases": (llama, {"rope_theta": 10000.0}, "base 10000.0 and 500000.0"),
    "two kinds": (llama, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 'kind "linear" and "default"'),
    "a head of its own though tied": (llama, {"tie_word_embeddings": True}, ""),
    "a scaled head of its own": (t5, {"scale_decoder_outputs": True}, ""),
    "not tied and scaled": (t5, {"tie_word_embeddings": False, "scale_decoder_outputs": True}, "two things"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_config_that_contradicts_itself_is_refused_everywhere(name: str, tmp_path: Path) -> None:
    make, changes, said = CONTRADICTIONS[name]
    folder = make(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", folder) if make is llama else None
    edit_json(folder / "config.json", **changes)
    for go in (
        lambda: scored(folder),
        lambda: by_gguf(folder, tmp_path),
        lambda: by_onnx(folder, tmp_path),
        *([lambda: merge_adapter(open_artifact(adapter), tmp_path / "merged")] if adapter else []),
    ):
        with pytest.raises(AssayError) as error:
            go()
        assert said in str(error.value)
    assert not (tmp_path / "merged").exists()
