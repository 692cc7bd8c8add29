"""Documents that a good mean hides: a check of its own for how many are ruined.

With 3% of the documents ruined so that the mean is twice its limit, no interval of a mean says so if none of them is
among those that were scored, or one among many that are well. So documents are counted: one is ruined when its own mean
KL, on either target set, is beyond RUINED_MULTIPLE times what the mean may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from contract.shares import documents_for_share, share_interval, unseen_share
from contract.verdict import Outcome, Reason
from evalsuite.results import Distance

# Of lognormal documents with σ 1 and a mean of a quarter of the limit one in two million is beyond; with σ 1.5 one in
# eight thousand. A fault in 3% of the documents that doubles the limit makes those documents sixty times the limit.
RUINED_MULTIPLE = 20.0
_NATS = 3.0  # nor more than this above twice the limit: KL has an end, and 20 times a roomy limit is beyond it


def ruined_from(limit: float, least_nats: float = 0.0) -> float:
    """The mean KL of one document, nats per token, beyond which it is ruined; `limit` is that of the mean over all."""
    return max(least_nats, min(RUINED_MULTIPLE * limit, 2 * limit + _NATS))


def ruined_documents(
    code: str, distances: Sequence[Distance], limits: Sequence[float], max_share: float, *, least_nats: float = 0.0
) -> Reason:
    """One check over all target sets.

    Args:
        code: the reason's.
        distances: one per target set.
        limits: what the mean KL of each may be, nats.
        max_share: of documents that may be ruined.
        least_nats: less than this is no ruin, whatever the limit.
    """
    missing = [d for d in distances if len(d.kl_by_document) != d.documents or not d.documents]
    if missing or not distances:
        return Reason(code, "inconclusive", "KL was not measured document by document, so ruined ones were not counted")
    found = sorted(_found(distances, limits, least_nats), reverse=True)
    n = min(distance.documents for distance in distances)
    count = len({at for _, at, _ in found})
    low, high = share_interval(min(count, n), n)
    outcome: Outcome = "pass" if not count or high <= max_share else "fail" if low > max_share else "inconclusive"
    unseen = f"with {n} documents, a fault in fewer than {100 * unseen_share(n):.2g}% of them would not be seen"
    if not count:
        beyond = " and ".join(sorted({f"{ruined_from(limit, least_nats):.3g}" for limit in limits}))
        text = f"no document's own mean KL is beyond {beyond} nats; {unseen}"
    else:
        kl, at, target_set = found[0]
        text = (
            f"{count} of {n} documents are ruined: of the worst, no. {at + 1} of the test set, the mean KL on "
            f"{target_set} targets is {kl:.3g} nats; their share may be at most {max_share:g} (95% interval "
            f"{low:.3g} to {high:.3g})"
        )
        if outcome == "inconclusive":
            needed = documents_for_share(max_share, count)
            text += "; too close to call" + (f": {needed:,} documents with no more of them would do" if needed else "")
    return Reason(code, outcome, text, count / n, max_share, "share", n, low, high)


def _found(
    distances: Sequence[Distance], limits: Sequence[float], least_nats: float
) -> Iterator[tuple[float, int, str]]:
    for distance, limit in zip(distances, limits, strict=True):
        for at, kl in enumerate(distance.kl_by_document):
            if kl > ruined_from(limit, least_nats):
                yield kl, at, distance.target_set
