"""Did an artifact's files stay what they were between being hashed and being loaded?

The verdict is about the bytes that were hashed, and an engine reads them again. Whoever swaps a file in between would
have other bytes served as proven, so files are told by what the system notes of them, before the first hash and after
the last read. It cannot be seen when somebody writes into a file that is mapped, later on.
"""

from __future__ import annotations

from contract.artifact import MANIFEST_FILE, MEASURED_FOLDER, Artifact
from contract.errors import AssayError, listed

# What an engine may read only because it lies there; a verdict, or what signs one, may come while a server starts.
_READ = (".onnx", ".onnx_data", ".gguf", ".safetensors", ".json", ".jinja", ".model", ".txt", ".bin")
_VERDICT = "verdict"

Fingerprint = dict[str, tuple[int, ...] | None]


def fingerprint(artifact: Artifact) -> Fingerprint:
    """Device, inode, size, and times of change (ns) of every listed file and the manifest; None for what is not there.

    Files that lie in an artifact's folder unlisted are told by their names alone.
    """
    names = [record.path for record in artifact.manifest.files] + ([] if artifact.foreign else [MANIFEST_FILE])
    found: Fingerprint = {}
    for name in names:
        try:
            stat = (artifact.folder / name).stat()
            found[name] = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError:
            found[name] = None
    if artifact.path.is_dir():
        for path in artifact.folder.rglob("*"):
            parts = path.relative_to(artifact.folder).parts
            if parts[0] == MEASURED_FOLDER or path.name.startswith((".", _VERDICT)) or not path.name.endswith(_READ):
                continue
            found.setdefault("/".join(parts), ())
    return found


def refuse_changed(artifact: Artifact, before: Fingerprint) -> None:
    """Raise where a file is not the one it was.

    Args:
        artifact: what was loaded.
        before: its `fingerprint` from before its files were hashed.

    Raises:
        AssayError: naming every file that was changed, replaced, added or taken away.
    """
    now = fingerprint(artifact)
    changed = [name for name in sorted({*before, *now}) if now.get(name) != before.get(name)]
    if changed:
        raise AssayError(
            "the artifact's files changed while it was being loaded",
            where=str(artifact.path),
            got=listed(changed),
            hint="see that nothing writes there, and start again",
        )
