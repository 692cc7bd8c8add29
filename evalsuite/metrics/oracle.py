"""The oracle-extractive baseline: the document's own sentences that come nearest to a reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from contract.errors import AssayError
from evalsuite.metrics.text import rouge_words, sentences

_ORDERS = (1, 2)


def oracle_extractive(document: str, references: Sequence[str], most: int = 3) -> str:
    """At most `most` sentences of `document`, in its order, one per line.

    Sentences are taken one at a time, each time the one that raises ROUGE-1 + ROUGE-2 F1 most, until none does
    (Nallapati et al. 2017, "SummaRuNNer"; Liu & Lapata 2019, "Text Summarization with Pretrained Encoders"). Words are
    stemmed, bigrams do not cross sentences. With several references: the choice for the one that can be met best.
    It is about what copying can reach; empty where no sentence shares a word with a reference.

    Raises:
        AssayError: there is no reference.
    """
    if not references:
        raise AssayError("an oracle needs a reference")
    split = sentences(document)
    offered = [rouge_words(sentence) for sentence in split]
    found = [_greedy(offered, [rouge_words(text) for text in sentences(reference)], most) for reference in references]
    _, chosen = max(found, key=lambda choice: choice[0])
    return "\n".join(split[index] for index in sorted(chosen))


def _greedy(offered: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], most: int) -> tuple[float, list[int]]:
    """ROUGE-1 + ROUGE-2 F1 (0 to 2) of the chosen sentences, and their indices."""
    overlaps = [_Overlap(n, offered, reference) for n in _ORDERS]
    best = 0.0
    chosen: list[int] = []
    for _ in range(min(most, len(offered))):
        scores = {i: sum(overlap.f1_with(i) for overlap in overlaps) for i in range(len(offered)) if i not in chosen}
        index = max(scores, key=lambda i: scores[i])
        if scores[index] <= best:
            break
        best = scores[index]
        chosen.append(index)
        for overlap in overlaps:
            overlap.add(index)
    return best, chosen


class _Overlap:
    """The n-grams that a growing choice of sentences shares with a reference; a candidate costs only its own."""

    def __init__(self, n: int, offered: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> None:
        counts = [_ngrams(words, n) for words in offered]
        self._wanted = sum((_ngrams(words, n) for words in reference), Counter[tuple[str, ...]]())
        self._sizes = [count.total() for count in counts]
        self._shared = [{gram: count[gram] for gram in count.keys() & self._wanted.keys()} for count in counts]
        self._have = Counter[tuple[str, ...]]()
        self._hits = self._size = 0

    def _hits_with(self, index: int) -> int:
        wanted, have = self._wanted, self._have
        return self._hits + sum(
            min(wanted[gram], have[gram] + count) - min(wanted[gram], have[gram])
            for gram, count in self._shared[index].items()
        )

    def f1_with(self, index: int) -> float:
        """F1 (0 to 1) were this sentence taken too."""
        total = self._wanted.total() + self._size + self._sizes[index]
        return 2 * self._hits_with(index) / total if total else 0.0

    def add(self, index: int) -> None:
        """Take a sentence."""
        self._hits = self._hits_with(index)
        self._size += self._sizes[index]
        self._have.update(self._shared[index])


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
