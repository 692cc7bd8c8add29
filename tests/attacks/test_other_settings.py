"""Judged in one way and served in another: other words, another length, a penalty; or a file that records nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.artifact import open_artifact
from contract.prompt import PromptSpec
from contract.runtime import GenerateParams
from serve.as_evaluated import as_evaluated
from serve.proof import UnprovenError
from tests.attacks.test_history import make

JUDGED: dict[str, Any] = {"max_new_tokens": 64, "prompt": PromptSpec("Judged: {document}").as_dict()}


def test_what_an_artifact_records_is_served_where_it_was_judged_so(tmp_path: Path) -> None:
    words = PromptSpec("Mine: {document}", system="Be short.")
    made = make(tmp_path / "a", prompt=words.as_dict(), generate={"max_new_tokens": 40})
    assert as_evaluated(made, JUDGED) == (words, GenerateParams(40))


@pytest.mark.parametrize(
    ("recorded", "judged"),
    [
        ({"max_new_tokens": 65}, {}),
        ({"max_new_tokens": 64, "repetition_penalty": 1.2}, {}),
        ({"max_new_tokens": 64}, {"repetition_penalty": 1.2}),
        ({"max_new_tokens": 64}, {"num_beams": 4}),
        ({"max_new_tokens": 64, "no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 6}),
    ],
)
def test_other_settings_than_it_was_judged_with_are_not_proven(
    tmp_path: Path, recorded: dict[str, Any], judged: dict[str, Any]
) -> None:
    made = make(tmp_path / "a", prompt=PromptSpec().as_dict(), generate=recorded)
    with pytest.raises(UnprovenError, match="judged with other settings") as refusal:
        as_evaluated(made, {**JUDGED, **judged})
    assert refusal.value.exit_code == 1


def test_a_bare_file_is_asked_and_writes_as_it_was_judged(tmp_path: Path) -> None:
    """It records nothing, so the defaults would be other words, another day and another length."""
    (tmp_path / "bare.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    bare = open_artifact(tmp_path / "bare.gguf")
    spec = replace(PromptSpec("Judged: {document}"), date="2025-01-02")
    settings = {"max_new_tokens": 64, "repetition_penalty": 1.1, "prompt": spec.as_dict()}
    assert as_evaluated(bare, settings) == (spec, GenerateParams(64, repetition_penalty=1.1))
