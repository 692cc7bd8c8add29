"""Artifacts that cannot be loaded or run: each gets a verdict instead of ending the evaluation of all the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from contract.artifact import Artifact
from contract.artifact_prompt import recorded_prompt
from contract.errors import AssayError, NoEngineError
from contract.runtime import Runtime
from evalsuite.identity import label_of, storage
from evalsuite.results import Unloadable


@dataclass(frozen=True)
class Fault:
    """What is wrong with an artifact; its label, where it has one already."""

    artifact: Artifact
    error: AssayError
    label: str | None = None

    def __post_init__(self) -> None:
        """Let go of the frames it came through, and so of what was loaded until then."""
        self.error.__traceback__ = self.error.__context__ = None


class Model:
    """A runtime that is loaded when it is asked for; `fault` is why it could not be, or what stopped its work.

    `instead_of` is the same artifact loaded otherwise, which is freed before this one is loaded.
    """

    def __init__(self, load: Callable[[], Runtime]) -> None:
        self._load = load
        self._runtime: Runtime | None = None
        self.instead_of: Model | None = None
        self.fault: AssayError | None = None

    def __call__(self) -> Runtime:
        """The runtime."""
        if self._runtime is None:
            if self.instead_of is not None:
                self.instead_of.close()
            with self.at_work():
                self._runtime = self._load()
        return self._runtime

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """An error in here is the model's, unless it is the machine's."""
        try:
            yield
        except NoEngineError:
            raise
        except AssayError as error:
            self.fault = error
            raise

    def close(self) -> None:
        """Free it, where it was loaded; it is loaded again when it is asked for again."""
        if self._runtime is not None:
            self._runtime.close()
        self._runtime = None


def set_apart(artifacts: Sequence[Artifact], needed: Sequence[Artifact]) -> tuple[list[Artifact], list[Fault]]:
    """Hash every file, and read how its weights are stored and which prompt it was made for.

    Args:
        artifacts: what is asked about.
        needed: what others are compared with, perhaps among them.

    Returns:
        The artifacts without fault, and the faults of the others.

    Raises:
        AssayError: something needed is at fault, or there is nothing else, or a package that reads it is missing.
    """
    by_digest = {artifact.digest: artifact for artifact in (*artifacts, *needed)}
    faults = {digest: Fault(artifact, error) for digest, artifact in by_digest.items() if (error := _fault(artifact))}
    sound = [artifact for artifact in artifacts if artifact.digest not in faults]
    for fault in faults.values():
        if not sound or fault.artifact.digest in {artifact.digest for artifact in needed}:
            raise fault.error
        said = f"assay eval · {fault.artifact.path} cannot be loaded, so it fails: {fault.error.what}"
        print(said, file=sys.stderr, flush=True)
    return sound, list(faults.values())


def _fault(artifact: Artifact) -> AssayError | None:
    try:
        artifact.verify()
        storage(artifact)
        recorded_prompt(artifact)
    except NoEngineError:
        raise
    except AssayError as error:
        return error
    return None


def unloadable(faults: Sequence[Fault], taken: Iterable[str]) -> tuple[Unloadable, ...]:
    """What the results say of them; `taken` are the labels of what could be loaded."""
    labels = {*taken, *(fault.label for fault in faults if fault.label)}
    found = []
    for fault in faults:
        artifact, error = fault.artifact, fault.error
        quant = artifact.details.get("quant") or artifact.details.get("precision")
        label = fault.label or _free(label_of(artifact, quant), labels)
        labels.add(label)
        found.append(
            Unloadable(
                label,
                artifact.kind,
                artifact.name,
                artifact.digest,
                str(artifact.path.absolute()),
                artifact.foreign,
                quant,
                artifact.size_bytes,
                f"{error.what}: {error.got}" if error.got else error.what,
            )
        )
    return tuple(found)


def _free(label: str, taken: set[str]) -> str:
    number, folded = 1, {each.casefold() for each in taken}  # file names, as in the plan
    while (free := label if number == 1 else f"{label}-{number}").casefold() in folded:
        number += 1
    return free
