"""Pretrains a tokenizer and a small Llama from a corpus file.

    python -m trainer.pretrain --corpus corpus.jsonl --out tiny-base [--steps N | --minutes N] [--start MODEL]

With `--steps` the same corpus, seed and number of threads give the same weights; with `--minutes` the clock
decides the number of steps.
"""

import argparse
import contextlib
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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

MUON_LEARNING_RATE = 0.02
ADAMW_LEARNING_RATE = 3e-3
WARMUP = 0.03
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


def schedule(progress: float) -> float:
    """Share of the peak learning rate: linear warmup, then half a cosine; progress runs from 0 to 1."""
    if progress < WARMUP:
        return max(progress, 1e-3) / WARMUP
    after = min((progress - WARMUP) / (1 - WARMUP), 1.0)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * after))


def _optimizers(model: LlamaForCausalLM, peak: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the layers' matrices, AdamW for embeddings and norms.

    With AdamW alone so small a model needs several times the steps until it copies numbers.
    """
    layers = [p for p in model.model.layers.parameters() if p.dim() == 2]
    held = {id(p) for p in layers}
    others = [p for p in model.parameters() if id(p) not in held]
    return [
        torch.optim.Muon(layers, lr=peak * MUON_LEARNING_RATE, weight_decay=0.02),
        torch.optim.AdamW(others, lr=peak * ADAMW_LEARNING_RATE, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def _autocast() -> contextlib.AbstractContextManager[Any]:
    """bf16 where the CPU has it, which is about twice as quick; plain fp32 elsewhere."""
    if torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


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
    if (steps is None) == (minutes is None):
        raise ValueError("give either steps or minutes")
    optimizers = _optimizers(model, 0.5 if again else 1.0)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    rng = random.Random(seed)
    every = batches(rows, batch_tokens, rng)
    short = batches(sorted(rows, key=lambda row: len(row.ids))[: max(1, len(rows) // 5)], batch_tokens, rng)
    short_until = 0.0 if again else SHORT_ROWS_UNTIL
    losses: list[float] = []
    answers: list[float] = []  # the part that copying brings down; names made up on the spot keep the rest high
    model.train()
    start = time.monotonic()
    progress = 0.0
    while progress < 1:
        ids, weights = collate(next(short if progress < short_until else every), model.config.pad_token_id)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * schedule(progress)
        with _autocast():
            logits = model(input_ids=ids).logits
        each = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        counted = weights[:, 1:].flatten()
        loss = (each * counted).sum() / counted.sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        if (counted == ANSWER_WEIGHT).any():
            answers.append(each[counted == ANSWER_WEIGHT].mean().item())
        elapsed = time.monotonic() - start
        progress = len(losses) / steps if steps is not None else elapsed / (60 * (minutes or 1))
        if len(losses) % 20 == 0 or progress >= 1:
            recent, copied = (sum(last) / max(1, len(last)) for last in (losses[-20:], answers[-20:]))
            left = max(0.0, elapsed / progress - elapsed)
            told = f"step {len(losses)}  loss {recent:.3f}  of answers {copied:.3f}"
            print(f"{told}  {elapsed:.0f} s, {left:.0f} s left", file=sys.stderr)
    model.eval()
    return losses


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
    model.half().save_pretrained(folder, safe_serialization=True)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)  # what was written must load


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
    if out.exists():
        raise FileExistsError(f"{out} exists already: remove it or choose another --out")
    shape = shape or Shape()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rows = read_corpus(corpus)
    if start is None:
        tokenizer = train_tokenizer(rows, shape.vocabulary)
        model = new_model(tokenizer, shape)
    else:
        tokenizer = AutoTokenizer.from_pretrained(start)
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
    unfinished = out.with_name(out.name + ".unfinished")
    save(model, tokenizer, unfinished)
    unfinished.rename(out)
    if probe_file is not None:
        asked = read_corpus(probe_file)
        share = probe(model.float(), tokenizer, asked)
        print(f"probe: {100 * share:.1f} % of {len(asked)} answers exactly right")
    return losses


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain a tokenizer and a small Llama from a corpus file.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--steps", type=int, help="default: 2000")
    until.add_argument("--minutes", type=float)
    parser.add_argument("--probe", type=Path, help="questions of unseen names, asked at the end")
    parser.add_argument("--start", type=Path, help="train this model further instead of a new one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    steps = 2000 if args.steps is None and args.minutes is None else args.steps
    pretrain(
        args.corpus,
        args.out,
        steps=steps,
        minutes=args.minutes,
        threads=args.threads,
        seed=args.seed,
        probe_file=args.probe,
        start=args.start,
    )


if __name__ == "__main__":
    main()
