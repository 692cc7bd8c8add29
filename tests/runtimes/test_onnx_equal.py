"""What the ONNX runtime writes and scores, token for token against transformers' own generate on tiny random models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from contract.artifact import open_artifact
from contract.model_folder import read_json
from contract.runtime import GenerateParams, Runtime
from export.to_onnx import export_onnx
from runtimes import load_runtime
from tests.said import say_at_the_end
from tests.tiny import make_llama
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_bart, make_t5

pytestmark = pytest.mark.engine

KINDS = ("llama", "fused", "t5", "bart")  # fused: as Assay exports it, the others as Optimum alone does
LENGTHS = (3, 8, 13, 21, 34, 50)
EACH = 34  # prompts of each length: 204 in all

TIE = 1e-4  # logits nearer than this are a matter of rounding


@dataclass
class Pair:
    """One model in both engines. `forced`: what its generation_config forces."""

    plain: Any
    runtime: Runtime
    seq2seq: bool
    config: dict[str, Any]
    start: list[int]

    def prompts(self, each: int) -> list[list[list[int]]]:
        """By length, so that transformers needs no padding where a penalty would see it."""
        random = np.random.default_rng(5)
        end = [min(self.runtime.stop_ids)] if self.seq2seq else []
        high = self.runtime.vocab_size - 12
        return [
            [random.integers(5, high, length).tolist() + end for _ in range(each)]
            for length in (LENGTHS if each > 12 else LENGTHS[::2])
        ]

    def expected(self, prompts: list[list[int]], params: GenerateParams) -> list[list[int]]:
        """transformers' own, stop ids and padding cut off."""
        names = ("forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id")
        config = GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            num_beams=params.num_beams,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            repetition_penalty=params.repetition_penalty,
            no_repeat_ngram_size=params.no_repeat_ngram_size or None,
            min_new_tokens=params.min_new_tokens or None,
            do_sample=False,
            eos_token_id=sorted(self.runtime.stop_ids),
            pad_token_id=self.config["pad_token_id"],
            **{name: self.config[name] for name in names if name in self.config},
        )
        ids = torch.tensor(prompts)
        self.plain.generation_config = config  # else what the folder's own has would fill what is not set here
        made = self.plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        begin = 1 if self.seq2seq else ids.shape[1]
        return [self._until_stop(row[begin:]) for row in made.tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        return ids[: next((at for at, token in enumerate(ids) if token in self.runtime.stop_ids), len(ids))]

    @torch.no_grad()
    def logits(self, prompt: list[int], target: list[int]) -> np.ndarray:
        """Teacher-forced, float32 [len(target), vocab_size]."""
        if self.seq2seq:
            decoder = torch.tensor([[*self.start, *target[:-1]]])
            found = self.plain(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0]
        else:
            found = self.plain(torch.tensor([[*prompt, *target[:-1]]])).logits[0, len(prompt) - 1 :]
        return np.asarray(found.numpy())

    def is_tie(self, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
        """Do the two part where two tokens' logits are as good as equal?"""
        at = next(i for i, (a, b) in enumerate(zip([*ours, -1], [*theirs, -1], strict=False)) if a != b)
        top = np.sort(self.logits(prompt, [*theirs[:at], 0])[-1])
        return bool(top[-1] - top[-2] < TIE)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("equal") / "model"
    makers = {"llama": lambda: make_llama(folder, dtype="float32"), "t5": lambda: make_t5(folder)}
    makers["bart"] = lambda: make_bart(folder)
    makers["fused"] = makers["llama"]
    makers[request.param]()
    seq2seq = request.param in ("t5", "bart")
    if request.param == "fused":
        [made] = export_onnx(open_artifact(folder), folder.parent / "onnx", precisions=["fp32"])
        assert "Attention" in made.manifest.details["submodels"]["model"]["operators"]
        out = made.folder
    else:
        out = export_folder(folder, folder.parent / "onnx", seq2seq=seq2seq)
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    config = {**read_json(folder / "config.json"), **read_json(folder / "generation_config.json")}
    return Pair(
        auto.from_pretrained(folder, dtype=torch.float32).eval(),
        load_runtime(open_artifact(out), threads=1, parallel=16),
        seq2seq,
        config,
        [config["decoder_start_token_id"]] if seq2seq else [],
    )


def compare(pair: Pair, params: GenerateParams, each: int) -> tuple[int, int]:
    """Ours in batches of all lengths mixed, theirs length by length: (prompts, near-ties that went otherwise)."""
    groups = pair.prompts(each)
    theirs = [ids for group in groups for ids in pair.expected(group, params)]
    prompts = [prompt for group in groups for prompt in group]
    mixed = np.random.default_rng(1).permutation(len(prompts))
    made = pair.runtime.generate([prompts[index] for index in mixed], params)
    ours = dict(zip(mixed.tolist(), (list(completion.ids) for completion in made), strict=True))
    differing = [index for index in range(len(prompts)) if ours[index] != theirs[index]]
    wrong = [index for index in differing if not pair.is_tie(prompts[index], ours[index], theirs[index])]
    assert not wrong, f"{len(wrong)} of {len(prompts)}: {ours[wrong[0]]} instead of {theirs[wrong[0]]}"
    assert len({tuple(ids) for ids in ours.values()}) > len(prompts) // 3, "the model writes the same whatever it reads"
    return len(prompts), len(differing)


def test_greedy_is_transformers_token_for_token(pair: Pair, request: pytest.FixtureRequest) -> None:
    count, ties = compare(pair, GenerateParams(max_new_tokens=24), EACH)
    assert count >= 200
    name = request.node.callspec.params["pair"]
    say_at_the_end(f"onnx greedy {name}", f"onnx greedy, {name}: {count} prompts as transformers, {ties} near-ties")


@pytest.mark.parametrize(
    "params",
    [
        GenerateParams(20, repetition_penalty=1.4),
        GenerateParams(20, no_repeat_ngram_size=2, min_new_tokens=12),
        GenerateParams(20, num_beams=4),
        GenerateParams(20, num_beams=3, length_penalty=2.0, early_stopping=True, no_repeat_ngram_size=3),
        GenerateParams(16, num_beams=5, length_penalty=-1.0, repetition_penalty=1.2, min_new_tokens=4),
        GenerateParams(16, num_beams=2, length_penalty=0.0, early_stopping=True),
    ],
    ids=["penalty", "ngrams", "beams", "beams-early", "beams-short", "beams-flat"],
)
def test_rules_and_beams_are_transformers_token_for_token(
    pair: Pair, params: GenerateParams, request: pytest.FixtureRequest
) -> None:
    count, ties = compare(pair, params, 12)
    label = "-".join(str(value) for value in request.node.callspec.id.split("-"))
    say_at_the_end(f"onnx {label}", f"onnx {label}: {count} prompts as transformers, {ties} near-ties")


def test_some_answers_end_by_themselves_and_some_do_not(pair: Pair) -> None:
    """Otherwise the comparison would not see how an end is handled."""
    prompts = [prompt for group in pair.prompts(12) for prompt in group]
    stops = {c.stop for params in (GenerateParams(40, num_beams=5, length_penalty=-1.0), GenerateParams(8))
             for c in pair.runtime.generate(prompts, params)}  # fmt: skip
    assert "length" in stops
    if pair.config.get("forced_eos_token_id") is None:
        assert "eos" in stops


def test_scores_are_transformers(pair: Pair) -> None:
    random = np.random.default_rng(2)
    high = pair.runtime.vocab_size - 12
    prompts = [group[0] for group in pair.prompts(34)]
    prompts += [prompts[0][:1]] if not pair.seq2seq else []
    pairs = [(prompt, random.integers(5, high, size).tolist()) for prompt in prompts for size in (7, 1, 0, 19)]
    for (prompt, target), found in zip(pairs, pair.runtime.score(pairs), strict=True):
        assert found.shape == (len(target), pair.runtime.vocab_size)
        assert found.dtype == np.float32
        if target:
            np.testing.assert_allclose(found, pair.logits(prompt, target), atol=2e-4)


def test_score_predicts_what_generate_takes(pair: Pair) -> None:
    prompts = [group[0] for group in pair.prompts(34)]
    made = pair.runtime.generate(prompts, GenerateParams(max_new_tokens=12, ignore_stop=True))
    forced = 1 if pair.config.get("forced_bos_token_id") is not None else 0
    for prompt, completion in zip(prompts, made, strict=True):
        [logits] = pair.runtime.score([(prompt, completion.ids)])
        assert logits.argmax(1).tolist()[forced:] == list(completion.ids)[forced:]


def test_both_decoders_in_one_graph(tmp_path: Path) -> None:
    folder = make_t5(tmp_path / "t5")
    separate = load_runtime(open_artifact(export_folder(folder, tmp_path / "separate", seq2seq=True)), threads=1)
    out = export_folder(folder, tmp_path / "merged", seq2seq=True, merged=True)
    merged = load_runtime(open_artifact(out), threads=1)
    prompts = [[7, 8, 9, 1], [20, 21, 22, 23, 24, 1], [50, 1]]
    for params in (GenerateParams(20), GenerateParams(20, num_beams=3)):
        assert [c.ids for c in merged.generate(prompts, params)] == [c.ids for c in separate.generate(prompts, params)]
    for ours, theirs in zip(merged.score([(prompts[0], [5, 6])]), separate.score([(prompts[0], [5, 6])]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
