"""What is asked of a GGUF that is to be chosen, what was found of one, and what that decides.

Figures over documents are judged as the gate judges them, by their whole 95% interval (evalsuite/stats.py). Bytes are
counted, and time is one figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from contract.verdict import Outcome, Reason, worst
from evalsuite.results import Interval
from evalsuite.stats import at_most, documents_needed


@dataclass(frozen=True)
class Limits:
    """At most this; None: anything. `kl_nats` and `rouge_l_loss` are limits of quality."""

    kl_nats: float | None = None  # mean KL(model‖GGUF) per token, on the reference summaries and on the model's own
    rouge_l_loss: float | None = None  # points of 100 by which the summaries may be worse
    size_bytes: int | None = None
    ms_per_token: float | None = None

    @property
    def none(self) -> bool:
        """Is nothing asked?"""
        return not any(value is not None for value in asdict(self).values())

    @property
    def of_quality(self) -> bool:
        """Is anything asked of what the file writes?"""
        return self.kl_nats is not None or self.rouge_l_loss is not None


@dataclass(frozen=True)
class Quality:
    """How near a GGUF is to the model it was made from. `kl_nats` is empty where logits are not finite."""

    kl_nats: dict[str, Interval]  # "gold", "greedy" -> mean per token
    tokens: int  # that were scored
    not_finite_tokens: int
    rouge_l_loss: Interval | None  # points lost, document by document; None: not asked for

    @property
    def nats(self) -> float:
        """The larger of the two means; infinite where there is none."""
        return max((interval.mean for interval in self.kl_nats.values()), default=math.inf)


@dataclass(frozen=True)
class Figures:
    """What is known of one type so far. `bits_per_weight` and `size_bytes` are planned until it has been made."""

    quant: str
    size_bytes: int
    bits_per_weight: float
    digest: str | None = None  # None: it was not made
    quality: Quality | None = None
    ms_per_token: float | None = None
    refused: str | None = None  # why it cannot be taken, whatever its figures

    def reasons(self, limits: Limits) -> tuple[Reason, ...]:
        """One for every limit that the figures say something of."""
        return tuple(self._reasons(limits))

    def outcome(self, limits: Limits) -> Outcome | None:
        """pass, fail or inconclusive; None: nothing says no, but not all has been measured."""
        said = [reason.outcome for reason in self.reasons(limits)]
        decided = worst(said) if said else "pass"
        timed = self.ms_per_token is not None or limits.ms_per_token is None
        return decided if decided != "pass" or (self.quality is not None and timed) else None

    def _reasons(self, limits: Limits) -> Iterator[Reason]:
        if self.refused is not None:
            yield Reason("cannot_be_made", "fail", self.refused)
        if limits.size_bytes is not None:
            text = f"{self.size_bytes:,} bytes, at most {limits.size_bytes:,}"
            yield _plain("size_bytes", self.size_bytes, limits.size_bytes, "bytes", text)
        if self.quality is not None:
            yield from _of_quality(self.quality, limits)
        if limits.ms_per_token is not None and self.ms_per_token is not None:
            text = f"{self.ms_per_token:.3g} ms per token, at most {limits.ms_per_token:g}"
            yield _plain("ms_per_token", self.ms_per_token, limits.ms_per_token, "ms", text)


def _of_quality(quality: Quality, limits: Limits) -> Iterator[Reason]:
    if quality.not_finite_tokens:
        text = f"{quality.not_finite_tokens} tokens have logits that are not finite"
        yield Reason("not_finite", "fail", text, quality.not_finite_tokens, 0, "tokens")
    if limits.kl_nats is not None:
        for targets, interval in quality.kl_nats.items():
            yield _interval(f"kl_{targets}", interval, limits.kl_nats, "nats", f"KL on {targets} targets")
    if limits.rouge_l_loss is not None and quality.rouge_l_loss is not None:
        yield _interval("rouge_l_loss", quality.rouge_l_loss, limits.rouge_l_loss, "points", "ROUGE-L lost")


def _plain(code: str, found: float, limit: float, unit: str, text: str) -> Reason:
    return Reason(code, "pass" if found <= limit else "fail", text, found, limit, unit)


def _interval(code: str, found: Interval, limit: float, unit: str, what: str) -> Reason:
    outcome = at_most(found, limit)
    text = f"{what} {found.mean:.3g} [{found.low:.3g}, {found.high:.3g}] {unit}, at most {limit:g}"
    if outcome == "inconclusive":
        needed = documents_needed(found, limit)
        text += "; too close to call" + (f": about {needed:,} documents would decide" if needed else "")
    return Reason(code, outcome, text, found.mean, limit, unit, found.n, found.low, found.high)
