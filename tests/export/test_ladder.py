"""The ladder of types: all are made, each has its limits, what llama.cpp could not do is said or refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.limits import Quant
from contract.recipe import NEED_IMATRIX, Recipe
from evalsuite.identity import storage
from export.families_reference import reference
from export.quantize import LADDER, NEED_MATRIX
from export.to_gguf import export_gguf
from tests.tiny import make_llama

pytestmark = pytest.mark.engine


def test_all_types_are_made_and_are_what_their_name_says(tmp_path: Path) -> None:
    """From bfloat16 weights, which no type but f32 and bf16 can hold."""
    folder = make_llama(tmp_path / "model", dtype="bfloat16")
    quants = [quant for quant in LADDER if quant not in NEED_MATRIX]
    made = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=quants, check="logits", threads=1)
    found = {artifact.path.name: artifact for artifact in made}
    assert list(found) == quants
    for quant, artifact in found.items():
        bare = open_artifact(artifact.gguf_path)
        assert storage(bare) == (quant, pytest.approx(artifact.details["bits_per_weight"], abs=0.01))
        assert LADDER[quant].bits <= artifact.details["bits_per_weight"] < LADDER[quant].bits + 1.2
        assert artifact.details["fallbacks"] == []
    kl = {quant: artifact.manifest.measurements["logits"]["mean_kl_nats"] for quant, artifact in found.items()}
    assert kl["f32"] < kl["f16"] < kl["bf16"] < kl["q8_0"] < kl["q6_k"] < kl["q5_0"] < kl["q4_0"] < kl["q3_k_s"]
    assert kl["q5_k_m"] < kl["q4_k_m"] < kl["q3_k_m"] < kl["q2_k"]
    assert found["bf16"].details["relative_error"]["BF16"] == 0.0
    assert max(error for artifact in made for error in artifact.details["relative_error"].values()) < 0.35


def test_recipe_and_exporter_know_the_same_types() -> None:
    assert set(get_args(Quant)) == set(LADDER)
    recipe = Recipe.model_validate({"name": "t", "model": {"base": "b"}})
    assert set(recipe.gate.quant) == set(LADDER)
    assert set(NEED_IMATRIX) == set(NEED_MATRIX)


def test_fewer_bits_never_have_a_stricter_limit() -> None:
    limits = Recipe.model_validate({"name": "t", "model": {"base": "b"}}).gate.quant
    order = ["f32", "f16", "bf16", *(quant for quant in LADDER if LADDER[quant].bits < 16)]
    for finer, coarser in pairwise(order):
        a, b = limits[finer], limits[coarser]  # type: ignore[index]
        assert a.max_kl_nats <= b.max_kl_nats
        assert a.min_top1_agreement >= b.min_top1_agreement
        assert a.max_perplexity_ratio <= b.max_perplexity_ratio
        assert a.max_rouge_l_loss <= b.max_rouge_l_loss


@pytest.mark.parametrize("quant", NEED_MATRIX)
def test_types_that_need_an_importance_matrix_are_refused_with_the_reason(
    tmp_path: Path, llama_folder: Path, quant: str
) -> None:
    with pytest.raises(AssayError, match="needs an importance matrix"):
        export_gguf(open_artifact(llama_folder), tmp_path / "gguf", quants=[quant])
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    ("quant", "sentence"),
    [
        ("q5_k_m", "Q5_K_M: 8 tensors fell back to Q5_1, Q8_0 because 64, 96 is not a multiple of 256"),
        ("q3_k_s", "Q3_K_S: 8 tensors fell back to Q4_0, Q8_0 because 64, 96 is not a multiple of 256"),
        ("iq4_xs", "IQ4_XS: 8 tensors fell back to IQ4_NL, Q8_0 because 64, 96 is not a multiple of 256"),
        ("q4_0", "Q4_0: 1 tensors fell back to Q8_0 because 64 is not a multiple of 256"),
    ],
)
def test_fallbacks_are_said_for_every_kind_of_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quant: str, sentence: str
) -> None:
    folder = make_llama(tmp_path / "model", hidden_size=64, intermediate_size=96, layers=1)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=[quant], threads=1)
    assert sentence in capsys.readouterr().err
    assert len(made.details["fallbacks"]) == int(sentence.split()[1])


def test_columns_that_fit_no_block_stay_in_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path / "model", hidden_size=64, intermediate_size=72, layers=1)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["q8_0"], threads=1)
    assert made.details["fallbacks"] == ["blk.0.ffn_down.weight: F16, 72 columns"]
    assert "because 72 is not a multiple of 32" in capsys.readouterr().err


def test_the_page_of_families_is_the_programs() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "families.md"
    assert page.read_text(encoding="utf-8") == reference(), "python -m export.families_reference > docs/families.md"
