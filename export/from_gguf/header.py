"""What a GGUF file says of itself: its metadata, each key asked for once, and where each tensor lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.artifact_prompt import refuse_split
from contract.errors import AssayError, listed

FLOAT_TYPES = ("F32", "F16", "BF16")
_QUANTIZED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)
# What no number and no token depends on: who made the file, how, of what, and what Assay notes in it.
_INERT = ("GGUF.", "general.", "quantize.", "split.", "assay.")


@dataclass(frozen=True)
class StoredRows:
    """A tensor in the file: `shape` as torch counts, rows first."""

    name: str
    kind: str  # as the gguf package names it: "Q4_K"
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    size_bytes: int


class Header:
    """Metadata and tensor list. What nobody asked for is known at the end: a key that is not read may matter.

    Raises:
        AssayError: the file is no GGUF, a part of one, in another byte order, or has tensors of a type that is not
            read.
    """

    def __init__(self, path: Path) -> None:
        from export.gguf_read import read_gguf

        self.path, self.where = path, str(path)
        refuse_split(path)
        try:
            reader = read_gguf(path)
        except (ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise AssayError(
                "the .gguf file cannot be read", where=self.where, got=f"{type(error).__name__}: {error}"[:300]
            ) from None
        if reader.byte_order != "I":
            raise AssayError("the .gguf file is in another byte order than this machine's", where=self.where)
        self._fields = reader.fields
        self._asked: set[str] = set()
        self.tensors = {
            tensor.name: StoredRows(
                tensor.name,
                tensor.tensor_type.name,
                tuple(int(extent) for extent in reversed(tensor.shape)),
                int(tensor.data_offset),
                int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
        unread = Counter(row.kind for row in self.tensors.values() if row.kind not in (*FLOAT_TYPES, *_QUANTIZED))
        if unread:
            raise AssayError(
                "the file has tensors of a type that is not read",
                where=self.where,
                got=listed(f"{kind} ({count} tensors)" for kind, count in unread.items()),
                expected=", ".join((*FLOAT_TYPES, *_QUANTIZED)),
            )
        size = path.stat().st_size
        short = [row.name for row in self.tensors.values() if row.offset + row.size_bytes > size]
        if short or not self.tensors:
            raise AssayError(
                "the .gguf file is cut short" if short else "the .gguf file has no tensors",
                where=self.where,
                got=listed(short) or None,
                hint="download it again" if short else "a file of a vocabulary alone is no model",
            )
        self.arch = str(self.value("general.architecture"))

    def value(self, key: str) -> Any:
        """The value of a key; None where the file has none."""
        self._asked.add(key)
        field = self._fields.get(key)
        return None if field is None else field.contents()

    def own(self, key: str) -> Any:
        """The value of one of the architecture's own keys."""
        return self.value(f"{self.arch}.{key}")

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number among the architecture's own keys.

        Raises:
            AssayError: there is none and no default, or it is none (a number for each layer, for one).
        """
        found = self.own(key)
        found = default if found is None else found
        if type(found) is not int:
            raise AssayError(
                "the metadata of the .gguf file lacks a number",
                where=f"{self.where}: {self.arch}.{key}",
                expected="one whole number",
                got="nothing" if found is None else str(found)[:80],
            )
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """A number among the architecture's own keys, as it was before it was rounded to float32: 1e-05.

        Raises:
            AssayError: there is none and no default.
        """
        found = self.own(key)
        found = default if found is None else found
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise AssayError(
                "the metadata of the .gguf file lacks a number",
                where=f"{self.where}: {self.arch}.{key}",
                got="nothing" if found is None else str(found)[:80],
            )
        return shortest(found)

    def file_keys(self) -> Sequence[str]:
        """All keys."""
        return list(self._fields)

    def refuse_unasked(self) -> None:
        """Raise where the file says something that nothing here read: it may change what the model computes.

        Raises:
            AssayError: naming every such key.
        """
        left = [key for key in self._fields if key not in self._asked and not key.startswith(_INERT)]
        if left:
            raise AssayError(
                "the .gguf file says things of the model that are not understood here",
                where=self.where,
                got=listed(f"{key} = {str(self._fields[key].contents())[:60]}" for key in left),
            )


def shortest(value: float) -> float:
    """The number with the fewest digits that float32 rounds to the same: 1e-05 for 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
