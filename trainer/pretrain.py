"""Pretrains a tokenizer and a small Llama from a corpus file.

    python -m trainer.pretrain --corpus corpus.jsonl --out tiny-base [--steps N | --minutes N] [--start MODEL]

With `--steps` the same corpus, seed and number of threads give the same weights; with `--minutes` the clock
decides the number of steps.
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from contract.fast_tokenizer import load_fast
from trainer.pretrain_command import add_options, begin, finish, options_of, store
from trainer.pretrain_corpus import (
    ANSWER_WEIGHT,
    END,
    START,
    Encoded,
    batches,
    collate,
    encode,
    read_corpus,
    render,
    train_tokenizer,
)
from trainer.pretrain_loop import autocast, optimizers, run

SHORT_ROWS_UNTIL = 0.12  # of the training: copying is learned sooner from short rows
BATCH_TOKENS = 4000


@dataclass(frozen=True)
class Shape:
    """The dimensions of the model."""

    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 2048
    positions: int = 2048


def new_model(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        initializer_range=0.05,  # at the usual 0.02 so narrow a model starts copying later
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    rows: list[Encoded],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    again: bool = False,
) -> list[float]:
    """Train in place until the steps or the minutes are used up; returns the loss of each step.

    `again` says that the model has been trained before: half the learning rate, and no short rows first.
    """
    layers = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rng = random.Random(seed)
    every = batches(rows, batch_tokens, rng)
    short = batches(sorted(rows, key=len)[: max(1, len(rows) // 5)], batch_tokens, rng)
    short_until = 0.0 if again else SHORT_ROWS_UNTIL

    def batch_at(progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        return collate(next(short if progress < short_until else every), model.config.pad_token_id)

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, float | None]:
        ids, weights = batch
        with autocast():
            logits = model(input_ids=ids).logits
        each = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        counted = weights[:, 1:].flatten()
        answers = each[counted == ANSWER_WEIGHT]
        return (each * counted).sum() / counted.sum(), answers.mean().item() if len(answers) else None

    return run(model, optimizers(model, layers, 0.5 if again else 1.0), batch_at, loss_of, steps=steps, minutes=minutes)


def probe(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> float:
    """Share of rows whose last message the model, asked greedily, gives back exactly."""
    right = 0
    for row in rows:
        *asked, wanted = row["messages"]
        prompt, _ = render({"messages": asked})
        ids = torch.tensor([tokenizer(f"{prompt}{START}assistant\n", add_special_tokens=False).input_ids])
        end = tokenizer.convert_tokens_to_ids(END)
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, eos_token_id=end
            )
        right += tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) == wanted["content"]
    return right / len(rows)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in float16 with its tokenizer and generation settings."""
    ends = [tokenizer.convert_tokens_to_ids(END), tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    store(model, tokenizer, folder)


def pretrain(
    corpus: Path,
    out: Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    threads: int = 2,
    seed: int = 0,
    shape: Shape | None = None,
    batch_tokens: int = BATCH_TOKENS,
    probe_file: Path | None = None,
    start: Path | None = None,
) -> list[float]:
    """Tokenizer, training, saving; `out` appears only when all is done. Returns the loss of each step."""
    begin(out, threads, seed)
    shape = shape or Shape()
    rows = read_corpus(corpus)
    if start is None:
        tokenizer = train_tokenizer(rows, shape.vocabulary)
        model = new_model(tokenizer, shape)
    else:
        tokenizer = load_fast(start)
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    encoded = encode(tokenizer, rows, shape.positions)
    tokens = sum(len(row.ids) for row in encoded)
    print(
        f"{model.num_parameters()} parameters, {len(rows)} rows, {tokens} tokens",
        file=sys.stderr,
    )
    losses = train(
        model, encoded, steps=steps, minutes=minutes, seed=seed, batch_tokens=batch_tokens, again=start is not None
    )
    finish(
        out,
        lambda folder: save(model, tokenizer, folder),
        lambda asked: probe(model.float(), tokenizer, asked),
        probe_file,
    )
    return losses


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain a tokenizer and a small Llama from a corpus file.")
    add_options(parser)
    args = parser.parse_args()
    pretrain(args.corpus, args.out, **options_of(args))


if __name__ == "__main__":
    main()
