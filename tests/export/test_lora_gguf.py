"""A LoRA GGUF on the base's GGUF, in llama.cpp, gives the merged model's logits; what it cannot hold is refused."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from click.testing import CliRunner

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from export.adapted import open_adapted
from export.check_gguf import CheckFailed
from export.check_lora_gguf import check_lora
from export.cli import export
from export.lora_gguf import export_lora_gguf
from export.lora_gguf_file import LoraType
from export.lora_gguf_plan import plan_lora
from export.to_gguf import export_gguf
from runtimes import load_runtime
from runtimes.llama_engine import Engine, load_model
from tests.export.families import make_model
from tests.export.makers import edit_json, edit_tensors
from tests.export.peft_makers import make_peft
from tests.kit.llama_cpp_peer import SOURCE, needs_source
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

IDS = [0, 5, 20, 30, 40, 50, 7, 8, 9, 100, 200, 300, 17, 260, 261, 33]
LAYER = r".*layers\.0\.self_attn\.q_proj"


def lora(**settings: Any) -> tuple[str, dict[str, Any]]:
    return "LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **settings}


def make(folder: Path, base: Path, config: tuple[str, dict[str, Any]]) -> Artifact:
    import peft

    kind, settings = config
    return open_artifact(make_peft(folder, base, getattr(peft, kind)(task_type="CAUSAL_LM", **settings)))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "tied": make_llama(folder / "tied"),
        "untied": make_llama(folder / "untied", tie=False, dtype="float32", attention_bias=True),
    }


def f32_gguf(model: Artifact, out: Path) -> Path:
    [made] = export_gguf(model, out, quants=["f32"], threads=1)
    return made.gguf_path


def llama_logits(path: Path, lora_path: Path | None = None) -> np.ndarray:
    """float32 [len(IDS), vocabulary], from llama.cpp's C interface."""
    model = load_model(path)
    vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    adapter = None
    if lora_path is not None:
        adapter = api.llama_adapter_lora_init(model, str(lora_path).encode())
        assert adapter, "llama.cpp does not load the adapter"
    engine = Engine(model, threads=1, kv_f32=True, vocab_size=vocab_size)
    try:
        engine.begin(1, len(IDS))
        if adapter is not None:
            adapters, scales = (api.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
            assert api.llama_set_adapters_lora(engine._context, adapters, 1, scales) == 0
        return engine.decode(IDS, range(len(IDS)), [0] * len(IDS), [True] * len(IDS))
    finally:
        engine.free_context()
        api.llama_model_free(model)


def fields(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


# (base, PEFT's configuration, alpha in the file, how many B are scaled)
CASES: dict[str, tuple[str, tuple[str, dict[str, Any]], float, int]] = {
    "plain": ("tied", lora(), 16.0, 0),
    "rslora": ("tied", lora(use_rslora=True), 16 * 8**0.5, 0),
    "alpha pattern": ("tied", lora(alpha_pattern={LAYER: 48, "down_proj": 4}), 48.0, 13),
    "rank pattern": ("tied", lora(rank_pattern={LAYER: 3, "v_proj": 16}), 16.0, 0),
    "both, rslora": (
        "untied",
        lora(use_rslora=True, rank_pattern={"v_proj": 2}, alpha_pattern={"k_proj": 40}),
        40 * 8**0.5,
        12,
    ),
    "embeddings and head": ("untied", lora(target_modules=["embed_tokens", "lm_head", "o_proj"]), 16.0, 0),
    "adalora": (
        "untied",
        ("AdaLoraConfig", {"target_modules": ["q_proj", "up_proj"], "init_r": 6, "lora_alpha": 9, "total_step": 9}),
        9 * 6 / (6 + 1e-5),
        0,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_on_its_base_it_gives_the_merged_models_logits(tmp_path: Path, bases: dict[str, Path], case: str) -> None:
    name, config, alpha, folded = CASES[case]
    adapter = make(tmp_path / "adapter", bases[name], config)
    made = export_lora_gguf(adapter, tmp_path / "lora")
    assert made.kind == "gguf-lora"
    assert made.details["alpha"] == pytest.approx(alpha)
    assert made.details["folded"] == folded
    assert made.details["relative_error"] < 1e-6
    assert {parent.role: parent.digest for parent in made.manifest.parents} == {
        "base": open_artifact(bases[name]).digest,
        "adapter": adapter.digest,
    }
    base = f32_gguf(open_artifact(bases[name]), tmp_path / "base")
    plain = llama_logits(base)
    expected = llama_logits(f32_gguf(adapter, tmp_path / "merged"))
    assert np.abs(expected - plain).max() > 0.2, "the adapter does something"
    assert np.abs(llama_logits(base, made.gguf_path) - expected).max() < 1e-3


# Qwen2 turns nothing, Phi-3 has fused projections, GPT-2 stores its weights the other way round
@pytest.mark.parametrize("family", ["mistral", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2"])
def test_other_families(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path / "model", family)
    adapter = make(tmp_path / "adapter", folder, lora(fan_in_fan_out=family == "gpt2", r=4))
    made = export_lora_gguf(adapter, tmp_path / "lora")
    base = f32_gguf(open_artifact(folder), tmp_path / "base")
    expected = llama_logits(f32_gguf(adapter, tmp_path / "merged"))
    assert np.abs(expected - llama_logits(base)).max() > 0.3
    limit = 1e-2 if family in ("gemma2", "gemma3", "gpt2") else 1e-3  # llama.cpp's table of half-precision GELU
    assert np.abs(llama_logits(base, made.gguf_path) - expected).max() < limit


def test_the_merged_model_is_torchs(tmp_path: Path, bases: dict[str, Path]) -> None:
    """What the others compare with is itself what PEFT computes."""
    adapter = make(tmp_path / "adapter", bases["tied"], lora(use_rslora=True))
    made = export_lora_gguf(adapter, tmp_path / "lora")
    runtime = load_runtime(adapter, threads=1)
    try:
        [expected] = runtime.score([(IDS[:1], IDS[1:])])
    finally:
        runtime.close()
    found = llama_logits(f32_gguf(open_artifact(bases["tied"]), tmp_path / "base"), made.gguf_path)
    assert np.abs(found[:-1] - expected).max() < 1e-3


@needs_source
@pytest.mark.parametrize("outtype", ["f32", "f16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
def test_matrices_are_those_of_the_converter(
    tmp_path: Path, bases: dict[str, Path], family: str, outtype: LoraType
) -> None:
    """Not GPT-2's, which it writes with A and B swapped, so that llama.cpp does not load them."""
    from gguf import GGUFReader

    assert SOURCE is not None
    base = bases["untied"] if family == "llama" else make_model(tmp_path / "model", family)
    adapter = make(tmp_path / "adapter", base, lora())
    theirs = tmp_path / "theirs.gguf"
    script = SOURCE / "convert_lora_to_gguf.py"
    done = subprocess.run(
        [sys.executable, script, adapter.path, "--base", base, "--outfile", theirs, "--outtype", outtype],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = export_lora_gguf(adapter, tmp_path / "ours", dtype=outtype)
    ours, expected = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in (made.gguf_path, theirs))
    assert ours.keys() == expected.keys()
    assert all(ours[name].data.tobytes() == expected[name].data.tobytes() for name in expected)
    assert fields(made.gguf_path)["adapter.lora.alpha"] == fields(theirs)["adapter.lora.alpha"]


def test_what_the_file_says(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    first, second = (export_lora_gguf(adapter, tmp_path / name, name="same") for name in ("one", "two"))
    assert first.digest == second.digest
    said = fields(first.gguf_path)
    assert first.gguf_path.name == "same-F32-LoRA.gguf"
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "llama"
    assert said["adapter.type"] == "lora"
    assert said["adapter.lora.alpha"] == 16.0
    assert first.details["ranks"] == {"8": 14}
    with pytest.raises(AssayError, match="the output exists already"):
        export_lora_gguf(adapter, tmp_path / "one")
    with pytest.raises(AssayError, match="cannot run by itself"):
        load_runtime(first)


def test_float16_is_smaller_and_near(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    full, half = (export_lora_gguf(adapter, tmp_path / dtype, dtype=dtype) for dtype in ("f32", "f16"))
    assert half.size_bytes < 0.6 * full.size_bytes
    assert 1e-5 < half.details["relative_error"] < 2e-3
    base = f32_gguf(open_artifact(bases["tied"]), tmp_path / "base")
    difference = np.abs(llama_logits(base, half.gguf_path) - llama_logits(base, full.gguf_path)).max()
    assert 0 < difference < 0.05


def test_on_a_quantized_base(tmp_path: Path, bases: dict[str, Path]) -> None:
    """What adapters are for on a laptop: the base loses what quantization costs, the adapter nothing more."""
    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    made = export_lora_gguf(adapter, tmp_path / "lora")
    quants = ["f32", "q8_0"]
    full, eight = export_gguf(open_artifact(bases["tied"]), tmp_path / "base", quants=quants, threads=1)
    expected = llama_logits(f32_gguf(adapter, tmp_path / "merged"))
    cost = np.abs(llama_logits(eight.gguf_path) - llama_logits(full.gguf_path)).mean()
    found = np.abs(llama_logits(eight.gguf_path, made.gguf_path) - expected).mean()
    assert 0 < found < 2 * cost < 0.1 * np.abs(llama_logits(full.gguf_path) - expected).mean()


@pytest.mark.parametrize(
    ("factor", "match"), [(1e6, "too large for float16"), (1e-7, "a relative error of")], ids=["large", "small"]
)
def test_what_float16_cannot_hold_is_refused(tmp_path: Path, bases: dict[str, Path], factor: float, match: str) -> None:
    def scale_b(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name] *= factor

    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    edit_tensors(adapter.path / "adapter_model.safetensors", scale_b)
    with pytest.raises(AssayError, match=match) as error:
        export_lora_gguf(open_artifact(adapter.path), tmp_path / "half", dtype="f16")
    assert error.value.hint == "--dtype f32"
    assert not list(tmp_path.glob("*half*"))
    export_lora_gguf(open_artifact(adapter.path), tmp_path / "full")


def zero(data: Any) -> None:
    data[:] = 0


def turn_heads(data: Any) -> None:
    """Rows of a query's B as Hugging Face has them."""
    data[:] = data.reshape(4, -1, 2, data.shape[1]).swapaxes(1, 2).reshape(data.shape).copy()


@pytest.mark.parametrize(
    ("tensor", "change"), [("blk.1.ffn_gate.weight.lora_a", zero), ("blk.0.attn_q.weight.lora_b", turn_heads)]
)
def test_damage_is_seen(tmp_path: Path, bases: dict[str, Path], tensor: str, change: Any) -> None:
    from gguf import GGUFReader

    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    made = export_lora_gguf(adapter, tmp_path / "lora")
    base = f32_gguf(open_artifact(bases["tied"]), tmp_path / "base")
    whole = llama_logits(base, made.gguf_path)
    reader = GGUFReader(made.gguf_path, "r+")
    change(next(one for one in reader.tensors if one.name == tensor).data)
    reader.data.flush()
    model = open_adapted(adapter)
    with pytest.raises(CheckFailed, match=f"{tensor}: differs") as error:
        check_lora(made.gguf_path, plan_lora(model), model.weights, "f32")
    assert f"{tensor.rpartition('.')[0]}: its scaled product" in str(error.value)
    assert np.abs(llama_logits(base, made.gguf_path) - whole).max() > 0.05


@pytest.mark.parametrize(
    ("key", "value"),
    [("adapter.lora.alpha", np.float32(8)), ("adapter.type", ord("m")), ("general.architecture", ord("m"))],
)
def test_wrong_metadata_is_seen(tmp_path: Path, bases: dict[str, Path], key: str, value: Any) -> None:
    from gguf import GGUFReader

    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    made = export_lora_gguf(adapter, tmp_path / "lora")
    reader = GGUFReader(made.gguf_path, "r+")
    reader.get_field(key).parts[-1][0] = value
    reader.data.flush()
    model = open_adapted(adapter)
    with pytest.raises(CheckFailed, match=key):
        check_lora(made.gguf_path, plan_lora(model), model.weights, "f32")


def test_another_adapters_file_is_seen(tmp_path: Path, bases: dict[str, Path]) -> None:
    whole, part = (
        make(tmp_path / name, bases["tied"], lora(target_modules=targets))
        for name, targets in (("whole", "all-linear"), ("part", ["q_proj", "v_proj"]))
    )
    paths = [export_lora_gguf(adapter, tmp_path / f"{adapter.name}-lora").gguf_path for adapter in (whole, part)]
    for path, adapter, match in ((paths[0], part, "ffn_up.weight.lora_a: not"), (paths[1], whole, "lora_b: missing")):
        model = open_adapted(adapter)
        with pytest.raises(CheckFailed, match=match):
            check_lora(path, plan_lora(model), model.weights, "f32")


def test_a_wrong_product_leaves_nothing(tmp_path: Path, bases: dict[str, Path], monkeypatch: Any) -> None:
    """The product is held against what merging adds: it does not rest on how the matrices were laid out."""
    from export import lora_gguf_plan

    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    monkeypatch.setattr(lora_gguf_plan, "interleave_halves", lambda matrix, heads: matrix)
    with pytest.raises(CheckFailed, match=r"attn_[qk].weight: its scaled product"):
        export_lora_gguf(adapter, tmp_path / "lora")
    assert not list(tmp_path.glob("*lora*"))


QKV = ["q_proj", "v_proj"]
# (base, PEFT's configuration, what is said)
REFUSED: dict[str, tuple[str, tuple[str, dict[str, Any]], str]] = {
    "dora": ("tied", lora(use_dora=True), "use_dora: the sum is scaled"),
    "whole modules": ("untied", lora(target_modules=QKV, modules_to_save=["lm_head"]), "modules_to_save: whole"),
    "token rows": ("tied", lora(target_modules=QKV, trainable_token_indices=[3]), "trainable_token_indices: trained"),
    "biases": ("untied", lora(target_modules=QKV, bias="lora_only"), "bias: trained biases"),
    "bias of B": ("untied", lora(target_modules=QKV, lora_bias=True), "lora_bias: B's bias"),
    "ia3": ("tied", ("IA3Config", {"target_modules": QKV, "feedforward_modules": []}), "IA3: a vector times"),
    "lokr": ("tied", ("LoKrConfig", {"target_modules": QKV, "r": 4}), "LOKR: .* not of low rank"),
    "kept tied": (
        "tied",
        lora(target_modules=["embed_tokens"], ensure_weight_tying=True),
        "ensure_weight_tying: embeddings that are",
    ),
    "tied head": ("tied", lora(target_modules=["lm_head"]), "llama.cpp cannot change one alone"),
    "tied embeddings": ("tied", lora(target_modules=["embed_tokens", "q_proj"]), "llama.cpp cannot change one alone"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_hold_is_refused(tmp_path: Path, bases: dict[str, Path], case: str) -> None:
    name, config, match = REFUSED[case]
    adapter = make(tmp_path / "adapter", bases[name], config)
    with pytest.raises(AssayError, match=match) as error:
        export_lora_gguf(adapter, tmp_path / "lora")
    assert "assay export gguf" in str(error.value), "what to do instead"
    assert error.value.exit_code == 2
    assert not list(tmp_path.glob("*lora*"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resized_embeddings_are_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=QKV)
    adapter = make_peft(tmp_path / "adapter", bases["untied"], config, rows=520)
    with pytest.raises(AssayError, match=r"embed_tokens.weight: resized from \d+ rows to 520"):
        export_lora_gguf(open_artifact(adapter), tmp_path / "lora")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_learned_positions_are_refused(tmp_path: Path) -> None:
    """llama.cpp looks positions up without asking the adapter."""
    folder = make_model(tmp_path / "model", "gpt2")
    adapter = make(tmp_path / "adapter", folder, lora(target_modules=["wpe", "c_attn"]))
    with pytest.raises(AssayError, match=r"wpe\.weight: llama.cpp applies no adapter there"):
        export_lora_gguf(adapter, tmp_path / "lora")


def test_an_alpha_of_zero_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    """In llama.cpp it would mean a scale of one."""
    adapter = make(tmp_path / "adapter", bases["tied"], lora())
    edit_json(adapter.path / "adapter_config.json", lora_alpha=0)
    with pytest.raises(AssayError, match="scaled to nothing"):
        export_lora_gguf(open_artifact(adapter.path), tmp_path / "lora")


def test_a_model_is_no_adapter(tmp_path: Path, bases: dict[str, Path]) -> None:
    with pytest.raises(AssayError, match="only an adapter can become a LoRA GGUF"):
        export_lora_gguf(open_artifact(bases["tied"]), tmp_path / "lora")


def test_another_chat_template_is_said(
    tmp_path: Path, bases: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make(tmp_path / "adapter", bases["tied"], lora(target_modules=QKV))
    export_lora_gguf(adapter, tmp_path / "one")
    assert "chat template" not in capsys.readouterr().err
    (adapter.path / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    export_lora_gguf(open_artifact(adapter.path), tmp_path / "two")
    assert "trained with another chat template" in capsys.readouterr().err


def test_the_command(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapter = make(tmp_path / "adapter", bases["tied"], lora(target_modules=QKV))
    runner = CliRunner()
    call = ["lora-gguf", str(adapter.path), "--dtype", "f16", "--out"]
    told = runner.invoke(export, [*call, str(tmp_path / "one"), "--json"])
    assert told.exit_code == 0
    row = json.loads(told.stdout)
    assert (row["kind"], row["details"]["dtype"]) == ("gguf-lora", "f16")
    said = runner.invoke(export, [*call, str(tmp_path / "two")])
    assert "4 weights (rank 8: 4), alpha 16" in said.stdout
    assert open_artifact(tmp_path / "two", verify=True).digest == row["digest"]
