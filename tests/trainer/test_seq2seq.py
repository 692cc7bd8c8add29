"""Training encoder-decoders: it learns in every way there is, is repeatable, survives a stop, audits its batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.recipe import Recipe
from tests.tiny import write_jsonl
from tests.tiny_seq2seq import make_bart, make_t5
from trainer.checkpoint import work_folder
from trainer.data import Splits, load_splits
from trainer.train import train_adapter

pytestmark = pytest.mark.engine

NAMES = ("Mara", "Olin", "Kesto", "Tarvo", "Vell", "Sunna")
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    start = 0
    for split, count in (("train", 24), ("valid", 4), ("test", 2)):
        rows = [
            {
                "id": f"{split}{n}",
                "dialogue": f"{NAMES[n % 6]}: is room {n} free?\n{NAMES[n % 5]}: yes.",
                "summary": f"Room {n} is free.",
            }
            for n in range(start, start + count)
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
        start += count
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("models") / "t5", dropout_rate=0.0)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bart(tmp_path_factory.mktemp("models") / "bart", beams=True)


def make_recipe(base: Path, folder: Path, **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "pairs",
            "model": {"base": str(base)},
            "prompt": {"user": "summarize: {document}"},
            "data": {split: str(folder / f"{split}.jsonl") for split in ("train", "valid", "test")},
            "train": {
                "max_steps": STEPS,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "max_length": 96,
                "max_target_length": 48,
                "evaluations": 2,
                "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
                **train,
            },
        }
    )


@pytest.fixture(scope="module")
def recipe(t5: Path, folder: Path) -> Recipe:
    return make_recipe(t5, folder)


@pytest.fixture(scope="module")
def splits(recipe: Recipe) -> Splits:
    return load_splits(recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, splits: Splits) -> Artifact:
    return train_adapter(recipe, splits, tmp_path_factory.mktemp("trained") / "adapter", device="cpu", threads=1)


def losses(artifact: Artifact, key: str) -> list[float]:
    lines = (artifact.path / "measured" / "training_log.jsonl").read_text().splitlines()
    return [row[key] for row in map(json.loads, lines) if key in row]


def test_qlora_teaches_t5_and_says_what_it_did(trained: Artifact, t5: Path, splits: Splits) -> None:
    open_artifact(trained.path, verify=True)
    assert trained.kind == "adapter"
    assert losses(trained, "validation_loss")[-1] < losses(trained, "validation_loss")[0] - 0.3
    details = trained.details
    assert details["trained_on"] == {"quant": "nf4", "block_size": 64, "double_quant": True, "compute_dtype": "float32"}
    assert details["lora"]["target_modules"] == ["k", "o", "q", "v", "wi_0", "wi_1", "wo"]
    assert details["stop_ids"] == [1]
    assert details["prompt"]["user"] == "summarize: {document}"
    assert not details["plain_template"]
    assert trained.manifest.data_sha256 == splits.sha256
    config = json.loads((trained.path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert not (trained.path / "chat_template.jinja").exists()
    assert json.loads((trained.path / "generation_config.json").read_text())["decoder_start_token_id"] == 0
    assert (trained.path / "spiece.model").read_bytes() == (t5 / "spiece.model").read_bytes()


def test_anyone_can_load_the_adapter(trained: Artifact, t5: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    base = AutoModelForSeq2SeqLM.from_pretrained(t5, dtype=torch.float32)
    inputs = {"input_ids": torch.tensor([[9, 10, 11, 1]]), "decoder_input_ids": torch.tensor([[0, 9]])}
    with torch.no_grad():
        before = base(**inputs).logits
        after = PeftModel.from_pretrained(base, trained.path)(**inputs).logits
    assert (before - after).abs().max() > 1e-3


def test_the_logged_loss_is_nats_per_target_token(tmp_path: Path, t5: Path, folder: Path, splits: Splits) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from trainer.rows import encoder_of
    from trainer.tokenize import encode_rows, load_tokenizer

    recipe = make_recipe(
        t5, folder, method="lora", max_steps=1, evaluations=1, batch_size=12, accumulation_steps=2, learning_rate=1e-4
    )
    artifact = train_adapter(recipe, splits, tmp_path / "adapter", device="cpu", threads=1)
    rows: Any = encode_rows(encoder_of(t5, recipe, load_tokenizer(t5)), splits.train)
    model = AutoModelForSeq2SeqLM.from_pretrained(t5, dtype=torch.float32).eval()
    nats = tokens = 0.0
    for row in rows:  # the adapter begins as nothing, so the first loss is the base's
        fed, wanted = torch.tensor([[0, *row.target[:-1]]]), torch.tensor(row.target)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.source]), decoder_input_ids=fed).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        tokens += len(row.target)
    assert losses(artifact, "loss")[0] == pytest.approx(nats / tokens, rel=1e-3)


def test_lora_with_gradient_checkpointing_teaches_bart(
    tmp_path: Path, bart: Path, folder: Path, splits: Splits
) -> None:
    from safetensors.torch import load_file

    recipe = make_recipe(bart, folder, method="lora", gradient_checkpointing=True, accumulation_steps=2)
    artifact = train_adapter(recipe, splits, tmp_path / "adapter", device="cpu", threads=1)
    assert artifact.details["trained_on"] == {"quant": "w16", "compute_dtype": "float32"}
    assert losses(artifact, "validation_loss")[-1] < losses(artifact, "validation_loss")[0]
    settings = json.loads((artifact.path / "generation_config.json").read_text())
    assert (settings["decoder_start_token_id"], settings["forced_bos_token_id"], settings["num_beams"]) == (2, 0, 4)
    weights = load_file(artifact.path / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in weights.items() if "encoder.layers.0" in name and "lora_B" in name)


def test_full_trains_every_weight_of_bart(tmp_path: Path, bart: Path, folder: Path, splits: Splits) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, GenerationConfig

    recipe = make_recipe(bart, folder, method="full", learning_rate=2e-3)
    artifact = train_adapter(recipe, splits, tmp_path / "model", device="cpu", threads=1)
    assert (artifact.kind, artifact.details["dtype"]) == ("merged", "float16")
    assert artifact.details["trainable_parameters"] == artifact.details["total_parameters"]
    assert losses(artifact, "validation_loss")[-1] < losses(artifact, "validation_loss")[0]
    model, found = AutoModelForSeq2SeqLM.from_pretrained(artifact.path, dtype="auto", output_loading_info=True)
    assert model.dtype == torch.float16
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    before = AutoModelForSeq2SeqLM.from_pretrained(bart, dtype=torch.float32).state_dict()
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name].half())]
    assert not [name for name in same if name.endswith("_proj.weight")]
    assert GenerationConfig.from_pretrained(artifact.path).num_beams == 4
    parent = artifact.parent("base")
    assert parent is not None
    assert parent.digest == open_artifact(bart).digest


def test_full_trains_a_causal_model_too(tmp_path: Path, llama_folder: Path, folder: Path, splits: Splits) -> None:
    from transformers import AutoModelForCausalLM

    recipe = make_recipe(
        llama_folder, folder, method="full", learning_rate=1e-3, max_steps=2, evaluations=1, max_length=128
    )
    artifact = train_adapter(recipe, splits, tmp_path / "model", device="cpu", threads=1)
    assert artifact.kind == "merged"
    assert (artifact.path / "chat_template.jinja").is_file()
    AutoModelForCausalLM.from_pretrained(artifact.path)
    assert losses(artifact, "validation_loss")[0] < losses(artifact, "loss")[0]


def test_full_refuses_weights_that_do_not_fit_the_stored_dtype(tmp_path: Path, bart: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from trainer.adapter_folder import write_model

    for value, message in ((1e5, "do not fit into float16"), (float("nan"), "not finite")):
        save_file({"a": torch.tensor([1.0, value])}, tmp_path / "model.safetensors")
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(AssayError, match=message):
            write_model(tmp_path / "out", tmp_path, bart, "float16")


@pytest.mark.parametrize("changed", [{}, {"method": "full", "optimizer": "muon", "learning_rate": 2e-3}])
def test_stopped_and_resumed_gives_the_same(
    changed: dict[str, Any],
    tmp_path: Path,
    t5: Path,
    folder: Path,
    splits: Splits,
    trained: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trainer.callbacks import Course

    save = Course.on_save

    def save_and_stop(self: Course, *given: Any, **named: Any) -> None:
        save(self, *given, **named)
        raise KeyboardInterrupt

    recipe = make_recipe(t5, folder, **changed)
    if changed:
        trained = train_adapter(recipe, splits, tmp_path / "whole", device="cpu", threads=1)
        assert losses(trained, "validation_loss")[-1] < losses(trained, "loss")[0]
    out = tmp_path / "adapter"
    monkeypatch.setattr(Course, "on_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_adapter(recipe, splits, out, device="cpu", threads=1)
    monkeypatch.undo()
    assert not out.exists()
    resumed = train_adapter(recipe, splits, out, resume=True, device="cpu", threads=1)
    assert resumed.manifest.measurements["resumed_at_step"] == STEPS // 2
    assert resumed.digest == trained.digest
    assert losses(resumed, "validation_loss") == losses(trained, "validation_loss")
    assert not work_folder(out).exists()


def test_another_seed_gives_another_adapter(
    tmp_path: Path, t5: Path, folder: Path, splits: Splits, trained: Artifact
) -> None:
    other = train_adapter(make_recipe(t5, folder, seed=1), splits, tmp_path / "adapter", device="cpu", threads=1)
    assert other.digest != trained.digest


def test_t5_is_not_trained_in_float16(tmp_path: Path, t5: Path, bart: Path, folder: Path, splits: Splits) -> None:
    half = {"nf4": {"compute_dtype": "float16"}}
    with pytest.raises(AssayError, match="beyond what float16 holds") as error:
        train_adapter(make_recipe(t5, folder, **half), splits, tmp_path / "a", device="cpu", threads=1)
    assert "bfloat16" in str(error.value)
    with pytest.raises(AssayError, match="CPU in float16"):
        train_adapter(make_recipe(bart, folder, **half), splits, tmp_path / "a", device="cpu", threads=1)
    assert not (tmp_path / "a").exists()


def test_the_first_batch_is_audited(tmp_path: Path, bart: Path, folder: Path, splits: Splits) -> None:
    from transformers import TrainerCallback

    from trainer.model import load_base, trainable
    from trainer.rows import encoder_of
    from trainer.seq2seq import audit_batch, make_config, make_trainer
    from trainer.tokenize import encode_rows, load_tokenizer

    recipe = make_recipe(bart, folder, method="lora")
    tokenizer = load_tokenizer(bart)
    rows: Any = encode_rows(encoder_of(bart, recipe, tokenizer), splits.train)[:4]
    rows[1] = replace(rows[1], source=[*rows[1].source[:-6], 2])  # so that something is padded
    config = make_config(recipe.train, tmp_path, "cpu", 2, 1)
    model = trainable(load_base(bart, recipe, "cpu"), recipe)
    trainer = make_trainer(model, config, rows, tokenizer, TrainerCallback(), [2])
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] == -100).any() == (len({len(row.target) for row in rows}) > 1)
    assert batch["attention_mask"][1, -1] == 0
    for damaged, start, stops, message in (
        ([replace(row, source=[0, 5, *row.source[2:]]) for row in rows], 2, [2], "other ids"),
        ([replace(row, source=row.source[:-1]) for row in rows], 2, [2], "source from padding"),
        ([replace(row, target=[0, 5, *row.target[2:]]) for row in rows], 2, [2], "labels are not its summary"),
        ([replace(row, target=row.target[:-1]) for row in rows], 2, [2], "labels are not its summary"),
        (rows, 0, [2], "the decoder is not fed its start"),
        (rows, 2, [3], "no stop token"),
        (rows[:3], 2, [2], "4 rows instead of 3"),
    ):
        with pytest.raises(AssayError, match=message):
            audit_batch(trainer, damaged, stops, start)


def test_the_length_report_measures_pairs(recipe: Recipe, splits: Splits) -> None:
    from contract.sample_size import recipe_sample
    from trainer.lengths import length_report
    from trainer.report import data_text

    report = length_report(recipe, splits)
    assert report.template_tokens > 1  # "summarize:" and </s>
    assert report.splits["train"].rows == 24
    assert not report.splits["train"].refused
    tight = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_target_length": 5})})
    refused = length_report(tight, splits)
    assert len(refused.splits["train"].refused) == 24
    assert "refused: 24 row(s)" in data_text(splits, refused, recipe_sample(tight, 24))
