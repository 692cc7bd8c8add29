"""Makes tiny random models, tokenizers and adapters for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = [
    "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free. I will tell Kesto about it.",
    "Summarize the dialogue in a few sentences. Mara asks Olin to move the meeting; they take room 527.",
    "The bus 84 leaves from Tarvo at nine. It costs 315 crowns, said the driver, and nobody answered him.",
]


def save_byte_level(
    folder: Path, steps: list[Any], texts: list[str], *, ignore_merges: bool = False, vocab_size: int = 512
) -> None:
    """A byte-level BPE with the pre-tokenizer steps given, five special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def make_bpe_tokenizer(folder: Path, vocab_size: int = 512) -> None:
    """A byte-level BPE with the Qwen2 pre-tokenizer, five special tokens and a chat template."""
    from tokenizers import Regex, pre_tokenizers

    steps = [
        pre_tokenizers.Split(Regex(QWEN2_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    save_byte_level(folder, steps, TEXT, vocab_size=vocab_size)


def make_llama(
    folder: Path,
    *,
    seed: int = 0,
    tie: bool = True,
    dtype: str = "float16",
    layers: int = 2,
    max_shard_size: str = "1GB",
    tokenizer: Any = make_bpe_tokenizer,
    **config: Any,
) -> Path:
    """A random Llama: hidden and feed-forward 256, 4 heads, 2 key-value heads, context 512."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    tokenizer(folder)
    size = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": size,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": tie,
        "initializer_range": 0.08,
        **config,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is make_bpe_tokenizer:
        (folder / "generation_config.json").write_text(
            json.dumps({"bos_token_id": 0, "eos_token_id": [4, 1], "pad_token_id": 2})
        )
    return folder


def make_adapter(folder: Path, base: Path, *, seed: int = 1, **lora: Any) -> Path:
    """A plain PEFT LoRA adapter on all linear layers whose deltas are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
        **lora,
    }
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
