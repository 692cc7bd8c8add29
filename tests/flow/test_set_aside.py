"""A run, a choice and a preflight whose export fails its check: exit 1, set aside, and mended the next time."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.failed import FAILED_FILE
from contract.recipe import load_recipe
from export import gguf_family
from export.check_failed import CheckFailed
from flow.choose_quant import SELECTION_FILE, WORK_FOLDER
from flow.doctor import _round_trip
from flow.preflight import preflight
from flow.quant_limits import Limits
from flow.run import run_recipe
from tests.flow.choosing import choose, left_in, make_model
from tests.flow.test_run import recipe, rows
from tests.tiny import write_jsonl
from trainer.data import load_splits

pytestmark = pytest.mark.engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count, start in (("train", 24, 0), ("valid", 6, 500), ("test", 20, 600)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(count, start))
    return tmp_path


@pytest.fixture
def swapped_heads(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A flaw of the converter: structure agrees with itself, torch does not."""
    monkeypatch.setattr(gguf_family, "interleave_halves", lambda tensor, heads: tensor)
    return monkeypatch


GGUF = {"gguf": {"quants": ["q8_0", "f16"], "check": "logits"}}


def test_a_run_goes_through_once_the_flaw_is_mended(
    folder: Path, llama_folder: Path, swapped_heads: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, out = load_recipe(recipe(folder, llama_folder, export=GGUF, gate={"require": ["f16"]})), folder / "run"
    for _ in range(2):
        with pytest.raises(CheckFailed, match=rf"set aside in {out}/gguf/f16\.failed") as no:
            run_recipe(loaded, out, threads=1, until="gguf")
        assert no.value.exit_code == 1
        assert left_in(out / "gguf") == {"f16.failed"}
    swapped_heads.undo()
    capsys.readouterr()
    result = run_recipe(loaded, out, threads=1, until="gguf")
    assert result.skipped == ["adapter", "merged"]
    assert result.done == ["gguf/q8_0, gguf/f16"]
    assert left_in(out / "gguf") == {"f16", "q8_0", "f16.failed"}
    assert not (out / "previous").exists()
    assert run_recipe(loaded, out, threads=1, until="gguf").done == []


def test_a_choice_whose_winner_fails(tmp_path: Path, llama_folder: Path, swapped_heads: pytest.MonkeyPatch) -> None:
    model, out = make_model(llama_folder, tmp_path / "merged"), tmp_path / "out"
    for _ in range(2):
        with pytest.raises(CheckFailed, match=r"f16: mean_kl_nats") as no:
            choose(model, out, limits=Limits(size_bytes=10**9), quants=["f16"], check="logits")
        assert f"set aside in {out / 'f16.failed'}" in str(no.value)
        assert left_in(out) == {"f16.failed", WORK_FOLDER}
    swapped_heads.undo()
    selection = choose(model, out, limits=Limits(size_bytes=10**9), quants=["f16"], check="logits")
    assert selection.winner is not None
    assert left_in(out) == {"f16", "f16.failed", SELECTION_FILE}


def test_where_nothing_stays_nothing_is_said_to(
    folder: Path, llama_folder: Path, swapped_heads: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(recipe(folder, llama_folder, export=GGUF, gate={"require": ["f16"]}))
    with pytest.raises(AssayError, match="f16: mean_kl_nats") as no:
        preflight(loaded, load_splits(loaded), device="cpu", threads=1)
    assert FAILED_FILE not in str(no.value)
    assert "would fail the same way" in str(no.value)
    problem = str(_round_trip()["problem"])
    assert "q4_k_m: mean_kl_nats" in problem
    assert FAILED_FILE not in problem
