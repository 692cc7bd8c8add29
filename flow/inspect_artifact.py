"""`assay inspect`: an artifact's manifest in words, its lineage followed, its files hashed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.history import Evaluation, known_history, standing
from contract.spoken_against import spoken_against
from contract.verdict import worst

_DEEPEST = 8  # adapter, merged, GGUF, another folder of it: no lineage is longer, unless it runs in a circle


def describe(path: Path) -> dict[str, Any]:
    """Everything known of an artifact; `damage` is None or what is wrong with its files, as far as that can be known.

    Raises:
        AssayError: there is no artifact, or its manifest cannot be read.
    """
    artifact = open_artifact(path)
    return {
        "path": str(path),
        "kind": artifact.kind,
        "name": artifact.name,
        "digest": artifact.digest,
        "made_by_assay": not artifact.foreign,
        "size_bytes": artifact.size_bytes,
        "damage": _damage(artifact),
        "files": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in artifact.manifest.files],
        "lineage": _lineage(artifact),
        "verdict": _verdict(artifact),
        "recipe_sha256": artifact.manifest.recipe_sha256,
        "data_sha256": artifact.manifest.data_sha256,
        "tools": artifact.manifest.tools,
        "details": artifact.details,
        "measurements": artifact.manifest.measurements,
    }


def _damage(artifact: Artifact) -> str | None:
    """What differs from the manifest; of a foreign .gguf, whether it holds all the tensors that it lists."""
    if not artifact.foreign:
        try:
            artifact.verify()
        except AssayError as error:
            return error.got or error.what
    elif artifact.kind == "gguf":
        try:
            from export.gguf_read import read_gguf
        except ImportError:  # where only serving is installed
            return None
        try:
            read_gguf(artifact.gguf_path)
        except (ValueError, IndexError, KeyError, OverflowError):
            return f"{artifact.gguf_path.name}: it is cut short, or no GGUF that can be read"
    return None


def _lineage(artifact: Artifact, depth: int = 0) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for parent in artifact.manifest.parents:
        state, above = "not found here", []
        if Path(parent.path).exists() and depth < _DEEPEST:
            try:
                found = open_artifact(parent.path)
                state = "there" if found.is_parent(parent, artifact.manifest) else "changed since"
                above = _lineage(found, depth + 1)
            except AssayError:
                state = "no longer a model"
        rows.append({"role": parent.role, "path": parent.path, "digest": parent.digest, "state": state, "depth": depth})
        rows += above
    return rows


def _verdict(artifact: Artifact) -> dict[str, Any] | None:
    """What counts of all evaluations, and the evaluations, the last one last."""
    history = known_history(artifact.verdict_path)
    if not history:
        return None
    counts = standing(history, artifact.digest)
    if counts is None:
        return {"outcome": "none", "reasons": ["the verdict there is of other bytes"], "evaluations": []}
    reasons = counts.verdict.reasons if counts.verdict else ()
    against = [reason.text for reason in reasons if reason.outcome != "pass"]
    outcome: str = counts.state
    found = spoken_against(artifact)
    if counts.state == "pass" and found is not None:
        outcome, against = "fail", [f"it was made from {found[0].name}, of which all evaluations say {found[1].state}"]
    return {
        "outcome": outcome,
        "reasons": against,
        "chain": [asdict(above) for above in counts.verdict.chain] if counts.verdict else [],
        "evaluations": [row for evaluation in history if (row := _evaluation(evaluation, artifact.digest))],
    }


def _evaluation(evaluation: Evaluation, digest: str) -> dict[str, Any] | None:
    mine = evaluation.about(digest)
    if mine is None:
        return None
    basis = mine.basis
    return {
        "time_utc": basis.time_utc,
        "outcome": worst([v.outcome for v in mine.verdicts]) if mine.finished else "unfinished",
        "documents": len(basis.documents),
        "data_sha256": basis.data_sha256,
        "limits": basis.limits,
        "versions": basis.versions,
    }


def as_text(description: dict[str, Any]) -> str:
    """For a person."""
    d = description
    maker = "made by Assay" if d["made_by_assay"] else "not made by Assay, so nothing is recorded of it"
    state = "intact" if d["made_by_assay"] else "nothing recorded to compare them with"
    lines = [
        f"{d['name']}: {d['kind']}, {d['size_bytes'] / 1e6:.2f} MB, {maker}",
        f"digest  {d['digest']}",
        f"files   {'DAMAGED: ' + d['damage'] if d['damage'] else state}",
    ]
    lines += [f"          {f['path']}  {f['size_bytes']} bytes  {f['sha256'][:12]}" for f in d["files"]]
    verdict = d["verdict"]
    lines.append("verdict " + (verdict["outcome"] if verdict else "none: not evaluated"))
    lines += [f"          {reason}" for reason in (verdict or {}).get("reasons", [])]
    lines += [
        f"          {row['time_utc']}  {row['outcome']} on {row['documents']} documents, data {row['data_sha256'][:8]}"
        for row in (verdict or {}).get("evaluations", [])
    ]
    if d["lineage"]:
        lines.append("made from")
        lines += [
            f"  {'  ' * row['depth']}{row['role']}: {row['path']} ({row['state']}) {row['digest'][:12]}"
            for row in d["lineage"]
        ]
    for title in ("details", "measurements", "tools"):
        if d[title]:
            lines.append(title)
            lines += [f"  {key}: {_short(value)}" for key, value in sorted(d[title].items())]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "…"
