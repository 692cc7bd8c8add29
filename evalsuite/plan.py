"""Who is compared with whom: artifacts and their lineage become trees, every node scored against the one above it.

    adapter on its training base ─┬─ base                                   (training: did it help)
                                  └─ adapter on the weights it was merged on (base_change, where they differ)
                                       └─ merged                             (merge_fidelity)
                                            └─ f16, q4_k_m, onnx-int8 …      (quantization)

Lineage is what manifests say: a parent counts if an artifact of its digest is listed or lies where it was. Where none
is recorded, the explicit reference stands in. Whatever is compared with something is judged, listed or not: what an
artifact hangs from is found by lineage, and its own comparison counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from evalsuite.identity import label_of, storage
from evalsuite.results import Purpose, Role


@dataclass
class Node:
    """An artifact to load, on certain weights. Only nodes with `is_row` get a row; others just stand between."""

    artifact: Artifact
    label: str
    role: Role
    is_row: bool
    quant: str | None = None
    bits_per_weight: float | None = None
    base_weights: str | None = None  # None: what the adapter was trained on
    purpose: Purpose | None = None  # of the comparison with the node above
    lost: str | None = None  # what its manifest says it was made from, where that is not here to be compared with
    children: list[Node] = field(default_factory=list)

    @property
    def all(self) -> list[Node]:
        """This node and all below it."""
        return [self, *(node for child in self.children for node in child.all)]


@dataclass(frozen=True)
class _Link:
    above: Artifact
    base_weights: str | None
    purpose: Purpose


def _hashes(artifact: Artifact) -> list[str]:
    return sorted(record.sha256 for record in artifact.manifest.files)


class _Planner:
    def __init__(self, artifacts: Sequence[Artifact], reference: Artifact | None, base: Artifact | None) -> None:
        self.known = {artifact.digest: artifact for artifact in (base, reference, *artifacts) if artifact is not None}
        self.asked = [artifact.digest for artifact in artifacts if base is None or artifact.digest != base.digest]
        self.reference, self.base = reference, base
        self.links: dict[str, _Link | None] = {}

    def find(self, child: Artifact, role: str) -> Artifact | None:
        """The child's parent of that role among what is listed, or where it lay when the child was made."""
        parent = child.parent(role)
        if parent is None:
            return None
        for artifact in self.known.values():
            if artifact.is_parent(parent, child.manifest) and artifact.digest != child.digest:
                return artifact
        for place in child.places(parent):
            try:
                found = open_artifact(place)
            except AssayError:  # something else lies there now
                continue
            if found.is_parent(parent, child.manifest) and found.digest != child.digest:  # the first schema let it be
                found.verify()
                self.known[found.digest] = found
                return found
        return None

    def link(self, artifact: Artifact) -> _Link | None:
        """What the artifact is compared with: what it was made from, else the explicit reference."""
        return self._recorded(artifact) or self._given(artifact)

    def _recorded(self, artifact: Artifact) -> _Link | None:
        merged = self.find(artifact, "merged") if artifact.kind in ("gguf", "onnx") else None
        if merged is not None:
            return _Link(merged, None, "quantization")
        adapter = self.find(artifact, "adapter") if artifact.kind in ("gguf", "onnx", "merged") else None
        if adapter is not None:
            purpose: Purpose = "merge_fidelity" if artifact.kind == "merged" else "quantization"
            return _Link(adapter, str(artifact.details.get("merged_on", "w16")), purpose)
        whole = self.find(artifact, "gguf") if artifact.kind == "gguf" else None  # in another folder, for Ollama
        return None if whole is None else self._recorded(whole)

    def lost(self, artifact: Artifact) -> str | None:
        """What the manifest says it was made from, in words, where a comparison with that is due and cannot be made."""
        roles = {"merged": ("adapter",), "gguf": ("merged", "adapter", "gguf"), "onnx": ("merged", "adapter")}
        whole = self.find(artifact, "gguf") if artifact.kind == "gguf" else None
        if whole is not None:
            return self.lost(whole)
        parents = [parent for role in roles.get(artifact.kind, ()) if (parent := artifact.parent(role)) is not None]
        if not parents or any(self.find(artifact, parent.role) is not None for parent in parents):
            return None
        return f"the {parents[0].role} model of digest {parents[0].digest[:12]}, which lay in {parents[0].path}"

    def _given(self, artifact: Artifact) -> _Link | None:
        if self.reference is None or artifact.digest in self._above_reference(self.reference):
            return None
        if _hashes(artifact) == _hashes(self.reference):
            return None  # a copy: nothing is ever found between a file and itself
        if artifact.kind == "adapter":
            return _Link(self.reference, None, "training")
        if artifact.kind == "merged" and self.reference.kind == "adapter":
            return _Link(self.reference, "w16", "merge_fidelity")
        return _Link(self.reference, None, "quantization")

    def _above_reference(self, reference: Artifact) -> set[str]:
        """The reference and all that it was made from: none of these can be compared with it."""
        above, link = {reference.digest}, self._recorded(reference)
        while link is not None and link.above.digest not in above:
            above.add(link.above.digest)
            link = self._recorded(link.above)
        return above

    def resolve(self) -> None:
        """Links for everything asked for and everything those are compared with."""
        waiting = [*self.asked, *([self.reference.digest] if self.reference else [])]
        while waiting:
            digest = waiting.pop()
            if digest in self.links:
                continue
            is_base = self.base is not None and digest == self.base.digest  # others are compared with it: it is judged
            link = self._recorded(self.known[digest]) if is_base else self.link(self.known[digest])
            self.links[digest] = link
            if link is not None:
                waiting.append(link.above.digest)


def plan(
    artifacts: Sequence[Artifact], reference: Artifact | None, base: Artifact | None, served: Artifact | None = None
) -> list[Node]:
    """The trees to walk; every row's label is unique. `served` is what an endpoint is compared with, if there is one.

    Raises:
        AssayError: the same artifact twice, or lineage that runs in a circle.
    """
    by_digest: dict[str, Artifact] = {}
    for artifact in artifacts:
        if artifact.digest in by_digest:
            first = by_digest[artifact.digest].path
            raise AssayError("the same artifact is listed twice", got=f"{first} and {artifact.path}")
        by_digest[artifact.digest] = artifact
    planner = _Planner(artifacts, reference, base)
    planner.resolve()
    nodes: dict[tuple[str, str | None], Node] = {}
    labels: dict[str, int] = {}
    used_above = {link.above.digest for link in planner.links.values() if link is not None}
    used_above |= {served.digest} if served is not None else set()

    def node(digest: str) -> Node:
        if (digest, None) not in nodes:
            artifact, link = planner.known[digest], planner.links.get(digest)
            is_base = base is not None and digest == base.digest
            is_given = reference is not None and digest == reference.digest
            alone = digest in planner.asked and not is_given and digest not in used_above
            lost = planner.lost(artifact) if digest in planner.links else None
            judged = alone or lost is not None or (link is not None and link.purpose != "training")
            quant, bits = storage(artifact)
            label = "base" if is_base else label_of(artifact, quant)
            known = label.casefold()  # labels become file names, and macOS takes a.csv and A.csv for one file
            labels[known] = labels.get(known, 0) + 1
            label = label if labels[known] == 1 else f"{label}-{labels[known]}"
            role: Role = "candidate" if judged else "reference"
            nodes[digest, None] = Node(artifact, label, role, True, quant, bits, lost=lost)
        return nodes[digest, None]

    def above(link: _Link) -> Node:
        whole = node(link.above.digest)
        if link.above.kind != "adapter" or link.base_weights in (None, trained_on(link.above)):
            return whole
        key = (link.above.digest, link.base_weights)
        if key not in nodes:
            nodes[key] = Node(
                link.above, whole.label, "reference", False, base_weights=link.base_weights, purpose="base_change"
            )
            whole.children.append(nodes[key])
        return nodes[key]

    order = list(planner.asked)
    order += [digest for digest in planner.links if digest not in order]
    is_apart = base is not None and base.digest not in order  # nothing but training is asked of it
    for digest in order:
        node(digest)
    for digest in order:
        link = planner.links.get(digest)
        if link is not None:
            child = node(digest)
            child.purpose = link.purpose
            above(link).children.append(child)
    roots = [node(digest) for digest in order if planner.links.get(digest) is None]
    if base is not None and is_apart:
        target = next((root for root in roots if root.artifact.kind == "adapter"), roots[0] if roots else None)
        below = node(base.digest)
        if target is None:
            return [below]
        below.purpose = "training"
        target.children.insert(0, below)  # scored first, so that fewer logits wait on disk together
    if sum(len(root.all) for root in roots) != len(nodes):
        raise AssayError("the artifacts' lineage runs in a circle", got=", ".join(n.label for n in nodes.values()))
    return roots


def trained_on(adapter: Artifact) -> str:
    """ "nf4" or "w16": the weights an adapter was trained on; w16 where nothing was recorded."""
    return str(adapter.details.get("trained_on", {}).get("quant", "w16"))
