"""What a check raises when an export is not its source."""

from __future__ import annotations

from contract.errors import AssayError


class CheckFailed(AssayError):  # noqa: N818
    """What was exported does not behave like its source: a gate's no, not a fault of the input."""

    exit_code = 1
