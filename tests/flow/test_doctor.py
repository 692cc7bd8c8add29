"""`assay doctor` names the version of everything an export goes through."""

from __future__ import annotations

from importlib import metadata

import pytest

from flow.doctor import PACKAGES, _version


@pytest.mark.parametrize("package", ["onnx", "optimum", "optimum-onnx", "tokenizers"])
def test_versions_of_the_onnx_export_are_told(package: str) -> None:
    assert package in PACKAGES
    assert _version(package) == metadata.version(package)
