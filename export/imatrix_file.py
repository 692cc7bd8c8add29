"""An importance matrix and its file, the GGUF that llama.cpp's `llama-imatrix` writes and `llama-quantize` reads."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import AssayError

if TYPE_CHECKING:
    import numpy as np

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImportanceMatrix:
    """How strongly each column of each weight is driven by some text.

    The definition is that of llama.cpp's tools/imatrix: per column the sum of the squares of what a matrix is
    multiplied with, over all tokens.
    """

    sums: Mapping[str, np.ndarray]  # GGUF tensor name -> float32 [columns]
    tokens: int  # how many activations each sum is taken over
    chunks: int
    chunk_tokens: int
    data: str  # says which text it was

    def means(self) -> dict[str, np.ndarray]:
        """float32 [columns] per tensor: the mean squares that quantization weighs errors with."""
        import numpy as np

        return {name: sums / np.float32(self.tokens) for name, sums in self.sums.items()}


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write the file. The same matrix gives the same bytes."""
    import gguf
    import numpy as np

    keys = gguf.Keys.IMatrix
    writer = gguf.GGUFWriter(None, "imatrix")
    writer.kv_data[0].clear()  # it is no model, so it has no architecture
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(keys.DATASETS, [matrix.data])
    writer.add_uint32(keys.CHUNK_COUNT, matrix.chunks)
    writer.add_uint32(keys.CHUNK_SIZE, matrix.chunk_tokens)
    for name, sums in sorted(matrix.sums.items()):
        writer.add_tensor(name + _SUMS, sums)
        writer.add_tensor(name + _COUNTS, np.array([matrix.tokens], dtype=np.float32))
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read such a file back, whoever wrote it.

    Raises:
        AssayError: it is not one, a sum or count is missing or not finite, or the weights of experts are counted apart.
    """
    import gguf
    import numpy as np

    keys = gguf.Keys.IMatrix
    try:
        reader = gguf.GGUFReader(path)
        fields = [reader.fields[key].contents() for key in (keys.DATASETS, keys.CHUNK_COUNT, keys.CHUNK_SIZE)]
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise AssayError("not an importance matrix", where=str(path), got=f"{type(error).__name__}: {error}") from None
    tensors = {tensor.name: np.array(tensor.data).reshape(-1) for tensor in reader.tensors}
    sums = {name.removesuffix(_SUMS): values for name, values in tensors.items() if name.endswith(_SUMS)}
    counts = {name: tensors.get(name + _COUNTS, np.zeros(0)) for name in sums}
    found = {float(count) for values in counts.values() for count in values}
    if len(found) != 1 or any(len(values) != 1 for values in counts.values()) or min(found) < 1:
        raise AssayError(
            "the matrix does not count the same tokens for every tensor",
            where=str(path),
            got=", ".join(f"{count:g}" for count in sorted(found)) or "no sums with counts",
        )
    broken = [name for name, values in sums.items() if not np.isfinite(values).all() or (values < 0).any()]
    if broken:
        raise AssayError("the matrix holds values that are no sums of squares", where=str(path), got=", ".join(broken))
    datasets, chunks, chunk_tokens = fields
    return ImportanceMatrix(sums, int(found.pop()), int(chunks), int(chunk_tokens), ", ".join(datasets))
