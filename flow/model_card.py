"""A run's model card: RUN/README.md, from its artifacts, metrics and verdicts; outside every digest."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contract.artifact import Artifact
from contract.files import write_whole
from contract.verdict import Verdict
from evalsuite.results import Results, Row
from export.model_card import CardRow, CardScores, model_card

CARD_FILE = "README.md"
MADE_HERE = "<!-- written by assay run, and written again by the next -->"


def write_card(
    run: Path, title: str, artifacts: Mapping[str, Artifact], results: Results, verdicts: Sequence[Verdict]
) -> Path:
    """Write RUN/README.md, unless somebody else's is there; that one is left alone and it is said.

    Args:
        run: the run folder.
        title: the recipe's name.
        artifacts: by label, the base among them.
        results: the evaluation of these artifacts.
        verdicts: the gate's words on them.
    """
    path = run / CARD_FILE
    if path.exists() and MADE_HERE not in path.read_text(encoding="utf-8", errors="replace"):
        print(f"assay run · {path} is not Assay's, so no model card was written", file=sys.stderr)
        return path
    made = {label: artifact for label, artifact in artifacts.items() if label != "base"}
    text = model_card(made, title=title, scores=card_scores(results, verdicts)) + f"\n{MADE_HERE}\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)
    return path


def card_scores(results: Results, verdicts: Sequence[Verdict]) -> CardScores:
    """What the card tells of an evaluation."""
    outcomes = {verdict.label: verdict.outcome for verdict in verdicts}
    return CardScores(
        results.data.documents,
        [_row(row, outcomes.get(row.label), row.label in results.require) for row in results.rows],
    )


def _row(row: Row, outcome: str | None, required: bool) -> CardRow:
    distances = [(d, c.reference_label) for c in row.comparisons for d in c.distances if d.target_set == "gold"]
    kl_nats, against = (distances[0][0].kl.mean, distances[0][1]) if distances else (None, None)
    task = row.task
    rouge = {name: getattr(task, name).mean for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
    return CardRow(row.label, row.size_bytes, rouge, kl_nats, against, outcome, required)
