"""The verdict file: read back as written, refused when it is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.history import read_verdicts
from contract.verdict import Reason, Verdict, worst
from tests.kit.verdicts import write_verdicts


def test_round_trip(tmp_path: Path) -> None:
    verdicts = [
        Verdict("q8_0", "d" * 64, "pass", (Reason("kl_mean_gold", "pass", "fine", 0.1, 0.2, "nats", 300),), "m")
    ]
    write_verdicts(tmp_path / "v.json", verdicts)
    assert read_verdicts(tmp_path / "v.json") == verdicts


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 99, "verdicts": []}', '{"schema": 1, "verdicts": [{"x": 1}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(AssayError, match="verdict file"):
        read_verdicts(tmp_path / "v.json")
    with pytest.raises(AssayError, match="no verdict"):
        read_verdicts(tmp_path / "none.json")


def test_worst() -> None:
    assert worst(["pass", "fail", "inconclusive"]) == "fail"
    assert worst(["pass", "inconclusive"]) == "inconclusive"
    assert worst(["pass"]) == "pass"


def test_the_evaluation_folder_will_do(tmp_path: Path) -> None:
    write_verdicts(tmp_path / "verdict.json", [])
    assert read_verdicts(tmp_path) == []
