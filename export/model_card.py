"""The model card: README.md with front matter, from manifests and, where there are any, scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from contract.artifact import MANIFEST_FILE, Artifact, Parent, open_artifact
from contract.artifact_prompt import is_told_date, prompt_of
from contract.errors import AssayError
from contract.verdict import Verdict

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
# ISO 639-1 codes of the languages a recipe may name; another one stays out of the front matter
_LANGUAGES = {
    "arabic": "ar",
    "chinese": "zh",
    "czech": "cs",
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "hindi": "hi",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "polish": "pl",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "turkish": "tr",
    "ukrainian": "uk",
    "vietnamese": "vi",
}
_LICENSES = {"mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gemma", "llama2"}
_LICENSES |= {"llama3", "llama3.1", "llama3.2", "llama3.3", "openrail", "bigscience-openrail-m", "other", "unknown"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DATED = (
    "\n\nThe chat template asks for today's date. In training, in every measurement and at `assay serve` it is told "
    "{date}; other programs tell it the real one, which makes another prompt."
)


@dataclass(frozen=True)
class CardRow:
    """One artifact's scores."""

    label: str
    size_bytes: int
    rouge: Mapping[str, float]  # rouge1, rouge2, rougeL, rougeLsum: 0..100
    kl_nats: float | None = None  # mean per token on the gold summaries, against `against`
    against: str | None = None
    outcome: str | None = None  # pass, fail or inconclusive
    required: bool = False


@dataclass(frozen=True)
class CardScores:
    """An evaluation, as far as the card tells it."""

    documents: int  # of the test set
    rows: Sequence[CardRow]


def model_card(
    artifacts: Mapping[str, Artifact],
    *,
    title: str,
    scores: CardScores | None = None,
    verdict: Verdict | None = None,
    usage: str = "",
) -> str:
    """The text of README.md. It names no path of this machine.

    Args:
        artifacts: what is described, by label; their parents are followed as far as they are still there.
        title: the model's name.
        scores: what was measured.
        verdict: the gate's word, where there is one artifact; without scores and verdict the card says so.
        usage: a section of its own, as Markdown.
    """
    lineage = _lineage(artifacts.values())
    details = _merged_details(lineage)
    base = _base(lineage)
    front = yaml.safe_dump(_front_matter(artifacts, title, details, base, scores), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---",
        f"# {title}",
        _opening(details, base),
        _prompt(next(iter(artifacts.values()))),
        usage,
        _verdict(verdict) if verdict and not scores else _scores(scores),
        _files(artifacts),
        _training(details, lineage),
        _provenance(lineage),
        _license(details),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _lineage(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """The artifacts and, behind them, every parent that Assay made and that is there unchanged, each once."""
    found: dict[str, Artifact] = {}
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop(0)
        if artifact.digest in found:
            continue
        found[artifact.digest] = artifact
        for parent in artifact.manifest.parents:
            opened = _parent(parent)
            waiting += [opened] if opened and opened.is_parent(parent, artifact.manifest) else []
    return list(found.values())


def _parent(parent: Parent) -> Artifact | None:
    """None where it is gone, cannot be read, or was not made by Assay: a foreign base would be hashed, for nothing."""
    try:
        return open_artifact(parent.path) if (Path(parent.path) / MANIFEST_FILE).is_file() else None
    except AssayError:
        return None


def _merged_details(lineage: Sequence[Artifact]) -> dict[str, Any]:
    """What any of them recorded, the nearest first."""
    merged: dict[str, Any] = {}
    for artifact in lineage:
        merged = {**artifact.details, **merged}
    return merged


def _base(lineage: Sequence[Artifact]) -> str | None:
    """The base model's hub id, or the name of its folder."""
    references = [str(a.details["base"]) for a in lineage if "base" in a.details]
    references += [parent.path for a in lineage for parent in a.manifest.parents if parent.role == "base"]
    for reference in references:
        cached = re.search(r"models--([^/]+?)--([^/]+)", reference)
        if cached:
            return f"{cached[1]}/{cached[2]}"
        if _HUB_ID.fullmatch(reference) and not Path(reference).exists():
            return reference
    return Path(references[0]).name if references else None


def _front_matter(
    artifacts: Mapping[str, Artifact],
    title: str,
    details: Mapping[str, Any],
    base: str | None,
    scores: CardScores | None,
) -> dict[str, Any]:
    front: dict[str, Any] = {}
    language = _LANGUAGES.get(prompt_of(next(iter(artifacts.values()))).language.lower())
    if language:
        front["language"] = [language]
    name = details.get("license")
    if name and name.lower() in _LICENSES:
        front["license"] = name.lower()
    elif name:
        front |= {"license": "other", "license_name": name}
    if base and _HUB_ID.fullmatch(base):
        front["base_model"] = base
    kinds = {artifact.kind for artifact in artifacts.values()}
    method = details.get("train", {}).get("method")
    front["pipeline_tag"] = "summarization"
    front["tags"] = [
        "summarization",
        *(["gguf", "llama.cpp"] if "gguf" in kinds else []),
        *(["onnx", "onnxruntime"] if "onnx" in kinds else []),
        *([method] if method else []),
    ]
    if scores and scores.rows:
        front["metrics"] = ["rouge"]
        front["model-index"] = [{"name": title, "results": [_result(row) for row in scores.rows if row.required]}]
    return front


def _result(row: CardRow) -> dict[str, Any]:
    return {
        "task": {"type": "summarization", "name": "Summarization"},
        "dataset": {"type": "custom", "name": "held-out test split"},
        "metrics": [
            {"type": "rouge", "name": f"{name} ({row.label})", "value": round(row.rouge[key], 2)}
            for key, name in ROUGE.items()
            if key in row.rouge
        ],
    }


def _opening(details: Mapping[str, Any], base: str | None) -> str:
    origin = f"`{base}`" if base else "a model that is not recorded"
    method = {"qlora": "QLoRA", "lora": "LoRA"}.get(details.get("train", {}).get("method", ""))
    how = f" with {method}" if method else ""
    imported, cost = details.get("imported"), ""
    if imported:  # the base was made of a GGUF
        origin = f"`{imported['file']}`, a GGUF of {imported['bits_per_weight']:.2f} bits per weight"
        cost = "\n\n" + imported["cost"].capitalize() + "." if "cost" in imported else ""
    return f"Writes summaries. Fine-tuned{how} from {origin}, exported and checked with Assay.{cost}"


def _prompt(artifact: Artifact) -> str:
    spec = prompt_of(artifact)
    messages = spec.messages("{document}")
    turns = "\n\n".join(f"[{message.role}]\n{message.content}" for message in messages)
    return (
        "## Prompt\n\nTrained with these words, through its chat template; others give other summaries.\n\n"
        f"```text\n{turns}\n```" + (_DATED.format(date=spec.date) if _asks_date(artifact) else "")
    )


def _asks_date(artifact: Artifact) -> bool:
    try:
        return is_told_date(artifact)
    except AssayError:  # whoever loads the file says what is wrong with it
        return False


def _scores(scores: CardScores | None) -> str:
    if scores is None:
        return "## Scores\n\nThis card was written without an evaluation; `assay eval` makes one."
    head = [*ROUGE.values(), "KL, nats", "against", "MB", "verdict"]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for row in scores.rows:
        cells = [f"{row.rouge[key]:.1f}" if key in row.rouge else "" for key in ROUGE]
        cells += ["" if row.kl_nats is None else f"{row.kl_nats:.2g}", row.against or ""]
        cells += [f"{row.size_bytes / 1e6:.1f}", row.outcome or ""]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return (
        f"## Scores\n\nOn {scores.documents} test documents that were not trained on, decoded greedily. ROUGE is 0 to "
        "100, with stemming; KL is the mean per token on the reference summaries, against the model named.\n\n"
        + "\n".join(lines)
        + "\n\nThe figures hold for documents like these; others were not tried. A summary can state what its document "
        "does not."
    )


def _verdict(verdict: Verdict) -> str:
    reasons = "\n".join(f"- {reason.outcome}: {reason.text}" for reason in verdict.reasons)
    return f"## Verdict\n\n{verdict.outcome}, for these very bytes:\n\n{reasons}"


def _files(artifacts: Mapping[str, Artifact]) -> str:
    lines = ["## Files", "", "| | kind | bits per weight | MB | digest |", "|---|---|---|---|---|"]
    for label, artifact in artifacts.items():
        bits = artifact.details.get("bits_per_weight")
        shown = "" if bits is None else f"{bits:.2f}"
        lines.append(
            f"| {label} | {artifact.kind} | {shown} | {artifact.size_bytes / 1e6:.1f} | `{artifact.digest[:16]}` |"
        )
    return "\n".join(lines)


def _training(details: Mapping[str, Any], lineage: Sequence[Artifact]) -> str:
    train = details.get("train")
    if not train:
        return ""
    keys = ("method", "epochs", "batch_size", "accumulation_steps", "learning_rate", "scheduler", "max_length", "seed")
    rows = {key.replace("_", " "): train[key] for key in keys if key in train}
    lora = details.get("lora") or {}
    rows |= {f"LoRA {key}": lora[key] for key in ("rank", "alpha", "dropout") if key in lora}
    rows |= {key.replace("_", " "): details[key] for key in ("steps", "validation_loss") if key in details}
    if "trained_on" in details:
        rows["base weights in training"] = details["trained_on"].get("quant")
    rows = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in rows.items()}
    splits = next((a.manifest.data_sha256 for a in lineage if a.manifest.data_sha256), {})
    rows |= {f"{split} split, sha256": f"`{digest[:16]}`" for split, digest in sorted(splits.items())}
    return "\n".join(
        ["## Training", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )


def _provenance(lineage: Sequence[Artifact]) -> str:
    tools: dict[str, str] = {}
    known: dict[str, str] = {artifact.digest: artifact.kind for artifact in lineage}
    for artifact in lineage:
        tools = {**artifact.manifest.tools, **tools}
        for parent in artifact.manifest.parents:
            known.setdefault(parent.digest, parent.role)
    made = "\n".join(f"- {what} `{digest}`" for digest, what in known.items())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(tools.items()))
    return f"## Where it comes from\n\n{made}" + (f"\n\nMade with {versions}." if versions else "")


def _license(details: Mapping[str, Any]) -> str:
    name = details.get("license")
    if not name:
        return "## Licence\n\nNone is recorded; the base model's applies."
    return f"## Licence\n\n{name}, as the base model names it."
