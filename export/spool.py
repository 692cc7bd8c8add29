"""Keeps float32 arrays on disk, in a file without a name: whatever happens to the process, nothing is left behind."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Spool:
    """Arrays by number. They are written and read, not mapped: a mapped page counts as memory."""

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, ...]]) -> None:
        """Make room for arrays of these shapes on the disk that `folder` is on."""
        self._shapes = list(shapes)
        self._starts = list(accumulate((4 * math.prod(shape) for shape in self._shapes), initial=0))
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._shapes)

    def put(self, number: int, values: np.ndarray) -> None:
        """Keep float32 `values` under a number, in place of what was there.

        Raises:
            OSError: the disk is full, or fails.
        """
        import numpy as np

        assert values.shape == self._shapes[number], (number, values.shape)
        self._file.seek(self._starts[number])
        self._file.write(np.ascontiguousarray(values, dtype=np.float32).data)

    def get(self, number: int) -> np.ndarray:
        """A copy of what is kept under a number."""
        import numpy as np

        values = np.empty(self._shapes[number], dtype=np.float32)
        self._file.seek(self._starts[number])
        count = self._file.readinto(values.data.cast("B"))
        assert count == values.nbytes, f"{number} was never put"
        return values
