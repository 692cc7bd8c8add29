"""Makes one GGUF after the other, measures it and drops it again; what was measured once is kept on disk."""

from __future__ import annotations

import math
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import MEASURED_FOLDER, Artifact, sha256_of
from contract.errors import AssayError, CannotLoadError
from contract.example import Example, sha256_of_rows
from contract.runtime import GenerateParams
from evalsuite.cache import Cache
from evalsuite.identity import base_identity, label_of
from evalsuite.judged import difference_of_rouge
from evalsuite.metrics.text import rouge
from evalsuite.plan import Node
from evalsuite.speed import measure_speed
from evalsuite.walk import Visit, Walk
from export.check_failed import CheckFailed
from export.ggml import TypeCannotHold
from export.quantize import IMATRIX_FILE, uses_matrix
from export.to_gguf import Check, export_gguf
from flow.quant_limits import Figures, Limits, Quality

if TYPE_CHECKING:
    from export.imatrix import Calibration, MadeMatrix


@dataclass(frozen=True)
class Settings:
    """How every type is exported, as `export.to_gguf.export_gguf` takes it."""

    strict: bool = False
    threads: int = 2
    name: str | None = None
    pre_tokenizer: str | None = None
    imatrix: Calibration | None = None


@dataclass(frozen=True)
class _MatrixRecord:
    record: dict[str, Any]


class Bench:
    """The types of one model and what is known of them; asked by `flow.quant_search.search`.

    Args:
        model: what is exported, and what every type is held against.
        examples: documents with reference summaries.
        planned: every type, as planned.
        limits: decide, and say whether summaries have to be written.
        settings: of the export.
        work: an existing folder for what is made meanwhile.
        cache: what was measured before.
    """

    def __init__(
        self,
        model: Artifact,
        examples: Sequence[Example],
        planned: Mapping[str, Figures],
        limits: Limits,
        settings: Settings,
        work: Path,
        cache: Cache,
    ) -> None:
        self.model, self.examples, self.limits, self.settings = model, examples, limits, settings
        self._cache, self._tried, self._matrix_file = cache, work / "tried", work / IMATRIX_FILE
        self._writes = limits.rouge_l_loss is not None
        self._made: Artifact | None = None  # the one that is on disk
        self._data_sha256 = sha256_of_rows(examples)
        self._model_key = cache.key(model=model.digest, base=base_identity(model))
        self._matrix_key = self._key_of_matrix()
        self.figures = {quant: self._known(figures) for quant, figures in planned.items()}

    def near(self, quant: str) -> bool:
        """Is every logit finite, and the type within the limits of quality?"""
        self._compare(quant)
        quality = replace(self.limits, size_bytes=None, ms_per_token=None)
        return self.figures[quant].outcome(quality) == "pass"

    def nats(self, quant: str) -> float:
        """How far it is from the model; infinite where it cannot be said."""
        self._compare(quant)
        quality = self.figures[quant].quality
        return math.inf if quality is None else quality.nats

    def quick(self, quant: str) -> bool:
        """Is it within the limit of time?"""
        return self.limits.ms_per_token is None or self.ms(quant) <= self.limits.ms_per_token

    def ms(self, quant: str) -> float:
        """p50 over documents of the time per token; infinite for what cannot be made."""
        if self.figures[quant].ms_per_token is None and (made := self._artifact(quant)) is not None:
            targets = self._walk(self._reference()).visits[0].targets
            prompts = targets.prompts[: len(targets.documents)]
            try:
                self._learn(quant, ms_per_token=measure_speed(made, prompts, self.settings.threads).per_token_ms)
            except AssayError:
                self._compare(quant)  # refuses it where it cannot even be loaded
                if self.figures[quant].refused is None:
                    raise
        found = self.figures[quant].ms_per_token
        return math.inf if found is None else found

    def keep(self, quant: str, out: Path, check: Check) -> Artifact:
        """Export the type once more, to stay, and see that it is what was measured.

        Raises:
            AssayError: it is not, or as `export_gguf`.
        """
        self.drop()
        try:
            made = self._export(quant, out, check)
        except CheckFailed:
            self._cache.forget("type")  # what was measured is of files that are not the model
            raise
        if made.digest != self.figures[quant].digest:
            raise AssayError(
                f"{quant} came out otherwise than when it was measured",
                where=str(made.path),
                expected=str(self.figures[quant].digest),
                got=made.digest,
                hint=f"remove {made.path} and {self._tried.parent}, and run again",
            )
        return made

    def discard(self, kept: Artifact) -> None:
        """Remove what was to stay and is not to after all: killed meanwhile, there is all of it or none."""
        self.drop()
        kept.path.rename(self._tried)
        self.drop()

    def drop(self) -> None:
        """Remove what was made to be measured."""
        self._made = None
        shutil.rmtree(self._tried, ignore_errors=True)

    def _artifact(self, quant: str) -> Artifact | None:
        """The type's file, made now unless it lies there; None where it cannot be made."""
        figures = self.figures[quant]
        if figures.refused is not None:
            return None
        if self._made is not None and self._made.details["quant"] == quant:
            return self._made
        self.drop()
        print(f"assay export · trying {quant}, {figures.size_bytes / 1e6:.2f} MB …", file=sys.stderr, flush=True)
        try:
            made = self._export(quant, self._tried, "structure")
        except AssayError as error:
            if not isinstance(error, CheckFailed | TypeCannotHold):
                raise  # not a matter of the type
            self._learn(quant, refused=_sentence(error))
            return None
        bits = float(made.details["bits_per_weight"])
        self._learn(quant, digest=made.digest, size_bytes=made.size_bytes, bits_per_weight=bits)
        self._made = made
        return made

    def _export(self, quant: str, out: Path, check: Check) -> Artifact:
        settings = self.settings
        matrix = self._matrix() if self.settings.imatrix is not None and uses_matrix(quant) else None
        [made] = export_gguf(
            self.model,
            out,
            quants=[quant],
            check=check,
            strict=settings.strict,
            threads=settings.threads,
            name=settings.name,
            pre_tokenizer=settings.pre_tokenizer,
            imatrix=matrix,
        )
        if matrix is not None and not self._matrix_file.is_file():
            shutil.copyfile(made.path / MEASURED_FOLDER / IMATRIX_FILE, self._matrix_file)
            self._cache.put("matrix", self._matrix_key, _MatrixRecord(made.details["imatrix"]))
        return made

    def _matrix(self) -> Calibration | MadeMatrix:
        """The importance matrix: computed for the first type that uses one, then the same file."""
        from export.imatrix import MadeMatrix

        known = self._cache.get("matrix", self._matrix_key, _MatrixRecord)
        if known is not None and self._is_the_matrix(known):
            return MadeMatrix(self._matrix_file, known.record)
        self._matrix_file.unlink(missing_ok=True)
        assert self.settings.imatrix is not None
        return self.settings.imatrix

    def _is_the_matrix(self, known: _MatrixRecord) -> bool:
        """Is the file that lies there the one that was computed?"""
        return self._matrix_file.is_file() and sha256_of(self._matrix_file) == known.record.get("sha256")

    def _compare(self, quant: str) -> None:
        """Hold the type's logits, and its summaries where those are asked for, against the model's."""
        if self.figures[quant].quality is not None or (made := self._artifact(quant)) is None:
            return
        reference = self._reference()
        bits = self.figures[quant].bits_per_weight
        reference.children.append(
            Node(made, quant, "candidate", self._writes, quant=quant, bits_per_weight=bits, purpose="quantization")
        )
        walk = self._walk(reference)
        if walk.faults:
            self._refuse_unloadable(quant, walk.faults[0].error)
            return
        root, ours = walk.visits
        found = ours.found
        loss = None
        if self._writes:
            loss = difference_of_rouge(self._rouge_l(walk.examples, root), self._rouge_l(walk.examples, ours))
        quality = Quality(
            {distance.target_set: distance.kl for distance in found.distances},
            sum(distance.tokens for distance in found.distances),
            found.not_finite_tokens,
            loss,
        )
        self._learn(quant, quality=quality)

    def _reference(self) -> Node:
        """The model as it goes into the export: an adapter on its base's stored weights."""
        weights = "w16" if self.model.kind == "adapter" else None
        return Node(self.model, label_of(self.model, None), "reference", True, base_weights=weights)

    def _refuse_unloadable(self, quant: str, error: AssayError) -> None:
        """Raises `error` where it says nothing of the type."""
        if not isinstance(error, CannotLoadError):
            raise error
        self._learn(quant, refused=_sentence(error))

    def _walk(self, root: Node) -> Walk:
        params = GenerateParams.recorded(self.model.details)
        # a search by the quicker way; what it finds is judged as it is served once it is to be proven
        data = self._data_sha256
        walk = Walk(self.examples, data, None, params, self.settings.threads, self._cache, as_served=False)
        walk.trees([root])
        return walk

    def _rouge_l(self, examples: Sequence[Example], visit: Visit) -> list[float]:
        assert visit.completions is not None
        return [
            rouge(example.references, completion.text.strip())["rougeL"]
            for example, completion in zip(examples, visit.completions, strict=True)
        ]

    def _learn(self, quant: str, **found: Any) -> None:
        self.figures[quant] = replace(self.figures[quant], **found)
        self._cache.put("type", self._key(quant), self.figures[quant])

    def _known(self, planned: Figures) -> Figures:
        """What was found of the type before; the plan's refusal is of these settings, and holds whatever was found."""
        found = self._cache.get("type", self._key(planned.quant), Figures)
        return planned if found is None else replace(found, refused=planned.refused or found.refused)

    def _key(self, quant: str) -> str:
        """Of all that a type's figures depend on."""
        return self._cache.key(
            model=self._model_key,
            quant=quant,
            name=self.settings.name,
            pre_tokenizer=self.settings.pre_tokenizer,
            matrix=self._matrix_key if uses_matrix(quant) else None,
            data=self._data_sha256,
            writes=self._writes,
            machine=platform.node(),
            threads=self.settings.threads,
        )

    def _key_of_matrix(self) -> str:
        matrix = self.settings.imatrix
        if matrix is None:
            return "none"
        rows = sha256_of_rows(matrix.examples)
        return self._cache.key(model=self._model_key, examples=rows, chunks=matrix.chunks, seed=matrix.seed)


def _sentence(error: AssayError) -> str:
    return ": ".join(filter(None, [error.what, error.got]))
