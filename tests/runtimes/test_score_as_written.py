"""Scored as written: bit for bit the logits that generation chooses from, in every engine that serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes.llama_cpp
import runtimes.llama_t5
import runtimes.onnx_rt
from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.prompt import Message
from contract.runtime import Completion, GenerateParams, Runtime, ScoresAsWritten
from export.to_gguf import export_gguf
from runtimes import load_runtime
from runtimes.answer import Answer
from tests.tiny import make_llama
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine

PARAMS = GenerateParams(max_new_tokens=14)
TEXTS = ("Mara: hi.", "Olin: the bus 84 leaves from Tarvo at nine. " * 9, "Kesto asks for room 418.")


def gguf(tmp: Path, quant: str, model: Callable[[Path], Path]) -> Runtime:
    [made] = export_gguf(open_artifact(model(tmp / "model")), tmp / "gguf", quants=[quant])  # type: ignore[list-item]
    return load_runtime(made, threads=1, parallel=1)


MAKERS: dict[str, Callable[[Path], Runtime]] = {
    **{
        quant: lambda tmp, quant=quant: gguf(tmp, quant, lambda path: make_llama(path, seed=5))  # type: ignore[misc]
        for quant in ("f16", "q8_0", "q4_k_m")
    },
    "t5": lambda tmp: gguf(tmp, "f16", make_t5),
    "onnx": lambda tmp: load_runtime(
        open_artifact(export_folder(make_llama(tmp / "model", seed=5), tmp / "onnx", seq2seq=False)),
        threads=1,
        parallel=1,
    ),
}


class Listening(Answer):
    """Keeps the logits that it chooses from."""

    heard: list[np.ndarray]

    def take(self, logits: np.ndarray) -> int:
        Listening.heard.append(np.array(logits))
        return super().take(logits)


@pytest.mark.parametrize("which", MAKERS)
def test_bit_for_bit_what_generation_sees(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = MAKERS[which](tmp_path)
    assert isinstance(runtime, ScoresAsWritten)
    prompts = [runtime.encode([Message("user", text)]) for text in TEXTS]
    for module in (runtimes.llama_cpp, runtimes.llama_t5, runtimes.onnx_rt):
        monkeypatch.setattr(module, "Answer", Listening)
    targets, seen = [], []
    for prompt in prompts:
        Listening.heard = []
        *_, written = runtime.stream(prompt, PARAMS)
        assert isinstance(written, Completion)
        ended = [int(Listening.heard[-1].argmax())] if written.stop == "eos" else []
        targets.append([*written.ids, *ended])
        seen.append(np.stack(Listening.heard))
    pairs = list(zip(prompts, targets, strict=True))
    found = list(runtime.score_as_written([*pairs, pairs[0]], PARAMS))
    assert np.array_equal(found[0], found[-1]), "whatever came before"
    for logits, heard, target in zip(found, seen, targets, strict=False):
        assert logits.dtype == np.float32
        assert logits.argmax(1).tolist() == target
        if which != "onnx":  # where a small model's tokens are chosen inside the graph, most logits are never seen
            assert np.array_equal(logits, heard)
    [empty] = runtime.score_as_written([(prompts[0], [])], PARAMS)
    assert empty.shape == (0, runtime.vocab_size)
    with pytest.raises(AssayError, match=r"exceed|longer|context"):
        list(runtime.score_as_written([(prompts[0] * 99, targets[0])], PARAMS))
    runtime.close()


@pytest.mark.parametrize("which", ["f16", "q8_0", "q4_k_m"])
def test_a_prompt_that_was_read_for_one_target_gives_the_same_bits_for_the_next(which: str, tmp_path: Path) -> None:
    runtime: Any = MAKERS[which](tmp_path)
    prompt = runtime.encode([Message("user", TEXTS[1] * 3)])
    *_, anew = runtime.stream(prompt, PARAMS)
    other = [(id + 1) % runtime.vocab_size for id in anew.ids]
    targets = [[*other, 5], anew.ids, [*anew.ids[:3], *other], anew.ids[:2], other]
    apart = []
    for target in targets:
        runtime.generate([prompt[:9]], PARAMS)  # the cache is another's
        apart += runtime.score_as_written([(prompt, target)], PARAMS)
    together = list(runtime.score_as_written([(prompt, target) for target in targets], PARAMS))
    for one, another in zip(apart, together, strict=True):
        assert np.array_equal(one, another)
    for _ in range(2):  # along what was scored, and read anew
        *_, written = runtime.stream(prompt, PARAMS)
        assert (written.ids, written.stop, written.text) == (anew.ids, anew.stop, anew.text)
    runtime.close()


def test_steps_that_were_taken_before_are_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = MAKERS["q8_0"](tmp_path)
    prompt = runtime.encode([Message("user", TEXTS[1])])
    *_, anew = runtime.stream(prompt, PARAMS)
    fed: list[int] = []
    decode = runtime._engine.decode
    monkeypatch.setattr(
        runtime._engine, "decode", lambda tokens, *rest: fed.append(len(tokens)) or decode(tokens, *rest)
    )
    gold = [*anew.ids[:2], (anew.ids[2] + 1) % runtime.vocab_size, 9, 9]
    list(runtime.score_as_written([(prompt, gold), (prompt, anew.ids)], PARAMS))
    list(runtime.stream(prompt, PARAMS))
    assert fed[0] == len(prompt)
    assert sum(fed[1:]) in (len(gold) - 1 + len(anew.ids) - 3, len(gold) - 1 + len(anew.ids) - 2)
    runtime.close()
