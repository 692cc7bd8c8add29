"""How many documents a recipe's limits need before anything can pass, and which of them a test set cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from contract.artifact import ONNX_LABEL
from contract.shares import NONE_SEEN, documents_for_share, unseen_share

if TYPE_CHECKING:
    from contract.limits import GatePart
    from contract.recipe import Recipe

FEWEST_DOCUMENTS = 20  # fewer never pass, whatever was found
CHANGED_SUMMARY_POINTS = 20.0  # of ROUGE-L: by so much a summary that changes is taken to differ where few did


@dataclass(frozen=True)
class Need:
    """The least number of documents with which one limit can be shown to hold, were nothing lost at all."""

    code: str  # the check's reason code
    labels: tuple[str, ...]  # artifacts it is asked of
    limit: float
    documents: int | None  # None: no number would do


@dataclass(frozen=True)
class SampleReport:
    """What a test set of so many documents can show."""

    documents: int
    unseen_share: float  # a fault in fewer documents than this share would not be seen (97.5%)
    needs: tuple[Need, ...]

    @property
    def unshown(self) -> tuple[Need, ...]:
        """Limits that cannot be shown to hold with these documents: their checks will be inconclusive."""
        return tuple(need for need in self.needs if need.documents is None or need.documents > self.documents)

    @property
    def fewest(self) -> int | None:
        """The least number of documents with which all can pass; None: no number would do."""
        numbers = [need.documents for need in self.needs]
        return None if None in numbers else max((number for number in numbers if number is not None), default=0)

    def as_text(self) -> str:
        """The same for people: one line, and one more for each limit that cannot be shown."""
        unseen = f"A fault in fewer than {100 * self.unseen_share:.2g}% of documents would not be seen."
        if not self.unshown:
            return f"Test documents: {self.documents}, enough for every limit ({self.fewest} are). {unseen}"
        lines = [
            f"Test documents: {self.documents}, too few for some limits: their checks will be inconclusive, even where "
            f"nothing is lost. {unseen}"
        ]
        for need in self.unshown:
            number = f"{need.documents:,} documents" if need.documents else "no number of documents is enough"
            lines.append(f"  {need.code} {need.limit:g} ({', '.join(need.labels)}): {number}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """As `assay data --json` prints it."""
        return {**asdict(self), "fewest": self.fewest, "unshown": [asdict(need) for need in self.unshown]}


def sample_report(
    gate: GatePart, labels: Sequence[str], documents: int, tokens_per_summary: float | None = None
) -> SampleReport:
    """What can be shown of artifacts with these labels ("merged", "q4_k_m", "onnx-int8" …).

    Args:
        gate: the limits.
        labels: what will be judged; one that the recipe has no limits of its own for is asked for its EOS only.
        documents: of the test set.
        tokens_per_summary: of the reference summaries, on average; None leaves top-1 out, which counts tokens.
    """
    return SampleReport(documents, unseen_share(max(1, documents)), tuple(_needs(gate, labels, tokens_per_summary)))


def recipe_sample(recipe: Recipe, documents: int, tokens_per_summary: float | None = None) -> SampleReport:
    """The same for everything that a recipe requires and exports."""
    gguf, onnx = recipe.export.gguf, recipe.export.onnx
    made = [*(gguf.quants if gguf else ()), *(ONNX_LABEL + name for name in (onnx.precisions if onnx else ()))]
    labels = list(dict.fromkeys([*recipe.gate.require, *made]))
    return sample_report(recipe.gate, labels, documents, tokens_per_summary)


def _needs(gate: GatePart, labels: Sequence[str], tokens: float | None) -> Iterator[Need]:
    yield Need("too_few_documents", tuple(labels), FEWEST_DOCUMENTS, FEWEST_DOCUMENTS)
    yield Need("eos_rate_loss", tuple(labels), gate.max_eos_rate_loss, documents_for_share(gate.max_eos_rate_loss))
    rouge: dict[float, list[str]] = {}
    top1: dict[float, list[str]] = {}
    for label in labels:
        kind = "onnx" if label.startswith(ONNX_LABEL) else "gguf"
        limits = gate.limits_of(kind, label.removeprefix(ONNX_LABEL))
        if limits is not None:
            rouge.setdefault(limits.max_rouge_l_loss, []).append(label)
            top1.setdefault(limits.min_top1_agreement, []).append(label)
    for limit, asked in sorted(rouge.items()):
        yield Need("rouge_l_loss", tuple(asked), limit, documents_for_rouge(limit))
    if tokens:
        for limit, asked in sorted(top1.items(), reverse=True):
            yield Need("top1_gold", tuple(asked), limit, documents_for_top1(limit, tokens))


def documents_for_rouge(margin: float) -> int:
    """The least number of documents that show a loss of ROUGE-L within `margin` points, were all summaries the same."""
    return math.floor(CHANGED_SUMMARY_POINTS * NONE_SEEN / margin) + 1


def documents_for_top1(limit: float, tokens_per_summary: float) -> int | None:
    """The least number of documents that show an agreement of at least `limit`, were all first choices the same.

    Tokens with another first choice come at least one by one, so this counts tokens. None: of an agreement in all
    tokens nobody can be sure.
    """
    return None if limit >= 1 else math.ceil(NONE_SEEN / (1 - limit) / tokens_per_summary)
