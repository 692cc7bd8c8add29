"""BERTScore with an encoder that lies on disk: greedy matching of contextual word vectors (Zhang et al. 2020).

The matching is the bert-score package's own; words are tokenized as it does, vectors are taken from an explicit layer,
not weighted by idf and not rescaled. The figures are those of `bert_score.score(..., model_type=FOLDER,
num_layers=LAYER)`, save that nothing reaches a hub, each distinct text is embedded once for as long as the scorer
lives, and what was cut at the encoder's limit is counted. They compare only with the same encoder and layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import AssayError
from evalsuite.metrics.encoder import (
    DEFAULT_LAYER,
    DEFAULT_PACKAGE,
    INSTALL_HINT,
    default_encoder,
    encoder_digest,
    installed_encoder,
    load_encoder,
)

if TYPE_CHECKING:
    import torch

_BATCH = 64
_PAIRS_AT_A_TIME = 256
_CACHE_BYTES = 1 << 30  # of word vectors; the least recently used texts go first


@dataclass(frozen=True)
class BertScores:
    """Per prediction, 0 to 1 (not rescaled), each the best over its references by itself, as bert-score has it."""

    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    encoder: str  # the folder's name, or that of the package it came in
    encoder_digest: str  # sha256 over the names and contents of its files
    layer: int
    texts: int  # distinct texts, predictions and references
    truncated: int  # of those: cut at the encoder's limit
    limit: int  # tokens


def bertscore_available() -> bool:
    """Whether BERTScore can be had here with the default encoder."""
    packages = all(find_spec(name) for name in ("bert_score", "torch", "transformers"))
    return packages and installed_encoder() is not None


@dataclass(frozen=True)
class _Embedded:
    """One text: vectors float32 [tokens, width], weights float32 [tokens] (0 for the special tokens)."""

    vectors: torch.Tensor
    weights: torch.Tensor


class BertScorer:
    """An encoder, loaded once, and the texts it has embedded.

    Args:
        encoder: a folder with config.json, tokenizer files and *.safetensors; None for the default encoder.
        layer: whose output is matched, 1 for the first; None only with the default encoder.
        threads: CPU threads.

    Raises:
        AssayError: a package is not installed, the folder is no such encoder, or it has no such layer.
    """

    def __init__(self, encoder: Path | None = None, layer: int | None = None, threads: int = 2) -> None:
        if not all(find_spec(name) for name in ("bert_score", "torch", "transformers")):
            raise AssayError("BERTScore needs bert-score, torch and transformers", hint=INSTALL_HINT)
        folder = (encoder or default_encoder()).absolute()
        loaded = load_encoder(folder, DEFAULT_LAYER if layer is None and encoder is None else layer)
        self.layer, self.limit = loaded.layer, loaded.limit
        self.name = folder.name if encoder else DEFAULT_PACKAGE
        self.digest, self._threads = encoder_digest(folder), threads
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._embedded: OrderedDict[str, _Embedded] = OrderedDict()
        self._bytes = 0
        self._cut: dict[str, bool] = {}

    def score(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> BertScores:
        """Score every prediction against its references.

        Args:
            predictions: one text per document; one without words scores 0.
            references: per document one text or more.

        Raises:
            AssayError: the counts differ, or a document has no reference.
        """
        if len(predictions) != len(references) or not all(references):
            raise AssayError(
                "every prediction needs a reference", got=f"{len(predictions)} predictions, {len(references)} lists"
            )
        pairs = list(
            dict.fromkeys((ours, text) for ours, texts in zip(predictions, references, strict=True) for text in texts)
        )
        found: dict[tuple[str, str], tuple[float, float, float]] = {}
        with _threads(self._threads):
            for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
                found |= self._match(pairs[start : start + _PAIRS_AT_A_TIME])
        best = [
            [max(figures) for figures in zip(*(found[ours, text] for text in texts), strict=True)]
            for ours, texts in zip(predictions, references, strict=True)
        ]
        texts = {text for pair in pairs for text in pair}
        precision, recall, f1 = (tuple(scores[index] for scores in best) for index in range(3))
        return BertScores(
            precision,
            recall,
            f1,
            self.name,
            self.digest,
            self.layer,
            len(texts),
            sum(self._cut[text] for text in texts),
            self.limit,
        )

    def _match(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[float, float, float]]:
        import torch
        from bert_score.utils import greedy_cos_idf

        self._embed([text for pair in pairs for text in pair])
        found = dict.fromkeys(pairs, (0.0, 0.0, 0.0))
        wordy = [pair for pair in pairs if all(self._embedded[text].weights.any() for text in pair)]
        wordy.sort(key=lambda pair: sum(len(self._embedded[text].weights) for text in pair))
        for start in range(0, len(wordy), _BATCH):
            batch = wordy[start : start + _BATCH]
            ours, theirs = zip(*batch, strict=True)
            with torch.no_grad():
                figures = greedy_cos_idf(*self._padded(theirs), *self._padded(ours))
            found |= dict(zip(batch, zip(*(scores.tolist() for scores in figures), strict=True), strict=True))
        self._forget()
        return found

    def _padded(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vectors [texts, longest, width], mask and weights [texts, longest]; padded with 2 as bert-score does."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        found = [self._embedded[text] for text in texts]
        lengths = torch.tensor([len(one.weights) for one in found])
        mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        vectors = pad_sequence([one.vectors for one in found], batch_first=True, padding_value=2.0)
        return vectors, mask, pad_sequence([one.weights for one in found], batch_first=True)

    def _embed(self, texts: Sequence[str]) -> None:
        """Embed those not yet known, in batches of about one length."""
        import torch
        from bert_score.utils import padding

        missing = {text: self._ids(text) for text in texts if text not in self._embedded}
        for text in texts:
            if text in self._embedded:
                self._embedded.move_to_end(text)
        ordered = sorted(missing, key=lambda text: len(missing[text]))
        silent = {self._tokenizer.sep_token_id, self._tokenizer.cls_token_id}
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start : start + _BATCH]
            ids, lengths, mask = padding([missing[text] for text in batch], self._tokenizer.pad_token_id)
            with torch.no_grad():
                vectors = self._model(ids, attention_mask=mask).last_hidden_state
            for text, row, length in zip(batch, vectors, lengths.tolist(), strict=True):
                weights = torch.tensor([float(token not in silent) for token in missing[text]])
                self._embedded[text] = _Embedded(row[:length].clone(), weights)
                self._bytes += self._embedded[text].vectors.nbytes

    def _ids(self, text: str) -> list[int]:
        from bert_score.utils import sent_encode

        tokenizer = self._tokenizer
        ids: list[int] = sent_encode(tokenizer, text)
        room = self.limit - tokenizer.num_special_tokens_to_add()
        self._cut[text] = len(ids) >= self.limit and len(tokenizer.tokenize(text.strip())) > room
        return ids

    def _forget(self) -> None:
        while self._bytes > _CACHE_BYTES:
            _, oldest = self._embedded.popitem(last=False)
            self._bytes -= oldest.vectors.nbytes


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
