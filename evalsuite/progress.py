"""How far an evaluation is, and about how long it will take: lines on stderr."""

from __future__ import annotations

import sys
import time

_EVERY_S = 5.0
_KNOWN_FROM = 0.03  # share of the work from which a guess of the rest is worth saying


class Progress:
    """Counts work in texts: one to score is 1, one to write is WRITE, either of them alone, as a server does it, ALONE.

    Texts found in the cache are no work.
    """

    WRITE = 2.5  # how many texts are scored in the time in which one is written, roughly
    ALONE = 5.0  # … in which one is written, or scored token by token, with none beside it

    def __init__(self) -> None:
        self._total = self._done = 0.0
        self._started = self._said = time.monotonic()

    def expect(self, work: float) -> None:
        """More is to be done."""
        self._total += work

    def say(self, text: str) -> None:
        """A line that something begins."""
        print(f"assay eval · {text}", file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def step(self, label: str, work: float = 1.0) -> None:
        """Some of it is done; says so every few seconds."""
        self._done += work
        now = time.monotonic()
        if now - self._said < _EVERY_S or not self._total:
            return
        share = min(1.0, self._done / self._total)
        left = (now - self._started) * (1 - share) / share
        guess = f", about {_duration(left)} left" if share >= _KNOWN_FROM else ""
        self.say(f"{label}: {share:.0%} of everything scored{guess}")


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
