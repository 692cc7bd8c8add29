"""Computes an importance matrix from templated training text, with hooks on torch's linear layers as they pass by.

llama.cpp's tools/imatrix defines the values. Text is one stream of ids, cut into chunks; where the tokenizer puts BOS
in front, BOS replaces the first id of each chunk. Of every matrix in a block, the squares of what it is multiplied with
are summed per column. The output matrix is left out, as llama-imatrix leaves it out by default.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import Artifact, open_artifact, sha256_of
from contract.errors import AssayError, listed
from contract.example import Example, sha256_of_rows
from contract.model_folder import chat_format
from contract.prompt import PromptSpec, completion_ids, hf_tokenize, prompt_ids
from export.imatrix_file import ImportanceMatrix, write_imatrix

if TYPE_CHECKING:
    import torch

    from export.gguf_file import GgufPlan
    from export.source import Source

CHUNK_TOKENS = 512  # llama-imatrix's default context
DEFAULT_CHUNKS = 100
# llama-imatrix does not look at fewer tokens at once
_LEAST_TOKENS = 16
_BLOCK_WEIGHT = re.compile(r"blk\.\d+\..+\.weight")


@dataclass(frozen=True)
class Calibration:
    """The examples whose text an importance matrix is computed from."""

    examples: Sequence[Example]
    chunks: int = DEFAULT_CHUNKS  # at most
    seed: int = 0  # the order in which examples are taken until there is text enough


@dataclass(frozen=True)
class MadeMatrix:
    """An importance matrix that was made before, of the same model and the same calibration."""

    path: Path
    record: Mapping[str, Any]  # what `make_imatrix` returned

    def copy_to(self, path: Path) -> dict[str, Any]:
        """Copy the file; returns the record.

        Raises:
            AssayError: the file is not the one that was recorded.
        """
        shutil.copyfile(self.path, path)
        if sha256_of(path) != self.record["sha256"]:
            raise AssayError(
                "the importance matrix is not the one that was made",
                where=str(self.path),
                hint="remove it, and run again",
            )
        return dict(self.record)


def check_split(model: Artifact, examples: Sequence[Example]) -> dict[str, Any]:
    """See that `examples` are the training split that the model, or the adapter it was merged from, records.

    Returns:
        For the manifest: "data_sha256" of the rows, and "split": "train", or None where the model records no splits.

    Raises:
        AssayError: they are the validation or test split, or not the training split as it was trained on.
    """
    recorded = recorded_splits(model)
    data_sha256 = sha256_of_rows(examples)
    if not recorded:
        print(
            f"note: {model.name} records no splits; that these examples are of its training split was not checked",
            file=sys.stderr,
        )
        return {"data_sha256": data_sha256, "split": None}
    split = split_of(recorded, examples)
    if split == "train":
        return {"data_sha256": recorded["train"], "split": "train"}
    if split is not None:
        raise AssayError(
            f"these examples are the model's {split} split; an importance matrix is made from training text only",
            where=str(model.path),
            got=f"sha256 {data_sha256}",
            hint="give the training split",
        )
    raise AssayError(
        "these examples are not the training split this model records, so they may be of its validation or test split",
        where=str(model.path),
        expected=f"sha256 {recorded.get('train')}, without the documents that were dropped as leaked",
        got=f"sha256 {data_sha256}",
        hint="export.gguf.imatrix: true in the recipe lets assay run take the very rows",
    )


def split_of(recorded: Mapping[str, str], examples: Sequence[Example]) -> str | None:
    """Which of the recorded splits these very rows are; None: none of them."""
    for split, expected in recorded.items():
        # rows numbered per file carry the split's name in front of their id where splits shared ids
        prefixed = [replace(example, id=f"{split}-{example.id}") for example in examples]
        if expected in (sha256_of_rows(examples), sha256_of_rows(prefixed)):
            return split
    return None


def recorded_splits(model: Artifact) -> dict[str, str]:
    """The digest of each split that the model, or the adapter it was merged from, was made with; {}: none recorded."""
    if model.manifest.data_sha256:
        return model.manifest.data_sha256
    adapter = model.parent("adapter")
    if adapter is None or not Path(adapter.path).is_dir():
        return {}
    found = open_artifact(adapter.path)
    return found.manifest.data_sha256 if found.is_parent(adapter, model.manifest) else {}


def calibration_ids(plan: GgufPlan, source: Source, calibration: Calibration, tokens: int) -> list[int]:
    """Prompt and summary of one example after the other, as ids, until there are `tokens` of them or no more."""
    spec = PromptSpec.from_dict(source.details["prompt"]) if "prompt" in source.details else PromptSpec()
    chat = chat_format(source.folder, date=spec.date)
    tokenize, bos = hf_tokenize(plan.tokenizer), plan.special.bos
    order = list(calibration.examples)
    random.Random(calibration.seed).shuffle(order)
    ids: list[int] = []
    for example in order:
        messages = spec.messages(example.document)
        for summary in example.references:
            ids += prompt_ids(chat, messages, tokenize, bos)
            ids += completion_ids(chat, messages, summary, tokenize, bos)
        if len(ids) >= tokens:
            break
    return ids[:tokens]


def make_imatrix(
    model: Artifact, plan: GgufPlan, source: Source, calibration: Calibration, path: Path, *, threads: int
) -> dict[str, Any]:
    """Run the model in torch, in float32, over the examples' text and write the importance matrix to `path`.

    Args:
        model: what the matrix is for, with the splits it records.
        plan: which tensors the GGUF has.
        source: the same model, for its words and its weights, which are in memory one layer at a time.
        calibration: the examples, and how much of them.
        path: the new file. What the layers hand over waits on the same disk, 4 bytes a token and hidden value.
        threads: CPU threads.

    Returns:
        For the manifest: "sha256" of the file, "chunks", "chunk_tokens", "tokens", "seed", and `check_split`'s.

    Raises:
        AssayError: they are not the training split, their text is shorter than 16 tokens, or an activation is not
            finite.
    """
    checked = check_split(model, calibration.examples)
    whole_chunk = min(CHUNK_TOKENS, plan.model.context)
    ids = calibration_ids(plan, source, calibration, calibration.chunks * whole_chunk)
    chunk_tokens = min(whole_chunk, len(ids))
    if chunk_tokens < whole_chunk:
        print(f"note: the importance matrix is made from {chunk_tokens} tokens, which is very little", file=sys.stderr)
    bos = plan.special.bos if plan.special.add_bos else None
    data = f"{checked['split'] or 'examples'} sha256:{checked['data_sha256']}"
    matrix = matrix_of_ids(
        source, plan, ids, path.parent, chunk_tokens=chunk_tokens, bos=bos, data=data, threads=threads
    )
    write_imatrix(path, matrix)
    return {
        "sha256": sha256_of(path),
        "chunks": matrix.chunks,
        "chunk_tokens": chunk_tokens,
        "tokens": matrix.tokens,
        "seed": calibration.seed,
        **checked,
    }


def matrix_of_ids(
    source: Source,
    plan: GgufPlan,
    ids: Sequence[int],
    scratch: Path,
    *,
    chunk_tokens: int,
    bos: int | None,
    data: str,
    threads: int,
) -> ImportanceMatrix:
    """The matrix of a stream of ids, cut into whole chunks; what is left over at its end is not used.

    Args:
        source: the model.
        plan: which tensors the GGUF has.
        ids: the stream.
        scratch: a folder on a disk with room for the hidden states.
        chunk_tokens: tokens per chunk, at least 16.
        bos: replaces the first id of each chunk, unless None.
        data: says which text it is.
        threads: CPU threads.

    Raises:
        AssayError: the ids are fewer than one chunk, or an activation is not finite.
    """
    import torch

    from export.layered import LayeredModel

    chunks = len(ids) // chunk_tokens
    if chunks < 1 or chunk_tokens < _LEAST_TOKENS:
        raise AssayError(
            "there is too little text for an importance matrix",
            where=source.where,
            got=f"{len(ids)} tokens",
            expected=f"at least one chunk of {max(chunk_tokens, _LEAST_TOKENS)}",
            hint="give more examples",
        )
    torch.set_num_threads(threads)
    rows = [list(ids[start : start + chunk_tokens]) for start in range(0, chunks * chunk_tokens, chunk_tokens)]
    if bos is not None:
        rows = [[bos, *row[1:]] for row in rows]
    model = LayeredModel(source, attention="eager")  # the one that every family's own rules are written for
    sums = _Sums(_modules(plan, model.network))
    model.run(rows, scratch)
    return ImportanceMatrix(sums.finished(source.where), chunks * chunk_tokens, chunks, chunk_tokens, data)


def _modules(plan: GgufPlan, network: Any) -> dict[str, torch.nn.Module]:
    """GGUF name -> the layer that multiplies with it, for every matrix of a block."""
    modules = dict(network.named_modules())
    found = {}
    for tensor in plan.tensors:
        if tensor.source is None or len(tensor.shape) != 2 or not _BLOCK_WEIGHT.fullmatch(tensor.name):
            continue
        name = tensor.source.removesuffix(".weight")
        found[tensor.name] = modules[name if name in modules else plan.model.prefix + name]
    return found


class _Sums:
    """Per tensor the sum of squared inputs, taken while the model runs."""

    def __init__(self, modules: Mapping[str, torch.nn.Module]) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._names = list(modules)
        for name, module in modules.items():
            module.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        import torch

        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            squares = rows.square().sum(dim=0, dtype=torch.float64)
            self._sums[name] = squares + self._sums[name] if name in self._sums else squares

        return add

    def finished(self, where: str) -> dict[str, Any]:
        """The sums as float32 arrays.

        Raises:
            AssayError: one is not finite.
        """
        found = {name: self._sums[name].float() for name in self._names}
        broken = [name for name, sums in found.items() if not bool(sums.isfinite().all())]
        if broken:
            raise AssayError("activations are not finite", where=where, got=listed(broken))
        return {name: sums.numpy() for name, sums in found.items()}
