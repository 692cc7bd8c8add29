"""What goes into an artifact and what ends it: prompt ids and stop ids, against the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contract.prompt import has_double_bos
from contract.runtime import Runtime
from evalsuite.targets import Targets


@dataclass(frozen=True)
class Interface:
    """Against the reference at the root of its tree, on every document and every built-in hard text."""

    prompts: int
    prompt_ids_differ: int
    prompt_difference: str | None
    double_bos: int
    stop_ids_missing: tuple[int, ...]
    stop_ids_extra: tuple[int, ...]
    stop_ids_extra_used: int


def compare_interface(runtime: Runtime, prompts: Sequence[tuple[int, ...]], targets: Targets) -> Interface:
    """Compare the prompt ids that `runtime` made, and its stop ids, with those of the targets."""
    both = list(zip(prompts, targets.prompts, strict=True))
    differ = [index for index, (ours, theirs) in enumerate(both) if ours != theirs]
    extra = runtime.stop_ids - set(targets.stop_ids)
    bos_ids = {bos for bos in (runtime.bos_id, targets.bos_id) if bos is not None}
    return Interface(
        len(prompts),
        len(differ),
        _difference(differ[0], *both[differ[0]], len(targets.documents)) if differ else None,
        sum(any(has_double_bos(ids, bos) for bos in bos_ids) for ids in prompts),
        tuple(sorted(set(targets.stop_ids) - runtime.stop_ids)),
        tuple(sorted(extra)),
        sum(token in extra for _, target in targets.pairs for token in target[:-1]),
    )


def _difference(index: int, ours: tuple[int, ...], theirs: tuple[int, ...], documents: int) -> str:
    shorter = min(len(ours), len(theirs))
    at = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    which = f"document {index + 1}" if index < documents else "a built-in hard text"
    return (
        f"{which}, at token {at + 1}: {list(ours[at : at + 4])} instead of {list(theirs[at : at + 4])} "
        f"({len(ours)} ids, not {len(theirs)})"
    )
