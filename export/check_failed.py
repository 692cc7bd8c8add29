"""What a check raises when an export is not its source, and what becomes of the export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from contract.failed import FAILED_FILE, Failure

if TYPE_CHECKING:
    from contract.artifact import Draft


class CheckFailed(AssayError):  # noqa: N818
    """What was exported does not behave like its source: a gate's no, not a fault of the input."""

    exit_code = 1


class BehaviourFailed(CheckFailed):
    """What was written is what was to be written, and computes something else.

    Args:
        what: one sentence that says so.
        where: the source.
        failures: of each export that failed, by quantization or precision.
        measured: the figures of each export that has any.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str,
        failures: Mapping[str, Sequence[Failure]],
        measured: Mapping[str, dict[str, Any]],
    ) -> None:
        self.failures, self.measured = failures, measured
        found = [f"{name}: {failure.text}" for name, several in failures.items() for failure in several]
        super().__init__(what, where=where, got=listed(found))


@contextmanager
def setting_aside(drafts: Mapping[Any, Draft]) -> Iterator[None]:
    """Keep what fails its behavioural check in here beside the place it was made for.

    Args:
        drafts: by quantization or precision.

    Raises:
        CheckFailed: what came, saying also where that is.
    """
    from contract.set_aside import set_aside

    try:
        yield
    except BehaviourFailed as failed:
        try:
            kept = []
            for name, failures in failed.failures.items():
                drafts[name].measurements["logits"] = failed.measured.get(name)
                kept.append(str(set_aside(drafts[name], failures)))
            hint = f"what failed was set aside in {listed(kept)}; {FAILED_FILE} there has the figures"
        except OSError as error:
            hint = f"what failed could not be set aside: {error}"
        raise CheckFailed(failed.what, where=failed.where, got=failed.got, hint=hint) from None
