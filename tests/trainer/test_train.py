"""Training: it learns, says what it did, is repeatable, survives a kill, and refuses what is not its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import contract.cpu
from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.recipe import Recipe
from tests.tiny import write_jsonl
from trainer.checkpoint import MARKER_FILE, complete_checkpoints, work_folder
from trainer.data import Splits, load_splits
from trainer.model import choose_device
from trainer.train import train_adapter

pytestmark = pytest.mark.engine

NAMES = ("Mara", "Olin", "Kesto", "Tarvo", "Vell", "Sunna")
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    start = 0
    for split, count in (("train", 40), ("valid", 6), ("test", 2)):
        write_jsonl(
            folder / f"{split}.jsonl",
            [
                {
                    "id": f"{split}{n}",
                    "dialogue": f"{NAMES[n % 6]}: is room {n} free?\n{NAMES[n % 5]}: yes.",
                    "summary": f"Room {n} is free.",
                }
                for n in range(start, start + count)
            ],
        )
        start += count
    return folder


def make_recipe(base: Path, folder: Path, **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny-test",
            "model": {"base": str(base)},
            "data": {split: str(folder / f"{split}.jsonl") for split in ("train", "valid", "test")},
            "train": {
                "max_steps": STEPS,
                "batch_size": 4,
                "learning_rate": 5e-3,
                "max_length": 128,
                "evaluations": 4,
                "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
                **train,
            },
        }
    )


@pytest.fixture(scope="module")
def recipe(llama_folder: Path, folder: Path) -> Recipe:
    return make_recipe(llama_folder, folder)


@pytest.fixture(scope="module")
def splits(recipe: Recipe) -> Splits:
    return load_splits(recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, splits: Splits) -> Artifact:
    return train_adapter(recipe, splits, tmp_path_factory.mktemp("trained") / "adapter", device="cpu", threads=1)


def losses(artifact: Artifact, key: str) -> list[float]:
    lines = (artifact.path / "measured" / "training_log.jsonl").read_text().splitlines()
    return [row[key] for row in map(json.loads, lines) if key in row]


def test_qlora_learns_and_says_what_it_did(trained: Artifact, llama_folder: Path, splits: Splits) -> None:
    open_artifact(trained.path, verify=True)
    assert losses(trained, "validation_loss")[-1] < losses(trained, "validation_loss")[0] - 0.3
    details = trained.details
    assert details["trained_on"] == {"quant": "nf4", "block_size": 64, "double_quant": True, "compute_dtype": "float32"}
    assert details["validation_loss"] == min(losses(trained, "validation_loss"))
    assert details["supervised_tokens_per_row"]["min"] > 0
    assert 0 < details["trainable_parameters"] < details["total_parameters"]
    assert "lm_head" not in details["lora"]["target_modules"]
    assert details["lora"]["target_modules"] == sorted(details["lora"]["target_modules"])
    base = trained.parent("base")
    assert base is not None
    assert (base.path, base.digest) == (str(llama_folder), open_artifact(llama_folder).digest)
    assert trained.manifest.data_sha256 == splits.sha256
    assert {"peak_rss_bytes", "input_tokens_per_s", "wall_time_s"} <= set(trained.manifest.measurements)
    assert not work_folder(trained.path).exists()
    assert (trained.path / "measured" / "loss.png").read_bytes().startswith(b"\x89PNG")
    listed = {record.path for record in trained.manifest.files}
    assert not {name for name in listed if name.endswith((".bin", ".md", ".pt"))}


def test_anyone_can_load_the_adapter(trained: Artifact, llama_folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    base = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    ids = torch.tensor([[0, 9, 10, 11]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, trained.path)(ids).logits
    assert (before - after).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(trained.path).chat_template.startswith("{{ bos_token }}")
    generation = GenerationConfig.from_pretrained(trained.path)
    assert generation.eos_token_id == [1, 4]  # <|end|>, and <|im_end|>, which closes the turn
    assert generation.pad_token_id == 2


def test_lora_learns_on_plain_weights(tmp_path: Path, llama_folder: Path, folder: Path, splits: Splits) -> None:
    recipe = make_recipe(
        llama_folder,
        folder,
        method="lora",
        max_steps=4,
        accumulation_steps=2,
        evaluations=2,
        gradient_checkpointing=True,
    )
    artifact = train_adapter(recipe, splits, tmp_path / "adapter", device="cpu", threads=1)
    assert artifact.details["trained_on"] == {"quant": "w16", "compute_dtype": "float32"}
    assert losses(artifact, "validation_loss")[-1] < losses(artifact, "validation_loss")[0]
    assert len(losses(artifact, "loss")) == 4


def test_bfloat16_is_computed_in_and_the_adapter_stays_float32(
    tmp_path: Path, llama_folder: Path, folder: Path, splits: Splits
) -> None:
    import torch
    from safetensors.torch import load_file

    recipe = make_recipe(
        llama_folder, folder, max_steps=2, evaluations=2, nf4={"double_quant": False, "compute_dtype": "bfloat16"}
    )
    artifact = train_adapter(recipe, splits, tmp_path / "adapter", device="cpu", threads=1)
    assert artifact.details["trained_on"] == {
        "quant": "nf4",
        "block_size": 64,
        "double_quant": False,
        "compute_dtype": "bfloat16",
    }
    weights = load_file(artifact.path / "adapter_model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert any((weight != weight.bfloat16().float()).any() for weight in weights)  # never rounded to bfloat16


CHILD = """
import sys, time
from pathlib import Path
from contract.recipe import Recipe
from trainer.callbacks import Course
from trainer.data import load_splits
from trainer.train import train_adapter
save = Course.on_save
def save_and_wait(self, *given, **named):  # so that the kill meets a training that is under way, however fast it is
    save(self, *given, **named)
    time.sleep(120)
Course.on_save = save_and_wait
recipe = Recipe.model_validate_json(sys.argv[1])
train_adapter(recipe, load_splits(recipe), Path(sys.argv[2]), device="cpu", threads=1)
"""


def test_killed_and_resumed_gives_the_same_adapter(
    tmp_path: Path, recipe: Recipe, splits: Splits, trained: Artifact
) -> None:
    out = tmp_path / "adapter"
    work = work_folder(out)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, recipe.model_dump_json(), str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not complete_checkpoints(work):
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert not out.exists()

    # a checkpoint with a higher number that was never finished
    newest = complete_checkpoints(work)[-1]
    assert newest.step < STEPS
    half = work / f"checkpoint-{STEPS}"
    shutil.copytree(newest.path, half, dirs_exist_ok=True)
    (half / MARKER_FILE).unlink()
    (half / "adapter_model.safetensors").write_bytes(b"torn")

    with pytest.raises(AssayError, match="unfinished training") as error:
        train_adapter(recipe, splits, out, device="cpu", threads=1)
    assert "--resume" in str(error.value)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(AssayError, match=r"recipe\.train changed"):
        train_adapter(other, splits, out, resume=True, device="cpu", threads=1)

    resumed = train_adapter(recipe, splits, out, resume=True, device="cpu", threads=1)
    assert resumed.manifest.measurements["resumed_at_step"] == newest.step
    assert resumed.digest == trained.digest
    assert resumed.details["validation_loss"] == trained.details["validation_loss"]
    assert losses(resumed, "validation_loss") == losses(trained, "validation_loss")
    assert not work.exists()


def test_refusals_leave_nothing_behind(
    tmp_path: Path, recipe: Recipe, splits: Splits, adapter_folder: Path, trained: Artifact
) -> None:
    def with_train(**update: Any) -> Recipe:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})

    out = tmp_path / "adapter"
    with pytest.raises(AssayError, match="exists already"):
        train_adapter(recipe, splits, trained.path, device="cpu", threads=1)
    on_adapter = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": str(adapter_folder)})})
    with pytest.raises(AssayError, match="not a plain model folder"):
        train_adapter(on_adapter, splits, out, device="cpu", threads=1)
    lora = recipe.train.lora
    for modules, message in ((["lm_head"], "lm_head cannot"), (["nope"], "no module to put an adapter on")):
        with pytest.raises(AssayError, match=message):
            train_adapter(
                with_train(lora=lora.model_copy(update={"target_modules": modules})),
                splits,
                out,
                device="cpu",
                threads=1,
            )
    with pytest.raises(AssayError, match="float16 is not supported"):
        train_adapter(
            with_train(nf4=recipe.train.nf4.model_copy(update={"compute_dtype": "float16"})),
            splits,
            out,
            device="cpu",
            threads=1,
        )
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "dtype", "told"),
    [
        ({"avx2", "fma"}, "bfloat16", True),
        ({"avx2", "fma"}, "float32", False),
        ({"avx512f", "avx512_bf16"}, "bfloat16", False),
        (set(), "bfloat16", False),  # nothing is known
    ],
)
def test_bfloat16_without_instructions_for_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: Recipe,
    llama_folder: Path,
    flags: set[str],
    dtype: str,
    told: bool,
) -> None:
    monkeypatch.setattr(contract.cpu, "read_flags", lambda: ("some processor", flags))
    nf4 = recipe.train.nf4.model_copy(update={"compute_dtype": dtype})
    assert choose_device("cpu", recipe.train.model_copy(update={"nf4": nf4}), llama_folder) == "cpu"
    assert ("no instructions for bfloat16" in capsys.readouterr().err) == told


def test_there_is_no_cuda_to_ask_for(tmp_path: Path, recipe: Recipe, splits: Splits) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(AssayError, match="no CUDA device"):
        train_adapter(recipe, splits, tmp_path / "adapter", device="cuda")
