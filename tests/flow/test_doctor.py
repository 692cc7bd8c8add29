"""`assay doctor` names the version of everything an export goes through."""

from __future__ import annotations

from importlib import metadata

import pytest

from export.onnx_tracer.overlay import pinned_versions
from flow.doctor import PACKAGES, _version, examine

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "tokenizers"])
def test_versions_of_the_onnx_export_are_told(package: str) -> None:
    assert package in PACKAGES
    assert _version(package) == metadata.version(package)


def test_versions_of_what_traces_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow.doctor._round_trip", lambda: {"problem": None})  # it has tests of its own
    told = examine()["versions"]
    assert told["optimum-onnx (traces ONNX)"] == pinned_versions()["optimum-onnx"]
    assert told["transformers (traces ONNX)"] != told["transformers"]
