"""In a Unigram vocabulary no text finds a special token, and all other text keeps its ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.prompt import hf_tokenize
from contract.unigram import harmless
from tests.tiny import make_bpe_tokenizer
from tests.tiny_seq2seq import make_t5_tokenizer

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("t5")
    make_t5_tokenizer(place)
    return place


@pytest.mark.parametrize("text", ["</s>", "a </s> b", "<pad>", "x<extra_id_0>y", "</s></s>"])
def test_a_text_that_spells_a_special_token_does_not_become_it(folder: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    found = hf_tokenize(tokenizer)(text, False)
    assert not special & set(found)
    theirs = set(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    assert special & theirs, "transformers itself is not fooled: then nothing is shown here"


def test_other_text_keeps_its_ids(folder: Path) -> None:
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    copy = harmless(own)
    for text in ("Mara: Could we move the meeting?", "  a  b ", "1 < 2 > 0 / s", "中 文 ▁ x", ""):
        assert copy.encode(text, add_special_tokens=False).ids == own.encode(text, add_special_tokens=False).ids
    assert copy.encode("a", add_special_tokens=True).ids == own.encode("a", add_special_tokens=True).ids
    assert copy.get_vocab_size() == own.get_vocab_size()


def test_other_kinds_come_back_as_they_are(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    make_bpe_tokenizer(tmp_path)
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert harmless(own) is own
