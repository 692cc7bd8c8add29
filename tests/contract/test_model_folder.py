"""A model is named by its folder or by its hub id, and the two are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.model_folder import resolve_model, stop_ids


@pytest.mark.parametrize("name", ["gpt2", "t5-small", "google/mt5-small"])
def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What the hub's cache has is found; what it does not have is one message."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssayError, match="neither a folder nor on the hub or in its cache"):
        resolve_model(name)
    cached = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    assert resolve_model(name) == cached / "snapshots" / ("0" * 40)
    (tmp_path / name).mkdir(parents=True)
    assert resolve_model(name) == tmp_path / name  # a folder comes first


@pytest.mark.parametrize(
    "name", ["./gpt2", "../gpt2", "/nowhere/gpt2", "~/gpt2", "runs/a/merged", "runs/", "a b", "file"]
)
def test_what_can_only_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(AssayError, match="no such model folder"):
        resolve_model(name)


def test_a_misspelt_folder_is_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssayError, match="neither a folder"):
        resolve_model("runs/x")


def test_what_stops_a_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, -1]}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert stop_ids(tmp_path) == [3, 7]
    for wrong in ('"</s>"', "[1, 2.5]", "-2", "true", "4294967296"):
        (tmp_path / "config.json").write_text(f'{{"eos_token_id": {wrong}}}')
        with pytest.raises(AssayError, match="no token id"):
            stop_ids(tmp_path)
