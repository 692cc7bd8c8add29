"""Choosing a type: the same as trying all, nothing left behind, and what is not known or allowed is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import evalsuite.evaluate
import evalsuite.kept
import evalsuite.scorer
import export.imatrix
import export.planned_sizes
import flow.choose_quant
import flow.quant_bench
from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.example import Example, sha256_of_rows, write_examples
from evalsuite.results import Row
from export.imatrix import Calibration, MadeMatrix
from export.to_gguf import export_gguf
from flow.choose_quant import SELECTION_FILE, choose_quant
from flow.export_cli import export as exporting
from flow.quant_limits import Limits
from flow.quant_search import Prefer
from tests.evalsuite.chain import examples, make_adapter_artifact
from tests.flow.choosing import ONE, QUANTS, choose, left_in, make_model, with_details
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Artifact:
    return make_model(llama_folder, tmp_path_factory.mktemp("model") / "merged")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, model: Artifact) -> dict[str, Row]:
    """Every type as `assay eval` measures it, smallest first."""
    tmp = tmp_path_factory.mktemp("all")
    made = export_gguf(model, tmp / "gguf", quants=QUANTS, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evalsuite.scorer, "bertscore_available", lambda: False)
        patch.setattr(evalsuite.kept, "write_evaluation", lambda out, results, evaluation, *_: evaluation)
        results = evalsuite.evaluate.evaluate(made, examples(20), tmp / "eval", threads=1, speed=False)
    return {quant: results.row(quant) for quant in sorted(QUANTS, key=lambda quant: results.row(quant).size_bytes)}


def upper_bound(row: Row) -> float:
    return max(distance.kl.high for distance in row.comparisons[0].distances)


def test_the_smallest_within_the_limit(tmp_path: Path, model: Artifact, rows: dict[str, Row]) -> None:
    limit = upper_bound(rows["q4_0"])
    expected = next(quant for quant, row in rows.items() if upper_bound(row) <= limit)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    selection = choose(model, tmp_path / "out", limits=Limits(kl_nats=limit))
    assert selection.winner is not None
    assert selection.winner.path.name == expected
    assert open_artifact(tmp_path / "out" / expected, verify=True).digest == rows[expected].digest
    assert left_in(tmp_path / "out") == {expected, SELECTION_FILE, "mine.txt"}
    tried = {figures.quant: figures for figures in selection.figures if figures.quality is not None}
    assert 3 <= len(tried) < len(QUANTS)
    for quant, figures in tried.items():
        assert figures.quality is not None
        measured = {distance.target_set: distance.kl for distance in rows[quant].comparisons[0].distances}
        assert figures.quality.kl_nats == measured
        assert (figures.outcome(selection.limits) == "pass") == (upper_bound(rows[quant]) <= limit)
    told = json.loads((tmp_path / "out" / SELECTION_FILE).read_text())
    assert (told["winner"], told["digest"], told["data"]["documents"]) == (expected, rows[expected].digest, 20)
    assert [row["quant"] for row in told["types"]] == list(rows)
    with pytest.raises(AssayError, match="exists already"):
        choose(model, tmp_path / "out", limits=Limits(kl_nats=limit))


@pytest.mark.parametrize("prefer", ["smallest", "fastest"])
def test_a_type_that_llama_cpp_cannot_load_is_told(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch, prefer: Prefer
) -> None:
    def cut(*given: Any, **settings: Any) -> list[Artifact]:
        [made] = export_gguf(*given, **settings)
        if settings["quants"] == ["q2_k"]:
            made.gguf_path.write_bytes(made.gguf_path.read_bytes()[:-50_000])
        return [made]

    monkeypatch.setattr(flow.quant_bench, "export_gguf", cut)
    selection = choose(model, tmp_path, limits=Limits(kl_nats=3.0), quants=["q8_0", "q2_k"], prefer=prefer)
    assert selection.winner is not None
    assert selection.winner.path.name == "q8_0"
    assert "llama.cpp cannot load the file: " in str(selection.figures[0].refused)
    assert selection.figures[0].outcome(selection.limits) == "fail"


def test_a_fault_that_is_not_the_types_ends_it(
    tmp_path: Path, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(*given: Any, **settings: Any) -> list[Artifact]:
        [made] = export_gguf(*given, **settings)
        made.gguf_path.write_bytes(b"nothing")
        return [made]

    monkeypatch.setattr(flow.quant_bench, "export_gguf", spoil)
    with pytest.raises(AssayError):
        choose(model, tmp_path, limits=Limits(kl_nats=3.0), quants=["q2_k"])


def test_a_file_larger_than_planned_is_held_against_the_limit(
    tmp_path: Path, model: Artifact, rows: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.planned_sizes.planned_sizes

    def too_small(*given: Any, **settings: Any) -> Any:
        exact, files = real(*given, **settings)
        return exact, {quant: replace(file, size_bytes=file.size_bytes - 300) for quant, file in files.items()}

    monkeypatch.setattr(export.planned_sizes, "planned_sizes", too_small)
    limits = Limits(size_bytes=rows["q8_0"].size_bytes - 1)
    assert choose(model, tmp_path, limits=limits, quants=["q8_0"]).winner is None
    selection = choose(model, tmp_path, limits=limits, quants=["q8_0", "q4_0"])
    assert selection.winner is not None
    assert selection.winner.path.name == "q4_0"
    assert {figures.quant: figures.outcome(limits) for figures in selection.figures} == {"q8_0": "fail", "q4_0": "pass"}


def test_the_nearest_that_fits(tmp_path: Path, model: Artifact, rows: dict[str, Row]) -> None:
    within = [quant for quant, row in rows.items() if row.size_bytes <= rows["q5_k_m"].size_bytes]
    selection = choose(model, tmp_path / "out", limits=Limits(size_bytes=rows["q5_k_m"].size_bytes))
    assert selection.prefer == "nearest"
    assert selection.winner is not None
    means = {q: max(d.kl.mean for d in rows[q].comparisons[0].distances) for q in within}
    assert selection.winner.path.name == min(means, key=lambda quant: means[quant])
    outcomes = {figures.quant: figures.outcome(selection.limits) for figures in selection.figures}
    assert outcomes["q8_0"] == outcomes["q6_k"] == "fail"
    assert outcomes["q2_k"] is None


def test_summaries_count_where_they_are_asked_for(tmp_path: Path, model: Artifact, rows: dict[str, Row]) -> None:
    quants = ["q4_0", "q2_k"]
    selection = choose(model, tmp_path / "out", limits=Limits(rouge_l_loss=100.0), quants=quants)
    assert selection.winner is not None
    assert selection.winner.path.name == "q2_k"
    quality = next(figures.quality for figures in selection.figures if figures.quant == "q2_k")
    difference = rows["q2_k"].comparisons[0].rouge_l_difference
    assert quality is not None
    assert quality.rouge_l_loss is not None
    assert difference is not None
    assert (quality.rouge_l_loss.mean, quality.rouge_l_loss.n) == (pytest.approx(-difference.mean), 20)
    assert quality.rouge_l_loss.high == pytest.approx(-difference.low)


def test_time_is_measured_where_it_decides(tmp_path: Path, model: Artifact) -> None:
    given: dict[str, Any] = {"quants": ["q8_0", "q2_k"], "prefer": "fastest"}
    limits = Limits(kl_nats=3.0, ms_per_token=1e-9)
    refused = choose(model, tmp_path / "out", limits=limits, **given)
    assert refused.winner is None
    assert all(figures.outcome(limits) == "fail" for figures in refused.figures)
    kept = choose(model, tmp_path / "out", limits=replace(limits, ms_per_token=1e9), **given)
    assert kept.winner is not None
    times = {figures.quant: figures.ms_per_token for figures in kept.figures}
    assert times == {figures.quant: figures.ms_per_token for figures in refused.figures}
    assert times["q2_k"] is not None
    assert times["q8_0"] is not None
    same = times["q2_k"] <= 1.05 * times["q8_0"]
    assert kept.winner.path.name == ("q2_k" if same else "q8_0")
    partly = replace(kept.figures[0], quality=None)
    assert partly.outcome(kept.limits) is None, "what was not compared does not pass"
    assert partly.outcome(limits) == "fail"


def test_an_importance_matrix_is_computed_once(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, computed = export.imatrix.make_imatrix, []

    def counts(*given: Any, **settings: Any) -> dict[str, Any]:
        computed.append(1)
        return real(*given, **settings)

    monkeypatch.setattr(export.imatrix, "make_imatrix", counts)
    train = [Example(f"t{index}", example.document, example.references) for index, example in enumerate(examples(12))]
    model = with_details(llama_folder, tmp_path / "merged", data_sha256={"train": sha256_of_rows(train)})
    settings = replace(ONE, imatrix=Calibration(train, 1))
    quants = ["q8_0", "q4_0", "q2_k", "iq2_xs"]
    selection = choose(model, tmp_path / "out", limits=Limits(kl_nats=3.0), quants=quants, settings=settings)
    assert selection.winner is not None
    assert selection.winner.path.name == "iq2_xs"
    assert selection.winner.details["imatrix"]["split"] == "train"
    assert (selection.winner.path / "measured" / "imatrix.gguf").is_file()
    assert len(computed) == 1
    sizes = {figures.quant: figures.size_bytes for figures in selection.figures}
    kept_size = selection.winner.gguf_path.stat().st_size
    assert (
        sizes["iq2_xs"]
        == kept_size
        == export.planned_sizes.planned_sizes(model, ["iq2_xs"], with_matrix=True)[1]["iq2_xs"].size_bytes
    )
    kept = MadeMatrix(selection.winner.path / "measured" / "imatrix.gguf", {"sha256": "of another"})
    with pytest.raises(AssayError, match="not the one that was made"):
        kept.copy_to(tmp_path / "copy")
    with pytest.raises(AssayError, match="needs an importance matrix"):
        choose(model, tmp_path / "none", limits=Limits(kl_nats=3.0), quants=quants)


def test_a_matrix_that_was_changed_meanwhile_is_computed_again(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, computed = export.imatrix.make_imatrix, []

    def counts(*given: Any, **settings: Any) -> dict[str, Any]:
        computed.append(1)
        return real(*given, **settings)

    monkeypatch.setattr(export.imatrix, "make_imatrix", counts)
    train = [Example(f"t{index}", example.document, example.references) for index, example in enumerate(examples(12))]
    model = with_details(llama_folder, tmp_path / "merged", data_sha256={"train": sha256_of_rows(train)})
    given: dict[str, Any] = {"limits": Limits(kl_nats=1e-9), "settings": replace(ONE, imatrix=Calibration(train, 1))}
    assert choose(model, tmp_path / "out", quants=["q4_0"], **given).winner is None
    [matrix] = (tmp_path / "out" / ".selection").glob("imatrix.gguf")
    whole = matrix.read_bytes()
    assert choose(model, tmp_path / "out", quants=["q4_0", "q2_k"], **given).winner is None
    assert len(computed) == 1
    matrix.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert choose(model, tmp_path / "out", quants=["q4_0", "q3_k_s"], **given).winner is None
    assert len(computed) == 2
    assert matrix.read_bytes() == whole


def test_an_adapter_is_held_against_itself_on_the_stored_base(tmp_path: Path, llama_folder: Path) -> None:
    peft = make_adapter(tmp_path / "peft", llama_folder, seed=5)
    adapter = make_adapter_artifact(tmp_path / "adapter", llama_folder, peft, quant="nf4")
    selection = choose(adapter, tmp_path / "out", limits=Limits(kl_nats=0.01), quants=["f16", "q8_0"])
    assert selection.winner is not None
    assert selection.winner.path.name == "q8_0"
    assert {parent.role for parent in selection.winner.manifest.parents} == {"adapter", "base"}
    quality = selection.figures[0].quality
    assert quality is not None
    assert quality.nats < 0.01, "NF4 would be farther"


def test_a_type_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    from tests.evalsuite.chain import edit_tensors

    folder = make_llama(tmp_path / "llama", dtype="bfloat16", layers=1)
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(1.0))
    edit_tensors(folder, lambda tensors: tensors["model.layers.0.mlp.down_proj.weight"].view(-1)[:1].fill_(9e6))
    model = with_details(folder, tmp_path / "merged")
    limits = Limits(size_bytes=10**9)
    selection = choose(model, tmp_path / "out", limits=limits, quants=["f16", "bf16", "q8_0"])
    for figures in selection.figures:
        assert (figures.outcome(limits) == "fail") == (figures.quant != "bf16")
    refused = {figures.quant: str(figures.refused) for figures in selection.figures}
    assert "too large for float16" in refused["f16"]
    assert "too large for Q8_0" in refused["q8_0"]
    assert selection.winner is not None
    assert selection.winner.path.name == "bf16"


def test_strict_leaves_out_what_would_fall_back(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "llama", hidden_size=64, intermediate_size=96, layers=1)
    model = with_details(folder, tmp_path / "merged")
    limits = Limits(kl_nats=3.0)
    strict = replace(ONE, strict=True)
    selection = choose(model, tmp_path / "out", limits=limits, quants=["q8_0", "q4_k_m"], settings=strict)
    assert selection.winner is not None
    assert selection.winner.path.name == "q8_0"
    assert "fell back" in str(next(f.refused for f in selection.figures if f.quant == "q4_k_m"))


def test_strict_holds_for_what_was_measured_without_it(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "llama", hidden_size=64, intermediate_size=96, layers=1)
    model = with_details(folder, tmp_path / "merged")
    given: dict[str, Any] = {"quants": ["q8_0", "q4_k_m"]}
    measured = choose(model, tmp_path / "out", limits=Limits(kl_nats=1e-9), **given)
    assert all(figures.quality is not None for figures in measured.figures)
    strict = choose(model, tmp_path / "out", limits=Limits(kl_nats=3.0), settings=replace(ONE, strict=True), **given)
    assert strict.winner is not None
    assert strict.winner.path.name == "q8_0"
    assert strict.figures[0].quality == measured.figures[0].quality
    assert "fell back" in str(strict.figures[0].refused)


def test_data_and_limits_that_decide_nothing_are_refused(tmp_path: Path, model: Artifact) -> None:
    limits = Limits(kl_nats=0.1)
    with pytest.raises(AssayError, match="test split"):
        choose_quant(model, examples(22), tmp_path / "out", limits=limits, limit=20)
    with pytest.raises(AssayError, match="too few documents"):
        choose_quant(model, examples(20), tmp_path / "out", limits=limits, limit=19)
    with pytest.raises(AssayError, match="needs a limit"):
        choose(model, tmp_path / "out", limits=Limits())
    (tmp_path / "there" / "q4_0").mkdir(parents=True)
    (tmp_path / "there" / "q4_0" / "mine").write_text("mine")
    with pytest.raises(AssayError, match="exists already"):
        choose(model, tmp_path / "there", limits=limits)
    assert not (tmp_path / "out").exists()
    assert left_in(tmp_path / "there") == {"q4_0"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--auto", "--data", "DATA"], "needs a limit"),
        (["--auto", "--max-kl", "0.1"], "--auto needs documents"),
        (["--max-kl", "0.1"], "--max-kl only with --auto"),
        (["--prefer", "smallest", "--limit", "5"], "--limit, --prefer only with --auto"),
        (["--auto", "--data", "DATA", "--max-kl", "nan"], "not a number from 0 up"),
        (["--auto", "--data", "DATA", "--max-kl", "-1"], "not a number from 0 up"),
        (["--auto", "--data", "DATA", "--max-bytes", "many"], "not a size such as"),
        (["--auto", "--data", "DATA", "--max-bytes", "0"], "not a size such as"),
        (["--auto", "--data", "DATA", "--max-bytes", "9" * 400], "not a size such as"),
        (["--auto", "--data", "DATA", "--max-bytes", "9999999999G"], "not a size such as"),
        (["--auto", "--data", "DATA", "--max-kl", "0.1", "--quant", "q4_x"], "no such quantization"),
        (["--auto", "--data", "DATA", "--max-kl", "0.1", "--prefer", "best"], "'best' is not one of"),
        (["--auto", "--data", "missing.jsonl", "--max-kl", "0.1"], "missing.jsonl"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, model: Artifact, options: list[str], said: str) -> None:
    write_examples(tmp_path / "valid.jsonl", examples(20))
    options = [str(tmp_path / "valid.jsonl") if option == "DATA" else option for option in options]
    done = CliRunner().invoke(exporting, ["gguf", str(model.path), "--out", str(tmp_path / "out"), *options])
    assert getattr(done.exception, "exit_code", None) == 2 or done.exit_code == 2
    assert said in done.output + str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("900M", 900_000_000), ("1.5G", 1_500_000_000), ("2Gi", 2**31), ("4 KiB", 4096), ("123", 123)]
)
def test_sizes(text: str, size: int) -> None:
    from flow.export_cli import _Bytes

    assert _Bytes().convert(text, None, None) == size
