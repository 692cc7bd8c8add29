from __future__ import annotations

from pathlib import Path

import pytest

from contract.limits import GatePart
from contract.recipe import Recipe, load_recipe
from contract.sample_size import documents_for_rouge, documents_for_top1, recipe_sample, sample_report
from evalsuite.judged import difference_of_rouge, interval_of_costs

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TOKENS = 20  # fewer than any summary here has on average


def test_what_the_default_limits_need() -> None:
    report = sample_report(GatePart(), ["merged", "q4_k_m", "f16", "onnx-fp32"], 50, 40)
    assert {(need.code, need.labels): need.documents for need in report.unshown} == {
        ("eos_rate_loss", ("merged", "q4_k_m", "f16", "onnx-fp32")): 72,
        ("rouge_l_loss", ("f16", "onnx-fp32")): 74,
        ("top1_gold", ("onnx-fp32",)): 93,
    }
    assert report.fewest == 93
    assert "eos_rate_loss 0.05 (merged, q4_k_m, f16, onnx-fp32): 72 documents" in report.as_text()
    assert "fewer than 7.1% of documents would not be seen" in report.as_text()
    assert "enough for every limit (72 are)" in sample_report(GatePart(), ["merged", "q4_k_m"], 72).as_text()


def test_a_limit_that_nobody_can_show_is_named() -> None:
    gate = GatePart.model_validate({"quant": {"f16": {"min_top1_agreement": 1.0}}})
    report = sample_report(gate, ["f16"], 10**6, 40)
    assert [(need.code, need.documents) for need in report.unshown] == [("top1_gold", None)]
    assert report.fewest is None
    assert "top1_gold 1 (f16): no number of documents is enough" in report.as_text()


def test_what_is_exported_counts_beside_what_is_required() -> None:
    values = {"name": "t", "model": {"base": "x"}, "gate": {"require": ["q4_k_m"]}}
    recipe = Recipe.model_validate({**values, "export": {"gguf": {"quants": ["q8_0", "q4_k_m"]}}})
    assert [(need.documents, need.labels) for need in recipe_sample(recipe, 73).unshown] == [(74, ("q8_0",))]


@pytest.mark.parametrize("margin", [0.5, 1.0, 1.5, 2.0, 10.0])
def test_the_numbers_are_those_from_which_the_gate_passes(margin: float) -> None:
    n = documents_for_rouge(margin)
    same = [50.0] * n
    assert difference_of_rouge(same, same).low > -margin >= difference_of_rouge(same[1:], same[1:]).low
    limit = 1 - margin / 100
    n = documents_for_top1(limit, 1) or 0
    assert interval_of_costs([0.0] * n, [1.0] * n, 1.0).high <= 1 - limit + 1e-12
    assert interval_of_costs([0.0] * (n - 1), [1.0] * (n - 1), 1.0).high > 1 - limit


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_have_enough_test_rows(path: Path) -> None:
    recipe = load_recipe(path)
    rows = recipe.data.split.test if recipe.data.split else 300  # the embedded dialogues
    sample = recipe_sample(recipe, rows, TOKENS)
    assert sample.unshown == (), sample.as_text()
