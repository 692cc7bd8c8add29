from __future__ import annotations

import socket

import evaluate
import pytest

from evalsuite.metrics.bertscore import BertScorer, bertscore_available
from evalsuite.metrics.hf_metrics import BertScore, Bleu, Chrf, Faithfulness, Meteor, Novelty, Rouge, Shape
from evalsuite.metrics.scores import score_documents
from tests.evalsuite.test_scores import DOCUMENTS, PREDICTIONS, REFERENCES


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_combined_they_give_the_plain_functions_figures() -> None:
    combined = evaluate.combine(
        [Rouge(), Rouge(mean=True), Bleu(), Chrf(), Meteor(), Shape(), Novelty(), Faithfulness()]
    )
    found = combined.compute(predictions=PREDICTIONS, references=REFERENCES, documents=DOCUMENTS)
    expected = score_documents(DOCUMENTS, REFERENCES, PREDICTIONS).means()
    del expected["bleu_sentence"], expected["chrf_sentence"]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_single_reference_may_be_a_plain_text() -> None:
    plain = [texts[0] for texts in REFERENCES]
    expected = score_documents(None, [[text] for text in plain], PREDICTIONS, stemming=False).means()
    for metric in (Rouge(stemming=False), Bleu(), Chrf(), Meteor(), Shape()):
        found = metric.compute(predictions=PREDICTIONS, references=plain)
        assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)


def test_they_collect_batches() -> None:
    combined = evaluate.combine([Rouge(), Novelty()])
    for document, texts, prediction in zip(DOCUMENTS, REFERENCES, PREDICTIONS, strict=True):
        combined.add_batch(predictions=[prediction], references=[texts], documents=[document])
    expected = score_documents(DOCUMENTS, REFERENCES, PREDICTIONS).means()
    found = combined.compute()
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)


@pytest.mark.skipif(not bertscore_available(), reason="the bertscore extra is not installed")
def test_bertscore_too() -> None:
    bert = BertScorer(threads=1)
    found = evaluate.combine([BertScore(bert), Rouge()]).compute(predictions=PREDICTIONS, references=REFERENCES)
    expected = score_documents(None, REFERENCES, PREDICTIONS, bert=bert).means()
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)
    assert {"bertscore_precision", "bertscore_recall", "bertscore_f1"} < set(found)
