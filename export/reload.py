"""Opens a merged folder from disk, as a stranger would, before it is taken for an artifact."""

from __future__ import annotations

from pathlib import Path

from contract.errors import AssayError, listed
from contract.fast_tokenizer import load_fast
from export.skeleton import Skeleton, skeleton_of
from export.weights import FolderWeights


def prove_reload(folder: Path, dtype: str) -> None:
    """Open configuration, tokenizer, generation config and tensors with transformers' and safetensors' own readers.

    No weights are loaded: names and shapes are compared with what transformers builds from the stored config.json, and
    each tensor's first and last row, as safetensors reads them, with what was written there. All other bytes were read
    back and compared while they were written.

    Args:
        folder: the merged model, before it is moved to its place.
        dtype: what every tensor must be stored in, as torch names it.

    Raises:
        AssayError: a file that does not open, or tensors missing, unexpected, of another shape or dtype.
    """
    from transformers import GenerationConfig

    try:
        skeleton = skeleton_of(folder)
        load_fast(folder)
        GenerationConfig.from_pretrained(folder).validate(strict=True)
        weights = FolderWeights.open(folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AssayError(
            "the merged model does not load again", where=str(folder), got=f"{type(error).__name__}: {error}"
        ) from None
    if problems := [*_misfits(weights, skeleton), *_misread(weights, dtype)]:
        raise AssayError(
            "the merged model does not load again as it was written", where=str(folder), got=listed(problems, 20)
        )


def _misfits(weights: FolderWeights, skeleton: Skeleton) -> list[str]:
    stored = set(weights.names())
    expected = set(skeleton.shapes) - ({skeleton.head} if skeleton.tied else set())
    problems = [f"{name}: missing" for name in sorted(expected - skeleton.optional - stored)]
    problems += [f"{name}: unexpected" for name in sorted(stored - expected)]
    return problems + [
        f"{name}: {list(weights.shape(name))}, the configuration makes it {list(skeleton.shapes[name])}"
        for name in sorted(stored & expected)
        if weights.shape(name) != skeleton.shapes[name]
    ]


def _misread(weights: FolderWeights, dtype: str) -> list[str]:
    import torch
    from safetensors import safe_open

    problems = []
    for path in sorted({tensor.file for tensor in weights.tensors.values()}):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no dict
                rows = shard.get_slice(name)
                count = rows.get_shape()[0]
                for row in (0, count - 1):
                    read = rows[row : row + 1]
                    if read.dtype != getattr(torch, dtype):
                        problems.append(f"{name}: read as {read.dtype}")
                        break
                    if not torch.equal(read, weights.read_rows(name, row, row + 1)):
                        problems.append(f"{name}: row {row} reads as something else")
    return problems
