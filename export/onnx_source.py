"""The tensors an ONNX export is made from, in the forms that an exporter gives them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from export.finite import all_finite
from export.weights import FolderWeights

if TYPE_CHECKING:
    import numpy as np

# what becomes of a tensor in a graph; the name of the form follows the tensor's name there
_FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda values: values,
    ".T": lambda values: values.T,  # a linear layer's weight, as a product takes it
    ".plus_one": lambda values: values + 1,  # norms whose weight is stored less one
}


class SourceTensors:
    """The float tensors of a model folder, in float32, by name and by content."""

    def __init__(self, weights: FolderWeights) -> None:
        self._weights = weights

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return self._weights.names()

    @cached_property
    def values(self) -> int:
        """How many values all tensors have together."""
        return sum(math.prod(self._weights.shape(name)) for name in self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._weights.shape(name)

    @cached_property
    def not_finite(self) -> list[str]:
        """Names of tensors with a value that is infinite or NaN."""
        return [name for name in self.names if not all_finite(self._weights.read(name).float())]

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        values: np.ndarray = self._weights.read(name).float().numpy()
        return values

    def in_graph(self, name: str) -> np.ndarray | None:
        """The values that an initializer of this name must have, or None where no tensor is called so."""
        for form, make in _FORMS.items():
            stem = name.removesuffix(form) if form else name
            if name.endswith(form) and stem in self._weights.tensors:
                return make(self.read(stem))
        return None

    def name_of(self, values: np.ndarray) -> str | None:
        """The name an initializer with these values gets: the tensor's, and the form it is in."""
        return self._by_content.get(_content(values))

    def same_as(self, name: str) -> set[str]:
        """Every tensor with the content of the tensor named (itself among them)."""
        return self._equals[self._digests[name]]

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {name: digest for (name, form), digest in self._contents.items() if not form}

    @cached_property
    def _equals(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, digest in self._digests.items():
            found.setdefault(digest, set()).add(name)
        return found

    @cached_property
    def _by_content(self) -> dict[str, str]:
        """Where forms of several tensors are equal, the plainest one counts."""
        found: dict[str, str] = {}
        for wanted in _FORMS:
            for (name, form), digest in self._contents.items():
                if form == wanted:
                    found.setdefault(digest, name + form)
        return found

    @cached_property
    def _contents(self) -> dict[tuple[str, str], str]:
        """Digests by name and form, from one pass over all tensors."""
        return {(name, form): _content(made) for name in self.names for form, made in _forms_of(self.read(name))}


def _forms_of(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "", values
    if values.ndim == 2:
        yield ".T", values.T
    if values.ndim == 1:
        yield ".plus_one", values + 1


def _content(values: np.ndarray) -> str:
    import numpy as np

    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
