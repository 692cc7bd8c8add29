"""Where BERTScore's default encoder is looked for: beside the environment's packages, then among them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contract.errors import AssayError
from evalsuite.metrics.encoder import DEFAULT_PACKAGE, ENCODERS_FOLDER, default_encoder, installed_encoder


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without the encoder."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    return tmp_path


def test_none(environment: Path) -> None:
    assert installed_encoder() is None
    with pytest.raises(AssayError, match="not installed"):
        default_encoder()


def test_beside_the_packages_comes_first(environment: Path) -> None:
    package = environment / "packages" / DEFAULT_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package is never imported')\n")
    assert default_encoder() == package / "model"
    beside = environment / ENCODERS_FOLDER / DEFAULT_PACKAGE / "model"
    beside.mkdir(parents=True)
    assert default_encoder() == beside
