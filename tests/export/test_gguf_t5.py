"""T5 as GGUF: llama.cpp's encoder and decoder compute what torch does, and what it cannot compute is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.prompt import Message
from contract.runtime import GenerateParams, Runtime
from export.check_failed import CheckFailed
from export.check_logits import check_logits
from export.hard_texts import HARD_TEXTS
from export.merge import merge_adapter
from export.source import open_model
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.evalsuite.chain import edit_gguf
from tests.export.makers import edit_json
from tests.said import say_at_the_end
from tests.tiny_seq2seq import make_adapter_seq2seq, make_bart, make_t5

pytestmark = pytest.mark.engine

DOCUMENTS = [
    json.loads(line)["dialogue"]
    for line in (Path(__file__).parents[2] / "assets" / "dialogues" / "test.jsonl").read_text().splitlines()[:24]
]
PROMPTS = [f"summarize: {document[: 60 + 30 * index]}" for index, document in enumerate(DOCUMENTS)]


def no_prefix(folder: Path) -> None:
    """A tokenizer that puts no space before a text, in the form that transformers 4 made of a spiece.model."""
    values = json.loads((folder / "tokenizer.json").read_text())
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    values["normalizer"] = {"type": "Sequence", "normalizers": [values["normalizer"], strip, spaces]}
    bare = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
    values["pre_tokenizer"] = values["decoder"] = bare
    (folder / "tokenizer.json").write_text(json.dumps(values))


@dataclass(frozen=True)
class Made:
    name: str
    folder: Path
    gguf: dict[str, Artifact]
    torch: Runtime
    llama: Runtime


@pytest.fixture(scope="module", params=["1.1", "1.0", "wide", "no-prefix", "mt5", "umt5", "umt5-own-head"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    tmp = tmp_path_factory.mktemp("t5")
    settings: dict[str, dict[str, Any]] = {
        "1.0": {"v1_1": False},
        "wide": {"d_kv": 32, "num_decoder_layers": 1},
        "mt5": {"family": "MT5"},
        "umt5": {"family": "UMT5", "v1_1": False, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 1},
        "umt5-own-head": {"family": "UMT5"},
    }
    folder = make_t5(tmp / "model", **settings.get(request.param, {}))
    if request.param == "no-prefix":
        no_prefix(folder)
    f32, q8_0 = export_gguf(open_artifact(folder), tmp / "gguf", quants=["f32", "q8_0"], check="logits", threads=1)
    torch = load_runtime(open_artifact(folder), threads=1)
    llama = load_runtime(f32, threads=1, kv_dtype="f32")
    yield Made(request.param, folder, {"f32": f32, "q8_0": q8_0}, torch, llama)
    torch.close()
    llama.close()


def ids_of(runtime: Runtime, texts: list[str] = PROMPTS) -> list[list[int]]:
    return [runtime.encode([Message("user", text)]) for text in texts]


def test_ids_are_those_of_torch(made: Made) -> None:
    texts = [*PROMPTS, *HARD_TEXTS, "a\n\n\tb  c \u200b d ", "</s> <pad> <extra_id_0>", "naïve  ▁ x"]
    assert ids_of(made.llama, texts) == ids_of(made.torch, texts)
    for text in PROMPTS:
        assert made.llama.encode_completion([], text) == made.torch.encode_completion([], text)
    assert made.llama.stop_ids == made.torch.stop_ids == {1}


def test_logits_are_those_of_torch(made: Made) -> None:
    """1e-3 in F32; with gated GELU, which llama.cpp looks up in a table of half-precision values, in nats."""
    targets = [made.torch.encode_completion([], document[:80]) for document in DOCUMENTS]
    pairs = list(zip(ids_of(made.torch), targets, strict=True))
    expected, found = list(made.torch.score(pairs)), list(made.llama.score(pairs))
    worst = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(expected, found, strict=True))
    log_p, log_q = (_log_softmax(np.concatenate(rows)) for rows in (expected, found))
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
    say_at_the_end(f"t5 gguf {made.name}", f"T5 {made.name} F32: largest difference {worst:.2g}, {kl:.2g} nats")
    assert kl < 1e-5
    assert worst < (1e-3 if made.name == "1.0" else 3e-2)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def test_greedy_text_is_that_of_torch(made: Made) -> None:
    params = GenerateParams(max_new_tokens=20)
    expected, found = (runtime.generate(ids_of(runtime), params) for runtime in (made.torch, made.llama))
    same = sum(ours.ids == theirs.ids for ours, theirs in zip(expected, found, strict=True))
    assert same >= len(PROMPTS) - 1, "more than one near-tie"
    for ours, theirs in zip(expected, found, strict=True):
        if ours.ids == theirs.ids:
            assert (theirs.text, theirs.stop, theirs.prompt_tokens) == (ours.text, ours.stop, ours.prompt_tokens)
    *pieces, last = made.llama.stream(ids_of(made.llama)[0], params)
    assert "".join(map(str, pieces)) == found[0].text
    assert not isinstance(last, str)
    assert last.ids == found[0].ids


def test_a_prompt_is_encoded_anew_when_it_is_another(made: Made) -> None:
    """The decoder reads what was encoded last: neither an earlier prompt, nor earlier steps."""
    one, two = ids_of(made.llama)[:2]
    target = made.llama.encode_completion([], "Mara moved to room 418.")
    first, second, again = made.llama.score([(one, target), (two, target), (one, target)])
    assert np.array_equal(first, again)
    assert np.abs(first - second).max() > 0.1


def test_what_the_manifest_says(made: Made) -> None:
    f32, q8_0 = made.gguf["f32"], made.gguf["q8_0"]
    assert f32.details["tensor_types"].keys() == {"F32"}
    assert q8_0.details["fallbacks"] == []
    assert q8_0.details["tensor_types"]["Q8_0"] > 20
    assert q8_0.manifest.measurements["logits"]["mean_kl_nats"] < 0.05


def test_limits_are_the_two_sides_own(made: Made) -> None:
    [ids] = ids_of(made.llama, ["word"])
    assert (made.llama.context_length, made.llama.target_length) == (512, 512)
    full = made.llama.generate([[*(ids * 400)[:511], 1]], GenerateParams(max_new_tokens=4))
    assert len(full[0].ids) <= 4
    with pytest.raises(AssayError, match="longer than the encoder"):
        made.llama.generate([ids * 400], GenerateParams(max_new_tokens=2))
    with pytest.raises(AssayError, match="no beam search"):
        made.llama.generate([ids], GenerateParams(max_new_tokens=2, num_beams=2))


@pytest.mark.parametrize(("family", "tokens"), [("T5", 512), ("MT5", 1024), ("UMT5", 1024)])
def test_a_context_that_no_file_names_is_the_one_of_training(tmp_path: Path, family: str, tokens: int) -> None:
    """Published mT5 name none, and positions are relative: torch and llama.cpp take the same."""
    folder = make_t5(tmp_path / "model", family=family, num_layers=1, num_decoder_layers=1)
    edit_json(folder / "config.json", n_positions=None)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"])
    for artifact in (open_artifact(folder), made):
        runtime = load_runtime(artifact, threads=1)
        try:
            assert runtime.context_length == tokens
        finally:
            runtime.close()


def test_an_adapter_is_merged_while_it_is_read(tmp_path: Path) -> None:
    base = make_t5(tmp_path / "base", v1_1=False)
    adapter = open_artifact(make_adapter_seq2seq(tmp_path / "adapter", base))
    [direct] = export_gguf(adapter, tmp_path / "direct", quants=["f32"], check="logits", name="x")
    merged = merge_adapter(adapter, tmp_path / "merged", dtype="float32")
    [over] = export_gguf(merged, tmp_path / "over", quants=["f32"], name="x")
    assert direct.gguf_path.read_bytes() == over.gguf_path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"tensor": ("dec.output_norm.weight", lambda data: data * 8)}, "max_abs"),
        ({"tensor": ("enc.blk.0.attn_rel_b.weight", lambda data: data[::-1])}, "max_abs"),
        ({"tensor": ("dec.blk.1.cross_attn_v.weight", lambda data: -data)}, "max_abs"),
        ({"metadata": ("t5.decoder_start_token_id", lambda value: 7)}, "max_abs"),
        ({"metadata": ("t5.attention.layer_norm_rms_epsilon", lambda value: 0.1)}, "max_abs"),
    ],
    ids=["head scale", "bias rows", "cross sign", "start", "epsilon"],
)
def test_damage_is_found(tmp_path: Path, damage: dict[str, Any], said: str) -> None:
    folder = make_t5(tmp_path / "model", v1_1=False)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"])
    path = tmp_path / "damaged.gguf"
    shutil.copy(made.gguf_path, path)
    if "tensor" in damage:
        at, change = damage["tensor"]
        edit_gguf(path, tensor=lambda name, data: np.ascontiguousarray(change(data)) if name == at else data)
    else:
        key, change = damage["metadata"]
        edit_gguf(path, metadata=lambda name, value: change(value) if name == key else value)
    source = open_model(open_artifact(folder)).source(tmp_path)
    check_logits(source, {"f32": made.gguf_path}, 1)
    with pytest.raises(CheckFailed, match="does not compute") as raised:
        check_logits(source, {"f32": path}, 1)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
        ({"num_decoder_layers": 3}, "3 decoder layers"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    folder = make_t5(tmp_path / "model", **settings)
    with pytest.raises(AssayError, match="cannot be written as a llama") as raised:
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"])
    assert said in str(raised.value)


def test_an_unknown_normalizer_is_refused(tmp_path: Path) -> None:
    folder = make_t5(tmp_path / "model")
    edit_json(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(AssayError, match="rewrites text"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"])


def test_neighbours_that_cannot_are_refused(tmp_path: Path) -> None:
    """BART; a LoRA GGUF; an importance matrix; Ollama."""
    from contract.example import Example
    from export.imatrix import Calibration
    from export.lora_gguf import export_lora_gguf
    from export.ollama import export_ollama

    with pytest.raises(AssayError, match="encoder-decoder model") as raised:
        export_gguf(open_artifact(make_bart(tmp_path / "bart")), tmp_path / "gguf", quants=["f32"])
    assert "assay export onnx" in str(raised.value)
    base = make_t5(tmp_path / "base", dtype="float16")
    adapter = open_artifact(make_adapter_seq2seq(tmp_path / "adapter", base))
    with pytest.raises(AssayError, match="no adapter on a model with an encoder"):
        export_lora_gguf(adapter, tmp_path / "lora")
    with pytest.raises(AssayError, match="no importance matrix"):
        export_gguf(
            open_artifact(base),
            tmp_path / "gguf",
            quants=["q4_k_m"],
            imatrix=Calibration([Example("a", "document", ("summary",))]),
        )
    [made] = export_gguf(open_artifact(base), tmp_path / "gguf", quants=["f16"])
    with pytest.raises(AssayError, match="Ollama does not run"):
        export_ollama(made, tmp_path / "ollama")
