"""Encoder-decoder models in torch: ids, logits and texts are transformers' own, however they are batched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.prompt import Message
from contract.runtime import GenerateParams, Runtime
from runtimes import load_runtime
from tests.said import say_at_the_end
from tests.tiny_seq2seq import make_adapter_seq2seq, make_bart, make_t5

pytestmark = pytest.mark.engine

DOCUMENTS = [
    json.loads(line)["dialogue"]
    for line in (Path(__file__).parents[2] / "assets" / "dialogues" / "test.jsonl").read_text().splitlines()[:40]
]
PROMPTS = [f"summarize: {document[: 40 + 11 * index]}".strip() for index, document in enumerate(DOCUMENTS)]


@pytest.fixture(scope="module", params=["t5-1.1", "t5-1.0", "bart", "bart-no-bos"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param) / "model"
    match request.param:
        case "t5-1.1":
            return make_t5(place)
        case "t5-1.0":
            return make_t5(place, v1_1=False, seed=5)
        case "bart":
            return make_bart(place)
        case _:
            return make_bart(place, forced_bos=False, legacy=True)


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Iterator[Runtime]:
    loaded = load_runtime(open_artifact(folder), threads=1)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[Any, Any]:
    """transformers' model and tokenizer."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def ids_of(runtime: Runtime, prompts: list[str] = PROMPTS) -> list[list[int]]:
    return [runtime.encode([Message("user", prompt)]) for prompt in prompts]


def test_ids_are_the_tokenizers(runtime: Runtime, theirs: tuple[Any, Any]) -> None:
    _, tokenizer = theirs
    for prompt in PROMPTS:
        assert runtime.encode([Message("user", prompt)]) == tokenizer(prompt)["input_ids"]
        assert runtime.encode_completion([], prompt) == tokenizer(text_target=prompt)["input_ids"]


def test_text_never_becomes_a_special_token(runtime: Runtime, theirs: tuple[Any, Any]) -> None:
    _, tokenizer = theirs
    ids = runtime.encode([Message("user", "one </s> two <pad> <s> three")])
    bare = runtime.encode([Message("user", "one two three")])
    assert [i for i in ids if i in tokenizer.all_special_ids and i != tokenizer.unk_token_id] == [
        i for i in bare if i in tokenizer.all_special_ids and i != tokenizer.unk_token_id
    ]


def _generated(theirs: tuple[Any, Any], prompt: str, **settings: Any) -> list[int]:
    """What transformers writes for one prompt, behind the decoder's start."""
    import torch

    model, tokenizer = theirs
    fed = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        return model.generate(**fed, do_sample=False, max_new_tokens=20, **settings)[0, 1:].tolist()


def _expected(ids: list[int], runtime: Runtime) -> tuple[int, ...]:
    return tuple(ids[:-1] if ids[-1] in runtime.stop_ids else ids)


def test_greedy_is_transformers(folder: Path, runtime: Runtime, theirs: tuple[Any, Any]) -> None:
    """Batched here, one by one there; a token may differ only where two logits are nearer than 1e-4."""
    found = runtime.generate(ids_of(runtime), GenerateParams(max_new_tokens=20))
    ended = 0
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = _generated(theirs, prompt, num_beams=1)
        assert completion.ids == _expected(ids, runtime)
        assert completion.stop == ("eos" if ids[-1] in runtime.stop_ids and len(ids) < 20 else "length")
        assert completion.prompt_tokens == len(runtime.encode([Message("user", prompt)]))
        ended += completion.stop == "eos"
    distinct = len({completion.ids for completion in found})
    say_at_the_end(
        f"greedy {folder}",
        f"{folder.parent.name}: {distinct} of {len(found)} answers differ, {ended} ended by themselves",
    )
    assert distinct > 30
    assert 0 < ended < len(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 12},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2},
        {"num_beams": 4, "length_penalty": 0.2},
    ],
    ids=["penalty", "n-grams", "beams", "short beams"],
)
def test_searches_are_transformers(runtime: Runtime, theirs: tuple[Any, Any], settings: dict[str, Any]) -> None:
    prompts = PROMPTS[:12]
    found = runtime.generate(ids_of(runtime, prompts), GenerateParams(max_new_tokens=20, **settings))
    for prompt, completion in zip(prompts, found, strict=True):
        ids = _generated(theirs, prompt, **{"num_beams": 1, **settings})
        assert completion.ids == _expected(ids, runtime)


def test_scores_are_the_models(folder: Path, runtime: Runtime, theirs: tuple[Any, Any]) -> None:
    """Batched with padding on both sides, against one pair at a time."""
    import torch

    model, _ = theirs
    sources = ids_of(runtime)
    pairs = [
        (sources[index // 2], runtime.encode_completion([], DOCUMENTS[index][: 20 + 9 * index])) for index in range(16)
    ]
    pairs.append((sources[3], []))
    worst = 0.0
    for (source, target), logits in zip(pairs, runtime.score(pairs), strict=True):
        assert logits.shape == (len(target), runtime.vocab_size)
        assert logits.dtype == np.float32
        if not target:
            continue
        with torch.inference_mode():
            direct = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0].numpy()
        worst = max(worst, float(np.abs(direct - logits).max()))
    say_at_the_end(
        f"logits {folder}",
        f"{folder.parent.name}: largest difference of a logit from transformers one by one: {worst:.2g}",
    )
    assert worst < 2e-4


def test_its_own_greedy_text_scores_highest(runtime: Runtime) -> None:
    """generate and score agree: cached steps and one pass over the whole target."""
    sources = ids_of(runtime)[:8]
    written = runtime.generate(sources, GenerateParams(max_new_tokens=12))
    for completion, logits in zip(
        written, runtime.score([(s, c.ids) for s, c in zip(sources, written, strict=True)]), strict=True
    ):
        forced = completion.ids[:1] == (0,)  # BART's first token
        assert tuple(logits.argmax(1)[forced:]) == completion.ids[forced:]


def test_stream_is_generate(runtime: Runtime) -> None:
    [source] = ids_of(runtime, PROMPTS[:1])
    for params in (GenerateParams(max_new_tokens=16), GenerateParams(max_new_tokens=8, num_beams=2)):
        *pieces, last = runtime.stream(source, params)
        [whole] = runtime.generate([source], params)
        assert not isinstance(last, str)
        assert last.ids == whole.ids
        assert "".join(map(str, pieces)) == whole.text


def test_sampling_depends_on_the_seed_alone(runtime: Runtime) -> None:
    sources = ids_of(runtime)[:3]
    alone, other = (
        runtime.generate(sources[:1], GenerateParams(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=seed))
        for seed in (1, 2)
    )
    together = runtime.generate(sources, GenerateParams(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=1))
    assert together[0].ids == alone[0].ids != other[0].ids


def test_adapter_is_pefts(folder: Path, tmp_path: Path) -> None:
    """Unmerged it scores as PEFT's own model does, merged in memory nearly so."""
    import torch
    from peft import AutoPeftModelForSeq2SeqLM

    adapter = open_artifact(make_adapter_seq2seq(tmp_path / "adapter", folder))
    live = load_runtime(adapter, threads=1)
    pairs = [(source, live.encode_completion([], "Mara moved to room 418.")) for source in ids_of(live)[:3]]
    ours = list(live.score(pairs))
    live.close()
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(adapter.folder).eval()
    with torch.inference_mode():
        for (source, target), logits in zip(pairs, ours, strict=True):
            direct = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0].numpy()
            np.testing.assert_allclose(logits, direct, atol=2e-4)
    merged = load_runtime(adapter, threads=1, merge_dtype="float32")
    base = load_runtime(open_artifact(folder), threads=1)
    for before, adapted, unmerged in zip(base.score(pairs), merged.score(pairs), ours, strict=True):
        np.testing.assert_allclose(adapted, unmerged, atol=2e-3)
        assert np.abs(before - unmerged).max() > 0.05


def test_nf4_changes_what_training_quantizes(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

    from runtimes.nf4 import nf4_layers

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    quantized = AutoModelForSeq2SeqLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        device_map={"": "cpu"},
    )
    theirs = {name for name, module in quantized.named_modules() if type(module).__name__ == "Linear4bit"}
    assert set(nf4_layers(model, model.get_output_embeddings())) == theirs


def test_limits(runtime: Runtime) -> None:
    [source] = ids_of(runtime, ["word"])
    assert runtime.target_length == runtime.context_length == 512
    with pytest.raises(AssayError, match="longer than the encoder"):
        runtime.generate([source * 400], GenerateParams(max_new_tokens=2))
    with pytest.raises(AssayError, match="longer than the decoder"):
        list(runtime.score([(source, source * 400)]))
    with pytest.raises(AssayError, match="vocabulary"):
        list(runtime.score([(source, [runtime.vocab_size])]))
    with pytest.raises(AssayError, match="empty"):
        runtime.generate([[]], GenerateParams(max_new_tokens=2))


def test_a_folder_that_names_no_start_is_refused(tmp_path: Path) -> None:
    folder = make_t5(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        values.pop("decoder_start_token_id", None)
        (folder / name).write_text(json.dumps(values))
    with pytest.raises(AssayError, match="decoder starts with"):
        load_runtime(open_artifact(folder), threads=1)
