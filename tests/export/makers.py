"""Tokenizers for export tests: SentencePiece with and without its tokenizer.json, Llama 3's and other BPE cuts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.gguf_pre_tokenizers import PreTokenizer
from export.hard_texts import HARD_TEXTS
from tests.tiny import TEXT, save_byte_level

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
MORE_TEXT = [
    *TEXT,
    "don't they're 1234567 we'll see it, 42 and 987654.",
    "    def f(x):\n\treturn x  # naïve café",
    "Привет, как дела? 日本語のテキスト 👍 " * 4,
    "one  two   three    four\n\n\nfive\r\nsix",
] * 3


_MARKED = [  # how tokenizer.json has SentencePiece's mark in the folders of Llama 2 and its kin
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]


_USER_DEFINED = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>"]


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def train_sentencepiece(folder: Path) -> None:
    """tokenizer.model: a SentencePiece BPE with byte fallback, as Llama 2's was made."""
    import sentencepiece

    text = folder / "corpus.txt"
    text.write_text("\n".join(MORE_TEXT * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
    )
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
                "add_eos_token": False,
                "legacy": True,
                "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
                "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}[assistant]{% endif %}",
            }
        )
    )


def gemma_tokenizer(folder: Path) -> None:
    """Gemma's way: no space in front, runs of spaces and of line ends as tokens of their own, control tokens inside."""
    import sentencepiece
    from transformers import GemmaTokenizerFast

    text = folder / "corpus.txt"
    text.write_text("\n".join(MORE_TEXT * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=_USER_DEFINED,
        minloglevel=2,
        num_threads=1,
    )
    fast = GemmaTokenizerFast.from_pretrained(folder, add_bos_token=True)
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    fast.save_pretrained(folder)
    for name in ("corpus.txt", "tokenizer.vocab"):
        (folder / name).unlink()
    _rewrite(  # transformers 5 makes control tokens of them, and of the names in its class
        folder / "tokenizer.json",
        lambda spec: spec["added_tokens"].__setitem__(
            slice(None),
            [token | {"special": token["content"] not in _USER_DEFINED} for token in spec["added_tokens"]],
        ),
    )
    _rewrite(folder / "tokenizer_config.json", lambda config: config.pop("extra_special_tokens"))


def convert_sentencepiece(folder: Path) -> None:
    """The same tokenizer as tokenizer.json only, with two added tokens, one of them special."""
    from transformers import AddedToken, LlamaTokenizerFast

    train_sentencepiece(folder)
    fast = LlamaTokenizerFast.from_pretrained(folder)
    fast.add_tokens(
        [AddedToken("<turn>", special=True, normalized=False), AddedToken("[ROOM]", special=False, normalized=False)]
    )
    fast.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    written = {"normalizer": {"type": "Sequence", "normalizers": _MARKED}, "pre_tokenizer": None}
    _rewrite(folder / "tokenizer.json", lambda spec: spec.update(written))


def metaspace_tokenizer(folder: Path) -> None:
    """The same with Metaspace in place of two normalizers, and text behind a space, as newer Mistral models have it."""
    from transformers import AddedToken, LlamaTokenizerFast

    train_sentencepiece(folder)
    fast = LlamaTokenizerFast.from_pretrained(folder, legacy=False)
    fast.add_tokens([AddedToken(text, special=True, normalized=False) for text in ("[INST]", "[/INST]")])
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    fast.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()


def byte_level_tokenizer(folder: Path, steps: list[Any], *, ignore_merges: bool = False, vocab_size: int = 512) -> None:
    """A byte-level BPE with the pre-tokenizer steps given, trained on more kinds of text."""
    save_byte_level(folder, steps, MORE_TEXT, ignore_merges=ignore_merges, vocab_size=vocab_size)


def known_tokenizer(row: PreTokenizer, texts: Sequence[str] = HARD_TEXTS) -> Callable[[Path], None]:
    """A maker of a tokenizer that cuts text as a row of the table of pre-tokenizers says.

    It is trained on the very texts that are compared until whole pieces are tokens: a piece cut elsewhere shows.
    """
    from tokenizers import Regex, pre_tokenizers

    def make(folder: Path) -> None:
        steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in row.splits]
        steps += [pre_tokenizers.Digits(individual_digits=True)] if row.digits else []
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=row.gpt2))
        save_byte_level(folder, steps, [*texts] * 4, ignore_merges=row.ignore_merges, vocab_size=10 * len(texts) + 2500)

    return make


def llama3_tokenizer(folder: Path) -> None:
    """Llama 3's cut: up to three digits together, whole words that are tokens skip the merges."""
    from tokenizers import Regex, pre_tokenizers

    byte_level_tokenizer(
        folder,
        [
            pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        ignore_merges=True,
    )


def gpt2_tokenizer(folder: Path) -> None:
    """GPT-2's cut."""
    from tokenizers import pre_tokenizers

    byte_level_tokenizer(folder, [pre_tokenizers.ByteLevel(add_prefix_space=False)])


def smollm_tokenizer(folder: Path) -> None:
    """SmolLM's cut: single digits, then GPT-2's."""
    from tokenizers import pre_tokenizers

    byte_level_tokenizer(
        folder, [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), encoding="utf-8")


def edit_tensors(path: Path, change: Any) -> None:
    """Rewrite a safetensors file: `change` takes the dict of tensors and changes it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
