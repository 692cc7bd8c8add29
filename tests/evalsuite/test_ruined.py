from __future__ import annotations

import pytest

from contract.verdict import Reason
from evalsuite.ruined import ruined_documents, ruined_from
from tests.evalsuite.made import distance

LIMIT = 0.08


def counted(ruined: int, n: int, *, share: float = 0.003, kl: float = 4.0) -> Reason:
    documents = (0.01,) * (n - ruined) + (kl,) * ruined
    sets = [distance(name, documents=n, kl_by_document=documents) for name in ("gold", "greedy")]
    return ruined_documents("ruined_documents", sets, [LIMIT, LIMIT], share)


def test_none_seen_passes_and_says_what_would_not_have_been_seen() -> None:
    for n, unseen in ((20, "17%"), (50, "7.1%"), (100, "3.6%"), (300, "1.2%"), (10_000, "0.037%")):
        reason = counted(0, n)
        assert reason.outcome == "pass"
        assert f"with {n} documents, a fault in fewer than {unseen} of them would not be seen" in reason.text
        assert reason.high == pytest.approx(1 - 0.025 ** (1 / n))


@pytest.mark.parametrize(
    ("ruined", "n", "outcome"),
    [(1, 100, "inconclusive"), (3, 100, "fail"), (1, 1854, "inconclusive"), (1, 1855, "pass"), (30, 1000, "fail")],
)
def test_seen_ones_are_held_against_the_share_that_may_be(ruined: int, n: int, outcome: str) -> None:
    reason = counted(ruined, n)
    assert reason.outcome == outcome
    assert reason.value == pytest.approx(ruined / n)
    assert f"{ruined} of {n} documents are ruined: of the worst, no. {n} of the test set" in reason.text
    assert ("1,855 documents with no more of them would do" in reason.text) == (outcome == "inconclusive")


def test_where_none_may_be_one_fails() -> None:
    assert counted(1, 100, share=0.0).outcome == "fail"
    assert counted(0, 100, share=0.0).outcome == "pass"


def test_a_document_is_ruined_far_beyond_the_limit_and_no_further_than_kl_goes() -> None:
    assert ruined_from(1e-4) == pytest.approx(2e-3)
    assert ruined_from(LIMIT) == pytest.approx(1.6)
    assert ruined_from(1.7) == pytest.approx(6.4)  # 34 nats would never be reached
    assert counted(1, 100, kl=1.59).outcome == "pass"
    assert counted(1, 100, kl=1.61).outcome == "inconclusive"


def test_either_target_set_tells_and_one_document_counts_once() -> None:
    well, bad = (0.01,) * 100, (0.01,) * 97 + (4.0, 5.0, 6.0)
    for sets in ((well, bad), (bad, well), (bad, bad)):
        found = [distance(name, kl_by_document=kl) for name, kl in zip(("gold", "greedy"), sets, strict=True)]
        reason = ruined_documents("ruined_documents", found, [LIMIT, LIMIT], 0.003)
        assert (reason.outcome, reason.value) == ("fail", 0.03)
        assert "is 6 nats" in reason.text


def test_what_was_not_measured_of_every_document_does_not_pass() -> None:
    for sets in ([], [distance(kl_by_document=(0.01,) * 99)], [distance(), distance(kl_by_document=())]):
        reason = ruined_documents("ruined_documents", sets, [LIMIT] * len(sets), 0.003)
        assert reason.outcome == "inconclusive"
        assert "not measured document by document" in reason.text
