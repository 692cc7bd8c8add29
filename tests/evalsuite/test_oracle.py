from __future__ import annotations

from random import Random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from contract.errors import AssayError
from evalsuite.metrics.oracle import oracle_extractive
from evalsuite.metrics.text import lead_3, rouge

DOCUMENT = "Mara is here. The bus 84 leaves at nine. Olin likes fish. It costs ten crowns. Nobody spoke. The end came."


def test_it_takes_what_the_reference_says_in_the_documents_order() -> None:
    assert oracle_extractive(DOCUMENT, ["It costs ten crowns and the bus leaves at nine."]) == (
        "The bus 84 leaves at nine.\nIt costs ten crowns."
    )


def test_it_stops_where_nothing_helps_and_at_the_most() -> None:
    assert oracle_extractive(DOCUMENT, ["Olin likes fish."]) == "Olin likes fish."
    assert oracle_extractive(DOCUMENT, ["zzz"]) == ""
    assert oracle_extractive("", ["zzz"]) == ""
    assert oracle_extractive(DOCUMENT, [DOCUMENT]).count("\n") == 2
    assert oracle_extractive(DOCUMENT, [DOCUMENT], most=5).count("\n") == 4


def test_of_several_references_the_one_that_can_be_met() -> None:
    assert oracle_extractive(DOCUMENT, ["zzz yyy", "Nobody spoke.", "Mara was there and saw it"]) == "Nobody spoke."
    with pytest.raises(AssayError, match="needs a reference"):
        oracle_extractive(DOCUMENT, [])


def test_each_step_is_the_best_that_rouge_score_itself_finds() -> None:
    """Sentences of one word: no bigram can cross them, so rouge_score on the joined text gives the same F1."""
    random = Random(3)
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    for _ in range(20):
        split = [f"{random.choice('abcdefghij')}{random.choice('kl')}." for _ in range(12)]
        reference = " ".join(random.choice(split).rstrip(".") for _ in range(6))
        chosen: list[int] = []
        best = 0.0
        while len(chosen) < 3:
            scored = {
                i: scorer.score(reference, " ".join(split[j] for j in [*chosen, i]))["rouge1"].fmeasure
                for i in range(12)
                if i not in chosen
            }
            index = max(scored, key=lambda i: scored[i])
            if scored[index] <= best + 1e-12:
                break
            best = scored[index]
            chosen.append(index)
        found = oracle_extractive("\n".join(split), [reference.replace(" ", ". ")])
        assert scorer.score(reference, found)["rouge1"].fmeasure == pytest.approx(best)


def test_it_beats_lead_3() -> None:
    reference = "Olin likes fish. It costs ten crowns."
    oracle, lead = (rouge([reference], text) for text in (oracle_extractive(DOCUMENT, [reference]), lead_3(DOCUMENT)))
    assert oracle["rouge1"] == pytest.approx(100)
    assert lead["rouge1"] < 60
