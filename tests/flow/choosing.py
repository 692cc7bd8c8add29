"""Choosing a type of a tiny model by twenty documents."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, new_artifact
from contract.example import sha256_of_rows
from contract.prompt import PromptSpec
from flow.choose_quant import Selection, choose_quant
from flow.quant_bench import Settings
from tests.evalsuite.chain import examples

QUANTS = ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_s", "q2_k"]
ONE = Settings(threads=1)


def with_details(folder: Path, path: Path, **manifest: Any) -> Artifact:
    """The folder as a merged artifact that records how long its summaries are."""
    details = {"prompt": PromptSpec().as_dict(), "generate": {"max_new_tokens": 6}}
    with new_artifact(path, "merged", "tiny", details=details, **manifest) as draft:
        shutil.copytree(folder, draft.path, dirs_exist_ok=True)
    return draft.finished


def make_model(folder: Path, path: Path) -> Artifact:
    """A model whose test split are 22 of the examples."""
    return with_details(folder, path, data_sha256={"train": "0", "test": sha256_of_rows(examples(22))})


def choose(model: Artifact, out: Path, **given: Any) -> Selection:
    given = {"quants": QUANTS, "settings": ONE, **given}
    return choose_quant(model, examples(20), out, **given)


def left_in(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}
