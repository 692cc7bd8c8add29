"""stderr is for what was asked for: nothing that transformers says of itself, and all that it says of the model."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from contract.quiet import quiet_transformers
from runtimes.torch_cache_name import cache_name

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
NOISE = ("Loading weights", "Writing model shards", "torch_dtype", "past_key_values", "FutureWarning", "it/s]")


@pytest.mark.parametrize("kind", ["base", "seq2seq", "adapter"])
def test_a_command_says_nothing_of_the_libraries(kind: str, adapter_folder: Path) -> None:
    model = {"base": ROOT / "assets/tiny-base", "seq2seq": ROOT / "assets/tiny-bart", "adapter": adapter_folder}[kind]
    command = [sys.executable, "-m", "assay", "generate", str(model), "--prompt", "Hello", "--max-new-tokens", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [word for word in NOISE if word in done.stderr] == []


def test_real_warnings_are_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers import LlamaConfig
    from transformers.utils import logging as theirs

    monkeypatch.setattr(theirs, "_tqdm_active", True)
    before, level = are_progress_bars_disabled(), theirs.get_verbosity()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    theirs.set_verbosity_warning()
    theirs.warning_once.cache_clear()
    try:
        quiet_transformers()
        config = LlamaConfig(dtype="float16")
        assert config.torch_dtype is config.dtype  # says that it is deprecated
        logging.getLogger("transformers.configuration_utils").warning("the model is not what it seems")
        assert config.use_return_dict  # another old name
    finally:
        theirs.set_verbosity(level)
    # a set: with propagation its own handler and pytest's see each
    assert {record.getMessage() for record in caplog.records} == {
        "the model is not what it seems",
        "`use_return_dict` is deprecated! Use `return_dict` instead!",
    }
    assert not theirs.is_progress_bar_enabled()
    assert are_progress_bars_disabled() == before, "the bars of downloads are another matter"


def test_the_cache_has_the_name_that_a_model_knows() -> None:
    class Older:
        def forward(self, input_ids: object, past_key_values: object = None) -> None: ...

    class Newer:
        @functools.wraps(lambda self, input_ids, cache=None: None)  # as transformers wraps it, to take both for a while
        def forward(self, *args: object, **kwargs: object) -> None: ...

    assert (cache_name(Older()), cache_name(Newer())) == ("past_key_values", "cache")
