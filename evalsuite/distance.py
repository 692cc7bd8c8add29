"""How far one artifact's next-token distributions are from another's: teacher-forced, same ids, completion tokens only.

The definitions are those of llama.cpp's perplexity tool (`llama-perplexity --kl-divergence`), per scored token:
KL(reference‖artifact) in nats over the vocabulary, same-top (equal argmax) with its error √(p(1-p)/(n-1)),
Δp = p_artifact(token) - p_reference(token), perplexity = exp of the mean negative log-likelihood (NLL), and the
logarithm of the perplexity ratio with the error √((var + var_reference - 2 covariance)/(n-1)), which is small because
both NLLs are of the same tokens. What differs: the reference's logits are kept in full float32 (that tool clips them
to 16 bits, so that a model is 0.00055 nats from itself; here it is exactly 0), sums are in float64, and every
completion token counts, none of the prompt's.

Only one model is in memory at a time: the reference's logits wait on disk.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from contract.artifact import sha256_of
from contract.drafts import partial_of
from contract.errors import AssayError
from contract.files import write_whole
from contract.runtime import Runtime
from evalsuite.judged import interval_of_change, interval_of_costs
from evalsuite.results import Distance, Histogram, Interval, TargetSet
from evalsuite.stats import exp, exp_interval

if TYPE_CHECKING:
    import numpy as np

Pair = tuple[Sequence[int], Sequence[int]]  # prompt ids, target ids

_LOG10_EDGES = tuple(-12 + 0.5 * step for step in range(29))  # 1e-12 … 1e2 nats
_MOST_POSITIONS = 128
CHECKSUM = ".sha256"  # behind the name of a file of logits
_sound: dict[Path, tuple[int, ...]] = {}  # files this process wrote or checked, as the system noted them then


@dataclass(frozen=True)
class TokenDistances:
    """One document's target tokens, an array of each, float64 [tokens] (same_top: bool)."""

    kl: np.ndarray  # nats
    same_top: np.ndarray
    delta_p: np.ndarray
    log_p: np.ndarray  # of the target token, by the artifact
    log_p_reference: np.ndarray
    top: np.ndarray  # the artifact's first choice, int64, for every token
    not_finite: int  # tokens for which either side has a logit that is not finite; the arrays leave them out


class LogitsSpool:
    """A reference's logits on disk: raw float32, document after document, read back one document at a time.

    Beside it lies its sha256, taken while it was written: a file of an earlier process is read only where that agrees.

    Args:
        path: the file; it is there only once it is complete.
        vocab_size: logits per row.
        tokens: rows per document.
    """

    def __init__(self, path: Path, vocab_size: int, tokens: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self._path = path
        self._rows = [0, *accumulate(tokens)]  # where each document begins, in rows of the file

    @property
    def size_bytes(self) -> int:
        """Of the complete file."""
        return self._rows[-1] * self.vocab_size * 4

    @property
    def complete(self) -> bool:
        """Is everything there, as it was written?"""
        return self._path.is_file() and self._path.stat().st_size == self.size_bytes and _is_as_written(self._path)

    def write(self, logits: Iterator[np.ndarray], only: Container[int] | None = None) -> Iterator[np.ndarray]:
        """Write what passes through, one [tokens, vocab_size] block per document; `only` these of them, if given.

        Raises:
            AssayError: there is no room on the disk.
        """
        self.check_room()
        yield from spooled(self._path, logits, only)

    def check_room(self) -> None:
        """Raise where the disk has no room for the file."""
        if not room_for(self.size_bytes, self._path):
            raise AssayError(
                "there is no room on the disk for the reference's logits",
                where=str(self._path.parent),
                expected=f"{self.size_bytes / 1e9:.1f} GB",
                got=f"{shutil.disk_usage(self._path.parent).free / 1e9:.1f} GB free",
                hint="score fewer documents with --limit, or put --out on a larger disk",
            )

    def read(self, document: int) -> np.ndarray:
        """One document's block as it was written, float32 [tokens, vocab_size]."""
        import numpy as np

        start, end = self._rows[document], self._rows[document + 1]
        return np.fromfile(
            self._path, np.float32, (end - start) * self.vocab_size, offset=start * self.vocab_size * 4
        ).reshape(-1, self.vocab_size)

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)
        checksum_path(self._path).unlink(missing_ok=True)


def room_for(size_bytes: int, path: Path) -> bool:
    """Is there room on the disk for a file of that size, and a little left over?"""
    return size_bytes <= 0.95 * shutil.disk_usage(path.parent).free


def spooled(path: Path, logits: Iterator[np.ndarray], only: Container[int] | None = None) -> Iterator[np.ndarray]:
    """Write blocks of logits (`only` these) as they pass; file and checksum are there once the last has passed."""
    partial, digest = partial_of(path), hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for at, block in enumerate(logits):
                if only is None or at in only:
                    written = block.astype("float32", copy=False).tobytes()
                    file.write(written)
                    digest.update(written)
                yield block
        write_whole(checksum_path(path), digest.hexdigest(), durable=False)
        partial.rename(path)
        _sound[path.absolute()] = _seen(path)
    finally:
        partial.unlink(missing_ok=True)


def checksum_path(path: Path) -> Path:
    """Where the sha256 of a file of logits is kept."""
    return path.with_name(path.name + CHECKSUM)


def _seen(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _is_as_written(path: Path) -> bool:
    """Has the file the checksum beside it? It is read again only if this process neither wrote nor checked it."""
    if _sound.get(path.absolute()) == _seen(path):
        return True
    try:
        said = checksum_path(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False
    if said != sha256_of(path):
        return False
    _sound[path.absolute()] = _seen(path)
    return True


def token_distances(reference: np.ndarray, logits: np.ndarray, target: Sequence[int]) -> TokenDistances:
    """Compare two float32 [tokens, vocab_size] blocks of logits that predict `target` [tokens]."""
    import numpy as np

    finite = np.isfinite(reference).all(1) & np.isfinite(logits).all(1)
    ids = np.asarray(target, np.int64)[finite]
    reference, logits = reference[finite], logits[finite]
    ours, theirs = _log_softmax(logits), _log_softmax(reference)
    rows = np.arange(len(ids))
    log_p, log_p_reference = ours[rows, ids], theirs[rows, ids]
    # a probability of 0 on the reference's side adds nothing, and cannot occur on the other with finite logits
    kl = (np.exp(theirs) * (theirs - ours)).sum(1)
    return TokenDistances(
        np.maximum(kl, 0.0),
        logits.argmax(1) == reference.argmax(1),
        np.exp(log_p) - np.exp(log_p_reference),
        log_p,
        log_p_reference,
        logits.argmax(1) if finite.all() else np.zeros(0, np.int64),
        int(len(finite) - finite.sum()),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True) if len(logits) else logits.astype(np.float64)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def score_against(
    runtime: Runtime,
    pairs: Sequence[Pair],
    references: Sequence[LogitsSpool],
    keep: LogitsSpool | None = None,
    *,
    some: tuple[LogitsSpool, Container[int]] | None = None,
    batch: int | None = None,
    documents: Sequence[int] | None = None,
    step: Callable[[], None] | None = None,
) -> list[list[TokenDistances]]:
    """Score every pair once and compare with each reference; `keep` becomes the reference of what comes next.

    Args:
        runtime: the artifact.
        pairs: prompt and target ids, the same for every artifact.
        references: spools of the same pairs.
        keep: an empty spool to write this artifact's logits to.
        some: another, and which of the pairs to write to it.
        batch: hand over this many pairs at a time; None leaves batching to the runtime.
        documents: where each pair stands in the references; None: in the same order.
        step: called for every pair that is done.

    Returns:
        Per reference, per pair.
    """
    size = batch or len(pairs)
    logits: Iterator[np.ndarray] = (
        block for start in range(0, len(pairs), size) for block in runtime.score(pairs[start : start + size])
    )
    if keep is not None:
        logits = keep.write(logits)
    if some is not None:
        logits = some[0].write(logits, some[1])
    at = range(len(pairs)) if documents is None else documents
    found: list[list[TokenDistances]] = [[] for _ in references]
    for index, (_, target), block in zip(at, pairs, logits, strict=True):
        for spool, distances in zip(references, found, strict=True):
            distances.append(token_distances(spool.read(index), block, target))
        if step is not None:
            step()
    return found


def summarize(target_set: TargetSet, documents: Sequence[TokenDistances]) -> Distance:
    """The figures over all tokens, with intervals over documents.

    Raises:
        AssayError: there is no token, or one that is not finite (report those instead).
    """
    import numpy as np

    bad = sum(document.not_finite for document in documents)
    counts = [len(document.kl) for document in documents]
    if bad or not sum(counts):
        raise AssayError("no distance without finite tokens", got=f"{bad} of {bad + sum(counts)} are not finite")
    kl = np.concatenate([document.kl for document in documents])
    delta_p = np.concatenate([document.delta_p for document in documents])
    kl_mean = interval_of_costs([max(0.0, float(d.kl.sum())) for d in documents], counts)
    other = interval_of_costs([float(len(d.kl) - d.same_top.sum()) for d in documents], counts, least_jump=1.0)
    top1 = Interval(1 - other.mean, max(0.0, 1 - other.high), 1 - other.low, other.n)
    log_ratio = interval_of_change([float((d.log_p_reference - d.log_p).sum()) for d in documents], counts)
    nlls = -np.concatenate([document.log_p for document in documents])
    nlls_reference = -np.concatenate([document.log_p_reference for document in documents])
    nll, nll_reference = float(nlls.mean()), float(nlls_reference.mean())
    median, p90, p95, p99, p999 = (float(value) for value in np.percentile(kl, [50, 90, 95, 99, 99.9]))
    positions = [np.array([d.kl[at] for d in documents if len(d.kl) > at]) for at in range(_MOST_POSITIONS)]
    positions = [values for values in positions if len(values)]
    degrees = max(1, len(kl) - 1)
    return Distance(
        target_set=target_set,
        documents=len(documents),
        tokens=len(kl),
        kl=kl_mean,
        kl_se=float(kl.std()) / math.sqrt(degrees),
        kl_median=median,
        kl_p90=p90,
        kl_p95=p95,
        kl_p99=p99,
        kl_p999=p999,
        kl_max=float(kl.max()),
        top1=top1,
        top1_se=math.sqrt(top1.mean * (1 - top1.mean) / degrees),
        delta_p_rms=float(np.sqrt((delta_p**2).mean())),
        perplexity=exp(nll),
        perplexity_reference=exp(nll_reference),
        perplexity_ratio=exp_interval(log_ratio),
        log_perplexity_ratio=nll - nll_reference,
        log_perplexity_ratio_se=math.sqrt(float((nlls - nlls_reference).var()) / degrees),
        log_perplexity_covariance=float(((nlls - nll) * (nlls_reference - nll_reference)).mean()) / degrees,
        kl_histogram=_histogram(kl),
        kl_by_document=tuple(float(d.kl.mean()) for d in documents),
        kl_by_position=tuple(float(values.mean()) for values in positions),
        count_by_position=tuple(len(values) for values in positions),
    )


def mean_kl(documents: Sequence[TokenDistances]) -> float:
    """Mean KL per token, nats."""
    return float(sum(d.kl.sum() for d in documents)) / max(1, sum(len(d.kl) for d in documents))


def highest_mean_kl(documents: Sequence[TokenDistances]) -> float:
    """The upper end of the 95% interval of the mean KL per token over documents, nats; 0 of no document."""
    if not documents:
        return 0.0
    return interval_of_costs([float(d.kl.sum()) for d in documents], [float(len(d.kl)) for d in documents]).high


def _histogram(kl: np.ndarray) -> Histogram:
    import numpy as np

    logs = np.log10(np.clip(kl, 10 ** _LOG10_EDGES[0], 10 ** _LOG10_EDGES[-1]))
    counts, _ = np.histogram(logs, _LOG10_EDGES)
    return Histogram(_LOG10_EDGES, tuple(int(count) for count in counts))
