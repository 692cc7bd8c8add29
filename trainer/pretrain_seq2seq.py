"""Pretrains a tokenizer and a small T5 or BART from a corpus file.

    python -m trainer.pretrain_seq2seq t5 --corpus corpus.jsonl --out tiny-t5 [--steps N | --minutes N] [--start MODEL]

With `--steps` the same corpus, seed and number of threads give the same weights; with `--minutes` the clock
decides the number of steps.
"""

import argparse
import math
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from contract.fast_tokenizer import load_fast
from trainer.pretrain_command import add_options, begin, finish, options_of, store
from trainer.pretrain_corpus import batches, read_corpus
from trainer.pretrain_loop import autocast, optimizers, run
from trainer.pretrain_pairs import Pair, bpe_tokenizer, collate_pairs, encode_pairs, pairs, unigram_tokenizer

Family = Literal["t5", "bart"]
SHORT_ROWS_UNTIL = 0.15  # of the training: copying is learned sooner from short rows
BATCH_TOKENS = 4000
MOST_SHIFT = 40
_GENERATION_IDS = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


@dataclass(frozen=True)
class Shape:
    """The dimensions of the model; T5's gated feed-forward has three matrices, BART's has two."""

    hidden: int = 256
    t5_intermediate: int = 512
    bart_intermediate: int = 768
    t5_encoder_layers: int = 3  # no fewer than decoder_layers: transformers sizes the decoder's cache by them
    bart_encoder_layers: int = 2
    decoder_layers: int = 3
    heads: int = 4
    vocabulary: int = 2048
    positions: int = 1024


def new_model(family: Family, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> PreTrainedModel:
    """A T5 (version 1.1: gated, head not tied) or a BART with random weights, without dropout."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "t5":
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=shape.vocabulary,
                d_model=shape.hidden,
                d_kv=shape.hidden // shape.heads,
                d_ff=shape.t5_intermediate,
                num_layers=shape.t5_encoder_layers,
                num_decoder_layers=shape.decoder_layers,
                num_heads=shape.heads,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=tokenizer.pad_token_id,
                n_positions=shape.positions,
                **ids,
            )
        )
        _begin_t5(model)
        return model
    model = BartForConditionalGeneration._from_config(
        BartConfig(
            vocab_size=shape.vocabulary,
            max_position_embeddings=shape.positions,
            d_model=shape.hidden,
            encoder_layers=shape.bart_encoder_layers,
            decoder_layers=shape.decoder_layers,
            encoder_attention_heads=shape.heads,
            decoder_attention_heads=shape.heads,
            encoder_ffn_dim=shape.bart_intermediate,
            decoder_ffn_dim=shape.bart_intermediate,
            dropout=0.0,
            init_std=0.05,  # at the usual 0.02 so narrow a model starts copying later
            bos_token_id=tokenizer.bos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            **ids,
        ),
        attn_implementation="eager",
    )
    model.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    model.generation_config.forced_eos_token_id = tokenizer.eos_token_id
    _begin_bart(model)
    return model


def _begin_t5(model: T5ForConditionalGeneration) -> None:
    """Weights as small as BART's here: with T5's own, so few steps hardly move the embeddings."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                weight.normal_(0.0, 0.5)
                for head, bucket in enumerate((1, 17) if name.startswith("encoder") else (1, 2)):
                    weight[bucket, head % weight.shape[1]] = 6.0  # one before and one behind, or one and two before
            elif weight.dim() == 2:  # scores are not divided by √head_dim, so queries are
                weight.normal_(0.0, 0.05 * (model.config.d_kv**-0.5 if name.endswith(".q.weight") else 1.0))
        model.lm_head.weight.copy_(model.shared.weight)


def _balance(model: PreTrainedModel, share: float) -> None:
    """Queries times `share`, keys divided by it, which changes no score.

    As `_begin_t5` makes them, a T5's queries are √head_dim smaller than its keys. Fine-tuning moves all weights alike,
    and would move those far too much.
    """
    if model.config.model_type == "t5":
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith((".q.weight", ".k.weight")):
                    weight.mul_(share if name.endswith(".q.weight") else 1 / share)


def _even(model: PreTrainedModel) -> float:
    """What `_balance` takes to make queries and keys of one size."""
    return float(getattr(model.config, "d_kv", 1)) ** 0.25


def _begin_bart(model: BartForConditionalGeneration) -> None:
    """Positions begin as sines, and some heads of the first layers turn them to look one before and one behind.

    Copying needs such heads first, and finding them among learned positions takes longer than all the rest.
    """
    hidden = model.config.d_model
    size = hidden // model.config.encoder_attention_heads
    pairs, half = torch.arange(size // 2), hidden // 2  # the quickest sines and their cosines
    with torch.no_grad():
        for side, offsets in ((model.model.encoder, (-1, 1)), (model.model.decoder, (-1,))):
            side.embed_positions.weight.copy_(0.05 * _sines(*side.embed_positions.weight.shape))
            heads = side.layers[0].self_attn
            for head, offset in enumerate(offsets):
                rows = slice(head * size, (head + 1) * size)
                turn = offset * _frequencies(hidden)[pairs]
                sines, cosines = head * size + pairs, head * size + size // 2 + pairs
                heads.k_proj.weight[rows] = heads.q_proj.weight[rows] = 0.0
                heads.k_proj.weight[sines, pairs] = heads.k_proj.weight[cosines, half + pairs] = 3.0
                heads.q_proj.weight[sines, pairs] = heads.q_proj.weight[cosines, half + pairs] = 3.0 * turn.cos()
                heads.q_proj.weight[sines, half + pairs] = 3.0 * turn.sin()
                heads.q_proj.weight[cosines, pairs] = -3.0 * turn.sin()
        model.model.shared.weight[:, torch.cat([pairs, half + pairs])] = 0.0  # nothing but positions there at first


def _frequencies(hidden: int) -> torch.Tensor:
    return torch.exp(torch.arange(0, hidden, 2) * (-math.log(10000.0) / hidden))


def _sines(positions: int, hidden: int) -> torch.Tensor:
    """Vaswani et al. (2017): [positions, hidden] of mean square 1."""
    angles = torch.arange(positions)[:, None] * _frequencies(hidden)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def train(
    model: PreTrainedModel,
    rows: list[Pair],
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
    linear = {
        name: module.weight
        for half in (model.get_encoder(), model.get_decoder())
        for name, module in half.named_modules(prefix=str(id(half)))
        if isinstance(module, torch.nn.Linear)
    }
    # T5 does not divide its scores by √head_dim, so its queries weigh eight times as much
    unscaled = [name for name in linear if name.endswith(".q")]
    rng = random.Random(seed)
    every = batches(rows, batch_tokens, rng)
    short = batches(sorted(rows, key=len)[: max(1, len(rows) // 5)], batch_tokens, rng)
    pad, start = model.config.pad_token_id, model.config.decoder_start_token_id
    # a model that numbers its positions would copy by number, and be lost where nothing stands in its place
    shift = 0 if model.config.model_type == "t5" else MOST_SHIFT

    def batch_at(progress: float) -> dict[str, torch.Tensor]:
        some = next(short if progress < SHORT_ROWS_UNTIL and not again else every)
        return collate_pairs(some, pad, start, [rng.randint(0, shift) if shift else 0 for _ in some])

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
        labels = batch.pop("labels")
        with autocast():
            logits = model(**batch, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        return loss, loss.item()

    trained_by = optimizers(
        model,
        [weight for name, weight in linear.items() if name not in unscaled],
        0.5 if again else 1.0,
        [linear[name] for name in unscaled],
        [weight for name, weight in model.named_parameters() if name.endswith("relative_attention_bias.weight")],
    )
    return run(model, trained_by, batch_at, loss_of, steps=steps, minutes=minutes)


def probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> float:
    """Share of rows whose last message the model, asked greedily, gives back exactly."""
    right = 0
    for row in rows:
        asked, wanted = (message["content"] for message in row["messages"])
        source = tokenizer(asked, return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(source.input_ids, attention_mask=source.attention_mask, max_new_tokens=40)
        right += tokenizer.decode(made[0], skip_special_tokens=True) == wanted
    return right / len(rows)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model in float16 with its tokenizer; the generation settings are greedy."""
    ids = {name: getattr(model.generation_config, name) for name in _GENERATION_IDS}
    model.generation_config = GenerationConfig(**{name: value for name, value in ids.items() if value is not None})
    _balance(model, _even(model))
    store(model, tokenizer, folder)


def pretrain(
    family: Family,
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
    with tempfile.TemporaryDirectory() as scratch:
        if start is not None:
            tokenizer = load_fast(start)
        elif family == "t5":
            tokenizer = unigram_tokenizer(rows, shape.vocabulary, Path(scratch))
        else:
            tokenizer = bpe_tokenizer(rows, shape.vocabulary)
        tokenizer.model_max_length = shape.positions
        model = new_model(family, tokenizer, shape) if start is None else _load(start)
        encoded = encode_pairs(tokenizer, pairs(rows, random.Random(seed)), shape.positions)
        tokens = [sum(len(row.source) for row in encoded), sum(len(row.target) for row in encoded)]
        print(
            f"{model.num_parameters()} parameters, {len(encoded)} rows, {tokens[0]} tokens to read and {tokens[1]} to "
            "write",
            file=sys.stderr,
        )
        losses = train(
            model,
            encoded,
            steps=steps,
            minutes=minutes,
            seed=seed,
            batch_tokens=batch_tokens,
            again=start is not None,
        )
        finish(
            out,
            lambda folder: save(model, tokenizer, folder),
            lambda asked: probe(model.float(), tokenizer, asked),
            probe_file,
        )
    return losses


def _load(folder: Path) -> PreTrainedModel:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    _balance(model, 1 / _even(model))
    return model


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain a tokenizer and a small T5 or BART from a corpus file.")
    parser.add_argument("family", choices=("t5", "bart"))
    add_options(parser)
    args = parser.parse_args()
    pretrain(args.family, args.corpus, args.out, **options_of(args))


if __name__ == "__main__":
    main()
