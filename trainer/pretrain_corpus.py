"""Reads a pretraining corpus: trains its tokenizer, encodes its rows, cuts them into batches.

Rows are {"text": ...} or {"messages": [{"role", "content"}, ...]}.
"""

import json
import random
from array import array
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, START, END = SPECIAL = ("<|begin|>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
# Qwen2's split, which llama.cpp knows as "qwen2": every digit stands alone, so numbers are copied by digit.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ANSWER_WEIGHT = 4.0  # of an answer's tokens; all others count 1
WINDOW = 40  # batches sorted by length at a time, so that little is padding

Row = TypeVar("Row", bound=Sized)


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row and the weight of each in the loss; arrays, as a corpus has millions."""

    ids: "array[int]"
    weights: "array[float]"

    def __len__(self) -> int:
        return len(self.ids)


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """All rows; raises ValueError naming the line that is not as described above."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if "text" not in row and "messages" not in row:
            raise ValueError(f"{path}:{number}: expected `text` or `messages`, got {sorted(row)}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def render(row: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """The row as one string, and the spans of it that are answers (with their end of turn)."""
    if "text" in row:
        return f"{BOS}{row['text']}{EOS}", []
    text, spans = BOS, []
    for message in row["messages"]:
        text += f"{START}{message['role']}\n"
        begin = len(text)
        text += message["content"] + END
        if message["role"] == "assistant":
            spans.append((begin, len(text)))
        text += "\n"
    return text, spans


def words(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The bare text of every row."""
    return (row.get("text") or "\n".join(message["content"] for message in row["messages"]) for row in rows)


def byte_level_bpe(texts: Iterator[str], vocabulary: int, special: tuple[str, ...]) -> Tokenizer:
    """A byte-level BPE without normalizer, every digit alone; the special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(
            f"the corpus yields a vocabulary of {tokenizer.get_vocab_size()}, wanted {vocabulary}: "
            "give a larger corpus or a smaller vocabulary"
        )
    return tokenizer


def train_tokenizer(rows: list[dict[str, Any]], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts BOS first, with a chat template."""
    tokenizer = byte_level_bpe(words(rows), vocabulary, SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[START, END],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], longest: int) -> list[Encoded]:
    """Token ids and weights; raises ValueError for a row longer than the model's positions."""
    rendered = [render(row) for row in rows]
    encodings = tokenizer.backend_tokenizer.encode_batch([text for text, _ in rendered], add_special_tokens=False)
    found = []
    for number, (encoding, (_, spans)) in enumerate(zip(encodings, rendered, strict=True)):
        if len(encoding.ids) > longest:
            raise ValueError(f"row {number} has {len(encoding.ids)} tokens, at most {longest} fit")
        inside = [any(begin <= at < end for begin, end in spans) for at, _ in encoding.offsets]
        weights = array("f", (ANSWER_WEIGHT if answer else 1.0 for answer in inside))
        found.append(Encoded(array("H", encoding.ids), weights))
    return found


def batches(rows: list[Row], budget: int, rng: random.Random) -> Iterator[list[Row]]:
    """Endless batches of similar lengths, at most `budget` tokens with padding, in random order."""
    while True:
        order = rng.sample(rows, len(rows))
        size = max(1, budget // max(1, sum(len(row) for row in rows) // len(rows))) * WINDOW
        for start in range(0, len(order), size):
            window = sorted(order[start : start + size], key=lambda row: len(row))
            made: list[list[Row]] = [[]]
            for row in window:
                if made[-1] and len(row) * (len(made[-1]) + 1) > budget:
                    made.append([])
                made[-1].append(row)
            rng.shuffle(made)
            yield from made


def collate(rows: list[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, longest) ids and weights, padded on the right with weight 0."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    weights = torch.zeros(len(rows), longest)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        weights[number, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights
