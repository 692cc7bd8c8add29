from __future__ import annotations

from statistics import fmean

import pytest

from contract.errors import AssayError
from evalsuite.metrics.bertscore import BertScorer, bertscore_available
from evalsuite.metrics.overlap import corpus_bleu, corpus_chrf, meteor, meteor_name, sentence_chrf
from evalsuite.metrics.scores import score_documents, unit_of
from evalsuite.metrics.shape import density, novelty
from evalsuite.metrics.text import METRICS, rouge, rouge_mean

DOCUMENTS = [
    "Mara: the bus leaves at nine.\nOlin: fine, from the old square.",
    "Olin: two beers, please.\nMara: 10 crowns.",
]
REFERENCES = [["Mara tells Olin that the bus leaves at nine."], ["Olin buys two beers from Mara.", "Mara sells beers."]]
PREDICTIONS = ["The bus leaves at 10, says Kesto to Mara.", "Olin buys beers."]
PER_DOCUMENT = {*METRICS, "bleu_sentence", "chrf_sentence", meteor_name(), "length_ratio", "repetition"}
WITH_DOCUMENT = {"novelty_1", "novelty_2", "novelty_3", "coverage", "density", "invented_numbers", "invented_names"}


def test_every_figure_is_the_plain_functions() -> None:
    found = score_documents(DOCUMENTS, REFERENCES, PREDICTIONS)
    assert set(found.by_document) == PER_DOCUMENT | WITH_DOCUMENT | {f"{metric}_mean" for metric in METRICS}
    assert all(len(values) == 2 for values in found.by_document.values())
    for index, (texts, prediction) in enumerate(zip(REFERENCES, PREDICTIONS, strict=True)):
        for metric in METRICS:
            assert found.by_document[metric][index] == rouge(texts, prediction)[metric]
            assert found.by_document[f"{metric}_mean"][index] == rouge_mean(texts, prediction)[metric]
        assert found.by_document["chrf_sentence"][index] == sentence_chrf(texts, prediction)
        assert found.by_document[meteor_name()][index] == meteor(texts, prediction)
        assert found.by_document["novelty_2"][index] == novelty(DOCUMENTS[index], prediction, 2)
        assert found.by_document["density"][index] == density(DOCUMENTS[index], prediction)
    assert found.by_document["invented_numbers"] == [1, 0]
    assert found.by_document["invented_names"] == [1, 0]
    bleu, chrf = corpus_bleu(REFERENCES, PREDICTIONS), corpus_chrf(REFERENCES, PREDICTIONS)
    assert found.corpus == {"bleu": bleu.score, "chrf": chrf.score}
    assert (found.signatures["bleu"], found.signatures["chrf"]) == (bleu.signature, chrf.signature)
    means = found.means()
    assert means["rouge1"] == fmean(found.by_document["rouge1"])
    assert means["chrf"] == chrf.score != means["chrf_sentence"]


def test_without_documents_their_metrics_are_left_out() -> None:
    found = score_documents(None, [texts[:1] for texts in REFERENCES], PREDICTIONS)
    assert set(found.by_document) == PER_DOCUMENT


def test_stemming_is_a_switch_and_is_written_down() -> None:
    ours = score_documents(None, [["buying beers"]], ["buys beer"])
    plain = score_documents(None, [["buying beers"]], ["buys beer"], stemming=False)
    assert ours.by_document["rouge1"] == pytest.approx([100])
    assert plain.by_document["rouge1"] == [0]
    assert "Porter stemmer" in ours.signatures["rouge"]
    assert "no stemmer" in plain.signatures["rouge"]
    assert meteor_name() in ours.signatures


@pytest.mark.skipif(not bertscore_available(), reason="the bertscore extra is not installed")
def test_bertscore_comes_along_with_its_encoder() -> None:
    bert = BertScorer(threads=1)
    found = score_documents(DOCUMENTS, REFERENCES, PREDICTIONS, bert=bert)
    plain = bert.score(PREDICTIONS, REFERENCES)
    assert found.by_document["bertscore_f1"] == [100 * value for value in plain.f1]
    assert found.by_document["bertscore_precision"] == [100 * value for value in plain.precision]
    assert found.by_document["bertscore_recall"] == [100 * value for value in plain.recall]
    for part in (plain.encoder_digest, "layer 5", "not rescaled", "0 of 5 texts cut at 512 tokens"):
        assert part in found.signatures["bertscore"]


@pytest.mark.parametrize(
    ("documents", "references", "predictions"),
    [
        (None, [], []),
        (None, [["a"]], []),
        (None, [["a"], []], ["a", "b"]),
        (["a"], [["a"], ["b"]], ["a", "b"]),
    ],
)
def test_what_does_not_fit_together_is_refused(
    documents: list[str] | None, references: list[list[str]], predictions: list[str]
) -> None:
    with pytest.raises(AssayError, match="every prediction needs a reference"):
        score_documents(documents, references, predictions)


def test_units() -> None:
    expected = {"rouge1": "0-100", "bertscore_f1": "0-100", "novelty_3": "share", "density": "words"}
    expected |= {"invented_names": "count", "length_ratio": "ratio", "repetition": "share", "coverage": "share"}
    assert {name: unit_of(name) for name in expected} == expected
