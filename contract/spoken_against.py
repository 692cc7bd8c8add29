"""Does anything kept beside an artifact, or beside what it was made from, speak against it?"""

from __future__ import annotations

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.history import Standing, known_history, standing

_ROLES = ("merged", "adapter", "gguf")  # of parents that an artifact is compared with


def spoken_against(artifact: Artifact) -> tuple[Artifact, Standing] | None:
    """What does not pass, the artifact itself or something above it, and what counts of it; None: nothing says no.

    What was never evaluated says nothing. What it hangs from is looked at where it lies, if it is there: a serving
    machine may have the artifact alone. Beside the artifact itself an inconclusive is no word against it, for a verdict
    from elsewhere may be one for it.

    Raises:
        AssayError: a verdict file is damaged.
    """
    counts = standing(known_history(artifact.verdict_path), artifact.digest)
    if counts is not None and counts.state in ("fail", "unfinished"):
        return artifact, counts
    for above in _above(artifact):
        found = standing(known_history(above.verdict_path), above.digest)
        if found is not None and found.state != "pass":
            return above, found
    return None


def _above(artifact: Artifact, below: frozenset[str] = frozenset()) -> list[Artifact]:
    found = []
    for parent in artifact.manifest.parents:
        if parent.role not in _ROLES or parent.digest in below:
            continue
        for place in artifact.places(parent):
            try:
                above = open_artifact(place)
            except AssayError:  # something else lies there now
                continue
            if above.is_parent(parent, artifact.manifest):
                found += [above, *_above(above, below | {parent.digest})]
                break
    return found
