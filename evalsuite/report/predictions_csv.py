"""One line per summary for a spreadsheet: id, document, references, summary, every score, failure buckets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from evalsuite.results import Prediction


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """CSV with a header: id, document, reference (reference_2 … where there are more), prediction, stop, tokens, every
    score by its name, and the buckets with a space between them."""
    if not predictions:
        return ""
    most = max(len(prediction.references) for prediction in predictions)
    references = ["reference", *(f"reference_{number}" for number in range(2, most + 1))]
    scores = list(predictions[0].scores)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "document", *references, "prediction", "stop", "tokens", *scores, "buckets"])
    for prediction in predictions:
        writer.writerow(
            [
                prediction.id,
                prediction.document,
                *prediction.references,
                *[""] * (most - len(prediction.references)),
                prediction.prediction,
                "" if prediction.stop == "unknown" else prediction.stop,
                "" if prediction.tokens is None else prediction.tokens,
                *(prediction.scores[name] for name in scores),
                " ".join(prediction.buckets),
            ]
        )
    return out.getvalue()
