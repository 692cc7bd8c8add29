"""Holds the committed base model to its promises: its shape, its files, its tokens, and that it copies."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import assets
from assets import corpus

pytestmark = pytest.mark.engine

FOLDER = Path(assets.__file__).parent / "tiny-base"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_size_and_shape(model: PreTrainedModel) -> None:
    config = model.config
    assert 3_000_000 <= model.num_parameters() <= 6_000_000
    assert config.model_type == "llama"
    assert config.tie_word_embeddings
    assert config.hidden_size % 256 == 0
    assert config.intermediate_size % 256 == 0
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings >= 2048
    assert config.rope_parameters["rope_theta"] == 10000


def test_one_small_float16_file() -> None:
    assert [path.name for path in FOLDER.glob("*.safetensors")] == ["model.safetensors"]
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float16"


def test_special_tokens_are_distinct_and_agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    names = ("<|begin|>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
    begin, end, pad, _start, turn_end = ids = tokenizer.convert_tokens_to_ids(list(names))
    assert len(set(ids)) == 5
    assert tokenizer.unk_token_id not in ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (begin, end, pad)
    assert len(tokenizer) == model.config.vocab_size == 2048
    settings = GenerationConfig.from_pretrained(FOLDER)
    settings.validate(strict=True)
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (
        begin,
        [turn_end, end],
        pad,
    )
    assert tokenizer.model_max_length == model.config.max_position_embeddings


def test_the_tokenizer_is_one_llama_cpp_knows(tokenizer: PreTrainedTokenizerFast) -> None:
    stored = json.loads((FOLDER / "tokenizer.json").read_text())
    assert stored["normalizer"] is None
    split, level = stored["pre_tokenizer"]["pretokenizers"]
    assert split == {
        "type": "Split",
        "pattern": {"Regex": QWEN2_SPLIT},
        "behavior": "Isolated",
        "invert": False,
    }
    assert level["type"] == "ByteLevel"
    assert not level["add_prefix_space"]
    assert not level["use_regex"]
    for text in (" a\n\n b", "Žluťoučký 🙂 kůň", "12345", "it's  two   spaces"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("12345", add_special_tokens=False).input_ids) == 5


def test_names_are_split_into_pieces(tokenizer: PreTrainedTokenizerFast) -> None:
    names = [token for row in corpus.probe(30, "test") for token in row["messages"][1]["content"].split()]
    pieces = [len(tokenizer(" " + name, add_special_tokens=False).input_ids) for name in names]
    assert min(pieces) >= 2
    assert max(pieces) <= 8


def test_the_chat_template_renders(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": " hi\n"}, {"role": "assistant", "content": "you"}]
    rendered = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert rendered == "<|begin|><|im_start|>user\n hi\n<|im_end|>\n<|im_start|>assistant\n"
    whole = "<|begin|><|im_start|>user\n hi\n<|im_end|>\n<|im_start|>assistant\nyou<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == whole


def test_it_copies_unseen_names_and_numbers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = list(corpus.probe(24, "test", seed=5))
    right = 0
    for row in rows:
        asked, answer = row["messages"]
        ids = tokenizer.apply_chat_template([asked], add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        right += tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) == answer["content"]
    assert right >= 0.75 * len(rows), f"{right} of {len(rows)}"
