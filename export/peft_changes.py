"""What an adapter does to one base tensor: the arithmetic of each PEFT type, on some rows at a time, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Read = Callable[[str], "torch.Tensor"]  # an adapter's key -> its tensor in float32
Blocks = Callable[[], Iterator[tuple[int, "torch.Tensor"]]]  # first row and rows of the tensor before the change
Apply = Callable[["torch.Tensor", int], "torch.Tensor"]  # rows and the first row's number -> the rows changed


class Change(Protocol):
    """One change of one base tensor."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapter's keys it reads."""
        ...

    def prepare(self, read: Read, blocks: Blocks) -> Apply:
        """Read the adapter's tensors and return what changes the rows; it may write into the rows it is given."""
        ...


@dataclass(frozen=True)
class LowRank:
    """W + scale · B·A (LoRA, arXiv:2106.09685), with B·diag(E)·A for AdaLoRA (arXiv:2303.10512).

    With a magnitude it is DoRA (arXiv:2402.09353): m · V / ‖V‖ of V = W + scale · B·A, the norm taken for each output
    in float32. `transposed` weights are stored [in, out]: Conv1D's, and embeddings, whose rows are inputs.
    """

    a: str
    b: str
    scale: float
    transposed: bool = False
    singular: str | None = None
    magnitude: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapter's keys it reads."""
        return tuple(key for key in (self.a, self.b, self.singular, self.magnitude) if key)

    def prepare(self, read: Read, blocks: Blocks) -> Apply:
        """See Change."""
        import torch

        a, b = read(self.a), read(self.b)
        if self.singular:
            a = a * read(self.singular).reshape(-1, 1)
        left, right = (a.T.contiguous(), b.T.contiguous()) if self.transposed else (b, a)

        def add(rows: torch.Tensor, start: int) -> torch.Tensor:
            return torch.mm(left[start : start + len(rows)], right).mul_(self.scale).add_(rows)

        if self.magnitude is None:
            return add
        magnitude = read(self.magnitude).flatten()
        if not self.transposed:

            def rescale_rows(rows: torch.Tensor, start: int) -> torch.Tensor:
                moved = add(rows, start)
                factor = magnitude[start : start + len(rows)] / torch.linalg.norm(moved, dim=1)
                return moved.mul_(factor.unsqueeze(1))

            return rescale_rows
        squares = torch.zeros(right.shape[1], dtype=torch.float64)
        for start, rows in blocks():
            squares += add(rows, start).double().square_().sum(dim=0)
        factor = magnitude / squares.sqrt().float()
        return lambda rows, start: add(rows, start).mul_(factor)


@dataclass(frozen=True)
class Scaled:
    """(IA)³ (arXiv:2205.05638): a learned vector times the outputs (rows of [out, in]) or the inputs (columns)."""

    vector: str
    by_row: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapter's keys it reads."""
        return (self.vector,)

    def prepare(self, read: Read, blocks: Blocks) -> Apply:
        """See Change."""
        vector = read(self.vector).flatten()
        if not self.by_row:
            return lambda rows, start: rows.mul_(vector)
        return lambda rows, start: rows.mul_(vector[start : start + len(rows)].reshape(-1, *[1] * (rows.ndim - 1)))


@dataclass(frozen=True)
class Hadamard:
    """LoHa (FedPara, arXiv:2108.06098): W + scale · (w1_a·w1_b) ⊙ (w2_a·w2_b)."""

    w1: tuple[str, str]
    w2: tuple[str, str]
    scale: float

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapter's keys it reads."""
        return (*self.w1, *self.w2)

    def prepare(self, read: Read, blocks: Blocks) -> Apply:
        """See Change."""
        import torch

        (a1, b1), (a2, b2) = (tuple(read(key) for key in keys) for keys in (self.w1, self.w2))

        def add(rows: torch.Tensor, start: int) -> torch.Tensor:
            end = start + len(rows)
            return torch.mm(a1[start:end], b1).mul_(torch.mm(a2[start:end], b2)).mul_(self.scale).add_(rows)

        return add


@dataclass(frozen=True)
class Kronecker:
    """LoKr (arXiv:2309.14859): W + scale · w1 ⊗ w2, each factor whole or a product of two."""

    w1: tuple[str, ...]
    w2: tuple[str, ...]
    scale: float

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapter's keys it reads."""
        return (*self.w1, *self.w2)

    def prepare(self, read: Read, blocks: Blocks) -> Apply:
        """See Change."""
        import torch

        w1, w2 = (_product([read(key) for key in keys]) for keys in (self.w1, self.w2))

        def add(rows: torch.Tensor, start: int) -> torch.Tensor:
            number = torch.arange(start, start + len(rows))
            outer, inner = w1[number // len(w2)], w2[number % len(w2)]
            product = (outer.unsqueeze(2) * inner.unsqueeze(1)).reshape(len(rows), -1)
            return product.mul_(self.scale).add_(rows)

        return add


def _product(factors: list[torch.Tensor]) -> torch.Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]


@dataclass(frozen=True)
class TokenRows:
    """Trainable tokens: these rows of the embeddings are others."""

    rows: str
    indices: tuple[int, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapter's keys it reads."""
        return (self.rows,)

    def prepare(self, read: Read, blocks: Blocks) -> Apply:
        """See Change."""
        trained = read(self.rows)

        def put(rows: torch.Tensor, start: int) -> torch.Tensor:
            for place, index in enumerate(self.indices):
                if start <= index < start + len(rows):
                    rows[index - start] = trained[place]
            return rows

        return put


@dataclass(frozen=True)
class AddedBias:
    """bias + scale · lora_B's own bias (lora_bias)."""

    bias: str
    scale: float

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapter's keys it reads."""
        return (self.bias,)

    def prepare(self, read: Read, blocks: Blocks) -> Apply:
        """See Change."""
        bias = read(self.bias) * self.scale
        return lambda rows, start: rows.add_(bias[start : start + len(rows)])
