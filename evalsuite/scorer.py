"""The task scores of one artifact's summaries: every metric of every one, and their means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from contract.example import Example
from evalsuite.metrics.bertscore import BertScorer, bertscore_available
from evalsuite.metrics.buckets import BUCKETS, buckets
from evalsuite.metrics.facts import facts_right, facts_right_shuffled
from evalsuite.metrics.faithful import ordinary_words
from evalsuite.metrics.oracle import oracle_extractive
from evalsuite.metrics.scores import score_documents
from evalsuite.metrics.text import METRICS, lead_3
from evalsuite.results import Baseline, Prediction, Stop, Task
from evalsuite.stats import intervals_of_means


@dataclass(frozen=True)
class Scored:
    """Summaries with their scores, in the order of the examples."""

    predictions: tuple[Prediction, ...]
    task: Task


class TaskScorer:
    """Scores any number of sets of summaries of the same examples; a text that was seen before is not embedded again.

    Args:
        examples: what is summarized, each with a reference.
        threads: CPU threads of the BERTScore encoder.
    """

    def __init__(self, examples: Sequence[Example], threads: int) -> None:
        self._examples = examples
        self._bert = BertScorer(threads=threads) if bertscore_available() else None
        self._ordinary = ordinary_words(
            text for example in examples for text in (example.document, *example.references)
        )
        self.signatures: dict[str, str] = {}

    def score(
        self,
        texts: Sequence[str],
        stops: Sequence[Stop] | None = None,
        tokens: Sequence[int | None] | None = None,
        seen: Sequence[str] | None = None,
    ) -> Scored:
        """Score one text per example.

        Args:
            texts: the summaries.
            stops: why each ended; None where no model wrote them.
            tokens: how many tokens each has, as far as known.
            seen: the documents as the model saw them; None: as they are.
        """
        examples = self._examples
        texts = [text.strip() for text in texts]
        references = [example.references for example in examples]
        documents = [example.document for example in examples]
        scores = score_documents(documents, references, texts, bert=self._bert)
        self.signatures |= scores.signatures
        predictions = tuple(
            Prediction(
                example.id,
                seen[at] if seen else example.document,
                example.references,
                texts[at],
                stops[at] if stops else "unknown",
                tokens[at] if tokens else None,
                {name: values[at] for name, values in scores.by_document.items()},
                buckets(example.document, example.references, texts[at], stops[at] if stops else None, self._ordinary),
            )
            for at, example in enumerate(examples)
        )
        means = intervals_of_means(scores.by_document)
        right = facts_right(references, documents, texts)
        known = [count for count in tokens or () if count is not None]
        return Scored(
            predictions,
            Task(
                **{metric: means.pop(metric) for metric in METRICS},
                facts_right=right.share,
                facts_right_shuffled=(
                    facts_right_shuffled(references, documents, texts).share if len(texts) > 1 else None
                ),
                facts=right.facts,
                eos_rate=None if not stops or "unknown" in stops else fmean(stop == "eos" for stop in stops),
                tokens_mean=fmean(known) if len(known) == len(texts) else None,
                scores=means,
                corpus=dict(scores.corpus),
                buckets={
                    name: count
                    for name in BUCKETS
                    if (count := sum(name in prediction.buckets for prediction in predictions)) and stops
                },
            ),
        )

    def baselines(self) -> tuple[Baseline, ...]:
        """What takes no model: the document's first three sentences, and the three that ROUGE likes best."""
        leads = [lead_3(example.document) for example in self._examples]
        oracles = [oracle_extractive(example.document, example.references) for example in self._examples]
        return (
            Baseline("lead-3", self.score(leads).task),
            Baseline("oracle-extractive", self.score(oracles).task),
        )
