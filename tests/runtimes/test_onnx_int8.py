"""Int8 graphs that quantize activations as they run: scored in the very runs in which they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import evalsuite.scorer
from contract.artifact import open_artifact
from contract.errors import NoEngineError
from contract.prompt import PromptSpec
from contract.recipe import Recipe
from contract.runtime import GenerateParams, Runtime
from evalsuite.distance import token_distances
from evalsuite.evaluate import evaluate
from evalsuite.own_words import start_of, write
from export.to_onnx import export_onnx
from runtimes import load_runtime
from runtimes.onnx_rt import OnnxRuntime
from runtimes.onnx_sessions import quantizes_activations
from tests.evalsuite.chain import examples
from tests.tiny import make_llama
from tests.tiny_seq2seq import make_bart, make_t5

pytestmark = pytest.mark.engine

MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": partial(make_llama, dtype="float32", seed=5),
    "t5": make_t5,
    "bart": make_bart,
}
MOST = 16


@pytest.fixture(scope="module", params=list(MAKERS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Runtime, Runtime]:
    """One model in fp32 and int8."""
    root = tmp_path_factory.mktemp(f"int8-{request.param}")
    made = export_onnx(
        open_artifact(MAKERS[request.param](root / "model")), root / "onnx", precisions=("fp32", "int8"), threads=1
    )
    full, small = (load_runtime(artifact, threads=1, parallel=8) for artifact in made)
    return full, small


def prompts_of(runtime: Runtime) -> list[list[int]]:
    return [runtime.encode(PromptSpec().messages(example.document)) for example in examples(8)]


def test_only_int8_runs_token_by_token(both: tuple[Runtime, Runtime]) -> None:
    assert [runtime.token_by_token for runtime in both if isinstance(runtime, OnnxRuntime)] == [False, True]


def test_no_row_depends_on_what_follows(both: tuple[Runtime, Runtime]) -> None:
    runtime = both[1]
    random = np.random.default_rng(3)
    prompts = prompts_of(runtime)[:2]
    targets = [random.integers(5, runtime.vocab_size - 12, 12).tolist() for _ in range(2)]
    # neighbours share a prompt, as gold and greedy summaries do
    pairs = [(prompt, target[:size]) for prompt in prompts for target in targets for size in (12, 5, 1)]
    scored = list(runtime.score(pairs))
    for at in range(0, len(pairs), 3):
        for shorter in scored[at + 1 : at + 3]:
            np.testing.assert_array_equal(shorter, scored[at][: len(shorter)])


def test_first_choices_along_its_own_answer_are_that_answer(both: tuple[Runtime, Runtime]) -> None:
    runtime = both[1]
    prompts = prompts_of(runtime)
    written = runtime.generate(prompts, GenerateParams(MOST))
    pairs = [(prompt, one.ids) for prompt, one in zip(prompts, written, strict=True) if one.ids]
    assert len(pairs) > 4
    for (_, ids), logits in zip(pairs, runtime.score(pairs), strict=True):
        at = slice(1, -1) if runtime.target_length else slice(None)  # BART's first and last may be forced
        assert logits.argmax(1).tolist()[at] == list(ids)[at]


def test_own_words_are_what_it_writes(both: tuple[Runtime, Runtime]) -> None:
    reference, runtime = both
    prompts, params = prompts_of(reference), GenerateParams(MOST)
    targets = [
        [*made.ids, *([min(reference.stop_ids)] if made.stop == "eos" else [])]
        for made in reference.generate(prompts, params)
    ]
    pairs = list(zip(prompts, targets, strict=True))
    scored = [token_distances(x, x, t) for x, t in zip(runtime.score(pairs), targets, strict=True)]
    starts = [
        start_of(target, one, runtime.stop_ids, MOST, goes_on=False)
        for target, one in zip(targets, scored, strict=True)
    ]
    found, plain = write(runtime, prompts, starts, params), runtime.generate(prompts, params)
    assert [(one.ids, one.text, one.stop) for one in found] == [(one.ids, one.text, one.stop) for one in plain]


def test_rows_of_int4_do_not_depend_on_each_other(tmp_path: Path) -> None:
    folder = MAKERS["llama"](tmp_path / "model")
    [made] = export_onnx(open_artifact(folder), tmp_path / "onnx", precisions=["int4"], threads=1, check="structure")
    graph = onnx.load(made.folder / "model.onnx", load_external_data=False).graph
    levels = {
        a.i
        for node in graph.node
        if node.op_type == "MatMulNBits"
        for a in node.attribute
        if a.name == "accuracy_level"
    }
    assert levels == {4}  # activations in 8 bits: the kernels that are fast
    together = load_runtime(made, threads=1, parallel=8)
    assert isinstance(together, OnnxRuntime)
    assert not together.token_by_token
    random = np.random.default_rng(4)
    [prompt, *_] = prompts_of(together)
    pairs = [(prompt, random.integers(5, together.vocab_size - 5, 9).tolist()) for _ in range(8)]
    others = [(prompt, random.integers(5, together.vocab_size - 5, 9).tolist()) for _ in range(7)]
    [first, *_] = together.score(pairs)  # alone, some processors take other kernels: evaluation looks at that itself
    [beside_others, *_] = together.score([pairs[0], *others])
    np.testing.assert_allclose(first, beside_others, atol=1e-4)


@pytest.mark.parametrize("name", [b"DynamicQuantizeLinear", b"DynamicQuantizeMatMul", b"DynamicQuantizeLSTM"])
def test_fused_operators_are_seen_across_blocks(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\0" * ((1 << 22) - 7) + name + b"\0" * 50)
    assert quantizes_activations(path)
    path.write_bytes(b"QuantizeLinear MatMulIntegerToFloat")
    assert not quantizes_activations(path)


def test_an_evaluation_judges_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for an artifact's own words that reading it at once, as a prompt, would make of them."""
    monkeypatch.setattr(evalsuite.scorer, "bertscore_available", lambda: False)
    recipe = Recipe.model_validate({"name": "t", "model": {"base": "x"}, "generate": {"max_new_tokens": MOST}})
    model = open_artifact(MAKERS["llama"](tmp_path / "model"))
    [small] = export_onnx(model, tmp_path / "onnx", precisions=("int8",), threads=1)
    some = examples(6)
    evaluate([model, small], some, tmp_path / "eval", recipe=recipe, threads=1, speed=False)
    runtime = load_runtime(small, threads=1)
    prompts = [runtime.encode(recipe.prompt.spec().messages(example.document)) for example in some]
    written = [one.text.strip() for one in runtime.generate(prompts, recipe.generate.params())]
    files = {path.stem: path.read_text().splitlines() for path in (tmp_path / "eval" / "predictions").glob("*.jsonl")}
    [rows] = [rows for label, rows in files.items() if "int8" in label]
    assert [json.loads(row)["prediction"] for row in rows] == written
    missing = ["tpu"] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else ["tpu", "cuda"]
    for provider in missing:  # neither the artifact's fault, nor what the CPU found before
        monkeypatch.setenv("ASSAY_ONNX_PROVIDER", provider)
        with pytest.raises(NoEngineError, match="execution provider"):
            evaluate([model, small], some, tmp_path / "eval", recipe=recipe, threads=1, speed=False)
