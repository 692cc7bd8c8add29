"""Attacks by way of the cache: what was found of a sound artifact is put where a broken one's is looked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import evalsuite.distance
import evalsuite.scorer
from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.recipe import Recipe
from evalsuite.cache import CACHE_FOLDER, Cache
from evalsuite.distance import LogitsSpool, checksum_path
from evalsuite.evaluate import evaluate
from evalsuite.results import Interval, Results, read_results
from tests.evalsuite.chain import examples

pytestmark = pytest.mark.engine

RECIPE = Recipe.model_validate({"name": "t", "model": {"base": "x"}, "generate": {"max_new_tokens": 6}})
GOOD, BAD = Interval(0.001, 0.0, 0.002, 300), Interval(0.9, 0.8, 1.0, 300)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """The file of a bad artifact's entry; a good one's lies beside it."""
    cache = Cache(tmp_path)
    cache.put("node", "bad", BAD)
    cache.put("node", "good", GOOD)
    cache.put("own", "bad", GOOD)
    return tmp_path / "node-bad.json"


def test_an_entry_is_found_again(entry: Path) -> None:
    assert Cache(entry.parent).get("node", "bad", Interval) == BAD


@pytest.mark.parametrize(
    "attack",
    [
        lambda path: shutil.copy(path.with_name("node-good.json"), path),  # of another artifact, or another run
        lambda path: shutil.copy(path.with_name("own-bad.json"), path),  # of another kind
        lambda path: edit(path, lambda kept: {**kept, "entry": {**kept["entry"], "mean": 0.0}}),
        lambda path: edit(path, lambda kept: {**kept, "entry": asdict(GOOD)}),
        lambda path: edit(path, lambda kept: {**kept, "name": "node-good"}),
        lambda path: edit(path, lambda kept: {**kept, "sha256": "0" * 64}),
        lambda path: edit(path, lambda kept: {**kept, "more": 1}),
        lambda path: edit(path, lambda kept: kept["entry"]),  # as earlier versions kept it
        lambda path: edit(path, lambda kept: [kept]),
        lambda path: edit(path, lambda _: 3),
        lambda path: path.write_text(path.read_text().replace('"mean": 0.9', '"mean": 0.9, "mean": 0.0')),
        lambda path: path.write_text(path.read_text()[:-9]),
        lambda path: path.write_bytes(b"\xff" * 40),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("[" * 200_000),
        lambda path: (path.unlink(), path.mkdir(), (path / "x").write_text("x")),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
    ],
)
def test_what_is_not_as_it_was_kept_is_measured_again(entry: Path, attack: Callable[[Path], Any]) -> None:
    attack(entry)
    cache = Cache(entry.parent)
    assert cache.get("node", "bad", Interval) is None
    cache.put("node", "bad", BAD)
    assert Cache(entry.parent).get("node", "bad", Interval) == BAD
    cache.tidy()
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


@dataclass(frozen=True)
class _Other:
    mean: int
    low: int


def test_an_entry_of_another_shape_is_measured_again(tmp_path: Path) -> None:
    Cache(tmp_path).put("node", "bad", _Other(1, 2))
    assert Cache(tmp_path).get("node", "bad", Interval) is None


def logits(seed: int) -> list[np.ndarray]:
    return [
        np.random.default_rng(seed + at).normal(size=(count, 40)).astype("float32") for at, count in ((0, 3), (1, 5))
    ]


def spool(path: Path) -> LogitsSpool:
    return LogitsSpool(path, 40, [3, 5])


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """As if in another process, which has written and checked nothing yet."""
    return lambda: monkeypatch.setattr(evalsuite.distance, "_sound", {})


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "attack",
    [
        flip,
        lambda path: checksum_path(path).unlink(),
        lambda path: checksum_path(path).write_text("0" * 64),
        lambda path: checksum_path(path).write_bytes(b"\xff"),
        lambda path: (checksum_path(path).unlink(), checksum_path(path).mkdir()),
        lambda path: shutil.copy(path.with_name("good.f32"), path),  # as many logits of another model
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b""),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_logits_of_an_earlier_process_are_used_only_as_they_were_written(
    tmp_path: Path, later: Callable[[], None], attack: Callable[[Path], Any]
) -> None:
    cache = Cache(tmp_path)
    for key, seed in (("good", 10), ("bad", 20)):
        assert len(list(spool(cache.logits_path(key)).write(iter(logits(seed))))) == 2
    path = tmp_path / "bad.f32"
    later()
    assert spool(path).complete
    later()
    attack(path)
    assert not spool(cache.logits_path("bad")).complete
    if checksum_path(path).is_dir():
        checksum_path(path).rmdir()
    assert len(list(spool(path).write(iter(logits(20))))) == 2
    later()
    assert spool(path).complete
    np.testing.assert_array_equal(spool(path).read(1), logits(20)[1])


def test_a_file_that_was_changed_since_this_process_wrote_it_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "x.f32"
    list(spool(path).write(iter(logits(1))))
    assert spool(path).complete
    flip(path)
    assert not spool(path).complete


@pytest.fixture
def models(tmp_path: Path, llama_folder: Path) -> Path:
    """A model, a faithful copy of it, and one with a damaged layer."""
    for name in ("model", "sound", "broken"):
        shutil.copytree(llama_folder, tmp_path / name)
    for name, factor in (("sound", 1.0), ("broken", 0.5)):
        path = tmp_path / name / "model.safetensors"
        tensors = load_file(path)
        changed = next(key for key in tensors if key.endswith("1.mlp.down_proj.weight"))
        tensors[changed] = (tensors[changed] * factor).astype(tensors[changed].dtype)
        save_file(tensors, path, metadata={"format": "pt", "copy": name})
    return tmp_path


def run(models: Path, name: str, out: Path) -> Results:
    reference = open_artifact(models / "model")
    evaluate(
        [open_artifact(models / name)], examples(4), out, reference=reference, recipe=RECIPE, threads=1, speed=False
    )
    return read_results(out)


def distances(results: Results) -> list[float]:
    return [distance.kl.mean for row in results.rows for one in row.comparisons for distance in one.distances]


def test_a_cache_from_a_sound_artifacts_run_does_not_speak_for_a_broken_one(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evalsuite.scorer, "bertscore_available", lambda: False)
    sound, broken = run(models, "sound", models / "a"), run(models, "broken", models / "b")
    assert max(distances(sound)) < 1e-9
    assert min(distances(broken)) > 1e-6
    ours, theirs = models / "a" / CACHE_FOLDER, models / "b" / CACHE_FOLDER
    for kind in ("node", "summaries"):
        missing = sorted({path.name for path in theirs.glob(f"{kind}-*")} - {path.name for path in ours.glob("*")})
        other = sorted({path.name for path in ours.glob(f"{kind}-*")} - {path.name for path in theirs.glob("*")})
        assert len(missing) == len(other) == 1
        shutil.copy(ours / other[0], theirs / missing[0])
    (models / "b" / "metrics.json").unlink()
    (models / "b" / "verdict.json").unlink()
    for left in models.joinpath("b").iterdir():
        if left.name != CACHE_FOLDER:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert distances(run(models, "broken", models / "b")) == pytest.approx(distances(broken), abs=1e-9)


def test_edited_logits_of_the_reference_are_taken_again(
    models: Path, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evalsuite.scorer, "bertscore_available", lambda: False)
    run(models, "broken", models / "a")
    [kept] = (models / "a" / CACHE_FOLDER).glob("*.f32")
    assert checksum_path(kept).is_file()
    later()
    kept.write_bytes(np.random.default_rng(1).normal(size=kept.stat().st_size // 4).astype("float32").tobytes())
    assert max(distances(run(models, "sound", models / "a"))) < 1e-9


def test_a_file_in_the_caches_place_is_one_message(models: Path) -> None:
    (models / "a").mkdir()
    (models / "a" / CACHE_FOLDER).write_text("mine")
    with pytest.raises(AssayError) as refusal:
        run(models, "sound", models / "a")
    assert refusal.value.exit_code == 2
    assert (models / "a" / CACHE_FOLDER).read_text() == "mine"
