"""A small twin of the model goes all the way in seconds, and what would fail after training fails before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoConfig, MambaConfig

import flow.preflight
import flow.run
from contract.errors import AssayError
from contract.example import write_examples
from contract.recipe import Recipe
from flow.cli import doctor_command
from flow.preflight import is_worth_it, make_twin, preflight, say_preflight
from flow.run import run_recipe
from tests.evalsuite.chain import examples
from tests.tiny import make_llama
from trainer.data import load_splits

pytestmark = pytest.mark.engine


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As many heads, layers and neurons as a test can afford, so that there is something to shrink."""
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 768}
    return make_llama(tmp_path / "base", layers=3, **sizes)


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> Recipe:
    data = {}
    rows = examples(30)
    for name, part in (("train", rows[:20]), ("valid", rows[20:25]), ("test", rows[25:])):
        write_examples(tmp_path / f"{name}.jsonl", part)
        data[name] = str(tmp_path / f"{name}.jsonl")
    return Recipe.model_validate(
        {
            "name": "t",
            "model": {"base": str(base)},
            "data": data,
            "train": {"epochs": 1, "max_length": 256},
            "export": {"gguf": {"quants": ["f16", "q4_k_m"], "check": "logits"}},
        }
    )


def test_the_twin_is_small_and_of_the_same_kind(tmp_path: Path, base: Path) -> None:
    twin = make_twin(base, tmp_path / "twin")
    theirs, ours = AutoConfig.from_pretrained(base), AutoConfig.from_pretrained(twin)
    assert (ours.model_type, ours.head_dim, ours.vocab_size) == (theirs.model_type, theirs.head_dim, theirs.vocab_size)
    assert (ours.num_hidden_layers, ours.num_attention_heads, ours.num_key_value_heads) == (2, 4, 2)
    assert (twin / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert (twin / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    assert not is_worth_it(base)


def test_it_gets_through_and_leaves_nothing(recipe: Recipe, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert preflight(recipe, load_splits(recipe), threads=1) > 0
    assert sorted(tmp_path.iterdir()) == before


def test_what_would_fail_after_training_stops_the_run_before_it(
    recipe: Recipe, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pre-tokenizer that llama.cpp does not know: without the preflight, known only once the adapter is trained."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr(flow.preflight, "WORTH_IT_BYTES", 1_000_000)
    with pytest.raises(AssayError, match="twin of the model does not get through"):
        run_recipe(recipe, tmp_path / "run", threads=1)
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_model_without_a_twin_goes_on_without_preflight(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An architecture without heads is not known how to make smaller, which says nothing against it."""
    MambaConfig(vocab_size=64).save_pretrained(tmp_path / "mamba")
    model = recipe.model.model_copy(update={"base": str(tmp_path / "mamba")})
    say_preflight(recipe.model_copy(update={"model": model}), load_splits(recipe), device="cpu", threads=1)
    said = capsys.readouterr().err
    assert "no small twin can be made" in said
    assert "the same way" not in said


def test_doctor_tries_a_recipe(recipe: Recipe, base: Path, tmp_path: Path) -> None:
    def doctor() -> tuple[int, dict[str, object]]:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        result = CliRunner(catch_exceptions=False).invoke(doctor_command, ["--recipe", str(path), "--json"])
        return result.exit_code, json.loads(result.stdout)

    code, findings = doctor()
    assert (code, findings["problems"]) == (0, [])
    assert findings["preflight_s"]
    (base / "tokenizer_config.json").unlink()
    (base / "tokenizer.json").unlink()
    code, findings = doctor()
    assert code == 2
    assert "twin" in str(findings["problems"])
