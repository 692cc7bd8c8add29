"""Artifacts: folders with a manifest, made whole or not at all, and opened whoever made them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from contract.drafts import hold_draft, remove_abandoned, sync, sync_path
from contract.errors import AssayError, listed
from contract.failed import refuse_failed
from contract.typed import from_json
from contract.verdict import SIGNED_FILE, VERDICT_FILE

Kind = Literal["adapter", "merged", "onnx", "gguf", "gguf-lora"]
ONNX_LABEL = "onnx-"  # before a precision: what an ONNX artifact is called in recipes and tables
MANIFEST_FILE = "manifest.json"
MANIFEST_SCHEMA = 2
_READ_SCHEMAS = (1, 2)  # of schema 1 the stated digest covers the files alone
# Times, logs and plots live here, and verdicts beside the manifest; none of them belongs to the digested file list.
MEASURED_FOLDER = "measured"
_UNDIGESTED_FILES = (MANIFEST_FILE, VERDICT_FILE, SIGNED_FILE)
# Files that can change what a model does; others (a licence, a picture) may lie in a folder unlisted.
_MODEL_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".json", ".model", ".jinja", ".txt", ".bin")
_HASHED_AT_ONCE = 8 << 20  # bytes; small pieces would wait for the interpreter's lock while another thread imports


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact, its path relative to the folder."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Parent:
    """What an artifact was made from. role: "base", "adapter", "merged", "gguf"."""

    role: str
    path: str  # a folder, or a hub id
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. `digest` covers all of it but `measurements` and where parents lay."""

    kind: Kind
    name: str
    files: tuple[FileRecord, ...]
    parents: tuple[Parent, ...] = ()
    recipe_sha256: str | None = None
    data_sha256: dict[str, str] = field(default_factory=dict)  # split -> sha256
    tools: dict[str, str] = field(default_factory=dict)  # package -> version
    details: dict[str, Any] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)
    schema: int = MANIFEST_SCHEMA

    @cached_property
    def digest(self) -> str:
        """sha256 over the manifest as canonical JSON: lists without an order sorted, no measurement, no place.

        A parent is named by role and digest, so that the same input gives the same digest wherever it lies.
        """
        said = {
            "schema": self.schema,
            "kind": self.kind,
            "name": self.name,
            "files": sorted((record.path, record.size_bytes, record.sha256) for record in self.files),
            "parents": sorted((parent.role, parent.digest) for parent in self.parents),
            "recipe_sha256": self.recipe_sha256,
            "data_sha256": self.data_sha256,
            "tools": self.tools,
            "details": json.loads(json.dumps(self.details)),  # keys as text, tuples as lists: as it will be read back
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @cached_property
    def files_digest(self) -> str:
        """sha256 over the sorted list of path, size and sha256 of every file: what schema 1 called the digest."""
        return digest_of(self.files)


@dataclass(frozen=True)
class Artifact:
    """A folder (or a bare .gguf) that can be opened. `foreign`: Assay did not make it, so nothing was recorded."""

    path: Path
    manifest: Manifest
    foreign: bool
    told: dict[str, Any] = field(default_factory=dict)  # details that a recipe replaces; never part of the digest

    def retold(self, **details: Any) -> Artifact:
        """The same artifact, its details replaced by what a recipe says now: what exports of it record."""
        return replace(self, told={**self.told, **details})

    @property
    def kind(self) -> Kind:
        """What it is."""
        return self.manifest.kind

    @property
    def name(self) -> str:
        """What it is called."""
        return self.manifest.name

    @property
    def digest(self) -> str:
        """What a verdict is bound to: all of the manifest; of a foreign one its files."""
        return self.manifest.files_digest if self.foreign else self.manifest.digest

    def is_parent(self, parent: Parent, child: Manifest) -> bool:
        """Is this what `child` says it was made from? Manifests of schema 1 named parents by their files alone."""
        if child.schema != 1:
            return parent.digest == self.digest
        lost_its_manifest = self.foreign and parent.role != "base"  # or never had one: its own lineage cannot be told
        return not lost_its_manifest and parent.digest == self.manifest.files_digest

    @property
    def details(self) -> dict[str, Any]:
        """What its maker recorded; empty for a foreign one."""
        return {**self.manifest.details, **self.told}

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def verdict_path(self) -> Path:
        """Where verdicts on it are kept: in its folder; beside a bare file."""
        return self._beside(VERDICT_FILE)

    @property
    def signed_path(self) -> Path:
        """Where a signed verdict on it lies."""
        return self._beside(SIGNED_FILE)

    def _beside(self, name: str) -> Path:
        bare = self.foreign and self.path.is_file()
        return self.path.with_name(f"{self.path.name}.{name}") if bare else self.folder / name

    @property
    def gguf_path(self) -> Path:
        """The .gguf file of a gguf artifact.

        Raises:
            AssayError: there is none, or several.
        """
        if self.foreign and self.path.is_file():  # by its first bytes, whatever it is called
            return self.path
        names = [record.path for record in self.manifest.files if record.path.endswith(".gguf")]
        if not names:
            raise AssayError("there is no .gguf in the artifact", where=str(self.path))
        if len(names) > 1:
            raise AssayError("a gguf artifact has one .gguf file", where=str(self.path), got=listed(sorted(names)))
        return self.folder / names[0]

    @property
    def size_bytes(self) -> int:
        """The sum of its files."""
        return sum(record.size_bytes for record in self.manifest.files)

    def places(self, parent: Parent) -> list[Path]:
        """Where a parent may lie now: where it lay, or as before beside this one, should both have been moved."""
        old = Path(parent.path)
        beside = [up / Path(*old.parts[-parts:]) for up in self.folder.absolute().parents[:2] for parts in (1, 2)]
        return [place for place in dict.fromkeys([old, *beside]) if old.parts and place.exists()]

    def parent(self, role: str) -> Parent | None:
        """The parent of that role, or None."""
        return next((parent for parent in self.manifest.parents if parent.role == role), None)

    def verify(self) -> None:
        """Hash every file again.

        Raises:
            AssayError: naming every file that is missing, changed, leads out of the folder, or is not listed.
        """
        problems = []
        real = self.folder.resolve()
        for record in self.manifest.files:
            path = self.folder / record.path
            if not self.foreign and not _leads_inside(path, real):
                problems.append(f"{record.path}: a link that leads out of the artifact")
            elif not path.is_file():
                problems.append(f"{record.path}: missing")
            elif path.stat().st_size != record.size_bytes:
                problems.append(f"{record.path}: {path.stat().st_size} bytes, {record.size_bytes} were written")
            elif sha256_of(path) != record.sha256:
                problems.append(f"{record.path}: its bytes were changed")
        if not self.foreign:
            known = {record.path for record in self.manifest.files}
            problems += [
                f"{path}: not in the manifest"
                for path in _walk(self.folder)
                if path not in known and path.endswith(_MODEL_SUFFIXES)
            ]
        if problems:
            raise AssayError(
                "the artifact is not intact",
                where=str(self.path),
                got=listed(problems),
                hint="export it again, or restore the files",
            )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASHED_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def digest_of(files: Iterable[FileRecord]) -> str:
    """The digest of a file list, whatever its order."""
    rows = sorted((record.path, record.size_bytes, record.sha256) for record in files)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def tool_versions(*packages: str) -> dict[str, str]:
    """Installed versions of the packages named, and Assay's own."""
    found = {}
    for package in ("assay", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _walk(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and path.relative_to(folder).parts[0] != MEASURED_FOLDER
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.relative_to(folder).as_posix() not in _UNDIGESTED_FILES
    )


def _record(folder: Path, names: Iterable[str], hashed: Iterable[FileRecord] = ()) -> tuple[FileRecord, ...]:
    known = {(record.path, record.size_bytes): record for record in hashed}
    sizes = ((name, (folder / name).stat().st_size) for name in names)
    return tuple(known.get((name, size)) or FileRecord(name, sha256_of(folder / name), size) for name, size in sizes)


def _foreign_kind(folder: Path) -> Kind | None:
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if any(folder.glob("*.onnx")):
        return "onnx"
    if (folder / "config.json").is_file():
        return "merged"
    return None


def open_artifact(path: str | Path, *, verify: bool = False) -> Artifact:
    """Open what Assay made, a plain Hugging Face or PEFT folder, an ONNX folder, or a .gguf.

    Args:
        path: the folder or the file.
        verify: hash every file again and compare with the manifest.

    Raises:
        AssayError: there is nothing, it is unfinished or not a model, it failed its check when it was exported, or
            (with verify) it is not intact.
    """
    path = Path(path)
    if not path.exists():
        raise AssayError("no such artifact", where=str(path))
    refuse_failed(path)
    real = path.resolve()
    if path.is_symlink() and real.is_file() and (real.parent / MANIFEST_FILE).is_file():
        path = real  # under whatever name, it is what the folder it lies in says
    folder = path if path.is_dir() else path.parent
    if (folder / MANIFEST_FILE).is_file():
        manifest = _read_manifest(folder / MANIFEST_FILE)
        if path.is_dir() or path.name in {record.path for record in manifest.files}:
            artifact = Artifact(path, manifest, foreign=False)
            if verify:
                artifact.verify()
            return artifact
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise AssayError(
                "not a model file",
                where=str(path),
                got=f"it begins with {magic!r}",
                expected="a folder, or a .gguf file",
            )
        return Artifact(path, Manifest("gguf", path.stem, _record(folder, [path.name])), foreign=True)
    kind = _foreign_kind(path)
    if kind is None:
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        if len(ggufs) == 1:
            return open_artifact(path / ggufs[0], verify=verify)
        raise AssayError(
            "not a model folder",
            where=str(path),
            got=listed(sorted(os.listdir(path))) or "an empty folder",
            expected="manifest.json, config.json, adapter_config.json or one .gguf",
            hint="a folder without manifest may be an unfinished artifact" if ggufs else None,
        )
    pickles = [name for name in _walk(path) if name.endswith((".bin", ".pt", ".pth")) and "model" in name]
    if pickles and not any(path.glob("*.safetensors")) and kind != "onnx":
        raise AssayError(
            "weights are read from safetensors only",
            where=str(path),
            got=listed(pickles),
            hint="convert them with safetensors first",
        )
    names = _walk(path)
    if kind != "onnx":  # a graph's weights may lie in files of any name, in folders below too
        names = [name for name in names if "/" not in name and name.endswith(_MODEL_SUFFIXES)]
    return Artifact(path, Manifest(kind, path.resolve().name, _record(path, names)), foreign=True)


def _read_manifest(path: Path) -> Manifest:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] not in _READ_SCHEMAS or data["kind"] not in get_args(Kind):
            raise AssayError("a manifest of another version", where=str(path), got=f"{data['schema']} {data['kind']}")
        stated = data.pop("digest")
        manifest: Manifest = from_json(Manifest, data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise AssayError(
            "the manifest cannot be read", where=str(path), got=f"{type(error).__name__}: {error}"
        ) from None
    found = manifest.files_digest if manifest.schema == 1 else manifest.digest
    if stated != found:
        raise AssayError(
            "the manifest does not agree with itself: it was edited",
            where=str(path),
            expected=str(stated),
            got=found,
            hint="export it again, or restore the file",
        )
    _refuse_paths(manifest, path)
    return manifest


def _refuse_paths(manifest: Manifest, where: Path) -> None:
    """Raise where a listed file lies elsewhere than in the artifact, or is listed twice."""
    wrong = [record.path for record in manifest.files if not _is_inside(record.path)]
    wrong += [name for name, count in Counter(record.path for record in manifest.files).items() if count > 1]
    if wrong:
        raise AssayError(
            "the manifest lists files that are not in the artifact, or lists one twice",
            where=str(where),
            got=listed(wrong),
            expected="paths below the artifact's folder",
        )
    roles = [role for role, count in Counter(parent.role for parent in manifest.parents).items() if count > 1]
    if roles:
        raise AssayError("the manifest has two parents of one role", where=str(where), got=listed(roles))


def _leads_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # a link that leads to itself
        return False


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name  # neither control characters nor half of a surrogate pair
    return plain and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


@dataclass
class Draft:
    """An artifact being made: write files below `path`, fill `details` and `measurements`."""

    path: Path
    place: Path  # where it goes once it is finished
    kind: Kind
    name: str
    details: dict[str, Any]
    measurements: dict[str, Any] = field(default_factory=dict)
    hashed: list[FileRecord] = field(default_factory=list)  # files hashed while they were written and read back
    artifact: Artifact | None = None  # set once it is finished

    @property
    def measured(self) -> Path:
        """The folder for logs and plots, outside the digest."""
        folder = self.path / MEASURED_FOLDER
        folder.mkdir(exist_ok=True)
        return folder

    def files(self) -> tuple[FileRecord, ...]:
        """What has been written so far; what is not among `hashed` is hashed now."""
        return _record(self.path, _walk(self.path), self.hashed)

    @property
    def finished(self) -> Artifact:
        """The artifact, after the `with` block."""
        assert self.artifact is not None, "the draft was not finished"
        return self.artifact


def refuse_existing(path: Path) -> None:
    """Raise where an artifact at `path` would overwrite something, or lie inside another, which it would damage."""
    if path.is_symlink() or os.path.ismount(path):
        raise AssayError(
            "an artifact cannot take the place of a link or a mount point",
            where=str(path),
            hint=f"give a new folder in it: {path / 'NAME'}",
        )
    real = Path(os.path.realpath(path))
    around = next((folder for folder in real.parents if _is_artifact(folder)), None)
    if around is not None:
        raise AssayError(
            "the output would lie inside an artifact, and damage it",
            where=str(path),
            got=f"{around} is an artifact",
            hint="give an --out beside it",
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AssayError(
            "the output exists already, and nothing is overwritten",
            where=str(path),
            hint="give another --out, or remove it yourself",
        )


def _is_artifact(folder: Path) -> bool:
    """Did Assay make it? Web pages and extensions have a manifest.json too."""
    try:
        data = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("kind") in get_args(Kind) and {"schema", "files", "digest"} <= set(data)


@contextmanager
def new_artifact(
    path: str | Path,
    kind: Kind,
    name: str,
    *,
    parents: Sequence[Parent] = (),
    recipe_sha256: str | None = None,
    data_sha256: dict[str, str] | None = None,
    tools: dict[str, str] | None = None,
    details: dict[str, Any] | None = None,
) -> Iterator[Draft]:
    """Make an artifact beside `path` and move it there whole: files, then manifest, fsync, one rename.

    Killed at any moment there is either the whole artifact or none. On an error the draft is removed.

    Raises:
        AssayError: `path` cannot be an artifact's (see `refuse_existing`), or it could not be written.
    """
    path = Path(path).absolute()
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    held = hold_draft(path)
    partial = held.path
    draft = Draft(partial, path, kind, name, dict(details or {}))
    try:
        yield draft
        manifest = Manifest(
            kind,
            name,
            draft.files(),
            tuple(parents),
            recipe_sha256,
            dict(data_sha256 or {}),
            dict(tools or {}),
            draft.details,
            draft.measurements,
        )
        body = {**asdict(manifest), "digest": manifest.digest}
        (partial / MANIFEST_FILE).write_text(
            json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        sync(partial)
        partial.rename(path)
        sync_path(path.parent)
        draft.artifact = Artifact(path, manifest, foreign=False)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise AssayError(
            "the artifact could not be written",
            where=str(path),
            got=str(error),
            hint="make room, or give an --out on another disk" if full else None,
        ) from error
    finally:
        held.release()
