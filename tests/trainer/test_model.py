"""The model in training: NF4 weights as everyone computes them, float32 adapters, batches as they were prepared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.errors import AssayError
from contract.prompt import PromptSpec
from contract.recipe import Recipe
from trainer.adapter_folder import write_adapter
from trainer.loss import labelled, summed_nll, validation_loss
from trainer.model import add_lora, load_base
from trainer.parts import parts_of
from trainer.tokenize import TokenRow, load_tokenizer, make_encoder

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def recipe(llama_folder: Path) -> Recipe:
    return Recipe.model_validate({"name": "t", "model": {"base": str(llama_folder)}, "train": {"batch_size": 2}})


@pytest.fixture(scope="module")
def rows(llama_folder: Path) -> list[TokenRow]:
    encoder = make_encoder(llama_folder, PromptSpec(), 128, load_tokenizer(llama_folder))
    return [encoder.row(str(n), "Mara: hello. " * (n + 1), f"Mara says hello {n}.") for n in range(4)]


@pytest.fixture
def model(llama_folder: Path, recipe: Recipe) -> Any:
    import torch

    torch.set_num_threads(1)  # so small a model gains nothing from a second one
    return add_lora(load_base(llama_folder, recipe, "cpu"), recipe)


def collate(rows: list[dict[str, Any]]) -> Any:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=2)(rows)


def test_the_weights_trained_on_are_the_nf4_weights_of_the_stored_ones(llama_folder: Path, recipe: Recipe) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from bitsandbytes.nn import Linear4bit
    from safetensors.torch import load_file

    stored = load_file(llama_folder / "model.safetensors")
    model = load_base(llama_folder, recipe, "cpu")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(linears) == 2 * 7
    for name, module in linears.items():
        ours = dequantize_4bit(module.weight.data, module.weight.quant_state)
        theirs = dequantize_4bit(
            *quantize_4bit(stored[f"{name}.weight"].float(), quant_type="nf4", blocksize=64, compress_statistics=True)
        )
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    assert not isinstance(model.lm_head, Linear4bit)


def test_validation_changes_nothing_and_gradients_still_pass(model: Any, rows: list[TokenRow]) -> None:
    batch = collate([labelled(row) for row in rows])
    tokens = sum(row.supervised_tokens for row in rows)
    model.train()
    before = summed_nll(model, batch)
    validated = validation_loss(
        model,
        rows,
        lambda some: collate([labelled(row) for row in some]),
        lambda model, batch: summed_nll(model, batch),
        "cpu",
    )
    assert model.training
    assert validated == pytest.approx(before.item() / tokens, rel=1e-5)  # float32 on both sides, not bfloat16
    after = summed_nll(model, batch)
    after.backward()
    assert after.item() == before.item()
    first = [p for name, p in model.named_parameters() if "layers.0.self_attn.q_proj.lora_B" in name]
    assert first[0].grad.abs().max() > 0


def plain_nll(model: Any, batch: Any) -> Any:
    """As anyone would write it: logits everywhere, and those that count are picked by the loss."""
    import torch

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


def gradients(model: Any, losses: Any) -> dict[str, Any]:
    """Of the sum of `losses`, by the adapter's parameters."""
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_logits_of_learned_positions_alone_leave_loss_and_gradients_as_they_are(
    model: Any, rows: list[TokenRow]
) -> None:
    import torch

    batch = collate([labelled(row) for row in rows])
    ours, plain = summed_nll(model, batch), plain_nll(model, batch)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    got, expected = gradients(model, [ours]), gradients(model, [plain])
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), name
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape  # the head is as it was


def test_parts_of_a_batch_add_up_to_it(model: Any, rows: list[TokenRow]) -> None:
    import torch

    batch = collate([labelled(row) for row in rows])
    lengths = sorted(row.tokens for row in rows)
    parts = parts_of(batch, most_tokens=2 * lengths[1])
    assert len(parts) > 1
    assert sorted(length for part in parts for length in part["attention_mask"].sum(1).tolist()) == lengths
    for part in parts:
        assert part["input_ids"].shape[1] == part["attention_mask"].sum(1).max()
        assert len(part["input_ids"]) == 1 or part["input_ids"].numel() <= 2 * lengths[1]
    together, apart = [summed_nll(model, batch)], [summed_nll(model, part) for part in parts]
    assert sum(loss.item() for loss in apart) == pytest.approx(together[0].item(), rel=1e-6)
    got, expected = gradients(model, apart), gradients(model, together)
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item()), name


def test_the_batch_is_audited_and_the_adapter_stays_float32(
    tmp_path: Path, recipe: Recipe, model: Any, rows: list[TokenRow], llama_folder: Path
) -> None:
    import torch
    from transformers import TrainerCallback

    from trainer.sft import audit_batch, make_config, make_trainer

    config = make_config(recipe.train, tmp_path, "cpu", 2, 1)
    trainer = make_trainer(model, config, rows, load_tokenizer(llama_folder), TrainerCallback(), [1, 4])
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    for damaged, message in (
        ([replace(row, prompt_tokens=row.prompt_tokens - 1) for row in rows], "labels are not its completion"),
        ([replace(row, input_ids=[5, *row.input_ids[1:]]) for row in rows], "other ids"),
        (rows[:3], "4 rows instead of 3"),
    ):
        with pytest.raises(AssayError, match=message):
            audit_batch(trainer, damaged, [1, 4])
    with pytest.raises(AssayError, match="no stop token in the labels"):
        audit_batch(trainer, rows, [1])


def test_adapters_that_learned_nothing_or_broke_are_refused(tmp_path: Path, model: Any) -> None:
    import torch

    model.save_pretrained(tmp_path / "untrained")
    with pytest.raises(AssayError, match="learned nothing"):
        write_adapter(tmp_path, tmp_path / "untrained", "base", None)
    next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(AssayError, match="not finite"):
        write_adapter(tmp_path, tmp_path / "broken", "base", None)
