"""The nearer base is found by measuring and written into the manifest; without knowledge there is no choice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.example import write_examples
from flow.choose_base import choose_base
from flow.merge_cli import merge
from tests.evalsuite.chain import examples, make_adapter_artifact
from tests.tiny import make_adapter, make_llama

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("choose") / "base", seed=21)


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("choose") / "peft", base, seed=22)


@pytest.mark.parametrize(("trained_on", "chosen"), [("nf4", "nf4"), ("w16", "w16")])
def test_the_weights_it_was_trained_on_are_nearer(
    tmp_path: Path, base: Path, peft: Path, trained_on: str, chosen: str
) -> None:
    adapter = make_adapter_artifact(tmp_path / "adapter", base, peft, quant=trained_on)
    choice = choose_base(adapter, examples(6), threads=1)
    assert choice.base == chosen
    assert choice.documents == 6
    assert choice.kl[chosen]["low"] <= choice.kl[chosen]["mean"] <= choice.kl[chosen]["high"] < 1e-4
    if trained_on == "nf4":
        assert choice.kl["w16"]["mean"] > 100 * choice.kl["nf4"]["mean"]
        assert "times as far" in choice.as_text()
    else:
        assert set(choice.kl) == {"w16"}


def test_a_foreign_adapter_needs_to_be_told(peft: Path) -> None:
    with pytest.raises(AssayError, match="not known what the adapter was trained on"):
        choose_base(open_artifact(peft), examples(2), threads=1)
    assert choose_base(open_artifact(peft), examples(2), threads=1, trained_on="nf4").base == "nf4"


def test_assay_merge_auto_writes_both_figures_down(tmp_path: Path, base: Path, peft: Path) -> None:
    adapter = make_adapter_artifact(tmp_path / "adapter", base, peft)
    write_examples(tmp_path / "valid.jsonl", examples(4))
    result = CliRunner(catch_exceptions=False).invoke(
        merge,
        [
            str(adapter.path),
            "--out",
            str(tmp_path / "merged"),
            "--base",
            "auto",
            "--data",
            str(tmp_path / "valid.jsonl"),
            "--json",
        ],
    )
    assert result.exit_code == 0, result.output
    details = json.loads(result.stdout)["details"]
    assert details["merged_on"] == "nf4"
    measured = open_artifact(tmp_path / "merged", verify=True).manifest.measurements
    assert measured["base_choice"]["chosen"] == "nf4"
    assert set(measured["base_choice"]["kl_nats"]) == {"nf4", "w16"}
    assert open_artifact(tmp_path / "merged", verify=True).details == details
