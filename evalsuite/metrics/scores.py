"""Every text metric of a list of summaries: per document, over the corpus, and how each was computed.

ROUGE, BLEU, chrF, METEOR and BERTScore are 0-100, novelty, coverage and repetition 0-1, length_ratio and density are
ratios and words, invented_numbers and invented_names are counts. docs/metrics.md says what each means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from statistics import fmean

from contract.errors import AssayError
from evalsuite.metrics.bertscore import BertScorer, BertScores
from evalsuite.metrics.faithful import invented_names, invented_numbers, ordinary_words
from evalsuite.metrics.overlap import (
    bleu_tokenizer,
    corpus_bleu,
    corpus_chrf,
    meteor,
    meteor_name,
    sentence_bleu,
    sentence_chrf,
)
from evalsuite.metrics.shape import NOVELTY_ORDERS, coverage, density, length_ratio, novelty, repetition
from evalsuite.metrics.text import METRICS, rouge, rouge_mean

_UNITS = {
    "length_ratio": "ratio",
    "novelty_": "share",
    "coverage": "share",
    "density": "words",
    "repetition": "share",
    "invented_": "count",
}


def unit_of(metric: str) -> str:
    """What a metric's figures are: "0-100", a "share" (0-1), a "ratio", "words", or a "count" per document."""
    return next((unit for name, unit in _UNITS.items() if metric.startswith(name)), "0-100")


@dataclass(frozen=True)
class TextScores:
    """What `score_documents` found; the lists of `by_document` are as long as the predictions, in their order."""

    by_document: Mapping[str, list[float]]
    corpus: Mapping[str, float]  # bleu, chrf: over all documents at once, not a mean
    signatures: Mapping[str, str]  # metric or family -> how it was computed

    def means(self) -> dict[str, float]:
        """Each metric as one figure: the corpus figure where there is one, else the mean over documents."""
        return {name: fmean(values) for name, values in self.by_document.items()} | dict(self.corpus)


def score_documents(
    documents: Sequence[str] | None,
    references: Sequence[Sequence[str]],
    predictions: Sequence[str],
    *,
    stemming: bool = True,
    bert: BertScorer | None = None,
) -> TextScores:
    """Score predictions by every metric that needs no model, and by BERTScore where `bert` is given.

    Args:
        documents: what was summarized; None leaves out the metrics that need it.
        references: per document one text or more; with several the best counts (and `…_mean` for ROUGE is their mean).
        predictions: one text per document.
        stemming: ROUGE's Porter stemmer.
        bert: an encoder, loaded.

    Raises:
        AssayError: there is no prediction, the counts differ, or a document has no reference.
    """
    counts = {len(predictions), len(references), len(predictions if documents is None else documents)}
    if len(counts) != 1 or not predictions or not all(references):
        raise AssayError(
            "every prediction needs a reference, and a document where there are documents",
            got=f"{len(predictions)} predictions, {len(references)} lists of references"
            + ("" if documents is None else f", {len(documents)} documents"),
        )
    scores = _overlap(references, predictions, stemming)
    corpus = {"bleu": corpus_bleu(references, predictions), "chrf": corpus_chrf(references, predictions)}
    signatures = _signatures(stemming) | {name: found.signature for name, found in corpus.items()}
    if bert is not None:
        found = bert.score(predictions, references)
        signatures["bertscore"] = _bert_signature(found)
        for name, values in (("precision", found.precision), ("recall", found.recall), ("f1", found.f1)):
            scores[f"bertscore_{name}"] = [100 * value for value in values]
    scores["length_ratio"] = [length_ratio(texts, ours) for texts, ours in zip(references, predictions, strict=True)]
    scores["repetition"] = [repetition(ours) for ours in predictions]
    if documents is not None:
        scores |= _beside_documents(documents, references, predictions)
    return TextScores(scores, {name: found.score for name, found in corpus.items()}, signatures)


def _overlap(references: Sequence[Sequence[str]], predictions: Sequence[str], stemming: bool) -> dict[str, list[float]]:
    pairs = list(zip(references, predictions, strict=True))
    best = [rouge(texts, ours, stemming=stemming) for texts, ours in pairs]
    scores = {metric: [each[metric] for each in best] for metric in METRICS}
    if any(len(texts) > 1 for texts in references):
        mean = [rouge_mean(texts, ours, stemming=stemming) for texts, ours in pairs]
        scores |= {f"{metric}_mean": [each[metric] for each in mean] for metric in METRICS}
    tokenizer = bleu_tokenizer(references)
    scores["bleu_sentence"] = [sentence_bleu(texts, ours, tokenizer) for texts, ours in pairs]
    scores["chrf_sentence"] = [sentence_chrf(texts, ours) for texts, ours in pairs]
    scores[meteor_name()] = [meteor(texts, ours) for texts, ours in pairs]
    return scores


def _beside_documents(
    documents: Sequence[str], references: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, list[float]]:
    ordinary = ordinary_words(chain(documents, *references))
    found: list[dict[str, float]] = [
        {
            **{f"novelty_{n}": novelty(document, ours, n) for n in NOVELTY_ORDERS},
            "coverage": coverage(document, ours),
            "density": density(document, ours),
            "invented_numbers": len(invented_numbers(document, ours, texts)),
            "invented_names": len(invented_names(document, ours, texts, ordinary)),
        }
        for document, texts, ours in zip(documents, references, predictions, strict=True)
    ]
    return {name: [float(each[name]) for each in found] for name in found[0]}


def _signatures(stemming: bool) -> dict[str, str]:
    return {
        "rouge": f"rouge_score {version('rouge-score')}, F1, {'Porter stemmer' if stemming else 'no stemmer'}, "
        "Unicode words, own sentence split, best reference",
        meteor_name(): f"nltk {version('nltk')}, "
        + ("exact, stem and WordNet" if meteor_name() == "meteor" else "exact and stem, no WordNet")
        + ", Unicode words, best reference",
    }


def _bert_signature(found: BertScores) -> str:
    return (
        f"bert-score {version('bert-score')}, {found.encoder} sha256:{found.encoder_digest}, layer {found.layer}, "
        f"no idf, not rescaled, best reference, {found.truncated} of {found.texts} texts cut at {found.limit} tokens"
    )
