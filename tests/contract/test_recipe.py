"""The recipe: what is refused and how, and that the docs say what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.model_folder import load_template
from contract.recipe import load_recipe, recipe_sha256
from contract.recipe_reference import reference

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    gguf, onnx = recipe.export.gguf, recipe.export.onnx
    made = [*(gguf.quants if gguf else []), *(f"onnx-{name}" for name in (onnx.precisions if onnx else []))]
    assert set(recipe.gate.require) <= {"merged", *made}


def test_unknown_keys_get_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(AssayError) as refusal:
        load_recipe(
            written(
                tmp_path,
                "name: x\nmodel: {base: b}\ntrain: {learning_rat: 1, lora: {rnk: 2}}\n"
                "gate: {quant: {q8_0: {max_kl: 1}}}\n",
            )
        )
    text = str(refusal.value)
    assert 'train.learning_rat: unknown key, did you mean "learning_rate"?' in text
    assert 'train.lora.rnk: unknown key, did you mean "rank"?' in text
    assert 'did you mean "max_kl_nats"?' in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "model: Field required"),
        ("name: 'a b'\nmodel: {base: b}\n", "name:"),
        ("name: x\nmodel: {base: b}\ntrain: {batch_size: 0}\n", "train.batch_size"),
        ("name: x\nmodel: {base: b}\nprompt: {user: hello}\n", "{document} exactly once"),
        ("name: x\nmodel: {base: b}\nexport: {gguf: {quants: [q9]}}\n", "export.gguf.quants"),
        ("name: x\nmodel: {base: b}\nexport: {onnx: {precision: [int8]}}\n", 'did you mean "precisions"?'),
        ("- 1\n", "not a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AssayError, match=r"problem|not") as refusal:
        load_recipe(written(tmp_path, text))
    assert message in str(refusal.value)


def test_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    recipe = load_recipe(
        written(tmp_path, "name: x\nmodel: {base: base}\ndata: {train: t.jsonl, valid: hf:a/b@valid}\n")
    )
    assert recipe.model.base == str(tmp_path / "base")
    assert recipe.data.train == str(tmp_path / "t.jsonl")
    assert recipe.data.valid == "hf:a/b@valid"
    hub = load_recipe(written(tmp_path, "name: x\nmodel: {base: owner/name}\n"))
    assert hub.model.base == "owner/name"


def test_partial_limits_keep_the_other_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, "name: x\nmodel: {base: b}\ngate: {quant: {q8_0: {max_kl_nats: 0.5}}}\n"))
    assert recipe.gate.quant["q8_0"].max_kl_nats == 0.5
    assert recipe.gate.quant["q8_0"].min_top1_agreement == 0.98
    assert recipe.gate.quant["q4_k_m"].max_kl_nats > 0


def test_a_recipe_may_make_onnx_alone(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(
            tmp_path,
            "name: x\nmodel: {base: b}\nexport: {gguf: null, onnx: {precisions: [fp32, int8]}}\n"
            "gate: {require: [merged, onnx-int8], onnx: {int8: {max_kl_nats: 0.5}}}\n",
        )
    )
    assert recipe.export.gguf is None
    limits = recipe.gate.limits_of("onnx", "int8")
    assert limits is not None
    assert (limits.max_kl_nats, limits.max_rouge_l_loss) == (0.5, 1.5)
    assert recipe.gate.limits_of("onnx", "q8_0") is None
    assert recipe.gate.limits_of("gguf", "q8_0") is recipe.gate.quant["q8_0"]


def test_the_digest_of_a_part_ignores_the_others(tmp_path: Path) -> None:
    one = load_recipe(written(tmp_path, "name: x\nmodel: {base: b}\n"))
    two = load_recipe(written(tmp_path, "name: x\nmodel: {base: b}\ngate: {max_eos_rate_loss: 0.2}\n"))
    assert recipe_sha256(one, "train", "model") == recipe_sha256(two, "train", "model")
    assert recipe_sha256(one) != recipe_sha256(two)


def test_the_reference_page_is_the_schemas() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("export: {gguf: {quants: [f16, f16]}}\n", "names a type twice"),
        ("gate: {require: [merged, q4km]}\n", "what is never made: q4km"),
        ("export: {onnx: {precisions: [int8, int8]}}\n", "names a precision twice"),
        ("gate: {require: [merged, onnx-int8]}\n", "what is never made: onnx-int8"),
        ("export: {gguf: null}\n", "what is never made: q4_k_m"),
        ("train: {epochs: .inf}\n", "train.epochs"),
    ],
)
def test_contradictions_are_seen_before_anything_is_trained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AssayError, match="problem") as refusal:
        load_recipe(written(tmp_path, "name: x\nmodel: {base: b}\n" + text))
    assert message in str(refusal.value)


def test_a_template_that_is_not_text_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(AssayError, match="not UTF-8"):
        load_template(str(tmp_path / "t.jinja"))
