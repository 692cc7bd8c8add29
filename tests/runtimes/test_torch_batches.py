"""The reference's own batching: prompts that are shared, caches that grow in place, against transformers' plain way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.model_folder import plain_causal
from contract.runtime import GenerateParams, Runtime, WritesAndScores
from runtimes import load_runtime
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

LENGTHS = (5, 9, 14, 23, 31, 40, 57, 64)


def some_prompts(vocab_size: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(5, vocab_size, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("batches") / "llama", layers=2, seed=3)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Runtime:
    return load_runtime(open_artifact(folder), threads=1, parallel=8)


def test_a_batch_that_shrinks_writes_what_transformers_writes_one_by_one(runtime: Runtime, plain: Any) -> None:
    prompts = some_prompts(runtime.vocab_size)
    found = runtime.generate(prompts, GenerateParams(max_new_tokens=24))
    for prompt, completion in zip(prompts, found, strict=True):
        ids = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=sorted(runtime.stop_ids),
            pad_token_id=2,
        )[0, len(prompt) :].tolist()
        ended = bool(ids) and ids[-1] in runtime.stop_ids
        assert list(completion.ids) == (ids[:-1] if ended else ids)


def test_answers_of_very_different_lengths_do_not_disturb_each_other(runtime: Runtime) -> None:
    """Stop strings end some answers early, so rows are dropped while others go on."""
    prompts = some_prompts(runtime.vocab_size)
    free = runtime.generate(prompts, GenerateParams(max_new_tokens=40, ignore_stop=True))
    stop = next(text for text in (runtime.decode(free[0].ids[2:4]), runtime.decode(free[1].ids[5:7])) if text)
    params = GenerateParams(max_new_tokens=40, stop=(stop,))
    assert [c.text for c in runtime.generate(prompts, params)] == [
        runtime.generate([prompt], params)[0].text for prompt in prompts
    ]


def test_targets_of_one_prompt_score_as_if_they_were_alone(runtime: Runtime, plain: Any) -> None:
    prompts = some_prompts(runtime.vocab_size)
    random = np.random.default_rng(1)
    pairs = [
        (prompt, random.integers(5, runtime.vocab_size, length).tolist())
        for prompt in prompts
        for length in (1, 7, 0, 12)
    ]
    for (prompt, target), logits in zip(pairs, runtime.score(pairs), strict=True):
        assert logits.shape == (len(target), runtime.vocab_size)
        if target:
            with torch.no_grad():
                alone = plain(torch.tensor([[*prompt, *target[:-1]]])).logits[0, len(prompt) - 1 :].numpy()
            np.testing.assert_allclose(logits, alone, atol=2e-5)


def test_a_target_would_be_disturbed_by_its_neighbour_without_the_mask(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runtimes.torch_score as torch_score

    prompt = some_prompts(runtime.vocab_size)[3]
    pairs = [(prompt, [7, 8, 9, 10]), (prompt, [20, 21, 22, 23])]
    [_, right] = list(runtime.score(pairs))
    causal_only = lambda batch, width: torch.full((width, width), -1e9).triu(1)[None, None]  # noqa: E731
    monkeypatch.setattr(torch_score, "_mask", causal_only)
    [_, wrong] = list(runtime.score(pairs))
    assert np.abs(right - wrong).max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({"sliding_window": 64}, True),  # Ministral's
        ({"sliding_window": 262144}, True),  # Phi-4-mini's
        ({"sliding_window": 63}, False),
        ({"sliding_window": None}, True),
        ({"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}, True),
        ({"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}, False),
        ({"sliding_window": None, "layer_types": ["sliding_attention", "full_attention"]}, False),
        ({"attention_chunk_size": 64, "layer_types": ["chunked_attention", "full_attention"]}, True),
        ({"attention_chunk_size": 64, "sliding_window": 32}, False),
        ({"layer_types": ["linear_attention", "full_attention"]}, False),
    ],
)
def test_a_window_as_long_as_the_context_is_none(settings: dict[str, Any], plain: bool) -> None:
    from types import SimpleNamespace

    assert plain_causal(SimpleNamespace(max_position_embeddings=64, **settings)) is plain


def test_texts_as_long_as_such_a_window(tmp_path: Path) -> None:
    """Scored, scored behind a shared prompt, and written to the last token: as the same model without a window."""
    from contract.runtime import GenerateParams
    from tests.export.families import make_model

    sizes = {"max_position_embeddings": 64, "vocab_size": 512}
    folders = [
        make_model(tmp_path / str(window), "mistral-window", sliding_window=window, **sizes) for window in (64, None)
    ]
    ids = [int(one) for one in np.random.default_rng(0).integers(5, 300, 64)]
    found = []
    for folder in folders:
        runtime = load_runtime(open_artifact(folder), threads=1, parallel=4)
        scored = list(runtime.score([(ids[:1], ids[1:]), (ids[:40], ids[40:]), (ids[:40], ids[1:20])]))
        written = runtime.generate([ids[:30], ids[:50]], GenerateParams(max_new_tokens=34))
        found.append((scored, [completion.ids for completion in written]))
        runtime.close()
    assert found[0][1] == found[1][1]
    for windowed, plain in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_allclose(windowed, plain, atol=1e-4)


def test_models_with_a_window_make_their_own_masks(tmp_path: Path, plain: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    assert plain_causal(plain.config)
    folder = make_llama(tmp_path / "model", layers=1)
    config = MistralConfig(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        sliding_window=16,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.08,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    model.save_pretrained(folder)
    assert not plain_causal(config)
    runtime = load_runtime(open_artifact(folder), threads=1, parallel=8)
    prompt = some_prompts(512)[6]
    [logits] = list(runtime.score([(prompt, [7, 8, 9])]))
    with torch.no_grad():
        alone = model(torch.tensor([[*prompt, 7, 8]])).logits[0, len(prompt) - 1 :].numpy()
    np.testing.assert_allclose(logits, alone, atol=2e-5)
    [completion] = runtime.generate([prompt], GenerateParams(max_new_tokens=12, ignore_stop=True))
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)[
        0, len(prompt) :
    ]
    assert list(completion.ids) == ids.tolist()


def test_writing_and_scoring_at_once_gives_what_each_gives_by_itself(folder: Path) -> None:
    runtime = load_runtime(open_artifact(folder), threads=1, parallel=8)
    assert isinstance(runtime, WritesAndScores)
    assert runtime.shares_prompts
    free = runtime.generate(some_prompts(runtime.vocab_size), GenerateParams(max_new_tokens=24))
    stop = free[3].ids[11]
    runtime.stop_ids = frozenset({stop})
    prompts = some_prompts(runtime.vocab_size) * 2  # two batches
    random = np.random.default_rng(2)
    targets = [random.integers(5, runtime.vocab_size, length).tolist() for length in (1, 17, 0, 30, 2, 9, 28, 5) * 2]
    params = GenerateParams(max_new_tokens=24)
    written = runtime.generate(prompts, params)
    found = sorted(runtime.write_and_score(prompts, targets, params), key=lambda one: one[0])
    assert [completion.ids for _, completion, _, _ in found] == [completion.ids for completion in written]
    assert {completion.stop for completion in written} == {"length", "eos"}
    own = [[*c.ids, *([stop] if c.stop == "eos" else [])] for c in written]
    for wanted, index in ((targets, 2), (own, 3)):
        for one, logits in zip(found, runtime.score(list(zip(prompts, wanted, strict=True))), strict=True):
            assert one[index].shape == logits.shape
            np.testing.assert_allclose(one[index], logits, atol=2e-5)


def test_layers_that_see_a_window_do_not_share_prompts(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "window", layers=1)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}
    (folder / "config.json").write_text(json.dumps(config))
    runtime = load_runtime(open_artifact(folder), threads=1)
    assert isinstance(runtime, WritesAndScores)
    assert not runtime.shares_prompts
    with pytest.raises(AssayError, match="do not all see"):
        list(runtime.write_and_score([[5, 6]], [[7]], GenerateParams()))
