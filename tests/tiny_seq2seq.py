"""Makes tiny random encoder-decoder models, their tokenizers and adapters for tests."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.tiny import TEXT

_DIALOGUES = Path(__file__).parents[1] / "assets" / "dialogues" / "valid.jsonl"
_BART_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_BEAMS = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3, "max_length": 128}


@cache
def _texts() -> tuple[str, ...]:
    """Lines to make vocabularies of."""
    lines = _DIALOGUES.read_text(encoding="utf-8").splitlines()[:40]
    return (*TEXT, *(json.loads(line)["dialogue"] for line in lines))


@cache
def _sentencepiece(vocab_size: int) -> bytes:
    """A Unigram model with T5's <pad> </s> <unk> as its first ids and its normalizer."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in _texts() for line in text.splitlines()]),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_t5_tokenizer(folder: Path, vocab_size: int = 384) -> int:
    """A Unigram tokenizer that closes a text with </s>, as spiece.model and tokenizer.json; returns its ids' number."""
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(_sentencepiece(vocab_size - 8))
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=8)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@cache
def _merges(vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(_texts(), vocab_size - 1, special_tokens=list(_BART_SPECIAL), show_progress=False)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def make_bart_tokenizer(folder: Path, vocab_size: int = 384) -> int:
    """A byte-level BPE that puts a text between <s> and </s>; returns the number of its ids."""
    from transformers import BartTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = _merges(vocab_size)
    (folder / "vocab.json").write_text(json.dumps({**vocab, "<mask>": len(vocab)}))
    (folder / "merges.txt").write_text("".join(f"{left} {right}\n" for left, right in merges))
    tokenizer = BartTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _save(model: Any, folder: Path, dtype: str, generation: dict[str, Any], legacy: bool) -> Path:
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(**generation)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if legacy:
        (folder / "generation_config.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | generation, indent=2))
    return folder


def make_t5(
    folder: Path,
    *,
    family: str = "T5",
    v1_1: bool = True,
    seed: int = 0,
    dtype: str = "float32",
    beams: bool = False,
    legacy: bool = False,
    vocab_size: int = 384,
    **config: Any,
) -> Path:
    """A random T5: width 64, feed-forward 128, 4 heads of 16, two layers on each side.

    Args:
        folder: to be made.
        family: its class's stem in transformers: T5, MT5 or UMT5.
        v1_1: gated GELU and a head of its own; else ReLU and a head tied to the embeddings, as in T5 1.0.
        seed: of the weights.
        dtype: stored dtype.
        beams: generation settings with beams, length penalty, early stopping and no repeated n-grams.
        legacy: generation settings stand in config.json, as folders from before 2023 have them.
        vocab_size: of the tokenizer; the model has a few rows more, as T5 has.
        **config: further T5Config settings.
    """
    import torch
    import transformers

    tokens = make_t5_tokenizer(folder, vocab_size)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": tokens + 8,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu" if v1_1 else "relu",
        "tie_word_embeddings": not v1_1,
        "n_positions": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        **config,
    }
    made = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(made)
    if not settings["tie_word_embeddings"]:  # transformers 5 ties what it makes anew
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    with torch.no_grad():
        model.shared.weight *= 1.0 if v1_1 else 0.2
        model.decoder.final_layer_norm.weight *= 0.4 if v1_1 else 15.0
        model.lm_head.weight[1] *= 1.7 if v1_1 else 2.2
    _liven(model, 3.0)
    generation = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, **(_BEAMS if beams else {})}
    return _save(model, folder, dtype, generation, legacy)


def make_bart(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    beams: bool = False,
    forced_bos: bool = True,
    legacy: bool = False,
    vocab_size: int = 384,
    **config: Any,
) -> Path:
    """A random BART: width 64, feed-forward 128, 4 heads, two layers on each side, 512 positions.

    Args:
        folder: to be made.
        seed: of the weights.
        dtype: stored dtype.
        beams: generation settings with beams, length penalty, early stopping and no repeated n-grams.
        forced_bos: is the first token forced to be <s>, as in bart-large-cnn?
        legacy: generation settings stand in config.json, as folders from before 2023 have them.
        vocab_size: of tokenizer and model.
        **config: further BartConfig settings.
    """
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    tokens = make_bart_tokenizer(folder, vocab_size)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": tokens,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "max_position_embeddings": 512,
        "init_std": 0.15,
        **config,
    }
    model = BartForConditionalGeneration(BartConfig(**settings))
    model.final_logits_bias.copy_(0.3 * torch.randn(1, tokens))
    model.final_logits_bias[0, 2] += 2.0
    _liven(model, 2.0)
    generation = {
        "decoder_start_token_id": 2,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "forced_eos_token_id": 2,
        **({"forced_bos_token_id": 0} if forced_bos else {}),
        **(_BEAMS if beams else {}),
    }
    return _save(model, folder, dtype, generation, legacy)


def _liven(model: Any, sharper: float) -> None:
    """Make what is written depend on what is read: attention that chooses, and no constant from the feed-forward."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith((".q.weight", "q_proj.weight")):
                weight *= sharper
            elif name.endswith((".wo.weight", "fc2.weight")):
                weight -= weight.mean(1, keepdim=True)


def make_adapter_seq2seq(folder: Path, base: Path, *, seed: int = 1, **lora: Any) -> Path:
    """A plain PEFT LoRA adapter on all linear layers of an encoder-decoder model, its deltas not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "SEQ_2_SEQ_LM",
        "init_lora_weights": False,
        **lora,
    }
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(folder)
    return folder
