"""Our metrics as `evaluate.Metric`s, for `evaluate.combine` and trainers; local, nothing is fetched from a hub.

    evaluate.combine([Rouge(), Chrf(), Novelty()]).compute(predictions=[…], references=[…], documents=[…])

References are one text per prediction, or a list of several. Figures are the plain functions' means over documents
(BLEU and chrF: over the corpus), under the names that `score_documents` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from statistics import fmean

import datasets
import evaluate

from evalsuite.metrics.bertscore import BertScorer
from evalsuite.metrics.faithful import invented_names, invented_numbers, ordinary_words
from evalsuite.metrics.overlap import corpus_bleu, corpus_chrf, meteor, meteor_name
from evalsuite.metrics.shape import NOVELTY_ORDERS, coverage, density, length_ratio, novelty, repetition
from evalsuite.metrics.text import METRICS, rouge, rouge_mean

References = Sequence[Sequence[str]]
_TEXT = datasets.Value("string")


class _TextMetric(evaluate.Metric):
    """Predictions and references in, named figures out; kept in memory, so no cache file is written."""

    summary = ""
    with_documents = False

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        documents = {"documents": _TEXT} if self.with_documents else {}
        several, one = datasets.Sequence(_TEXT), _TEXT
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description="predictions: texts; references: a text or a list of texts each"
            + ("; documents: texts" if self.with_documents else ""),
            features=[
                datasets.Features({"predictions": _TEXT, "references": references, **documents})
                for references in (several, one)
            ],
        )

    def _compute(
        self,
        *,
        predictions: Sequence[str],
        references: Sequence[str | Sequence[str]],
        documents: Sequence[str] = (),
        **_of_others: object,  # a combination hands every metric all inputs
    ) -> dict[str, float]:
        lists = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
        return self.figures(lists, list(predictions), list(documents))

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """The figures by name; `documents` is empty where the metric does not ask for them."""
        raise NotImplementedError


class Rouge(_TextMetric):
    """ROUGE-1, -2, -L and -Lsum, 0-100; of several references the best, or with `mean` their mean (`rouge1_mean` …)."""

    summary = "ROUGE F1 x 100: rouge_score with Unicode words and its own sentence split."

    def __init__(self, *, stemming: bool = True, mean: bool = False) -> None:
        super().__init__()
        self._stemming, self._mean = stemming, mean

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """rouge1, rouge2, rougeL, rougeLsum."""
        score, suffix = (rouge_mean, "_mean") if self._mean else (rouge, "")
        found = [score(r, p, stemming=self._stemming) for r, p in zip(references, predictions, strict=True)]
        return {f"{metric}{suffix}": fmean(each[metric] for each in found) for metric in METRICS}


class Bleu(_TextMetric):
    """BLEU over the corpus, 0-100."""

    summary = "BLEU through sacrebleu."

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """bleu."""
        return {"bleu": corpus_bleu(references, predictions).score}


class Chrf(_TextMetric):
    """chrF2 over the corpus, 0-100."""

    summary = "chrF2 through sacrebleu."

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """chrf."""
        return {"chrf": corpus_chrf(references, predictions).score}


class Meteor(_TextMetric):
    """METEOR, 0-100."""

    summary = "METEOR through NLTK; meteor_exact_stem where WordNet is not installed."

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """meteor, or meteor_exact_stem."""
        return {meteor_name(): fmean(meteor(r, p) for r, p in zip(references, predictions, strict=True))}


class BertScore(_TextMetric):
    """BERTScore with an encoder on disk, 0-100, not rescaled."""

    summary = "BERTScore with a local encoder and an explicit layer."

    def __init__(self, scorer: BertScorer | None = None) -> None:
        super().__init__()
        self._scorer = scorer or BertScorer()

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """bertscore_precision, bertscore_recall, bertscore_f1."""
        found = self._scorer.score(predictions, references)
        return {
            "bertscore_precision": 100 * fmean(found.precision),
            "bertscore_recall": 100 * fmean(found.recall),
            "bertscore_f1": 100 * fmean(found.f1),
        }


class Shape(_TextMetric):
    """Length ratio and repetition."""

    summary = "Words per word of the first reference, and the share of 4-grams that repeat an earlier one."

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """length_ratio, repetition."""
        return {
            "length_ratio": fmean(length_ratio(r, p) for r, p in zip(references, predictions, strict=True)),
            "repetition": fmean(repetition(p) for p in predictions),
        }


class Novelty(_TextMetric):
    """How much of the summaries is the document's own words."""

    summary = "Share of n-grams that the document does not have; extractive coverage and density."
    with_documents = True

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """novelty_1 to novelty_3, coverage, density."""
        pairs = list(zip(documents, predictions, strict=True))
        return {
            **{f"novelty_{n}": fmean(novelty(d, p, n) for d, p in pairs) for n in NOVELTY_ORDERS},
            "coverage": fmean(coverage(d, p) for d, p in pairs),
            "density": fmean(density(d, p) for d, p in pairs),
        }


class Faithfulness(_TextMetric):
    """Numbers and names per summary that neither the document nor a reference has."""

    summary = "Mean count of invented numbers and names."
    with_documents = True

    def figures(self, references: References, predictions: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
        """invented_numbers, invented_names."""
        triples = list(zip(documents, predictions, references, strict=True))
        ordinary = ordinary_words(chain(documents, *references))
        return {
            "invented_numbers": fmean(len(invented_numbers(*triple)) for triple in triples),
            "invented_names": fmean(len(invented_names(*triple, ordinary)) for triple in triples),
        }
