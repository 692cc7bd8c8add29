"""A tokenizer cuts text as its tokenizer.json says, whatever class transformers 5 would build over its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.fast_tokenizer import load_fast
from tests.tiny import make_bpe_tokenizer

pytestmark = pytest.mark.engine  # transformers imports torch

TEXT = "Mara's room:  527\n\n"


def write(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def own_ids(folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids)


@pytest.mark.parametrize(
    "name", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2Tokenizer"]
)
@pytest.mark.parametrize("add_bos", [None, True, False])
def test_the_file_decides_and_not_the_class(tmp_path: Path, name: str, add_bos: bool | None) -> None:
    make_bpe_tokenizer(tmp_path)
    write(tmp_path / "tokenizer_config.json", tokenizer_class=name, backend=None, add_bos_token=add_bos)
    assert load_fast(tmp_path)(TEXT)["input_ids"] == own_ids(tmp_path)


def test_a_folder_that_leaves_its_ends_to_its_class(tmp_path: Path) -> None:
    """As GPT-2's first folders: nothing in tokenizer_config.json but a length."""
    make_bpe_tokenizer(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    eos = spec["added_tokens"][1]["content"]
    text = (tmp_path / "tokenizer.json").read_text().replace(json.dumps(eos)[1:-1], "<|endoftext|>")
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_fast(tmp_path)
    assert tokenizer.eos_token_id == 1
    assert tokenizer(TEXT)["input_ids"] == own_ids(tmp_path)


@pytest.mark.parametrize("key", ["extra_special_tokens", "additional_special_tokens"])
def test_a_list_of_more_special_tokens_is_read_from_either_key(tmp_path: Path, key: str) -> None:
    make_bpe_tokenizer(tmp_path)
    token = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"][-1]["content"]
    write(tmp_path / "tokenizer_config.json", **{"extra_special_tokens": None, key: [token]})
    tokenizer = load_fast(tmp_path)
    assert token in tokenizer.all_special_tokens
    assert tokenizer(TEXT)["input_ids"] == own_ids(tmp_path)
