"""GGUF files compute what torch computes, and damaged ones are caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from export.check_gguf import CheckFailed, check_structure
from export.ggml import TypeCannotHold
from export.gguf_file import plan_gguf
from export.merge import merge_adapter
from export.source import open_model
from export.to_gguf import export_gguf
from tests.export.makers import edit_json, edit_tensors
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def export(model: Path | Artifact, out: Path, *quants: str, **options: Any) -> list[Artifact]:
    opened = model if isinstance(model, Artifact) else open_artifact(model)
    return export_gguf(opened, out, quants=quants, threads=1, **options)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_shard_size": "600KB"},
        {"tie": False, "dtype": "bfloat16", "rope_theta": 500000.0},
        {"rope_scaling": LLAMA3_ROPE},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "dtype": "float32"},
        {"head_dim": 32, "attention_bias": True, "num_key_value_heads": 1},
    ],
)
def test_float_files_agree_with_torch(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = make_llama(tmp_path / "model", **settings)
    if settings.get("attention_bias"):
        edit_tensors(
            folder / "model.safetensors",
            lambda tensors: [tensor.normal_(0, 0.1) for name, tensor in tensors.items() if name.endswith(".bias")],
        )
    made = export(folder, tmp_path / "gguf", "f32", "f16", check="logits")  # raises over 1e-3, over 1e-4 nats
    logits = [artifact.manifest.measurements["logits"] for artifact in made]
    assert logits[0]["positions"] > 100
    assert logits[0]["max_abs"] < 1e-3
    assert 0 <= logits[1]["mean_kl_nats"] < 1e-4


def test_quantized_files_say_what_they_hold(tmp_path: Path, llama_folder: Path) -> None:
    made = export(llama_folder, tmp_path / "gguf", "q8_0", "q4_k_m", check="logits")
    eight, four = made
    assert eight.gguf_path.name == "llama-Q8_0.gguf"
    assert eight.path.name == "q8_0"
    assert set(eight.details["tensor_types"]) == {"Q8_0", "F32"}
    assert {"Q4_K", "Q6_K"} <= set(four.details["tensor_types"])
    assert 4.5 < four.details["bits_per_weight"] < 6 < eight.details["bits_per_weight"] < 9
    assert four.details["fallbacks"] == []
    assert 0.05 < four.details["relative_error"]["Q4_K"] < 0.1
    assert 0 < eight.manifest.measurements["logits"]["mean_kl_nats"] < 0.01
    assert sorted(path.name for path in four.path.iterdir()) == ["llama-Q4_K_M.gguf", "manifest.json"]
    four.verify()


def test_the_same_export_twice_has_the_same_digests(tmp_path: Path, llama_folder: Path) -> None:
    first, second = (export(llama_folder, tmp_path / out, "f16", "q4_k_m") for out in ("one", "two"))
    assert [artifact.digest for artifact in first] == [artifact.digest for artifact in second]


def test_an_adapter_goes_straight_in(tmp_path: Path, adapter_folder: Path) -> None:
    merged = merge_adapter(open_artifact(adapter_folder), tmp_path / "merged", dtype="float32")
    direct = export(adapter_folder, tmp_path / "direct", "f32", "q8_0", name="same")
    through = export(merged, tmp_path / "through", "f32", "q8_0", name="same")
    assert [made.manifest.files_digest for made in direct] == [made.manifest.files_digest for made in through]
    assert {parent.role for parent in direct[0].manifest.parents} == {"adapter", "base"}
    assert [parent.role for parent in through[0].manifest.parents] == ["merged"]
    assert not list(tmp_path.rglob("direct/**/*.safetensors"))


def test_fallbacks_are_said_and_strict_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path / "model", hidden_size=64, intermediate_size=128, layers=1)
    with pytest.raises(AssayError, match="not a multiple of 256"):
        export(folder, tmp_path / "strict", "f16", "q4_k_m", strict=True)
    assert not list((tmp_path / "strict").iterdir())
    assert "writing" not in capsys.readouterr().err, "it is known before"
    export(folder, tmp_path / "strict", "f16", "q8_0", strict=True)
    capsys.readouterr()
    made = export(folder, tmp_path / "gguf", "q4_k_m")
    assert (
        "Q4_K_M: 8 tensors fell back to Q5_0, Q8_0 because 64, 128 is not a multiple of 256" in capsys.readouterr().err
    )
    assert len(made[0].details["fallbacks"]) == 8
    assert "Q4_K" not in made[0].details["tensor_types"]


def test_strict_plans_each_type_once(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import gguf_write

    plan_file, planned = gguf_write.plan_file, []

    def counted(path: Path, quant: str, *given: Any, **options: Any) -> Any:
        planned.append(quant)
        return plan_file(path, quant, *given, **options)

    plain = export(llama_folder, tmp_path / "plain", "q8_0", "q4_k_m")
    monkeypatch.setattr(gguf_write, "plan_file", counted)
    strict = export(llama_folder, tmp_path / "strict", "q8_0", "q4_k_m", strict=True)
    assert planned == ["q8_0", "q4_k_m"]
    assert [artifact.digest for artifact in strict] == [artifact.digest for artifact in plain]


def test_nothing_is_overwritten_and_names_are_checked(tmp_path: Path, llama_folder: Path) -> None:
    export(llama_folder, tmp_path / "gguf", "f16")
    with pytest.raises(AssayError, match="nothing is overwritten"):
        export(llama_folder, tmp_path / "gguf", "q8_0", "f16")
    assert [path.name for path in (tmp_path / "gguf").iterdir()] == ["f16"]
    with pytest.raises(AssayError, match="did you mean"):
        export(llama_folder, tmp_path / "gguf", "q4_km")
    with pytest.raises(AssayError, match="not a name for a file") as error:
        export(Path(shutil.copytree(llama_folder, tmp_path / "my+model (v2)")), tmp_path / "plus", "f16")
    assert "--name" in str(error.value.hint)


def test_a_name_that_llama_cpp_treats_specially(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It sets tokens of Phi-3's by name, and a Llama has none of them."""
    with pytest.raises(AssayError, match="under this name") as error:
        export(llama_folder, tmp_path / "gguf", "f16", name="phi3-x")
    assert "--name" in str(error.value.hint)
    assert "writing" not in capsys.readouterr().err
    export(llama_folder, tmp_path / "gguf", "f16", name="x")


def lose(tensors: dict[str, Any]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.extra.weight"] = tensors["model.norm.weight"].clone()


def misshape(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"][:100]


def lie(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose, ["model.layers.1.mlp.up_proj.weight: missing", "model.layers.0.extra.weight: not a tensor"]),
        (misshape, ["shape [100, 256], config.json says [256, 256]"]),
        (lie, ["tie_word_embeddings is true"]),
    ],
)
def test_tensors_that_do_not_fit_are_all_named(
    tmp_path: Path, llama_folder: Path, damage: Callable[..., None], words: list[str]
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    edit_tensors(folder / "model.safetensors", damage)
    with pytest.raises(AssayError, match="do not fit the configuration") as error:
        export(folder, tmp_path / "gguf", "f16")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["BloomForCausalLM"]}, "not written for this model family"),
        ({"rope_scaling": {"rope_type": "dynamik", "factor": 2.0}}, "dynamik"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"vocab_size": 10}, r"vocab_size 10: model.embed_tokens.weight has \d+ rows"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused(
    tmp_path: Path, llama_folder: Path, changes: dict[str, Any], match: str
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    edit_json(folder / "config.json", **changes)
    with pytest.raises(AssayError, match=match):
        export(folder, tmp_path / "gguf", "f16")


def test_too_large_for_float16(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", dtype="bfloat16", layers=1)
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].mul_(1e7))
    with pytest.raises(TypeCannotHold, match="too large for float16") as error:
        export(folder, tmp_path / "gguf", "f16")
    assert error.value.hint == "export f32 or bf16"
    export(folder, tmp_path / "gguf", "f32")


def test_a_missing_shard_and_a_cut_one(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", max_shard_size="600KB")
    shards = sorted(folder.glob("*.safetensors"))
    kept = shards[0].read_bytes()
    shards[0].write_bytes(kept[:5000])
    with pytest.raises(AssayError, match="cannot be read"):
        export(folder, tmp_path / "gguf", "f16")
    shards[0].unlink()
    with pytest.raises(AssayError, match="no such shard"):
        export(folder, tmp_path / "gguf", "f16")


def damaged(path: Path, change: Callable[[Any], None], name: str) -> None:
    """Change one tensor of a GGUF file in place."""
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    change(next(tensor for tensor in reader.tensors if tensor.name == name).data)
    reader.data.flush()


def perturb(data: Any) -> None:
    data[7, 11] += 0.01


def negate(data: Any) -> None:
    data[:] = -data


def swap_halves(data: Any) -> None:
    """Hugging Face's order instead of llama.cpp's."""
    heads = data.reshape(4, 32, 2, 256).copy()
    data[:] = heads.swapaxes(1, 2).reshape(data.shape)


def scramble(data: Any) -> None:
    data[:] = data[::-1].copy()


@pytest.mark.parametrize(
    ("quant", "change", "name"),
    [
        ("f32", perturb, "blk.0.ffn_up.weight"),
        ("f16", perturb, "blk.1.attn_v.weight"),
        ("f16", swap_halves, "blk.0.attn_q.weight"),
        ("f16", negate, "output_norm.weight"),
        ("q8_0", scramble, "blk.0.attn_k.weight"),
        ("q4_k_m", scramble, "token_embd.weight"),
    ],
)
def test_damage_is_caught_by_the_structure_check(
    tmp_path: Path, llama_folder: Path, quant: str, change: Callable[[Any], None], name: str
) -> None:
    made = export(llama_folder, tmp_path / "gguf", quant)[0]
    source = open_model(open_artifact(llama_folder)).source(tmp_path)
    plan = plan_gguf(source)
    check_structure(made.gguf_path, plan, source)
    damaged(made.gguf_path, change, name)
    with pytest.raises(CheckFailed, match=name):
        check_structure(made.gguf_path, plan, source)


def test_lost_rows_are_caught_in_every_type(tmp_path: Path, llama_folder: Path) -> None:
    """One row, or a block of them, of a tensor that is otherwise right."""
    source = open_model(open_artifact(llama_folder)).source(tmp_path)
    plan, name = plan_gguf(source), "blk.0.ffn_down.weight"
    for artifact in export(llama_folder, tmp_path / "gguf", "q8_0", "q4_k_m", "q2_k"):
        whole = artifact.gguf_path.read_bytes()
        for lost in (slice(11, 12), slice(64, 128)):
            damaged(artifact.gguf_path, lambda data, lost=lost: data[lost].fill(0), name)
            with pytest.raises(CheckFailed, match=rf"{name}: Q\w+ differs .* row 1 over"):
                check_structure(artifact.gguf_path, plan, source)
            artifact.gguf_path.write_bytes(whole)
        check_structure(artifact.gguf_path, plan, source)


def test_rows_of_unused_tokens_may_be_next_to_nothing(tmp_path: Path) -> None:
    """Smaller than the types' scales can be, all zero, or just small."""
    folder = make_llama(tmp_path / "model", dtype="float32", layers=1)

    def shrink(tensors: dict[str, Any]) -> None:
        for row, factor in enumerate((0.0, 1e-12, 1e-4, 1e-3, 0.01, 0.02, 0.05)):
            tensors["model.embed_tokens.weight"][100 + row] *= factor

    edit_tensors(folder / "model.safetensors", shrink)
    export(folder, tmp_path / "gguf", "q8_0", "q6_k", "q4_k_m", "q2_k")


@pytest.mark.parametrize("key", ["tokenizer.ggml.eos_token_id", "llama.rope.freq_base", "tokenizer.ggml.add_bos_token"])
def test_wrong_metadata_is_caught(tmp_path: Path, llama_folder: Path, key: str) -> None:
    from gguf import GGUFReader

    made = export(llama_folder, tmp_path / "gguf", "f16")[0]
    reader = GGUFReader(made.gguf_path, "r+")
    reader.get_field(key).parts[-1][0] = 0
    reader.data.flush()
    source = open_model(open_artifact(llama_folder)).source(tmp_path)
    with pytest.raises(CheckFailed, match=key):
        check_structure(made.gguf_path, plan_gguf(source), source)


def test_the_logits_check_fits_a_short_context(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", max_position_embeddings=64)
    [made] = export(folder, tmp_path / "gguf", "f16", check="logits")
    assert made.manifest.measurements["logits"]["positions"] == 3 * 63


def test_the_logits_check_catches_swapped_heads(tmp_path: Path, llama_folder: Path) -> None:
    from export.check_logits import check_logits

    made = export(llama_folder, tmp_path / "gguf", "f16")[0]
    damaged(made.gguf_path, swap_halves, "blk.0.attn_q.weight")
    source = open_model(open_artifact(llama_folder)).source(tmp_path)
    with pytest.raises(CheckFailed, match="mean_kl_nats"):
        check_logits(source, {"f16": made.gguf_path}, threads=1)


def test_the_licence_is_named(tmp_path: Path, llama_folder: Path) -> None:
    from gguf import GGUFReader

    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    made = export(folder, tmp_path / "gguf", "f16")
    assert GGUFReader(made[0].gguf_path).get_field("general.license").contents() == "apache-2.0"


def test_mistral_without_a_window(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1)
    edit_json(folder / "config.json", architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=None)
    export(folder, tmp_path / "gguf", "f32", check="logits")


def test_an_adapter_with_added_scale_options(tmp_path: Path, llama_folder: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", llama_folder, use_rslora=True, rank_pattern={"q_proj": 4})
    made = export(adapter, tmp_path / "gguf", "f32", check="logits")
    assert made[0].manifest.measurements["logits"]["max_abs"] < 1e-3
