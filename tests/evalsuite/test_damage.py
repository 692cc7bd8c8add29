"""Artifacts that carry damage under a valid manifest: each is refused, for the right reason. The whole ones pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.recipe import Recipe
from contract.verdict import Verdict, read_verdicts
from evalsuite.evaluate import evaluate
from evalsuite.results import Results
from export.merge import merge_adapter
from export.to_gguf import export_gguf
from tests.evalsuite.chain import (
    edit_gguf,
    edit_template,
    edit_tensors,
    examples,
    make_adapter_artifact,
    remake,
)

# a random model's choices hang by a thread, so limits on them are wide; those on distributions are the defaults
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "model": {"base": "x"},
        "generate": {"max_new_tokens": 8},
        "gate": {
            "require": ["merged", "f16", "q8_0"],
            "max_eos_rate_loss": 0.9,
            "base_change": {"min_top1_agreement": 0.1, "max_rouge_l_loss": 50},
            "quant": {
                "f16": {"min_top1_agreement": 0.9, "max_rouge_l_loss": 50},
                "q8_0": {"min_top1_agreement": 0.7, "max_rouge_l_loss": 50, "max_perplexity_ratio": 1.1},
            },
        },
    }
)


def _lose_layer(base: Path) -> Callable[[dict[str, Any]], object]:
    from safetensors.torch import load_file

    original = load_file(base / "model.safetensors")

    def change(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if ".layers.1." in name:
                tensors[name] = original[name]

    return change


def _perturb(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1.01


def _not_a_number(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


def _only_eos(folder: Path) -> None:
    for name in ("generation_config.json", "config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "eos_token_id": 1}))


def _two_bos(template: str) -> str:
    return "{{ bos_token }}" + template


def _newline(template: str) -> str:
    return template.replace("{{ m.role }}\n", "{{ m.role }}\n\n")


def _in_gguf(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit_gguf(next(folder.glob("*.gguf")), **changes)


def _template_in_gguf(change: Callable[[str], str]) -> Callable[[Path], object]:
    return _in_gguf(metadata=lambda key, value: change(value) if key == "tokenizer.chat_template" else value)


def _rows_in_half_order(name: str, data: np.ndarray) -> np.ndarray:
    """Hugging Face's order of query and key rows, as if the converter had not permuted them."""
    heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2] if name.startswith("blk.") else "")
    if heads is None:
        return data
    return data.reshape(heads, len(data) // heads // 2, 2, -1).swapaxes(1, 2).reshape(data.shape)


def _one_tensor(name: str, data: np.ndarray) -> np.ndarray:
    return data * np.asarray(1.02, data.dtype) if name == "blk.0.ffn_down.weight" else data


# what may go wrong as well once distributions are wrong
FOLLOWS = {"perplexity_ratio", "top1_gold", "top1_greedy"}

# name: (artifact, damage, codes of the reasons that fail)
DAMAGES: dict[str, tuple[str, Callable[[Path], Callable[[Path], object]], set[str]]] = {
    "merged, one tensor 1% larger": (
        "merged",
        lambda base: lambda at: edit_tensors(at, _perturb),
        {"merge_kl_gold", "merge_kl_greedy"},
    ),
    "merged, a layer without its delta": (
        "merged",
        lambda base: lambda at: edit_tensors(at, _lose_layer(base)),
        {"merge_kl_gold", "merge_kl_greedy"},
    ),
    "merged, a weight that is not a number": (
        "merged",
        lambda base: lambda at: edit_tensors(at, _not_a_number),
        {"not_finite"},
    ),
    "merged, end-of-turn lost": ("merged", lambda base: _only_eos, {"stop_ids_differ"}),
    "merged, BOS twice": (
        "merged",
        lambda base: lambda at: edit_template(at, _two_bos),
        {"double_bos", "prompt_ids_differ"},
    ),
    "merged, one newline more in the template": (
        "merged",
        lambda base: lambda at: edit_template(at, _newline),
        {"prompt_ids_differ"},
    ),
    "gguf, one tensor 2% larger": (
        "f16",
        lambda base: _in_gguf(tensor=_one_tensor),
        {"kl_mean_gold", "kl_mean_greedy"},
    ),
    "gguf, query and key rows in the other order": (
        "f16",
        lambda base: _in_gguf(tensor=_rows_in_half_order),
        {"kl_mean_gold", "kl_mean_greedy"},
    ),
    "gguf, end-of-turn lost": (
        "f16",
        lambda base: _in_gguf(metadata=lambda key, value: None if key.endswith("eot_token_id") else value),
        {"stop_ids_differ"},
    ),
    "gguf, BOS twice": ("f16", lambda base: _template_in_gguf(_two_bos), {"double_bos", "prompt_ids_differ"}),
    "gguf, one newline more in the template": ("f16", lambda base: _template_in_gguf(_newline), {"prompt_ids_differ"}),
}


@dataclass(frozen=True)
class Judged:
    results: Results
    verdicts: dict[str, Verdict]  # by digest
    artifacts: dict[str, Artifact]  # "merged", "f16", "q8_0" and the names of the damages
    out: Path

    def verdict(self, name: str) -> Verdict:
        return self.verdicts[self.artifacts[name].digest]

    def failed(self, name: str) -> set[str]:
        return {reason.code for reason in self.verdict(name).reasons if reason.outcome == "fail"}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, adapter_folder: Path) -> Judged:
    """Everything, whole and damaged, in one evaluation: references are loaded once."""
    tmp = tmp_path_factory.mktemp("damage")
    adapter = make_adapter_artifact(tmp / "adapter", llama_folder, adapter_folder)
    merged = merge_adapter(adapter, tmp / "merged")
    f16, q8_0 = export_gguf(merged, tmp / "gguf", quants=["f16", "q8_0"])
    whole = {"merged": merged, "f16": f16, "q8_0": q8_0}
    damaged = {
        name: remake(whole[label], tmp / f"damage-{index}", make(llama_folder))
        for index, (name, (label, make, _)) in enumerate(DAMAGES.items())
    }
    results = evaluate(
        [adapter, *whole.values(), *damaged.values()],
        examples(),
        tmp / "eval",
        recipe=RECIPE,
        base=open_artifact(llama_folder),
        threads=1,
        speed=False,
    )
    verdicts = {verdict.digest: verdict for verdict in read_verdicts(tmp / "eval" / "verdict.json")}
    return Judged(results, verdicts, {"adapter": adapter, **whole, **damaged}, tmp / "eval")


@pytest.mark.parametrize("name", ["merged", "f16", "q8_0"])
def test_the_whole_ones_pass(judged: Judged, name: str) -> None:
    verdict = judged.verdict(name)
    assert verdict.outcome == "pass", [r for r in verdict.reasons if r.outcome != "pass"]
    assert verdict.label == name


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_fails_for_its_own_reason(judged: Judged, name: str) -> None:
    assert judged.verdict(name).outcome == "fail"
    assert judged.failed(name) - FOLLOWS == DAMAGES[name][2]


def test_the_merge_is_within_what_rounding_costs(judged: Judged) -> None:
    fidelity, change = judged.results.row("merged").comparisons
    assert (fidelity.purpose, change.purpose) == ("merge_fidelity", "base_change")
    for distance, noise in zip(fidelity.distances, fidelity.noise, strict=True):
        assert 0 < noise.self_noise_kl < 1e-9
        assert distance.kl.mean < 2 * noise.rounding_kl < 1e-5
        assert distance.documents == 24
    assert change.distances[0].kl.mean > 1e-2, "NF4 is far from the 16-bit base"


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
        "metrics.json",
        "metrics.csv",
        "predictions",
        "verdict.json",
        "report.html",
    }
    assert len((judged.out / "predictions" / "q8_0.jsonl").read_text().splitlines()) == 24


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
        evaluate([copy], examples(), tmp_path / "eval", speed=False)
    assert not (tmp_path / "eval").exists()
