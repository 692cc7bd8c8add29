"""What is done to a model's scores before a token is chosen, in transformers' order and with its definitions.

Each follows the logits processor of that name in transformers 4.57 (`generation/logits_process.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contract.errors import AssayError
from contract.model_folder import read_json
from contract.runtime import GenerateParams


@dataclass(frozen=True)
class TargetFormat:
    """How the answers of an encoder-decoder model begin and end."""

    start_id: int  # the decoder is fed this first; it is no part of the answer
    most_tokens: int
    forced_bos_id: int | None = None  # the first token of every answer
    forced_eos_id: int | None = None  # the token that stands where an answer reaches its limit


def read_target_format(folder: Path, most_tokens: int) -> TargetFormat:
    """Read it off generation_config.json and, for what is not there, config.json.

    Raises:
        AssayError: neither names the id the decoder starts with.
    """
    config = {**read_json(folder / "config.json"), **read_json(folder / "generation_config.json")}
    start = config.get("decoder_start_token_id", config.get("bos_token_id"))
    if not isinstance(start, int):
        raise AssayError(
            "nothing says what the decoder starts with",
            where=str(folder / "generation_config.json"),
            expected="decoder_start_token_id",
            got=repr(start),
        )
    forced = [_one(config.get(key)) for key in ("forced_bos_token_id", "forced_eos_token_id")]
    return TargetFormat(start, most_tokens, forced[0], forced[1])


def _one(value: object) -> int | None:
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


class LogitsRules:
    """The rules of one answer.

    Args:
        params: repetition_penalty, no_repeat_ngram_size, min_new_tokens.
        end_ids: what min_new_tokens forbids.
        before: what the model has seen in front of the answer: the prompt, or the decoder's start id.
        target: of an encoder-decoder model.
        most_tokens: where a forced end stands.
    """

    def __init__(
        self,
        params: GenerateParams,
        end_ids: frozenset[int],
        before: Sequence[int],
        target: TargetFormat | None,
        most_tokens: int,
    ) -> None:
        self._params, self._before, self._most = params, list(before), most_tokens
        self._end_ids = sorted(end_ids)
        self._forced_bos = target.forced_bos_id if target else None
        self._forced_eos = target.forced_eos_id if target and not params.ignore_stop else None

    def idle_for(self, made: int) -> int:
        """How many tokens behind `made` others no rule changes anything about."""
        if self._params.repetition_penalty != 1.0 or self._params.no_repeat_ngram_size:
            return 0
        if (self._end_ids and made < self._params.min_new_tokens) or (self._forced_bos is not None and not made):
            return 0
        return self._most - made - (self._forced_eos is not None)

    def forces_end(self, made: int) -> bool:
        """Is the token behind `made` others one that ends the answer because it has reached its limit?"""
        return self._forced_eos is not None and made == self._most - 1

    def apply(self, scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Scores with every rule applied.

        Args:
            scores: float32 [vocab_size], logits or (beam search) log-probabilities; not changed.
            ids: the answer so far.

        Returns:
            float32 [vocab_size]; what may not come is -inf.
        """
        if self.idle_for(len(ids)):
            return scores
        scores = scores.copy()
        seen = np.array([*self._before, *ids], np.int64)
        if (penalty := np.float32(self._params.repetition_penalty)) != 1.0:
            some = scores[seen]
            scores[seen] = np.where(some < 0, some * penalty, some / penalty)
        if size := self._params.no_repeat_ngram_size:
            scores[_would_repeat(seen, size)] = -np.inf
        if len(ids) < self._params.min_new_tokens:
            scores[self._end_ids] = -np.inf
        if self._forced_bos is not None and not ids:
            scores = _only(self._forced_bos, len(scores))
        if self._forced_eos is not None and self.forces_end(len(ids)):
            scores = _only(self._forced_eos, len(scores))
        return scores


def _only(token: int, size: int) -> np.ndarray:
    scores = np.full(size, -np.inf, np.float32)
    scores[token] = 0
    return scores


def _would_repeat(seen: np.ndarray, size: int) -> np.ndarray:
    """The tokens that would end an n-gram of `size` that stands in `seen` already, int64."""
    if len(seen) < size:
        return seen[:0]
    if size == 1:
        return seen
    heads = np.lib.stride_tricks.sliding_window_view(seen[:-1], size - 1)
    return seen[size - 1 :][(heads == seen[len(seen) - size + 1 :]).all(axis=1)]


def nucleus(scores: np.ndarray, temperature: float, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """What sampling draws from: the fewest tokens whose probabilities reach top_p together (Holtzman et al. 2020).

    Returns:
        Their ids, the likeliest first, and their unnormalized probabilities summed up, float64.
    """
    scaled = (scores.astype(np.float64) - float(scores.max())) / temperature
    order = np.argsort(-scaled, kind="stable")
    summed = np.cumsum(np.exp(scaled[order]))
    kept = min(int(np.searchsorted(summed, top_p * summed[-1])) + 1, len(summed))
    return order[:kept], summed[:kept]
