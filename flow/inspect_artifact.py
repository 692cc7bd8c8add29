"""`assay inspect`: an artifact's manifest in words, its lineage followed, its files hashed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.verdict import VERDICT_FILE, read_verdicts


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
        if Path(parent.path).exists():
            try:
                found = open_artifact(parent.path)
                state = "there" if found.digest == parent.digest else "changed since"
                above = _lineage(found, depth + 1)
            except AssayError:
                state = "no longer a model"
        rows.append({"role": parent.role, "path": parent.path, "digest": parent.digest, "state": state, "depth": depth})
        rows += above
    return rows


def _verdict(artifact: Artifact) -> dict[str, Any] | None:
    path = artifact.folder / VERDICT_FILE
    if not path.is_file():
        return None
    for verdict in read_verdicts(path):
        if verdict.digest == artifact.digest:
            return {
                "outcome": verdict.outcome,
                "reasons": [reason.text for reason in verdict.reasons if reason.outcome != "pass"],
            }
    return {"outcome": "none", "reasons": ["the verdict there is of other bytes"]}


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
