"""Quantizing with an importance matrix: what changes, what gets better, what needs one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import open_artifact, sha256_of
from contract.errors import AssayError
from contract.example import read_examples, sha256_of_rows, write_examples
from contract.recipe import Recipe
from export.check_gguf import CheckFailed, check_structure
from export.check_logits import check_logits
from export.gguf_write import write_ggufs
from export.imatrix import Calibration, calibration_ids
from export.imatrix_file import ImportanceMatrix, read_imatrix, write_imatrix
from export.quantize import LADDER, NEED_MATRIX
from export.to_gguf import export_gguf
from tests.export.makers import edit_tensors
from tests.export.test_imatrix import EXAMPLES, matrix, opened
from tests.tiny import make_llama

pytestmark = pytest.mark.engine


def tensors(path: Path) -> dict[str, bytes]:
    from gguf import GGUFReader

    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def test_types_that_need_a_matrix_are_made_with_one(tmp_path: Path, llama_folder: Path) -> None:
    made = export_gguf(
        open_artifact(llama_folder),
        tmp_path / "gguf",
        quants=NEED_MATRIX,
        check="logits",
        threads=1,
        imatrix=Calibration(EXAMPLES, chunks=2),
    )
    assert [artifact.details["quant"] for artifact in made] == list(NEED_MATRIX)
    for artifact in made:
        bits = LADDER[artifact.details["quant"]].bits
        assert bits <= artifact.details["bits_per_weight"] < bits + 1.2
        assert artifact.details["fallbacks"] == []


def test_a_matrix_changes_the_matrices_of_blocks_and_is_recorded(tmp_path: Path, llama_folder: Path) -> None:
    from gguf import GGUFReader

    model, quants = open_artifact(llama_folder), ["f16", "q8_0", "q4_k_m", "q2_k"]
    plain = export_gguf(model, tmp_path / "plain", quants=quants, threads=1)
    weighed = export_gguf(
        model, tmp_path / "weighed", quants=quants, threads=1, imatrix=Calibration(EXAMPLES, chunks=2, seed=5)
    )
    blocks = set(read_imatrix(weighed[2].path / "measured" / "imatrix.gguf").sums)
    for without, artifact in zip(plain, weighed, strict=True):
        before, after = tensors(without.gguf_path), tensors(artifact.gguf_path)
        changed = {name for name in before if before[name] != after[name]}
        kept = artifact.path / "measured" / "imatrix.gguf"
        if artifact.details["quant"] in ("f16", "q8_0"):
            assert not changed
            assert "imatrix" not in artifact.details
            assert not kept.exists()
            assert artifact.digest == without.digest
        else:
            assert changed == blocks
            recorded = artifact.details["imatrix"]
            assert recorded["sha256"] == sha256_of(kept)
            assert {"chunks": 2, "seed": 5, "data_sha256": sha256_of_rows(EXAMPLES)}.items() <= recorded.items()
            fields = GGUFReader(artifact.gguf_path).fields
            noted = {key: field.contents() for key, field in fields.items() if key.startswith("quantize.imatrix.")}
            assert noted == {
                "quantize.imatrix.file": "imatrix.gguf",
                "quantize.imatrix.dataset": f"examples sha256:{sha256_of_rows(EXAMPLES)}",
                "quantize.imatrix.entries_count": 14,
                "quantize.imatrix.chunks_count": 2,
            }
            artifact.verify()


def weighed_error(path: Path, exact: Path, means: dict[str, np.ndarray]) -> float:
    """Σ mean square × (value - exact value)², over all weights that have a matrix."""
    import gguf

    values = {tensor.name: tensor for tensor in gguf.GGUFReader(exact).tensors}
    total = 0.0
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name in means:
            difference = gguf.dequantize(tensor.data, tensor.tensor_type) - values[tensor.name].data
            total += float((means[tensor.name] * np.square(difference, dtype=np.float64)).sum())
    return total


@pytest.mark.parametrize("quant", ["q2_k", "q3_k_s", "q4_k_m", "iq4_xs", "q4_0"])
def test_the_error_that_is_weighed_gets_smaller(tmp_path: Path, llama_folder: Path, quant: str) -> None:
    """Against no matrix, against a uniform one, and against the real one with its columns in another order."""
    _, source, plan = opened(llama_folder, tmp_path / "scratch")
    write_ggufs({"f32": tmp_path / "f32.gguf"}, plan, source, name="m")
    ids = calibration_ids(plan, source, Calibration(EXAMPLES), 1024)
    real = matrix(source, plan, ids, 512, plan.special.bos)
    skewed = {name: sums * np.linspace(0.01, 4, len(sums), dtype=np.float32) ** 2 for name, sums in real.sums.items()}
    real = replace(real, sums=skewed)
    others: dict[str, ImportanceMatrix | None] = {
        "real": real,
        "none": None,
        "uniform": replace(real, sums={name: np.full_like(sums, real.tokens) for name, sums in real.sums.items()}),
        "reversed": replace(real, sums={name: sums[::-1].copy() for name, sums in real.sums.items()}),
    }
    errors = {}
    for label, one in others.items():
        if one is not None:
            write_imatrix(tmp_path / label, one)
        path = tmp_path / f"{label}.gguf"
        write_ggufs({quant: path}, plan, source, name="m", imatrix=None if one is None else tmp_path / label)
        errors[label] = weighed_error(path, tmp_path / "f32.gguf", real.means())
    assert errors["real"] < 0.98 * min(error for label, error in errors.items() if label != "real")


def test_only_the_relation_between_columns_matters(tmp_path: Path, llama_folder: Path) -> None:
    """A matrix of twice the tokens with twice the sums is the same matrix."""
    _, source, plan = opened(llama_folder, tmp_path / "scratch")
    real = matrix(source, plan, calibration_ids(plan, source, Calibration(EXAMPLES), 512), 512, None)
    double = replace(real, tokens=2 * real.tokens, sums={name: 2 * sums for name, sums in real.sums.items()})
    for label, one in {"real": real, "double": double}.items():
        write_imatrix(tmp_path / label, one)
        write_ggufs({"iq2_xs": tmp_path / f"{label}.gguf"}, plan, source, name="m", imatrix=tmp_path / label)
    assert tensors(tmp_path / "real.gguf") == tensors(tmp_path / "double.gguf")


def test_types_that_no_matrix_changes_are_not_given_one(tmp_path: Path, llama_folder: Path) -> None:
    with pytest.raises(AssayError, match="none of these types uses"):
        export_gguf(
            open_artifact(llama_folder), tmp_path / "gguf", quants=["f16", "q8_0"], imatrix=Calibration(EXAMPLES)
        )


def test_the_command_takes_examples_and_chunks(tmp_path: Path, llama_folder: Path) -> None:
    from click.testing import CliRunner

    from export.cli import export

    write_examples(tmp_path / "train.jsonl", EXAMPLES)
    command = ["gguf", str(llama_folder), "--out", str(tmp_path / "out"), "--quant", "iq2_xs", "--json"]
    done = CliRunner().invoke(export, [*command, "--imatrix", str(tmp_path / "train.jsonl"), "--imatrix-chunks", "3"])
    assert done.exit_code == 0, done.output
    [artifact] = json.loads(done.stdout)["artifacts"]
    assert artifact["details"]["imatrix"]["chunks"] == 3
    with pytest.raises(AssayError, match="goes with --imatrix"):
        CliRunner().invoke(export, [*command, "--imatrix-chunks", "3"], catch_exceptions=False)


def test_a_recipe_with_such_types_asks_for_a_matrix() -> None:
    values = {"name": "t", "model": {"base": "b"}, "gate": {"require": ["merged"]}}
    with pytest.raises(ValueError, match=r"iq2_xs cannot be made without export\.gguf\.imatrix: true"):
        Recipe.model_validate({**values, "export": {"gguf": {"quants": ["f16", "iq2_xs"]}}})
    Recipe.model_validate({**values, "export": {"gguf": {"quants": ["f16", "iq2_xs"], "imatrix": True}}})


def test_columns_that_never_fire_may_be_lost_and_rows_may_not(tmp_path: Path) -> None:
    """llama.cpp stores weights as zero that nothing is ever multiplied with."""
    folder = make_llama(tmp_path / "model", layers=1)

    def silence(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.input_layernorm.weight"][64:160] = 0

    edit_tensors(folder / "model.safetensors", silence)
    made = export_gguf(
        open_artifact(folder),
        tmp_path / "gguf",
        quants=["q4_0", "q4_k_m"],
        threads=1,
        imatrix=Calibration(EXAMPLES, chunks=2),
    )
    _, source, plan = opened(folder, tmp_path / "scratch")
    for artifact in made:
        path, name = artifact.gguf_path, "blk.0.attn_v.weight"
        matrix_file = path.parent / "measured" / "imatrix.gguf"
        with pytest.raises(CheckFailed, match=name):  # without the matrix there is no reason for it
            check_structure(path, plan, source)
        check_structure(path, plan, source, imatrix=matrix_file)
        lose_row(path, name)
        with pytest.raises(CheckFailed, match=name):
            check_structure(path, plan, source, imatrix=matrix_file)


def lose_row(path: Path, name: str) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    next(tensor for tensor in reader.tensors if tensor.name == name).data[7] = 0
    reader.data.flush()


def test_a_broken_file_of_few_bits_is_seen(tmp_path: Path) -> None:
    """Its limit is wide, and yet a model whose last norm was lost is far over it."""
    import shutil

    base = Path(__file__).resolve().parents[2] / "assets" / "tiny-base"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        shutil.copytree(base, folder)
    edit_tensors(broken / "model.safetensors", lambda tensors: tensors["model.norm.weight"].neg_())
    calibration = Calibration(read_examples(base.parent / "dialogues" / "train.jsonl", limit=20), chunks=8)
    paths = {
        folder: export_gguf(
            open_artifact(folder), tmp_path / f"{folder.name}-gguf", quants=["iq2_xs"], threads=1, imatrix=calibration
        )[0].gguf_path
        for folder in (whole, broken)
    }
    _, source, _ = opened(whole, tmp_path / "scratch")
    found = check_logits(source, {"iq2_xs": paths[whole]}, 1)
    assert found["iq2_xs"]["mean_kl_nats"] < 3
    with pytest.raises(CheckFailed, match=r"iq2_xs: mean_kl_nats .* nats, at most 4"):
        check_logits(source, {"iq2_xs": paths[broken]}, 1)
