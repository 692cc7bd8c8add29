"""A whole chain, merged onto the 16-bit base: rows, comparisons, files, verdicts; and other bytes are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.history import read_verdicts
from contract.recipe import Recipe
from contract.verdict import Verdict
from evalsuite.evaluate import evaluate
from evalsuite.results import Results
from export.merge import merge_adapter
from export.to_gguf import export_gguf
from tests.evalsuite.chain import make_adapter_artifact, remake
from tests.kit.dialogues import ENOUGH, dialogues
from tests.kit.trained import Trained

pytestmark = pytest.mark.engine

# the limits are the defaults: the model has learned its task
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "model": {"base": "x"},
        "generate": {"max_new_tokens": 16},
        "gate": {"require": ["merged", "f16", "q8_0"]},
    }
)


@dataclass(frozen=True)
class Judged:
    results: Results
    verdicts: dict[str, Verdict]  # by digest
    artifacts: dict[str, Artifact]  # "adapter", "merged", "f16", "q8_0"
    out: Path

    def verdict(self, name: str) -> Verdict:
        return self.verdicts[self.artifacts[name].digest]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, trained_model: Callable[[int], Trained]) -> Judged:
    """Everything in one evaluation: references are loaded once."""
    tmp = tmp_path_factory.mktemp("damage")
    model = trained_model(11)
    adapter = make_adapter_artifact(tmp / "adapter", model.base, model.peft)
    merged = merge_adapter(adapter, tmp / "merged")
    f16, q8_0 = export_gguf(merged, tmp / "gguf", quants=["f16", "q8_0"])
    whole = {"merged": merged, "f16": f16, "q8_0": q8_0}
    results = evaluate(
        [adapter, *whole.values()],
        dialogues(ENOUGH),
        tmp / "eval",
        recipe=RECIPE,
        base=open_artifact(model.base),
        threads=1,
        speed=False,
    )
    verdicts = {verdict.digest: verdict for verdict in read_verdicts(tmp / "eval" / "verdict.json")}
    return Judged(results, verdicts, {"adapter": adapter, **whole}, tmp / "eval")


@pytest.mark.parametrize("name", ["merged", "f16", "q8_0"])
def test_the_whole_ones_pass(judged: Judged, name: str) -> None:
    verdict = judged.verdict(name)
    assert verdict.outcome == "pass", [r for r in verdict.reasons if r.outcome != "pass"]
    assert verdict.label == name


def test_the_merge_is_within_what_rounding_costs(judged: Judged) -> None:
    fidelity, change = judged.results.row("merged").comparisons
    assert (fidelity.purpose, change.purpose) == ("merge_fidelity", "base_change")
    for distance, noise in zip(fidelity.distances, fidelity.noise, strict=True):
        assert 0 < noise.self_noise_kl < 1e-9
        assert distance.kl.mean < 2 * noise.rounding_kl < 1e-5
        assert distance.documents == ENOUGH
    assert change.distances[0].kl.mean > 1000 * fidelity.distances[0].kl.mean, "NF4 is far from the 16-bit base"


def test_rows_comparisons_and_files_are_complete(judged: Judged) -> None:
    results = judged.results
    assert [row.label for row in results.rows][:2] == ["base", "adapter"]
    assert {row.label: row.role for row in results.rows if row.role == "reference"} == {
        "base": "reference",
        "adapter": "reference",
    }
    assert results.row("base").comparisons[0].purpose == "training"
    q8_0 = results.row("q8_0")
    assert q8_0.comparisons[0].reference_label == "merged"
    assert q8_0.engine == "llama.cpp"
    assert q8_0.bits_per_weight == pytest.approx(8.5, abs=0.3)
    assert q8_0.comparisons[0].rouge_l_difference is not None
    assert {path.name for path in judged.out.iterdir()} == {
        "cache",
        "metrics.json",
        "metrics.csv",
        "plots",
        "predictions",
        "verdict.json",
        "report.html",
        "report.pdf",
    }
    header = (judged.out / "predictions" / "q8_0.csv").read_text().splitlines()[0]
    assert header.startswith("id,document,reference,prediction,stop,tokens,rouge1,")
    assert header.endswith(",buckets")
    assert (judged.out / "plots" / "quality_size.png").read_bytes().startswith(b"\x89PNG")
    assert len((judged.out / "predictions" / "q8_0.jsonl").read_text().splitlines()) == ENOUGH


def test_each_artifact_is_stamped_with_its_own_verdict(judged: Judged) -> None:
    [stamped] = read_verdicts(judged.artifacts["q8_0"].path / "verdict.json")
    assert stamped == judged.verdict("q8_0")
    open_artifact(judged.artifacts["q8_0"].path, verify=True)
    assert not (judged.artifacts["adapter"].path / "verdict.json").exists()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("damage", "said"), [(_flip, "bytes were changed"), (_truncate, "were written")])
def test_other_bytes_than_the_manifests_are_refused(
    judged: Judged, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    copy = remake(judged.artifacts["q8_0"], tmp_path / "copy", lambda folder: None)
    damage(copy.gguf_path)
    with pytest.raises(AssayError, match=said):
        evaluate([copy], dialogues(2), tmp_path / "eval", speed=False)
    assert not (tmp_path / "eval").exists()
