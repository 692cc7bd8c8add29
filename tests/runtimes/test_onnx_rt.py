"""The ONNX runtime as a runtime: ids as torch makes them, no torch needed, broken folders refused with the reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes.onnx_causal as onnx_causal
import runtimes.onnx_provider
from contract.artifact import open_artifact
from contract.cpu import Cpu
from contract.errors import AssayError, NoEngineError
from contract.prompt import Message
from contract.runtime import Completion, GenerateParams, Runtime
from evalsuite.hard_texts import HARD_TEXTS
from runtimes import load_runtime
from runtimes.answer import check_params
from runtimes.onnx_file import precision_of
from tests.tiny import make_llama
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_bart, make_t5

pytestmark = pytest.mark.engine

load = partial(load_runtime, threads=1)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": partial(make_llama, dtype="float32"),
    "t5": make_t5,
    "bart": make_bart,
}
TURNS = [Message("user", "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free.")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By kind: the model's folder, and the ONNX folder made of it. Do not write into them."""
    root = tmp_path_factory.mktemp("onnx")
    made = {kind: make(root / kind) for kind, make in MAKERS.items()}
    return {
        kind: (folder, export_folder(folder, root / f"{kind}-onnx", seq2seq=kind != "llama"))
        for kind, folder in made.items()
    }


@pytest.fixture(scope="module")
def runtimes_of(folders: dict[str, tuple[Path, Path]]) -> dict[str, tuple[Runtime, Runtime]]:
    """By kind: torch, then ONNX."""
    return {kind: (load(open_artifact(model)), load(open_artifact(onnx))) for kind, (model, onnx) in folders.items()}


@pytest.fixture(params=list(MAKERS))
def both(request: pytest.FixtureRequest, runtimes_of: dict[str, tuple[Runtime, Runtime]]) -> tuple[Runtime, Runtime]:
    return runtimes_of[request.param]


def test_ids_and_texts_are_those_of_the_torch_runtime(both: tuple[Runtime, Runtime]) -> None:
    torch_runtime, onnx_runtime = both
    assert onnx_runtime.engine == "onnxruntime"
    for name in ("vocab_size", "context_length", "target_length", "bos_id", "stop_ids"):
        assert getattr(onnx_runtime, name) == getattr(torch_runtime, name), name
    for text in (*HARD_TEXTS, "", " \n "):
        turns = [Message("system", "Be brief."), Message("user", text)]
        assert onnx_runtime.encode(turns) == torch_runtime.encode(turns), text
        assert onnx_runtime.encode_raw(text) == torch_runtime.encode_raw(text), text
        if text.strip():
            ids = torch_runtime.encode_completion(TURNS, text)
            assert onnx_runtime.encode_completion(TURNS, text) == ids, text
            assert onnx_runtime.decode(ids) == torch_runtime.decode(ids), text


def test_scores_and_greedy_answers_are_those_of_the_torch_runtime(both: tuple[Runtime, Runtime]) -> None:
    torch_runtime, onnx_runtime = both
    pairs = [
        (torch_runtime.encode([Message("user", text)]), torch_runtime.encode_completion(TURNS, "They agree on 527."))
        for text in HARD_TEXTS[:6]
    ]
    for ours, theirs in zip(onnx_runtime.score(pairs), torch_runtime.score(pairs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    prompts = [prompt for prompt, _ in pairs]
    for params in (GenerateParams(16), GenerateParams(16, repetition_penalty=1.3, min_new_tokens=6)):
        ours, theirs = (runtime.generate(prompts, params) for runtime in (onnx_runtime, torch_runtime))
        assert [(c.ids, c.text, c.stop, c.prompt_tokens) for c in ours] == [
            (c.ids, c.text, c.stop, c.prompt_tokens) for c in theirs
        ]


def test_streams_equal_whole_answers(both: tuple[Runtime, Runtime]) -> None:
    runtime = both[1]
    prompt = runtime.encode(TURNS)
    [free] = runtime.generate([prompt], GenerateParams(24, ignore_stop=True))
    assert len(free.ids) == 24
    stop = free.text[3:6]
    for params in (GenerateParams(24), GenerateParams(24, stop=(stop,)), GenerateParams(12, num_beams=3)):
        [made] = runtime.generate([prompt], params)
        *pieces, last = runtime.stream(prompt, params)
        assert isinstance(last, Completion)
        assert (last.ids, last.text, last.stop) == (made.ids, made.text, made.stop)
        assert "".join(map(str, pieces)) == made.text
        assert not params.stop or stop not in made.text


def test_sampling_is_seeded_and_does_not_depend_on_neighbours(both: tuple[Runtime, Runtime]) -> None:
    runtime = both[1]
    prompts = [runtime.encode([Message("user", text)]) for text in HARD_TEXTS[:5]]
    params = GenerateParams(8, temperature=1.0, top_p=0.9, seed=3)
    ids = [c.ids for c in runtime.generate(prompts, params)]
    assert ids[1] == runtime.generate([prompts[1]], params)[0].ids
    assert ids != [c.ids for c in runtime.generate(prompts, GenerateParams(8, 1.0, 0.9, seed=4))]


def test_what_does_not_fit_is_refused(runtimes_of: dict[str, tuple[Runtime, Runtime]]) -> None:
    causal, seq2seq = runtimes_of["llama"][1], runtimes_of["bart"][1]
    with pytest.raises(AssayError, match="no room"):
        causal.generate([[5] * 512], GenerateParams())
    with pytest.raises(AssayError, match="exceed the context"):
        causal.score([([5] * 500, [5] * 13)])
    with pytest.raises(AssayError, match="longer than the encoder's context"):
        seq2seq.generate([[5] * 513], GenerateParams())
    with pytest.raises(AssayError, match="longer than the decoder's context"):
        seq2seq.score([([5] * 500, [5] * 513)])
    with pytest.raises(AssayError, match="outside the model's vocabulary"):
        causal.generate([[causal.vocab_size]], GenerateParams())
    [made] = seq2seq.generate([[5] * 512], GenerateParams(4, ignore_stop=True))
    assert len(made.ids) == 4


def test_a_long_prompt_is_read_in_pieces(
    runtimes_of: dict[str, tuple[Runtime, Runtime]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtimes_of["llama"][1]
    random = np.random.default_rng(0)
    prompts = [random.integers(5, 390, size).tolist() for size in (70, 9, 33, 1)]
    params = GenerateParams(6, ignore_stop=True)
    whole = [c.ids for c in runtime.generate(prompts, params)]
    beams = [c.ids for c in runtime.generate(prompts, GenerateParams(6, num_beams=2))]
    monkeypatch.setattr(onnx_causal, "_CHUNK", 16)
    assert [c.ids for c in runtime.generate(prompts, params)] == whole
    monkeypatch.setattr(onnx_causal, "_LOGITS_BYTES", 0)
    assert [c.ids for c in runtime.generate(prompts, params)] == whole
    assert [c.ids for c in runtime.generate(prompts, GenerateParams(6, num_beams=2))] == beams


def test_torch_and_transformers_are_not_needed(folders: dict[str, tuple[Path, Path]]) -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'optimum', 'onnx', 'safetensors'):\n"
        "            raise ImportError(f'{name} is not installed')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from contract.artifact import open_artifact\n"
        "from contract.prompt import Message\n"
        "from contract.runtime import GenerateParams\n"
        "from runtimes import load_runtime\n"
        "for folder in sys.argv[1:]:\n"
        "    runtime = load_runtime(open_artifact(folder), threads=1)\n"
        "    ids = runtime.encode([Message('user', 'Mara: room 527?')])\n"
        "    for beams in (1, 2):\n"
        "        [made] = runtime.generate([ids], GenerateParams(5, num_beams=beams, min_new_tokens=5))\n"
        "        assert len(made.ids) >= 4, made\n"
        "    [logits] = runtime.score([(ids, [5, 6])])\n"
        "    print(logits.shape == (2, runtime.vocab_size))\n"
    )
    onnx = [str(onnx) for _, onnx in folders.values()]
    done = subprocess.run([sys.executable, "-c", code, *onnx], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_the_execution_provider_is_never_another(
    folders: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    artifact = open_artifact(folders["llama"][1])
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(NoEngineError, match="no other is taken instead"):
            load(artifact, provider="cuda")
        monkeypatch.setenv("ASSAY_ONNX_PROVIDER", "cuda")
        with pytest.raises(NoEngineError, match="CUDAExecutionProvider"):
            load(artifact)
    monkeypatch.setenv("ASSAY_ONNX_PROVIDER", "tpu")
    with pytest.raises(NoEngineError, match="no such execution provider"):
        load(artifact)
    load(artifact, provider="cpu").close()


@pytest.mark.parametrize("version", ["1.22.1", "1.23.0", "1.9.0"])
def test_an_onnxruntime_that_computes_attention_wrongly_is_refused(
    folders: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", version)
    for kind in ("llama", "t5"):
        with pytest.raises(NoEngineError, match=r"expected: onnxruntime 1\.23\.1 or newer") as no:
            load(open_artifact(folders[kind][1]))
        assert version in str(no.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.onnx"),
        ("t5", "encoder_model.onnx"),
        ("t5", "decoder_model.onnx"),
        ("t5", "decoder_with_past_model.onnx"),
        ("bart", "tokenizer.json"),
    ],
)
def test_a_missing_file_is_named(folders: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str, name: str) -> None:
    folder = shutil.copytree(folders[kind][1], tmp_path / "copy")
    (folder / name).rename(tmp_path / name)
    (folder / "other.onnx").write_bytes(b"")
    with pytest.raises(AssayError, match=name if name != "tokenizer.json" else "no tokenizer.json") as refused:
        load(open_artifact(folder))
    assert refused.value.hint


def damaged(folder: Path, out: Path, name: str, damage: Callable[[Any], None]) -> Path:
    import onnx

    shutil.copytree(folder, out)
    graph = onnx.load(out / name)
    damage(graph)
    onnx.save(graph, out / name)
    return out


def rename(model: Any, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def drop_output(model: Any, name: str) -> None:
    model.graph.output.remove(next(value for value in model.graph.output if value.name == name))


def set_opset(model: Any, version: int) -> None:
    model.opset_import[0].version = version


def other_size(model: Any, name: str) -> None:
    next(value for value in model.graph.input if value.name == name).type.tensor_type.shape.dim[3].dim_value = 7


LATER = "decoder_with_past_model.onnx"


@pytest.mark.parametrize(
    ("kind", "name", "damage", "says"),
    [
        ("llama", "model.onnx", lambda m: rename(m, "present.1.value", "present.9.value"), "nothing writes present.1"),
        ("llama", "model.onnx", lambda m: drop_output(m, "present.0.key"), "do not belong together"),
        ("llama", "model.onnx", lambda m: other_size(m, "past_key_values.0.key"), "cannot load the graph|written as"),
        ("llama", "model.onnx", lambda m: drop_output(m, "logits"), "lacks what a language model"),
        ("llama", "model.onnx", lambda m: set_opset(m, 99), "cannot load the graph"),
        ("t5", "decoder_model.onnx", lambda m: drop_output(m, "present.0.encoder.key"), "nothing writes present.0.enc"),
        ("t5", LATER, lambda m: drop_output(m, "present.1.decoder.value"), "nothing writes present.1.decoder.value"),
        ("bart", LATER, lambda m: rename(m, "past_key_values.0.encoder.key", "x"), "nothing reads it"),
    ],
    ids=["renamed", "dropped", "resized", "no-logits", "opset", "cross-dropped", "self-dropped", "unread"],
)
def test_a_damaged_cache_is_refused_with_the_reason(
    folders: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    kind: str,
    name: str,
    damage: Callable[[Any], None],
    says: str,
) -> None:
    folder = damaged(folders[kind][1], tmp_path / "copy", name, damage)
    with pytest.raises(AssayError, match=says) as refused:
        load(open_artifact(folder))
    assert str(folder) in str(refused.value)


def test_a_truncated_graph_is_refused(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama"][1], tmp_path / "copy")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-500])
    with pytest.raises(AssayError, match=r"cannot load the graph|not an ONNX file that can be read"):
        load(open_artifact(folder))


def test_graphs_without_a_cache_and_old_layouts_are_refused(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["llama"][1], tmp_path / "old")
    (folder / "model.onnx").rename(folder / "decoder_model.onnx")
    with pytest.raises(AssayError, match="split into graphs"):
        load(open_artifact(folder))

    def without_cache(model: Any) -> None:
        for value in [value for value in model.graph.output if value.name.startswith("present.")]:
            model.graph.output.remove(value)
        for value in [value for value in model.graph.input if value.name.startswith("past_key_values.")]:
            rename(model, value.name, value.name.replace("past_key_values.", "old."))

    folder = damaged(folders["llama"][1], tmp_path / "bare", "model.onnx", without_cache)
    with pytest.raises(AssayError, match="no input past_key_values"):
        load(open_artifact(folder))


def test_a_graph_that_quantizes_activations_runs_one_prompt_at_a_time(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """A batch shares one scale, so a neighbour would change an answer: served alone it must be what was scored."""
    from onnxruntime.quantization import quantize_dynamic

    folder = shutil.copytree(folders["llama"][1], tmp_path / "int8")
    quantize_dynamic(folder / "model.onnx", folder / "int8.onnx", per_channel=True)
    (folder / "int8.onnx").replace(folder / "model.onnx")
    runtime = load(open_artifact(folder))
    random = np.random.default_rng(0)
    prompts = [random.integers(5, 390, size).tolist() for size in (40, 9, 33)]
    params = GenerateParams(12, ignore_stop=True)
    together = [c.ids for c in runtime.generate(prompts, params)]
    assert together == [runtime.generate([prompt], params)[0].ids for prompt in prompts]
    for (prompt, target), logits in zip(
        zip(prompts, together, strict=True), runtime.score(list(zip(prompts, together, strict=True))), strict=True
    ):
        [alone] = runtime.score([(prompt, target)])
        np.testing.assert_array_equal(logits, alone)


def test_half_precision_graphs_run(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    folder = shutil.copytree(folders["llama"][1], tmp_path / "fp16")
    onnx.save(convert_float_to_float16(onnx.load(folder / "model.onnx")), folder / "model.onnx")
    half, full = load(open_artifact(folder)), load(open_artifact(folders["llama"][1]))
    pairs = [([7, 8, 9], [10, 11, 12]), ([5] * 20, [30])]
    for ours, theirs in zip(half.score(pairs), full.score(pairs), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=0.05)
    assert len(half.generate([[7, 8, 9]], GenerateParams(6, ignore_stop=True))[0].ids) == 6


def halve_the_past(model: Any, present: str) -> None:
    """What is written for the next run holds the cells of the runs before it at half their value."""
    from onnx import TensorProto, helper

    join = next(node for node in model.graph.node if present in node.output)
    assert join.op_type == "Concat"
    model.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]))
    join.output[0] = "whole"
    for node in model.graph.node:
        node.input[:] = ["whole" if name == present else name for name in node.input]
    model.graph.node.append(helper.make_node("Mul", [join.input[0], "half"], ["halved"]))
    model.graph.node.append(helper.make_node("Concat", ["halved", join.input[1]], [present], axis=2))


def test_a_cache_that_only_later_tokens_read_is_scored(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """The prompt is read right, and so is the token behind it; whatever follows them is not."""
    folder = damaged(folders["llama"][1], tmp_path / "copy", "model.onnx", lambda m: halve_the_past(m, "present.0.key"))
    broken, sound = load(open_artifact(folder)), load(open_artifact(folders["llama"][1]))
    pair = (list(range(20, 40)), list(range(50, 60)))
    [ours], [theirs] = broken.score([pair]), sound.score([pair])
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)
    assert (np.abs(ours[1:] - theirs[1:]).max(1) > 0.01).all()


def crossed(graph: Any, names: dict[str, str]) -> None:
    """Exchange what the nodes of a graph, and of the branches in it, read."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                crossed(attribute.g, names)


def test_the_cached_branch_of_a_merged_decoder_is_scored(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    merged = export_folder(folders["t5"][0], tmp_path / "merged", seq2seq=True, merged=True)
    one, other = (f"past_key_values.1.encoder.{part}" for part in ("key", "value"))
    folder = damaged(
        merged, tmp_path / "copy", "decoder_model_merged.onnx", lambda m: crossed(m.graph, {one: other, other: one})
    )
    pair = ([7, 8, 9, 10, 1], [11, 12, 13, 14])
    [ours], [theirs] = load(open_artifact(folder)).score([pair]), load(open_artifact(merged)).score([pair])
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    assert (np.abs(ours[1:] - theirs[1:]).max(1) > 0.01).all()


def test_targets_of_unlike_length_are_scored_together_as_alone(runtimes_of: dict[str, tuple[Runtime, Runtime]]) -> None:
    runtime = runtimes_of["t5"][1]
    random = np.random.default_rng(0)
    pairs = [([*random.integers(5, 300, size).tolist(), 1], random.integers(5, 300, length).tolist())
             for size in (9, 30, 9, 4) for length in (3, 0, 17, 1, 8)]  # fmt: skip
    for pair, together in zip(pairs, runtime.score(pairs), strict=True):
        [alone] = runtime.score([pair])
        assert together.shape == (len(pair[1]), runtime.vocab_size)
        np.testing.assert_allclose(together, alone, atol=1e-4)


def edited(folder: Path, out: Path, name: str, **values: Any) -> Path:
    shutil.copytree(folder, out)
    read = json.loads((out / name).read_text())
    (out / name).write_text(json.dumps({**read, **values}))
    return out


@pytest.mark.parametrize(
    ("kind", "name", "values", "says"),
    [
        ("bart", "generation_config.json", {"forced_bos_token_id": 99999}, "forced_bos_token_id: 99999"),
        ("bart", "generation_config.json", {"forced_eos_token_id": -1}, "forced_eos_token_id: -1"),
        ("t5", "generation_config.json", {"decoder_start_token_id": 99999}, "decoder_start_token_id: 99999"),
        ("llama", "generation_config.json", {"eos_token_id": [1, 99999]}, "eos_token_id 99999"),
        ("bart", "config.json", {"max_position_embeddings": 4096}, "longer context than the graph has positions for"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str, name: str, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(AssayError, match=says):
        load(open_artifact(edited(folders[kind][1], tmp_path / "copy", name, **values)))


def test_a_graph_that_does_not_run_is_an_error_of_the_artifact(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = {"past_key_values.0.decoder.key": "past_key_values.0.encoder.key"}
    names |= {other: one for one, other in names.items()}
    folder = damaged(folders["t5"][1], tmp_path / "copy", LATER, lambda m: crossed(m.graph, names))
    runtime = load(open_artifact(folder))
    with pytest.raises(AssayError, match="the graph does not run") as refused:
        runtime.generate([[7, 8, 9, 10, 1]], GenerateParams(4, ignore_stop=True))
    assert not isinstance(refused.value, NoEngineError)
    assert LATER in str(refused.value)
    assert "onnxruntime" not in capfd.readouterr().err


def test_int8_of_all_bits_is_refused_where_its_products_overflow(
    folders: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_artifact(folders["llama"][1])
    full, reduced = (
        replace(plain, manifest=replace(plain.manifest, details={"quantization": {"range": kind}}))
        for kind in ("full", "reduced")
    )
    for features in (("avx2",), ("avx2", "avx512_vnni")):
        monkeypatch.setattr(runtimes.onnx_provider, "this_cpu", lambda: Cpu("some", "x86_64", features))  # noqa: B023
        load(reduced).close()
        if "avx512_vnni" in features:
            load(full).close()
        else:
            with pytest.raises(NoEngineError, match="export it again on this machine"):
                load(full)


def test_the_precision_of_a_folder_is_read_off_its_graphs(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    from export.to_onnx import export_onnx

    made = export_onnx(
        open_artifact(folders["t5"][0]),
        tmp_path / "made",
        precisions=("fp16", "int8", "int4"),
        check="structure",
        threads=1,
    )
    assert [precision_of(artifact.folder) for artifact in made] == ["fp16", "int8", "int4"]
    assert [precision_of(onnx) for _, onnx in folders.values()] == ["fp32"] * 3
    (tmp_path / "model.onnx").write_bytes((folders["llama"][1] / "model.onnx").read_bytes()[:-500])
    with pytest.raises(AssayError, match="not an ONNX file"):
        precision_of(tmp_path)


def test_settings_that_are_no_numbers_are_refused() -> None:
    nan = float("nan")
    for params in (
        GenerateParams(temperature=nan),
        GenerateParams(temperature=float("inf")),
        GenerateParams(repetition_penalty=nan),
        GenerateParams(num_beams=2, length_penalty=nan),
    ):
        with pytest.raises(AssayError, match=r"a number|over 0"):
            check_params(params, beams=True)
