"""BLEU and chrF through sacrebleu, with its signatures, and METEOR through NLTK; all on the 0-100 scale.

A signature says how a figure was computed, so that it can be compared: tokenizer, smoothing, number of references,
version. METEOR is "meteor" only where the WordNet corpus is installed; without it words match by form and by stem
alone, which gives other figures, and is named "meteor_exact_stem". Nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError
from evalsuite.metrics.language import main_script
from evalsuite.metrics.text import stem, words

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

# sacrebleu's tokenizer by the script of the references: its default needs spaces between words
_TOKENIZERS = {"CJK": "zh", "JAPANESE": "char", "THAI": "char", "LAO": "char", "KHMER": "char", "MYANMAR": "char"}


@dataclass(frozen=True)
class CorpusScore:
    """One figure over all documents (not a mean of theirs), 0-100, and how it was computed."""

    score: float
    signature: str


def bleu_tokenizer(references: Sequence[Sequence[str]]) -> str:
    """sacrebleu's name of the tokenizer for these references: "13a", its default, or one for unspaced scripts."""
    return _TOKENIZERS.get(main_script(" ".join(text for texts in references for text in texts)) or "", "13a")


@lru_cache(maxsize=16)
def _bleu(tokenizer: str, effective_order: bool) -> BLEU:
    return _sacrebleu().BLEU(tokenize=tokenizer, effective_order=effective_order, force=True)


@lru_cache(maxsize=1)
def _chrf() -> CHRF:
    return _sacrebleu().CHRF()


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise AssayError("scoring needs sacrebleu", hint="in Assay's checkout: pip install -e '.[eval]'") from None
    return metrics


def corpus_bleu(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> CorpusScore:
    """BLEU over all documents (Papineni et al. 2002; Post 2018), several references each.

    Args:
        references: per document one text or more.
        predictions: one text per document.

    Raises:
        AssayError: there is no document, or one without a reference.
    """
    return _corpus(_bleu(bleu_tokenizer(references), False), references, predictions)


def corpus_chrf(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> CorpusScore:
    """chrF2 over all documents (Popović 2015): character 1- to 6-grams, recall counted twice.

    Raises:
        AssayError: there is no document, or one without a reference.
    """
    return _corpus(_chrf(), references, predictions)


def _corpus(metric: BLEU | CHRF, references: Sequence[Sequence[str]], predictions: Sequence[str]) -> CorpusScore:
    if not predictions or len(predictions) != len(references) or not all(references):
        raise AssayError(
            "every prediction needs a reference", got=f"{len(predictions)} predictions, {len(references)} references"
        )
    streams = [list(stream) for stream in zip_longest(*references)]  # None where a document has fewer
    return CorpusScore(metric.corpus_score(list(predictions), streams).score, str(metric.get_signature()))


def sentence_bleu(references: Sequence[str], prediction: str, tokenizer: str = "13a") -> float:
    """BLEU of one document: exponential smoothing, and only as many n-gram orders as the text has (effective order).

    Raises:
        AssayError: there is no reference.
    """
    return _sentence(_bleu(tokenizer, True), references, prediction)


def sentence_chrf(references: Sequence[str], prediction: str) -> float:
    """chrF2 of one document; over several references the best.

    Raises:
        AssayError: there is no reference.
    """
    return _sentence(_chrf(), references, prediction)


def _sentence(metric: BLEU | CHRF, references: Sequence[str], prediction: str) -> float:
    if not references:
        raise AssayError("an example without a reference cannot be scored")
    return float(metric.sentence_score(prediction, list(references)).score)


class _NoSynonyms:
    """Stands in for WordNet where it is not installed."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        return []


class _Stemmer:
    """NLTK's stemmer interface over our cache."""

    @staticmethod
    def stem(word: str) -> str:
        return stem(word)


@lru_cache(maxsize=1)
def _wordnet() -> Any:
    """The corpus reader, or None where the corpus is not installed."""
    try:
        from nltk.corpus import wordnet  # type: ignore[import-untyped]
    except ImportError:
        raise AssayError("METEOR needs nltk", hint="in Assay's checkout: pip install -e '.[eval]'") from None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def meteor_name() -> str:
    """What METEOR's figures are called on this machine: "meteor", or "meteor_exact_stem" without WordNet."""
    return "meteor_exact_stem" if _wordnet() is None else "meteor"


def meteor(references: Sequence[str], prediction: str) -> float:
    """METEOR of one document (Lavie & Agarwal 2007; alpha 0.9, beta 3, gamma 0.5); over several references the best.

    Words are those of `evalsuite.metrics.text.words`. A text against itself gets slightly less than 100: the penalty
    for one chunk among m words is 50 / m³.

    Raises:
        AssayError: there is no reference.
    """
    if not references:
        raise AssayError("an example without a reference cannot be scored")
    synonyms = _wordnet() or _NoSynonyms()
    from nltk.translate.meteor_score import meteor_score  # type: ignore[import-untyped]

    return 100 * float(
        meteor_score(
            [words(text) for text in references],
            words(prediction),
            stemmer=_Stemmer(),
            wordnet=synonyms,
        )
    )
