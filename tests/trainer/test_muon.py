"""Muon and AdamW as one optimizer: each part moves weights as torch's own does, and stops and goes on."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, GPT2LMHeadModel

from contract.errors import AssayError
from contract.recipe import Recipe, load_recipe
from tests.tiny import make_llama
from tests.tiny_seq2seq import make_t5
from trainer.muon import Muon, muon_of, orthogonalized

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("shape", [(48, 48), (24, 96), (96, 24)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(0, -1, shape[1])
    made = orthogonalized(matrix)
    assert made.shape == shape
    values = torch.linalg.svdvals(made)
    assert 0.5 < values.min() <= values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    cosine = (made * (left @ right)).sum() / made.norm() / (left @ right).norm()
    assert cosine > 0.97  # the nearest orthogonal matrix


def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(32, 64)), torch.nn.Parameter(torch.randn(64))]


def steps(optimizer: torch.optim.Optimizer, given: list[torch.nn.Parameter], count: int, seed: int = 2) -> None:
    torch.manual_seed(seed)
    for _ in range(count):
        for weight in given:
            weight.grad = torch.randn_like(weight)
        optimizer.step()


def test_each_part_moves_weights_as_torchs_own_does() -> None:
    ours, theirs = weights(), weights()
    one = Muon([{"params": ours[:1], "matrices": True}, {"params": ours[1:]}], lr=1e-2, weight_decay=0.1)
    steps(one, ours, 5)
    muon = torch.optim.Muon(theirs[:1], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[1:], lr=1e-2, weight_decay=0.1)
    torch.manual_seed(2)
    for _ in range(5):
        for weight in theirs:
            weight.grad = torch.randn_like(weight)
        muon.step()
        adamw.step()
    start = weights()
    moved = (theirs[0] - start[0]).norm()
    assert (ours[0] - theirs[0]).norm() < 0.02 * moved  # torch's is computed in bfloat16
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-6)


def test_its_state_is_kept_and_goes_on() -> None:
    whole, stopped = weights(), weights()

    def made(given: list[torch.nn.Parameter]) -> Muon:
        return Muon([{"params": given[:1], "matrices": True}, {"params": given[1:]}], lr=1e-2, weight_decay=0.0)

    steps(made(whole), whole, 3)
    first = made(stopped)
    torch.manual_seed(2)
    for number in range(3):
        for weight in stopped:
            weight.grad = torch.randn_like(weight)
        if number == 2:
            again = made(stopped)
            again.load_state_dict(copy.deepcopy(first.state_dict()))
            first = again
        first.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, stopped, strict=True))


def test_it_takes_every_weight_once_and_the_layers_matrices_by_muon(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_llama(tmp_path / "llama"))
    taken = muon_of(model, 1e-3, 0.0)
    found = [weight for group in taken.param_groups for weight in group["params"]]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))
    by_muon = {id(weight) for group in taken.param_groups if group["matrices"] for weight in group["params"]}
    names = {name for name, weight in model.named_parameters() if id(weight) in by_muon}
    assert names == {name for name, weight in model.named_parameters() if "proj" in name}


def test_what_decays_is_what_decays_with_adamw() -> None:
    from transformers import Trainer

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    taken = muon_of(model, 1e-3, 0.1)
    decaying = {id(weight) for group in taken.param_groups if group["weight_decay"] for weight in group["params"]}
    names = {name for name, weight in model.named_parameters() if id(weight) in decaying}
    assert names == set(Trainer.get_decay_parameter_names(None, model)) & dict(model.named_parameters()).keys()  # type: ignore[arg-type]
    start = model.transformer.ln_f.weight.detach().clone()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    taken.step()
    assert torch.equal(model.transformer.ln_f.weight, start)


def test_gpt2s_layers_are_matrices_too() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    by_muon = muon_of(model, 1e-3, 0.0).param_groups[0]["params"]
    assert sorted(weight.shape for weight in by_muon) == [(8, 8), (8, 24), (8, 32), (32, 8)]


def test_t5s_queries_and_keys_move_less(tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(make_t5(tmp_path / "t5"))
    gentle = muon_of(model, 1e-3, 0.0).param_groups[-1]
    names = {
        name.split(".")[-2] for name, weight in model.named_parameters() if any(weight is w for w in gentle["params"])
    }
    assert names == {"q", "k"}
    assert gentle["lr"] == pytest.approx(1e-3 * model.config.d_kv**-0.25)


def test_an_adapter_is_not_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer: muon goes with method: full, not with lora"):
        Recipe.model_validate({"name": "x", "model": {"base": "b"}, "train": {"method": "lora", "optimizer": "muon"}})
    (tmp_path / "r.yaml").write_text("name: x\nmodel: {base: b}\ntrain: {optimizer: muon}\n")
    with pytest.raises(AssayError, match="muon goes with method: full, not with qlora"):
        load_recipe(tmp_path / "r.yaml")
