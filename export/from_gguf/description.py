"""All of a model folder but its weights, from a GGUF: config, tokenizer, template, stop ids, licence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contract.artifact import Artifact
from export.from_gguf.families import Read, read_config
from export.from_gguf.header import Header
from export.from_gguf.tokenizer import ids_of, write_json, write_tokenizer
from export.from_gguf.tokens import Tokens, read_tokens

if TYPE_CHECKING:
    import torch

    from export.gguf_family import GgufModel

Dtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class Description:
    """What a GGUF says of the model in it. `config`: config.json; `license`: None where nobody names one."""

    header: Header
    row: Read
    config: dict[str, Any]
    tokens: Tokens
    license: str | None


def describe(gguf: Artifact, dtype: Dtype) -> Description:
    """Read metadata and tokens.

    Args:
        gguf: an artifact of kind "gguf".
        dtype: that the folder's weights are stored in.

    Raises:
        AssayError: the file is split, or of an architecture or with a tokenizer that is not read.
    """
    header = Header(gguf.gguf_path)
    row, config = read_config(header)
    tokens = read_tokens(header, config["vocab_size"])
    config |= {**ids_of(tokens), "dtype": dtype}
    license_name = gguf.details.get("license") or header.value("general.license")
    return Description(header, row, config, tokens, str(license_name) if license_name else None)


def write_description(described: Description, folder: Path) -> GgufModel:
    """Write the files into an existing folder.

    Returns:
        The model as the exporter sees it: which tensors there are, and what they are called in a GGUF.

    Raises:
        AssayError: the tokenizer is of a kind that is not read, or the file says something that is not understood.
    """
    from export.gguf_families import read_model
    from export.source import Source

    header, config = described.header, described.config
    write_json(folder / "config.json", config)
    write_tokenizer(folder, described.tokens, context=header.number("context_length"), where=header.where)
    if described.license:
        (folder / "README.md").write_text(_card(described.license, header), encoding="utf-8")
    model = read_model(Source(folder, config, _Rows(described.row, config), header.where, {}, None))
    header.refuse_unasked()
    return model


class _Rows:
    """Embeddings and head: all that a family asks of the weights before it says which there are."""

    def __init__(self, row: Read, config: dict[str, Any]) -> None:
        self._names = [row.embedding, *([] if config["tie_word_embeddings"] else ["lm_head.weight"])]
        width: int = config.get("hidden_size") or config.get("n_embd") or config["d_model"]
        self._shape: tuple[int, ...] = (config["vocab_size"], width)

    def names(self) -> list[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def dtype(self, name: str) -> str:
        return "F32"

    def read(self, name: str) -> torch.Tensor:
        raise NotImplementedError(name)

    def blocks(self, name: str, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
        raise NotImplementedError(name)


def _card(license_name: str, header: Header) -> str:
    """A model card that names the licence, and where the folder comes from."""
    title = header.value("general.name") or header.path.stem
    return (
        f"---\nlicense: {license_name}\n---\n\n# {title}\n\n"
        f"Made from `{header.path.name}` by `assay import`; manifest.json has its sha256 and the type of each tensor.\n"
    )
