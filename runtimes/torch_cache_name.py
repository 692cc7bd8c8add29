"""The name under which a transformers model takes its key-value cache."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def cache_name(model: Any) -> str:
    """Where `model` knows it "cache", else its older name "past_key_values", which transformers 5.40 takes no more."""
    return _of(model.__class__)


@functools.cache
def _of(kind: Any) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"
