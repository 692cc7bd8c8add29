"""Many greedy tokens in one run: the same tokens as one by one, and it stops where it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtimes.onnx_loop as onnx_loop
from contract.artifact import open_artifact
from contract.errors import ModelError, NoEngineError
from contract.runtime import GenerateParams
from export.to_onnx import export_onnx
from runtimes import load_runtime
from runtimes.logits_rules import LogitsRules, TargetFormat
from runtimes.loop_model import looped
from runtimes.onnx_loop import GreedyLoop, open_loop
from runtimes.onnx_rt import OnnxRuntime
from runtimes.onnx_sessions import open_graph
from runtimes.wire import bytes_field, fields, number_field
from tests.tiny import make_llama
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_bart, make_t5

pytestmark = pytest.mark.engine

MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": partial(make_llama, dtype="float32", seed=5),
    "t5": make_t5,
    "bart": make_bart,
}
KINDS = [(kind, precision) for kind in MAKERS for precision in ("fp32", "int8")] + [("llama", "int4")]


def load(folder: Path) -> OnnxRuntime:
    runtime = load_runtime(open_artifact(folder), threads=1, parallel=8)
    assert isinstance(runtime, OnnxRuntime)
    return runtime


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("loop")
    return {kind: make(root / kind) for kind, make in MAKERS.items()}


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def runtime(
    request: pytest.FixtureRequest, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> OnnxRuntime:
    kind, precision = request.param
    out = tmp_path_factory.mktemp("folders") / "onnx"
    [made] = export_onnx(open_artifact(models[kind]), out, precisions=[precision], threads=1, check="structure")
    return load(made.folder)


def prompts_of(runtime: OnnxRuntime) -> list[list[int]]:
    random = np.random.default_rng(2)
    end = [] if runtime.target_length is None else [min(runtime.stop_ids)]
    return [random.integers(5, runtime.vocab_size - 12, n).tolist() + end for n in (3, 40, 8, 8, 21, 60, 13, 30, 5, 17)]


@contextmanager
def without_loop(runtime: OnnxRuntime) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime._decoder, "_loop", None)
        yield


@pytest.mark.parametrize(
    "params",
    [
        GenerateParams(40),
        GenerateParams(70, ignore_stop=True),
        GenerateParams(3),
        GenerateParams(24, min_new_tokens=9),
        GenerateParams(40, stop=("e", "in")),
        GenerateParams(12, repetition_penalty=1.3),
    ],
    ids=["plain", "long", "short", "minimum", "stop-strings", "penalty"],
)
def test_the_same_answers_as_token_by_token(
    runtime: OnnxRuntime, params: GenerateParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(runtime)
    runs = 0

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal runs
        runs += 1
        return plain(*args, **named)

    plain = GreedyLoop.run
    monkeypatch.setattr(GreedyLoop, "run", counted)
    made = runtime.generate(prompts, params)
    assert (runs > 0) == (params.repetition_penalty == 1.0)  # a penalty changes every token's scores
    with without_loop(runtime):
        others = runtime.generate(prompts, params)
    assert [(one.ids, one.text, one.stop) for one in made] == [(one.ids, one.text, one.stop) for one in others]


def test_an_answer_may_take_several_runs(runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, params = prompts_of(runtime)[:3], GenerateParams(60, ignore_stop=True)
    at_once = runtime.generate(prompts, params)
    loop = runtime._decoder._loop
    assert loop is not None
    monkeypatch.setattr(onnx_loop, "_MOST_STEPS", 7)
    loop.most_steps = 7
    assert [one.ids for one in runtime.generate(prompts, params)] == [one.ids for one in at_once]
    assert loop.most_steps <= 7


def test_a_large_cache_goes_token_by_token(runtime: OnnxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, params = prompts_of(runtime)[:3], GenerateParams(20, ignore_stop=True)
    made = runtime.generate(prompts, params)
    monkeypatch.setattr(onnx_loop, "_MOST_CACHE_BYTES", 0)
    monkeypatch.setattr(GreedyLoop, "run", None)
    assert [one.ids for one in runtime.generate(prompts, params)] == [one.ids for one in made]


def test_it_is_read_in_the_same_pieces(runtime: OnnxRuntime) -> None:
    prompt = prompts_of(runtime)[1]
    for params in (GenerateParams(50, ignore_stop=True), GenerateParams(50, stop=("e", "in"))):
        pieces = list(runtime.stream(prompt, params))
        with without_loop(runtime):
            others = list(runtime.stream(prompt, params))
        assert [piece for piece in pieces[:-1] if piece] == others[:-1]
        assert len(others) > 1


# A graph whose every logit is known: behind token i the logits are row i of a table. Its cache holds, for every token,
# the token, its position, and how many positions it sees.
V = 8


def chain(path: Path, table: np.ndarray, *, bias: str = "", extra: Sequence[onnx.NodeProto] = ()) -> Path:
    kinds = {"input_ids": TensorProto.INT64, "position_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}
    past, present = "past_key_values.0.key", "present.0.key"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Add", ["found", bias], ["logits"])
        if bias
        else helper.make_node("Identity", ["found"], ["logits"]),
        helper.make_node("ReduceSum", ["attention_mask", "along"], ["seen"], keepdims=1),
        helper.make_node("Concat", ["input_ids", "position_ids", "seen"], ["whole"], axis=1),
        helper.make_node("Cast", ["whole"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "shape"], ["new"]),
        helper.make_node("Concat", [past, "new"], [present], axis=2),
        *extra,
    ]
    inputs = [helper.make_tensor_value_info(name, kind, ["rows", f"{name}_n"]) for name, kind in kinds.items()]
    inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, ["rows", 1, "before", 3]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "input_ids_n", V])]
    outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, ["rows", 1, "after", 3]))
    weights = {"table": table.astype(np.float32), "along": np.array([1]), "shape": np.array([-1, 1, 1, 3])}
    weights |= {bias: np.eye(V, dtype=np.float32)[3] * 9} if bias else {}
    graph = helper.make_graph(
        nodes, "chain", inputs, outputs, [numpy_helper.from_array(values, name) for name, values in weights.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def successors() -> np.ndarray:
    """Behind every token the next number is likeliest; behind the last the first."""
    return np.roll(np.eye(V), 1, axis=1) * 5.0


def loop_of(path: Path) -> GreedyLoop | None:
    return open_loop(open_graph(path, "cpu", 1), {"past_key_values.0.key": "present.0.key"}, 1)


def inputs_of(tokens: Sequence[int]) -> dict[str, np.ndarray]:
    """What the graph is given behind four tokens."""
    rows = len(tokens)
    return {
        "input_ids": np.array(tokens)[:, None],
        "position_ids": np.full((rows, 1), 4),
        "attention_mask": np.ones((rows, 5), np.int64),
        "past_key_values.0.key": np.zeros((rows, 1, 4, 3), np.float32),
    }


def walk(
    path: Path,
    tokens: Sequence[int],
    *,
    ends: Sequence[int] = (-1,),
    live: Sequence[bool] | None = None,
    most: int = 99,
) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    loop = loop_of(path)
    assert loop is not None
    alive = np.ones(len(tokens), np.bool_) if live is None else np.array(live)
    fed, logits, [cache] = loop.run(inputs_of(tokens), ["present.0.key"], ends=np.array(ends), live=alive, most=most)
    return fed.T.tolist(), logits, cache.numpy()


def test_it_feeds_at_most_so_many_tokens(tmp_path: Path) -> None:
    fed, logits, cache = walk(chain(tmp_path / "model.onnx", successors()), [2, 6], most=4)
    assert fed == [[3, 4, 5], [7, 0, 1]]
    assert logits.argmax(1).tolist() == [6, 2]  # neither fed nor taken
    assert cache[0, 0, 4:].tolist() == [[2, 4, 5], [3, 5, 6], [4, 6, 7], [5, 7, 8]]  # token, position, positions seen
    assert cache[1, 0, 4:, 0].tolist() == [6, 7, 0, 1]
    assert (cache[:, 0, :4] == 0).all()


def test_one_token_is_fed_as_by_the_graph_itself(tmp_path: Path) -> None:
    fed, logits, cache = walk(chain(tmp_path / "model.onnx", successors()), [2], most=1)
    assert (fed, int(logits.argmax()), cache.shape[2]) == ([[]], 3, 5)


def test_it_stops_before_an_end_of_a_row_that_is_live(tmp_path: Path) -> None:
    path = chain(tmp_path / "model.onnx", successors())
    fed, logits, _ = walk(path, [0, 4], ends=[7, 3])
    assert fed == [[1, 2], [5, 6]]
    assert logits.argmax(1).tolist() == [3, 7]
    fed, logits, _ = walk(path, [0, 4], ends=[7], live=[True, False])
    assert fed[0] == [1, 2, 3, 4, 5, 6]
    assert logits.argmax(1).tolist()[0] == 7
    fed, _, _ = walk(path, [6], ends=[7])
    assert fed == [[]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.nan])
def test_it_stops_at_logits_that_are_no_numbers(tmp_path: Path, wrong: float) -> None:
    table = successors()
    table[5, 1] = wrong
    fed, logits, _ = walk(chain(tmp_path / "model.onnx", table), [2])
    assert fed == [[3, 4, 5]]
    assert not np.isfinite(logits).all()


def test_tokens_that_are_never_likely_do_not_stop_it(tmp_path: Path) -> None:
    table = successors()
    table[:, 1] = -np.inf
    table[2, 4:] = np.finfo(np.float32).min
    fed, _, _ = walk(chain(tmp_path / "model.onnx", table), [2], most=6)
    assert fed == [[3, 4, 5, 6, 7]]


@pytest.mark.parametrize("name", ["bias", "before", "loop/before", "loop/number", "loop/ends"])
def test_names_of_weights_are_not_confused_with_the_loops_own(tmp_path: Path, name: str) -> None:
    path = chain(tmp_path / "model.onnx", successors(), bias=name)
    if name.startswith("loop/"):
        assert loop_of(path) is None
    else:
        assert walk(path, [0], most=4)[0] == [[3, 3, 3]]


def test_a_run_is_as_long_as_a_reader_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(chain(tmp_path / "model.onnx", successors()))
    assert loop is not None
    run = partial(loop.run, inputs_of([2]), [], ends=np.array([-1]), live=np.ones(1, np.bool_), most=999)
    first, _, _ = run()
    assert len(first) < 32  # its pace is not known yet
    monkeypatch.setattr(onnx_loop, "_RUN_S", 1e9)
    run()
    assert len(run()[0]) + 1 == loop.most_steps == 128
    monkeypatch.setattr(onnx_loop, "_RUN_S", 0.0)
    run()
    assert len(run()[0]) + 1 == loop.most_steps == 1


def test_of_equal_logits_the_first_is_taken(tmp_path: Path) -> None:
    table = successors()
    table[:, 2] = 5.0
    fed, logits, _ = walk(chain(tmp_path / "model.onnx", table), [4], most=3)
    assert fed == [[2, 2]]
    assert int(logits.argmax()) == 2


def test_graphs_that_are_large_old_or_of_another_type_are_not_looped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = chain(tmp_path / "model.onnx", successors())
    assert loop_of(path) is not None
    half = onnx.load(path)
    half.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    half.graph.initializer[0].CopyFrom(numpy_helper.from_array(successors().astype(np.float16), "table"))
    onnx.save(half, tmp_path / "half.onnx")
    assert loop_of(tmp_path / "half.onnx") is None
    for most, fits in ((V * V * 4 + 5 * 8 - 1, False), (V * V * 4 + 5 * 8, True)):  # the table, and five integers
        with monkeypatch.context() as patch:
            patch.setattr(onnx_loop, "_MOST_BYTES", most)
            assert (loop_of(path) is not None) == fits
    monkeypatch.setattr(onnx_loop, "_OLDEST_OPSET", 19)
    assert loop_of(path) is None


def test_what_cannot_stand_in_a_loop_is_still_run(models: dict[str, Path], tmp_path: Path) -> None:
    folder = export_folder(models["llama"], tmp_path / "onnx", seq2seq=False)
    whole = load(folder)
    made = whole.generate(prompts_of(whole), GenerateParams(20))
    model = onnx.load(folder / "model.onnx")
    model.graph.node.append(helper.make_node("Identity", ["input_ids"], ["loop/next"]))  # the loop's own name
    onnx.save(model, folder / "model.onnx")
    decoder = load(folder)._decoder
    assert decoder._loop is None
    assert [one.ids for one in load(folder).generate(prompts_of(whole), GenerateParams(20))] == [
        one.ids for one in made
    ]


def test_without_memory_or_types_for_a_loop_it_is_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = chain(tmp_path / "model.onnx", successors(), extra=[helper.make_node("Identity", ["seen"], ["more"])])
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name="more"))
    onnx.save(model, path)
    assert loop_of(path) is None

    def full(*_: Any) -> Any:
        raise NoEngineError("onnxruntime cannot load the graph on this machine")

    monkeypatch.setattr(onnx_loop, "open_made", full)
    assert loop_of(chain(tmp_path / "model.onnx", successors())) is None


def test_logits_that_overflow_on_the_way_are_an_error_of_the_artifact(models: dict[str, Path], tmp_path: Path) -> None:
    [made] = export_onnx(
        open_artifact(models["llama"]), tmp_path / "onnx", precisions=["fp32"], threads=1, check="structure"
    )
    runtime = load(made.folder)
    prompt = prompts_of(runtime)[1]
    [written] = runtime.generate([prompt], GenerateParams(12, ignore_stop=True))
    late = next(token for token in written.ids[4:] if token not in [*prompt, *written.ids[:4]])
    model = onnx.load(made.folder / "model.onnx")
    name = next(w.name for w in model.graph.initializer if w.name.endswith("embed_tokens.weight"))
    weight = next(w for w in model.graph.initializer if w.name == name)
    values = numpy_helper.to_array(weight).copy()
    values[late] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, name))
    for file in ("model.onnx", "model.onnx_data"):
        (made.folder / file).unlink(missing_ok=True)
    onnx.save(model, made.folder / "model.onnx")
    with pytest.raises(ModelError, match="not finite"):
        load(made.folder).generate([prompt], GenerateParams(12, ignore_stop=True))


def test_how_long_no_rule_changes_anything() -> None:
    def idle(params: GenerateParams, made: int, target: TargetFormat | None = None) -> int:
        return LogitsRules(params, frozenset({1}), [0], target, params.max_new_tokens).idle_for(made)

    assert idle(GenerateParams(10), 3) == 7
    assert idle(GenerateParams(10, min_new_tokens=4), 3) == 0
    assert idle(GenerateParams(10, min_new_tokens=4), 4) == 6
    assert idle(GenerateParams(10, repetition_penalty=1.1), 3) == 0
    assert idle(GenerateParams(10, no_repeat_ngram_size=3), 3) == 0
    forced = TargetFormat(0, 10, forced_bos_id=2, forced_eos_id=1)
    assert [idle(GenerateParams(10), made, forced) for made in (0, 1, 8, 9)] == [0, 8, 1, 0]


def test_the_wire_format_is_protobufs_own(tmp_path: Path) -> None:
    path = chain(tmp_path / "model.onnx", successors())
    model = onnx.load_model_from_string(looped(path.read_bytes(), {"past_key_values.0.key": "present.0.key"}))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import == onnx.load(path).opset_import
    for value in (0, 1, 127, 128, 1 << 40, -1, -300):
        message = onnx.AttributeProto.FromString(bytes_field(1, "name") + number_field(3, value))
        assert (message.name, message.i) == ("name", value)
    data = bytes_field(1, "ab", b"c") + number_field(2, 300) + bytes_field(20, b"x" * 200)
    found = [(number, end if end < 0 else data[at:end], at) for number, at, end in fields(data, 0, len(data))]
    assert [(number, content) for number, content, _ in found] == [(1, b"abc"), (2, -1), (20, b"x" * 200)]
    assert found[1][2] == 300
    with pytest.raises(ValueError, match="in the middle"):
        list(fields(data[:-1], 0, len(data) - 1))
