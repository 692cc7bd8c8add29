"""The command `assay verify`: needs nothing but the room `contract`, and no evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from contract.signed import Examined
    from contract.statement import Claim

_FILE = click.Path(path_type=Path)


@click.command("verify")
@click.argument("bundle", type=_FILE)
@click.argument("artifact", type=_FILE, required=False)
@click.option("--key", metavar="PUB", type=_FILE, help="The public key that is trusted (ed25519, PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(context: click.Context, bundle: Path, artifact: Path | None, key: Path | None, as_json: bool) -> None:
    """Check a signed verdict: who signed it, what it says, and whether ARTIFACT is the one it is about.

    Without --key the claim is printed and nothing is proven (exit 1). ARTIFACT is a folder, or a .gguf that was copied
    out of one.
    """
    from contract.signed import examine, read_bundle
    from contract.signing_key import read_public_key
    from contract.strictness import changed_limits

    trusted = read_public_key(key) if key else None
    examined = examine(read_bundle(bundle), trusted, artifact)
    valid = not examined.problems
    if as_json:
        changed = changed_limits(examined.claim.basis.limits) if examined.claim else []
        told = {"valid": valid, "key_id": trusted.keyid if trusted else None, **asdict(examined)}
        click.echo(json.dumps({**told, "limits_changed": [asdict(change) for change in changed]}))
    else:
        click.echo("\n".join(_lines(examined, trusted.keyid if trusted else None, artifact)))
    context.exit(0 if valid else 1)


def _lines(examined: Examined, key_id: str | None, artifact: Path | None) -> list[str]:
    from contract.errors import listed
    from contract.plain import plain

    by = key_id if key_id and not any(p.code == "signature" for p in examined.problems) else None
    signers = f"key {by}" if by else f"nobody that is trusted; it names {plain(listed(examined.key_ids)) or 'no key'}"
    lines = [f"signed by    {signers}"]
    if examined.claim:
        lines += [f"{name:<13}{plain(text)}" for name, text in _claim_lines(examined.claim)]
    if examined.whole is False:
        lines.append(
            "NOTE         this file is the one that was signed; its manifest (prompt, settings, origin) was not there "
            "to be checked"
        )
    lines += [f"{'NO':<13}{problem.code}: {plain(problem.text)}" for problem in examined.problems]
    if not examined.problems:
        held = "" if artifact else "; no ARTIFACT was given to hold it against"
        lines.append(f"VALID        the verdict is pass, and signed{held}")
    return lines


def _claim_lines(claim: Claim) -> list[tuple[str, str]]:
    """What it says, and what that rests on; a line may be long."""
    about, verdict, basis = claim.artifact, claim.verdict, claim.basis
    made = "not made by Assay" if about.foreign else "made by Assay"
    return [
        ("artifact", f"{about.name}, {about.kind}, {made}, digest {about.digest}"),
        ("verdict", f"{verdict.outcome}, as {verdict.label}, by {len(verdict.reasons)} checks"),
        *(("", f"{each.code} ({each.outcome}): {each.text}") for each in verdict.reasons if each.outcome != "pass"),
        ("chain", ", ".join(f"{each.label} {each.outcome or 'begins it'}" for each in verdict.chain) or "none"),
        ("documents", f"{basis.documents}, keys sha256 {basis.documents_sha256}, data sha256 {basis.data_sha256}"),
        ("begun", f"{basis.time_utc or 'not told'}, by the clock of the machine that evaluated"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(basis.versions.items())) or "not told"),
        ("signed with", f"assay {claim.assay}"),
        *(("limits", line) for line in _limit_lines(basis.limits)),
        *(("file", f"{name} sha256 {sha256}") for name, sha256 in sorted(claim.files.items())),
    ]


def _limit_lines(limits: dict[str, Any]) -> list[str]:
    from contract.strictness import changed_limits

    lines = []
    for change in changed_limits(limits):
        ours = "missing" if change.value is None else change.value
        lines.append(f"{change.way} than this version's default: {change.name} {ours} (default {change.default})")
    return lines or ["this version's defaults"]
