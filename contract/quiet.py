"""Keeps off stderr what transformers says of itself there: bars over every load and save, and names it has changed."""

from __future__ import annotations

import logging

# what to call things in code; where our own code is not the caller (PEFT is), nobody who reads stderr can mend it
_RENAMED = "`torch_dtype` is deprecated! Use `dtype` instead!"
_SAYING_SO = ("transformers.configuration_utils", "transformers.modeling_utils")


def quiet_transformers() -> None:
    """No bars of transformers, and nothing of its renamed `torch_dtype`; all else that it warns of is still said.

    To be called before a model is loaded or saved. The hub's bars, over downloads of gigabytes, stay as they are.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    silent = are_progress_bars_disabled()
    disable_progress_bar()  # the hub's too
    if not silent:
        enable_progress_bars()
    for name in _SAYING_SO:
        logging.getLogger(name).addFilter(_says_more)


def _says_more(record: logging.LogRecord) -> bool:
    return record.getMessage() != _RENAMED
