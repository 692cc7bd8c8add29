"""Runs an ONNX folder as plainly as can be, straight in onnxruntime: all positions at once, and step by step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.check_failed import CheckFailed
from export.onnx_graph import PAST, PRESENT
from export.onnx_reference import Row, padded

if TYPE_CHECKING:
    import numpy as np

_SINGLE_STEPS = 4  # after two chunks, so many tokens one by one


class OnnxRunner:
    """Logits of rows, float32 [len(target), vocabulary] each, on the CPU.

    Raises:
        CheckFailed: onnxruntime does not load a graph, or stops while it runs one.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._sessions = {
                path.stem: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
                for path in sorted(folder.glob("*.onnx"))
            }
        except Exception as error:  # onnxruntime raises classes of its own that share no other base
            raise CheckFailed(
                "onnxruntime does not load the graph", where=str(folder), got=str(error).strip()[:300]
            ) from None
        self._seq2seq = "encoder_model" in self._sessions

    def full(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """All rows as one padded batch, without cache. Causal rows are padded in front, as for generation."""
        if self._seq2seq:
            state, mask = self._encoded(rows)
            fed, _ = padded([row.fed for row in rows], in_front=False)
            logits = self._run(
                "decoder_model", {"input_ids": fed, "encoder_hidden_states": state, "encoder_attention_mask": mask}
            )["logits"]
            return [logits[at, : len(row.fed)] for at, row in enumerate(rows)]
        ids, mask = padded([row.fed for row in rows], in_front=True)
        logits = self._causal(ids, mask, {})["logits"]
        return [logits[at, -len(row.fed) :][len(row.fed) - len(row.target) :] for at, row in enumerate(rows)]

    def cached(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """With cache: a causal row in two chunks, then token by token; a decoder of all rows at once token by token."""
        return self._steps(rows) if self._seq2seq else [self._chunks(row) for row in rows]

    def _chunks(self, row: Row) -> np.ndarray:
        import numpy as np

        ids = np.array([row.fed])
        first = max(1, (len(row.fed) - _SINGLE_STEPS) // 2)
        second = max(first, len(row.fed) - _SINGLE_STEPS)
        cuts = [0, first, second, *range(second + 1, len(row.fed) + 1)]
        cache: dict[str, np.ndarray] = {}
        logits = []
        for start, stop in pairwise(cuts):
            if start == stop:
                continue
            made = self._causal(ids[:, start:stop], np.ones((1, stop), np.int64), cache)
            logits.append(made["logits"][0])
            cache = _taken(made, cache)
        return np.concatenate(logits)[-len(row.target) :]

    def _steps(self, rows: Sequence[Row]) -> list[np.ndarray]:
        import numpy as np

        state, mask = self._encoded(rows)
        fed, _ = padded([row.fed for row in rows], in_front=False)
        inputs = {"input_ids": fed[:, :1], "encoder_hidden_states": state, "encoder_attention_mask": mask}
        made = self._run("decoder_model", inputs)
        cache, logits = _taken(made, {}), [made["logits"]]
        for at in range(1, fed.shape[1]):
            step = {"input_ids": fed[:, at : at + 1], "encoder_attention_mask": mask, **cache}
            made = self._run("decoder_with_past_model", step)
            cache = _taken(made, cache)
            logits.append(made["logits"])
        whole = np.concatenate(logits, axis=1)
        return [whole[at, : len(row.fed)] for at, row in enumerate(rows)]

    def _encoded(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = padded([row.prompt for row in rows], in_front=False)
        return self._run("encoder_model", {"input_ids": ids, "attention_mask": mask})["last_hidden_state"], mask

    def _causal(self, ids: np.ndarray, mask: np.ndarray, cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import numpy as np

        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
        for item in self._sessions["model"].get_inputs():
            if item.name.startswith(PAST) and item.name not in cache:
                dtype = np.float16 if item.type == "tensor(float16)" else np.float32
                inputs[item.name] = np.zeros((len(ids), item.shape[1], 0, item.shape[3]), dtype)
        return self._run("model", inputs)

    def _run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._sessions[name]
        asked = {item.name for item in session.get_inputs()}
        outputs = [item.name for item in session.get_outputs()]
        try:
            found: Any = session.run(outputs, {name: values for name, values in inputs.items() if name in asked})
        except Exception as error:  # as above
            raise CheckFailed("a graph does not run", where=name, got=str(error).strip()[:300]) from None
        return dict(zip(outputs, found, strict=True))


def _taken(made: dict[str, np.ndarray], cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cache for the next step: what was made, and what stays as it was."""
    new = {PAST + name.removeprefix(PRESENT): values for name, values in made.items() if name.startswith(PRESENT)}
    return {**cache, **new}
