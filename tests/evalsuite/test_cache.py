"""Nothing is measured twice: what was found is found again, an interrupted evaluation goes on, a change is seen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import evalsuite.own_targets
import evalsuite.scorer
import evalsuite.walk
from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.recipe import Recipe
from evalsuite.cache import Cache
from evalsuite.evaluate import evaluate
from evalsuite.rejudge import rejudge
from evalsuite.results import Interval, read_results
from runtimes import load_runtime
from runtimes.torch_ref import TorchRuntime
from tests.evalsuite.chain import Chain, examples, make_chain

pytestmark = pytest.mark.engine

RECIPE = Recipe.model_validate({"name": "t", "model": {"base": "x"}, "generate": {"max_new_tokens": 6}})


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return make_chain(tmp_path_factory.mktemp("cache"), 3)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which models are loaded, by kind or quantization, in order."""
    seen: list[str] = []

    def load(artifact: Artifact, **settings: object) -> object:
        seen.append(str(artifact.details.get("quant", artifact.kind)))
        return load_runtime(artifact, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(evalsuite.walk, "load_runtime", load)
    monkeypatch.setattr(evalsuite.scorer, "bertscore_available", lambda: False)
    return seen


def turns(loads: list[str]) -> list[str]:
    """A GGUF is loaded for many at once and as it is served, which is one turn."""
    return [name for at, name in enumerate(loads) if name in ("adapter", "merged") or loads[:at][-1:] != [name]]


def run(chain: Chain, out: Path, *names: str, most: int = 6, count: int = 4) -> None:
    recipe = RECIPE.model_copy(update={"generate": RECIPE.generate.model_copy(update={"max_new_tokens": most})})
    artifacts = [chain.artifacts[name] for name in names]
    evaluate(artifacts, examples(count), out, recipe=recipe, threads=1, speed=False)


def test_one_more_artifact_costs_only_its_own_scoring(chain: Chain, tmp_path: Path, loads: list[str]) -> None:
    run(chain, tmp_path / "eval", "merged", "f16")
    first = read_results(tmp_path / "eval")
    assert turns(loads) == ["adapter", "adapter", "adapter", "adapter", "merged", "f16"]  # three for noise and rounding
    loads.clear()
    run(chain, tmp_path / "eval", "merged", "f16", "q8_0")
    assert turns(loads) == ["q8_0"]
    second = read_results(tmp_path / "eval")
    assert [row.label for row in second.rows] == ["adapter", "merged", "f16", "q8_0"]
    assert asdict(second.row("f16")) == asdict(first.row("f16"))
    loads.clear()
    run(chain, tmp_path / "eval", "merged", "f16", "q8_0")
    assert loads == []


def test_an_interrupted_evaluation_goes_on(
    chain: Chain, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evalsuite.walk.load_runtime

    def dies_at_q8_0(artifact: Artifact, **settings: object) -> object:
        if artifact.details.get("quant") == "q8_0":
            raise KeyboardInterrupt
        return whole(artifact, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(evalsuite.walk, "load_runtime", dies_at_q8_0)
    with pytest.raises(KeyboardInterrupt):
        run(chain, tmp_path / "eval", "merged", "f16", "q8_0")
    assert not (tmp_path / "eval" / "metrics.json").exists()
    loads.clear()
    monkeypatch.setattr(evalsuite.walk, "load_runtime", whole)
    run(chain, tmp_path / "eval", "merged", "f16", "q8_0")
    assert turns(loads) == ["q8_0"]
    run(chain, tmp_path / "again", "merged", "f16", "q8_0")
    resumed, at_once = read_results(tmp_path / "eval"), read_results(tmp_path / "again")
    assert asdict(resumed.row("q8_0")) == asdict(at_once.row("q8_0"))


def test_summaries_that_were_written_before_an_interruption_are_not_written_again(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root's summaries and logits are made together, a chunk at a time; a third chunk is never reached."""
    monkeypatch.setattr(evalsuite.own_targets, "CHUNK", 2)
    whole = TorchRuntime.write_and_score
    asked: list[int] = []

    def dies_at_the_third(runtime: TorchRuntime, prompts: Sequence[Sequence[int]], *rest: Any) -> Any:
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(runtime, prompts, *rest)

    monkeypatch.setattr(TorchRuntime, "write_and_score", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(chain, tmp_path / "eval", "merged", count=7)
    assert not list((tmp_path / "eval" / "cache").glob("*.f32*"))
    run(chain, tmp_path / "eval", "merged", count=7)
    assert asked == [2, 2, 2, 2, 1]
    run(chain, tmp_path / "again", "merged", count=7)
    resumed, at_once = read_results(tmp_path / "eval"), read_results(tmp_path / "again")
    resumed_merge, merge = (one.row("merged").comparisons[0] for one in (resumed, at_once))
    for ours, theirs in zip(resumed_merge.distances, merge.distances, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.kl.mean == pytest.approx(theirs.kl.mean, abs=1e-9)


def test_other_settings_or_documents_are_measured_anew(chain: Chain, tmp_path: Path, loads: list[str]) -> None:
    run(chain, tmp_path / "eval", "f16")
    loads.clear()
    run(chain, tmp_path / "eval", "f16", most=5)
    assert turns(loads).count("f16") == 1
    loads.clear()
    run(chain, tmp_path / "eval", "f16", most=5, count=5)
    assert turns(loads).count("f16") == 1


def test_entries_that_cannot_be_read_are_made_again(chain: Chain, tmp_path: Path, loads: list[str]) -> None:
    run(chain, tmp_path / "eval", "f16")
    before = read_results(tmp_path / "eval")
    for path in (tmp_path / "eval" / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-9] if path.suffix == ".json" else b"")
    loads.clear()
    run(chain, tmp_path / "eval", "f16")
    assert "f16" in loads
    assert asdict(read_results(tmp_path / "eval").row("f16")) == asdict(before.row("f16"))


def test_a_folder_with_nothing_but_a_cache_may_be_written_to(chain: Chain, tmp_path: Path, loads: list[str]) -> None:
    (tmp_path / "eval" / "cache").mkdir(parents=True)
    run(chain, tmp_path / "eval", "f16")
    assert (tmp_path / "eval" / "metrics.json").is_file()


def test_what_is_not_used_is_dropped_and_large_logits_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Cache(tmp_path / "cache")
    old.put("node", "unused", Interval(1.0, 0.0, 2.0, 3))
    cache = Cache(tmp_path / "cache")
    cache.put("node", "used", Interval(1.0, 0.0, 2.0, 3))
    cache.logits_path("used").write_bytes(b"1234")
    cache.tidy()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"node-used.json", "used.f32"}
    assert Cache(tmp_path / "cache").get("node", "used", Interval) == Interval(1.0, 0.0, 2.0, 3)
    monkeypatch.setattr("evalsuite.cache.KEEP_LOGITS_BYTES", 3)
    cache.tidy()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"node-used.json"}


def test_an_evaluation_where_a_file_is(tmp_path: Path, chain: Chain) -> None:
    (tmp_path / "eval").write_text("mine")
    with pytest.raises(AssayError, match="is a file"):
        evaluate([open_artifact(chain.artifacts["f16"].path)], examples(1), tmp_path / "eval", speed=False)
    assert (tmp_path / "eval").read_text() == "mine"


def test_two_evaluations_at_once_do_not_share_a_folder(chain: Chain, tmp_path: Path, loads: list[str]) -> None:
    with Cache(tmp_path / "eval" / "cache").held(), pytest.raises(AssayError, match="another evaluation"):
        run(chain, tmp_path / "eval", "f16")
    assert loads == []
    run(chain, tmp_path / "eval", "f16")
    assert (tmp_path / "eval" / "metrics.json").is_file()


def test_judging_again_refuses_predictions_of_other_documents(chain: Chain, tmp_path: Path, loads: list[str]) -> None:
    run(chain, tmp_path / "eval", "f16")
    rejudge(tmp_path / "eval", RECIPE.gate)
    path = tmp_path / "eval" / "predictions" / "f16.jsonl"
    whole = path.read_text()
    report = (tmp_path / "eval" / "report.html").read_bytes()
    for damaged in (whole.split("\n", 1)[1], "", whole.replace('"id": "', '"id": "z')):
        path.write_text(damaged)
        with pytest.raises(AssayError, match="documents that were scored"):
            rejudge(tmp_path / "eval", RECIPE.gate)
        assert (tmp_path / "eval" / "report.html").read_bytes() == report


def test_an_evaluation_inside_an_artifact_is_refused(chain: Chain, tmp_path: Path, loads: list[str]) -> None:
    merged = chain.artifacts["merged"]
    with pytest.raises(AssayError, match="inside an artifact"):
        run(chain, merged.path / "deep" / "eval", "merged")
    assert loads == []
    merged.verify()


@pytest.mark.parametrize("name", ["eval", "deep/eval", "", "link/eval"])
def test_nor_inside_a_folder_that_assay_did_not_make(
    llama_folder: Path, tmp_path: Path, loads: list[str], name: str
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (tmp_path / "link").symlink_to(folder)
    out = tmp_path / name if name.startswith("link") else folder / name
    before = sorted(folder.rglob("*"))
    with pytest.raises(AssayError, match=r"inside an artifact|not an evaluation") as refusal:
        evaluate([open_artifact(folder)], examples(1), out, threads=1)
    assert refusal.value.exit_code == 2
    assert loads == []
    assert sorted(folder.rglob("*")) == before
