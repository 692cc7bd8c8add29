"""Reads a GGUF's metadata and tensor list with the gguf package, in a tenth of the time for a large vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType


class _PlainReader(GGUFReader):
    """Slices a plain array: numpy's mapped ones make an object of some weight of each of a vocabulary's tokens."""

    data: Any

    def _get(self, *arguments: Any, **options: Any) -> Any:
        import numpy as np

        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)
        return super()._get(*arguments, **options)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """An array of numbers is one part, not as many as it has: T5's map of characters has 240,000."""
        import numpy as np

        if raw_type == GGUFValueType.ARRAY:
            kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            found = GGUFValueType(kind[0])
            dtype = self.gguf_scalar_to_np.get(found)
            if dtype is not None and length[0]:
                values = self._get(orig_offs + 12, dtype, length[0])
                types = [GGUFValueType.ARRAY, found]
                return 12 + int(values.nbytes), [kind, length, values], [2], types
        return super()._get_field_parts(orig_offs, raw_type)


def read_gguf(path: Path) -> GGUFReader:
    """The file's fields and tensors; values stay on the disk until they are looked at."""
    return _PlainReader(path)
