"""Reads a pretraining corpus as pairs for encoder-decoders: trains their tokenizers, encodes, collates.

The encoder reads what the user says, the decoder writes what the assistant answers, turn by turn.
"""

import io
import random
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Tokenizer

from trainer.pretrain_corpus import byte_level_bpe, words

T5_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2
BART_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 … 3
_ASCII = "".join(chr(code) for code in range(33, 127))


@dataclass(frozen=True)
class Pair:
    """Encoder ids and decoder ids of one row, special tokens included; arrays, as a corpus has many."""

    source: "array[int]"
    target: "array[int]"

    def __len__(self) -> int:
        return len(self.source) + len(self.target)


def pairs(rows: list[dict[str, Any]], rng: random.Random) -> list[tuple[str, str]]:
    """(source, target) of every row with messages: all its turns, or every fourth time the first alone."""
    found = []
    for row in rows:
        if "messages" not in row:
            continue
        said = [message["content"] for message in row["messages"]]
        turns = len(said) // 2 if rng.random() < 0.75 else 1
        found.append(("\n\n".join(said[: 2 * turns : 2]), "\n".join(said[1 : 2 * turns : 2])))
    return found


def unigram_tokenizer(rows: list[dict[str, Any]], vocabulary: int, folder: Path) -> T5Tokenizer:
    """A SentencePiece Unigram as T5 has it, every digit alone; leaves spiece.model in `folder`.

    Without byte fallback: neither the quick tokenizer nor llama.cpp's knows that, so an unknown character is <unk>.
    """
    import sentencepiece

    made = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in words(rows) for line in text.split("\n") if line.strip()),
            model_writer=made,
            model_type="unigram",
            vocab_size=vocabulary,
            character_coverage=1.0,
            required_chars=_ASCII,
            split_digits=True,
            input_sentence_size=100_000,
            shuffle_input_sentence=False,  # its dice have no seed
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=T5_SPECIAL[0],
            eos_piece=T5_SPECIAL[1],
            unk_piece=T5_SPECIAL[2],
            minloglevel=2,
            num_threads=1,
        )
    except RuntimeError as error:
        raise ValueError(f"no vocabulary of {vocabulary} can be made of this corpus: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(made.getvalue())
    return T5Tokenizer.from_pretrained(folder, extra_ids=0, clean_up_tokenization_spaces=False)


def bpe_tokenizer(rows: list[dict[str, Any]], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts a text between BART's <s> and </s>."""
    tokenizer = byte_level_bpe(words(rows), vocabulary, BART_SPECIAL)
    bos, pad, eos, unk = BART_SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, tokenizer.token_to_id(bos)), (eos, tokenizer.token_to_id(eos))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unk,
        cls_token=bos,
        sep_token=eos,
        clean_up_tokenization_spaces=False,
    )


def encode_pairs(tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, str]], longest: int) -> list[Pair]:
    """Ids with the tokenizer's special tokens; raises ValueError for a text longer than `longest` tokens."""
    found = []
    for start in range(0, len(texts), 1000):
        some = texts[start : start + 1000]
        sources = tokenizer([source for source, _ in some]).input_ids
        targets = tokenizer([target for _, target in some]).input_ids
        for source, target in zip(sources, targets, strict=True):
            if max(len(source), len(target)) > longest:
                raise ValueError(f"a text has {max(len(source), len(target))} tokens, at most {longest} fit")
            found.append(Pair(array("H", source), array("H", target)))
    return found


def collate_pairs(rows: list[Pair], pad: int, start: int, shifts: list[int]) -> dict[str, torch.Tensor]:
    """What the model takes, each int64 [rows, tokens], padded on the right: labels with -100.

    In front of the sources there is padding too, as much as `shifts` says.
    """
    source = _padded([array("H", [pad] * shift) + row.source for row, shift in zip(rows, shifts, strict=True)], pad)
    labels = _padded([row.target for row in rows], -100)
    shifted = _padded([array("H", [start, *row.target[:-1]]) for row in rows], pad)
    starts = torch.tensor(shifts)[:, None]
    ends = starts + torch.tensor([[len(row.source)] for row in rows])
    at = torch.arange(source.shape[1])[None]
    mask = ((at >= starts) & (at < ends)).long()
    return {"input_ids": source, "attention_mask": mask, "decoder_input_ids": shifted, "labels": labels}


def _padded(rows: "list[array[int]]", filler: int) -> torch.Tensor:
    made = torch.full((len(rows), max(len(row) for row in rows)), filler)
    for number, row in enumerate(rows):
        made[number, : len(row)] = torch.tensor(row)
    return made
