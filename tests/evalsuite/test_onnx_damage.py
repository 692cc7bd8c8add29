"""ONNX graphs that damage what is written, not what is read at once: each fails by itself, the sound one passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.history import read_verdicts
from contract.recipe import Recipe
from contract.verdict import Verdict
from evalsuite.evaluate import evaluate
from evalsuite.results import Results, read_results
from export.onnx_graph import SEQ2SEQ, read_graph, write_graphs
from export.to_onnx import export_onnx
from tests.evalsuite.chain import examples, remake
from tests.evalsuite.quick import figures_only
from tests.tiny_onnx import export_folder
from tests.tiny_seq2seq import make_bart, make_t5

pytestmark = pytest.mark.engine

LATER = "decoder_with_past_model"
MAKERS = {"t5": make_t5, "bart": make_bart}
# a random model's summaries hang by a thread, so what is judged is how far its distributions are
# with 24 documents only wide limits can be shown of what hangs by a thread; those of KL are the defaults
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "model": {"base": "x"},
        "generate": {"max_new_tokens": 8},
        "gate": {
            "max_eos_rate_loss": 0.2,
            "onnx": {"fp32": {"min_top1_agreement": 0.95, "max_rouge_l_loss": 20}},
        },
    }
)
KL = {"kl_mean_gold", "kl_mean_greedy"}


def swap(folder: Path, one: str, other: str) -> None:
    """Let the cached decoder read one tensor of its cache for another."""
    import onnx

    path = folder / f"{LATER}.onnx"
    model = onnx.load(path, load_external_data=False)
    names = {one: other, other: one}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    path.write_bytes(model.SerializeToString())


def scale(folder: Path) -> None:
    """Weaken the self-attention of the cached decoder alone."""
    graphs = {name: read_graph(folder, name) for name in SEQ2SEQ}
    later = graphs[LATER]
    used = {name for node in later.nodes if "elf" in node.name and node.op_type == "MatMul" for name in node.input}
    later.set_weights({name: np.array(w) * np.float32(0.8) if name in used else w for name, w in later.weights.items()})
    assert used & set(later.weights)
    for path in folder.glob("*.onnx*"):
        path.unlink()
    write_graphs(folder, list(graphs.values()))


DAMAGES: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "crossed": (lambda f: swap(f, "past_key_values.1.encoder.key", "past_key_values.1.encoder.value"), KL),
    "scaled": (scale, KL),
    "stuck": (lambda f: swap(f, "past_key_values.0.decoder.key", "past_key_values.0.encoder.key"), {"not_loadable"}),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def judged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, dict[str, Verdict]]:
    """The verdicts of a sound export, of damaged ones, and of what Optimum made, by name."""
    tmp = tmp_path_factory.mktemp(f"damage-{request.param}")
    model = open_artifact(MAKERS[request.param](tmp / "model"))
    [sound] = export_onnx(model, tmp / "onnx", precisions=("fp32",), check="structure", threads=1)
    made: dict[str, Artifact] = {name: remake(sound, tmp / name, do) for name, (do, _) in DAMAGES.items()}
    made["sound"], made["foreign"] = sound, open_artifact(export_folder(model.path, tmp / "foreign", seq2seq=True))
    with pytest.MonkeyPatch.context() as patch:
        figures_only(patch)
        evaluate(list(made.values()), examples(), tmp / "eval", reference=model, recipe=RECIPE, threads=1, speed=False)
    verdicts = {verdict.digest: verdict for verdict in read_verdicts(tmp / "eval")}
    return read_results(tmp / "eval"), {name: verdicts[artifact.digest] for name, artifact in made.items()}


@pytest.mark.parametrize("name", ["sound", "foreign"])
def test_a_sound_folder_passes_whoever_made_it(judged: tuple[Results, dict[str, Verdict]], name: str) -> None:
    results, verdicts = judged
    assert verdicts[name].outcome == "pass", [r for r in verdicts[name].reasons if r.outcome != "pass"]
    assert results.row(verdicts[name].label).quant == "fp32"


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cached_decoder_fails(judged: tuple[Results, dict[str, Verdict]], name: str) -> None:
    results, verdicts = judged
    failed = {reason.code for reason in verdicts[name].reasons if reason.outcome == "fail"}
    assert verdicts[name].outcome == "fail"
    assert failed & DAMAGES[name][1], failed
    if name == "stuck":
        [lost] = results.unloadable
        assert "the graph does not run" in lost.error


def test_a_reference_that_does_not_run_fails_and_a_foreign_one_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures_only(monkeypatch)
    model = open_artifact(make_t5(tmp_path / "model"))
    [sound] = export_onnx(model, tmp_path / "onnx", precisions=("fp32",), check="structure", threads=1)
    stuck = remake(sound, tmp_path / "stuck", DAMAGES["stuck"][0])
    evaluate([model], examples(2), tmp_path / "made", reference=stuck, recipe=RECIPE, threads=1, speed=False)
    [verdict] = read_verdicts(tmp_path / "made")  # it was made from the model, so it is what is judged
    assert (verdict.digest, verdict.outcome) == (stuck.digest, "fail")
    assert [reason.code for reason in verdict.reasons] == ["not_loadable"]
    (stuck.folder / "manifest.json").unlink()
    (stuck.folder / "verdict.json").unlink()
    foreign = open_artifact(stuck.folder)
    with pytest.raises(AssayError, match="the graph does not run"):
        evaluate([model], examples(2), tmp_path / "eval", reference=foreign, recipe=RECIPE, threads=1, speed=False)
    with pytest.raises(AssayError, match="was not finished"):
        read_verdicts(tmp_path / "eval")
