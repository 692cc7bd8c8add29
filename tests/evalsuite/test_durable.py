"""Whenever the power fails while an evaluation is written: no verdict lies beside figures it is not about."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from contract.history import begin, read_history
from contract.verdict import VERDICT_FILE
from evalsuite.folder import write_evaluation
from evalsuite.results import METRICS_FILE, read_predictions
from tests.evalsuite.made_results import make_predictions, make_results, make_verdicts
from tests.kit.verdicts import evaluation


def test_what_is_on_the_disk_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = make_results(), tmp_path / "eval"
    judged = evaluation(*make_verdicts())
    begun = replace(judged, verdicts=(), finished=False)
    out.mkdir()
    folder = make_predictions(tmp_path / "made")
    predictions = {path.stem: read_predictions(path) for path in sorted(folder.glob("*.jsonl"))}
    begin(out / VERDICT_FILE, begun)
    write_evaluation(out, results, judged, predictions)
    begin(out / VERDICT_FILE, begun)
    old = (out / METRICS_FILE).stat().st_ino
    seen: list[tuple[bool, bool]] = []  # is it finished, and are there new figures, as `out` reaches the disk
    synced: set[int] = set()
    sync = os.fsync

    def note(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        synced.add(inode)
        if inode == out.stat().st_ino:
            metrics = (out / METRICS_FILE).stat().st_ino
            seen.append((read_history(out)[-1].finished, metrics != old))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_evaluation(out, results, judged, predictions)
    assert seen == [(False, True), (True, True)]
    there = [path for path in out.rglob("*") if path.is_file()]
    assert {path.stat().st_ino for path in there} <= synced
