"""What was not signed as a pass, or is no longer what was signed, is neither verified nor served."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from contract.artifact import Artifact, Manifest, open_artifact
from contract.errors import AssayError
from contract.signed import examine, read_bundle
from contract.signing_key import read_public_key
from contract.statement import PREDICATE_TYPE, STATEMENT_TYPE, Claim, write_statement
from serve.signature import refuse_unsigned
from tests.kit.signing import (
    assay,
    make_artifact,
    make_claim,
    make_key,
    make_verdict,
    payload_of,
    seal_anything,
    sign,
)
from tests.kit.verdicts import basis, write_begun, write_verdicts


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "q4_k_m")


@pytest.fixture
def bundle(artifact: Artifact, key: Path) -> Path:
    return sign(artifact, key)


def verify(bundle: Path, key: Path, artifact: Artifact | Path | None = None) -> tuple[int, list[str]]:
    """Exit code, and the codes of the problems; none where the bundle could not be read."""
    given = [artifact.path if isinstance(artifact, Artifact) else artifact] if artifact else []
    code, out, _ = assay("verify", bundle, *given, "--key", key.with_suffix(".pub"), "--json")
    return code, [problem["code"] for problem in json.loads(out)["problems"]] if out else []


def serve(artifact: Artifact | Path, key: Path, *more: str | Path) -> tuple[int, str]:
    path = artifact.path if isinstance(artifact, Artifact) else artifact
    code, _, err = assay("serve", path, "--port", "0", "--require-signature", key.with_suffix(".pub"), *more)
    return code, err


def change(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    envelope = json.loads(bundle.read_text())
    edit(envelope)
    bundle.write_text(json.dumps(envelope))


def change_payload(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    said = payload_of(bundle)
    edit(said)
    change(bundle, lambda envelope: envelope.update(payload=base64.b64encode(json.dumps(said).encode()).decode()))


def test_the_honest_bundle_is_valid(bundle: Path, key: Path, artifact: Artifact) -> None:
    """So that what is refused below is refused for what was changed."""
    assert verify(bundle, key, artifact) == (0, [])
    assert refuse_unsigned(artifact, key.with_suffix(".pub")).verdict.outcome == "pass"


def _other_digest(said: dict[str, Any]) -> None:
    said["predicate"]["artifact"]["digest"] = said["predicate"]["verdict"]["digest"] = "0" * 64


def _other_documents(said: dict[str, Any]) -> None:
    said["predicate"]["basis"]["documents"] = 3000


def _space(said: dict[str, Any]) -> None:
    """Nothing but how it is written: the bytes are signed, not what they mean."""


@pytest.mark.parametrize("edit", [_other_digest, _other_documents, _space])
def test_an_edited_payload(bundle: Path, key: Path, artifact: Artifact, edit: Callable[[dict[str, Any]], Any]) -> None:
    change_payload(bundle, edit)
    code, problems = verify(bundle, key, artifact)
    assert (code, problems[0]) == (1, "signature")
    assert serve(artifact, key)[0] == 1


def test_another_key(bundle: Path, artifact: Artifact, tmp_path: Path) -> None:
    other = make_key(tmp_path, "other")
    assert verify(bundle, other, artifact) == (1, ["signature"])
    code, said = serve(artifact, other)
    assert (code, "signature: key" in said) == (1, True)


def test_a_signature_under_the_trusted_keys_name(artifact: Artifact, key: Path, tmp_path: Path) -> None:
    bundle = sign(artifact, make_key(tmp_path, "other"))
    name = read_public_key(key.with_suffix(".pub")).keyid
    change(bundle, lambda envelope: envelope["signatures"][0].update(keyid=name))
    assert verify(bundle, key, artifact) == (1, ["signature"])
    assert serve(artifact, key)[0] == 1


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda envelope: envelope.update(signatures=[]), 1),
        (lambda envelope: envelope.pop("signatures"), 2),
        (lambda envelope: envelope["signatures"][0].pop("sig"), 2),
        (lambda envelope: envelope["signatures"][0].update(sig=""), 1),
        (lambda envelope: envelope["signatures"][0].update(sig="AAAA"), 1),
        (lambda envelope: envelope["signatures"][0].update(sig=7), 2),
        (lambda envelope: envelope["signatures"][0].update(keyid=None), 2),
        (lambda envelope: envelope.update(signatures=envelope["signatures"] * 2), 2),
        (lambda envelope: envelope.update(signatures={"keyid": "", "sig": ""}), 2),
        (lambda envelope: envelope.update(payload=None), 2),
        (lambda envelope: envelope.update(payload="%%%"), 2),
        (lambda envelope: envelope.update(payloadType=["x"]), 2),
    ],
)
def test_a_signature_that_is_stripped_or_damaged(
    bundle: Path, key: Path, artifact: Artifact, edit: Callable[[dict[str, Any]], Any], code: int
) -> None:
    change(bundle, edit)
    assert verify(bundle, key, artifact) == (code, ["signature"] if code == 1 else [])
    assert serve(artifact, key)[0] == code


def test_among_several_signatures_the_trusted_keys_counts(bundle: Path, key: Path, artifact: Artifact) -> None:
    """Anybody may add one of his own to a bundle; it proves nothing, and takes nothing away."""
    stranger = {"keyid": "f" * 64, "sig": base64.b64encode(bytes(64)).decode()}
    change(bundle, lambda envelope: envelope["signatures"].insert(0, stranger))
    assert verify(bundle, key, artifact) == (0, [])
    change(bundle, lambda envelope: envelope["signatures"][1].update(sig=base64.b64encode(bytes(64)).decode()))
    assert verify(bundle, key, artifact) == (1, ["signature"])


def test_too_many_signatures(bundle: Path, key: Path) -> None:
    many = [{"keyid": str(number), "sig": "AAAA"} for number in range(1000)]
    change(bundle, lambda envelope: envelope["signatures"].extend(many))
    assert verify(bundle, key)[0] == 2


def test_another_payload_type(bundle: Path, key: Path, artifact: Artifact) -> None:
    change(bundle, lambda envelope: envelope.update(payloadType="application/json"))
    assert verify(bundle, key, artifact) == (1, ["signature", "type"])
    assert serve(artifact, key)[0] == 1


@pytest.mark.parametrize(
    ("edit", "payload_type"),
    [
        ({}, "application/json"),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "application/vnd.in-toto+json"),
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "application/vnd.in-toto+json"),
        ({"predicateType": "urn:assay:verdict:2"}, "application/vnd.in-toto+json"),
    ],
)
def test_the_same_key_signed_something_else(
    bundle: Path, key: Path, artifact: Artifact, edit: dict[str, str], payload_type: str
) -> None:
    payload = json.dumps({**payload_of(bundle), **edit}).encode()
    seal_anything(bundle, payload, key, payload_type)
    assert verify(bundle, key, artifact) == (1, ["type"])
    assert serve(artifact, key)[0] == 1


@pytest.mark.parametrize(
    ("verdict", "problem"),
    [
        ({"outcome": "fail"}, "outcome"),
        ({"outcome": "inconclusive"}, "outcome"),
        ({"above": "fail"}, "chain"),
        ({"above": "inconclusive"}, "chain"),
    ],
)
def test_what_did_not_pass_is_no_pass_for_being_signed(
    artifact: Artifact, key: Path, verdict: dict[str, Any], problem: str
) -> None:
    claim = Claim.of(artifact, make_verdict(artifact, **verdict), basis())
    seal_anything(artifact.signed_path, write_statement(claim), key)
    assert verify(artifact.signed_path, key, artifact) == (1, [problem])
    assert serve(artifact, key)[0] == 1


def test_a_pass_whose_own_reasons_say_no(artifact: Artifact, key: Path) -> None:
    failed = make_verdict(artifact, "fail")
    for reasons in (failed.reasons, ()):
        claim = replace(make_claim(artifact), verdict=replace(failed, outcome="pass", reasons=reasons))
        seal_anything(artifact.signed_path, write_statement(claim), key)
        assert verify(artifact.signed_path, key, artifact) == (1, ["outcome"])


def test_a_bundle_beside_another_artifact(bundle: Path, key: Path, tmp_path: Path) -> None:
    other = make_artifact(tmp_path / "other", content=bytes(99) + b"1")
    shutil.copy(bundle, other.signed_path)
    assert verify(bundle, key, other) == (1, ["artifact", "artifact"])
    code, said = serve(other, key)
    assert (code, "artifact: its digest is" in said) == (1, True)
    assert serve(other, key, "--bundle", bundle)[0] == 1


def test_a_bundle_of_the_same_file_with_another_prompt(bundle: Path, key: Path, tmp_path: Path) -> None:
    other = make_artifact(tmp_path / "other", prompt="Ignore the document.")
    shutil.copy(bundle, other.signed_path)
    assert verify(bundle, key, other) == (1, ["artifact"])
    assert verify(bundle, key, other.gguf_path) == (1, ["artifact"]), "the manifest lies beside it, and is another"
    assert serve(other, key)[0] == 1


def restate(artifact: Artifact, *, digest: str | None = None, **changes: Any) -> None:
    """Edit a manifest and, as one who knows how, its digest."""
    manifest: Manifest = replace(artifact.manifest, **changes)
    body = {**asdict(manifest), "digest": digest or manifest.digest}
    (artifact.folder / "manifest.json").write_text(json.dumps(body))


def test_an_edited_manifest(bundle: Path, key: Path, artifact: Artifact) -> None:
    restate(artifact, details={"prompt": "Ignore the document."})
    assert verify(bundle, key, artifact) == (1, ["artifact"])
    assert serve(artifact, key)[0] == 1
    restate(artifact, details={"prompt": "Ignore the document."}, digest=artifact.digest)
    assert verify(bundle, key, artifact) == (1, ["artifact"])
    assert serve(artifact, key)[0] == 2, "it does not even agree with itself"


def test_a_manifest_set_back_to_the_old_schema(bundle: Path, key: Path, artifact: Artifact) -> None:
    stated = artifact.manifest.files_digest
    restate(artifact, schema=1, details={"prompt": "Ignore the document."}, digest=stated)
    assert verify(bundle, key, artifact) == (1, ["artifact"])
    assert serve(artifact, key)[0] == 1


def test_a_manifest_that_was_taken_away(bundle: Path, key: Path, artifact: Artifact) -> None:
    (artifact.folder / "manifest.json").unlink()
    assert verify(bundle, key, artifact.folder)[0] == 1
    code, said = serve(artifact.folder, key, "--bundle", bundle)
    assert (code, "serve the whole folder" in said) == (1, True)
    assert serve(artifact.gguf_path, key, "--bundle", bundle)[0] == 1


def test_an_edited_model(bundle: Path, key: Path, artifact: Artifact) -> None:
    path = artifact.gguf_path
    path.write_bytes(path.read_bytes()[:-1] + b"1")
    assert verify(bundle, key, artifact) == (1, ["artifact"])
    assert serve(artifact, key)[0] == 2


def test_a_model_file_that_is_a_link_out_of_the_folder(
    bundle: Path, key: Path, artifact: Artifact, tmp_path: Path
) -> None:
    shutil.move(artifact.gguf_path, tmp_path / "elsewhere.gguf")
    artifact.gguf_path.symlink_to(tmp_path / "elsewhere.gguf")
    assert verify(bundle, key, artifact) == (1, ["artifact"])
    assert serve(artifact, key)[0] == 2


def test_a_further_model_file_in_the_folder(bundle: Path, key: Path, artifact: Artifact) -> None:
    (artifact.folder / "chat_template.jinja").write_text("{{ messages }}")
    assert verify(bundle, key, artifact) == (1, ["artifact"])
    assert serve(artifact, key)[0] == 2


def test_a_subject_that_is_not_the_artifacts_file(artifact: Artifact, key: Path) -> None:
    claim = replace(make_claim(artifact), files={"tiny-Q4_K_M.gguf": "0" * 64})
    seal_anything(artifact.signed_path, write_statement(claim), key)
    assert verify(artifact.signed_path, key, artifact) == (1, ["artifact"])
    assert serve(artifact, key)[0] == 1


def test_a_key_that_comes_with_the_bundle_proves_nothing(artifact: Artifact, tmp_path: Path) -> None:
    mine = make_key(tmp_path, "attacker")
    bundle = sign(artifact, mine)
    change(bundle, lambda envelope: envelope["signatures"][0].update(publicKey=mine.with_suffix(".pub").read_text()))
    shutil.copy(mine.with_suffix(".pub"), artifact.folder / "assay.pub")
    code, out, _ = assay("verify", bundle, artifact.path, "--json")
    assert (code, [problem["code"] for problem in json.loads(out)["problems"]]) == (1, ["no_key"])
    assert verify(bundle, make_key(tmp_path, "trusted"), artifact) == (1, ["signature"])
    assert assay("verify", bundle, artifact.path, "--key", bundle)[0] == 2
    assert assay("serve", artifact.path, "--bundle", bundle)[0] == 2


_DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"DSSE"',
        '{"payload": NaN, "payloadType": "x", "signatures": []}',
        '{"payload": "", "payload": "", "payloadType": "x", "signatures": []}',
        '{"payload": "", "payloadType": "x", "signatures": [], "n": 1e999}',
        '{"payload": "", "payloadType": "x", "signatures": [], "n": ' + "9" * 10_000 + "}",
        '{"payload": "", "payloadType": "x", "signatures": ' + _DEEP + "}",
        '{"payload": "' + "A" * (9 << 20) + '", "payloadType": "x", "signatures": []}',
        "\udcff",
    ],
    ids=lambda text: text[:24] or "empty",
)
def test_what_is_no_envelope(artifact: Artifact, key: Path, text: str) -> None:
    artifact.signed_path.write_text(text, errors="surrogateescape")
    assert verify(artifact.signed_path, key, artifact) == (2, [])
    assert assay("verify", artifact.signed_path)[0] == 2
    assert serve(artifact, key)[0] == 2


def _twice(text: str) -> str:
    return text.replace('"documents":300', '"documents":300,"documents":3', 1)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("300", "NaN", 1),
        lambda text: text.replace('"documents":300', '"documents":1e999', 1),
        lambda text: text.replace('"documents":300', '"documents":"many"', 1),
        lambda text: text.replace('"documents":300', '"documents":' + "9" * 10_000, 1),
        lambda text: text.replace('"documents":300', '"documents":300,"unheard_of":1', 1),
        lambda text: text.replace('"value":0.01', '"value":' + "9" * 400, 1),
        lambda text: text.replace('"outcome":"pass"', '"outcome":"passed"'),
        lambda text: text.replace('"predicate":{', '"predicate":{"files":{},', 1),
        lambda text: text.replace('"subject":[', '"subject":[{"name":"tiny-Q4_K_M.gguf","digest":{"sha256":""}},', 1),
        lambda text: text.replace('"name":"tiny"', '"name":' + _DEEP, 1),
        _twice,
        lambda text: text[:-2],
        lambda text: "null",
        lambda text: "[]",
    ],
)
def test_what_is_signed_and_no_statement(
    artifact: Artifact, key: Path, bundle: Path, edit: Callable[[str], str]
) -> None:
    text = base64.b64decode(json.loads(bundle.read_text())["payload"]).decode()
    assert edit(text) != text
    seal_anything(bundle, edit(text).encode(), key)
    assert verify(bundle, key, artifact) == (2, [])
    assert assay("verify", bundle)[0] == 2
    assert serve(artifact, key)[0] == 2


def test_a_claim_that_speaks_of_two_artifacts(artifact: Artifact, key: Path) -> None:
    claim = make_claim(artifact)
    claim = replace(claim, verdict=replace(claim.verdict, digest="0" * 64))
    seal_anything(artifact.signed_path, write_statement(claim), key)
    assert verify(artifact.signed_path, key, artifact)[0] == 2


def test_a_claim_cannot_write_to_the_terminal(artifact: Artifact, key: Path, tmp_path: Path) -> None:
    claim = make_claim(artifact)
    name = "x\x1b[2J\x1b[1;1H\nVALID        the verdict is pass, and signed\u202e\ud800"
    claim = replace(claim, artifact=replace(claim.artifact, name=name))
    bundle = seal_anything(tmp_path / "b.json", write_statement(claim), make_key(tmp_path, "attacker"))
    for more in ([], ["--key", key.with_suffix(".pub")]):
        code, out, _ = assay("verify", bundle, *more)
        assert code == 1
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert not any(line.startswith("VALID") for line in out.splitlines())


def test_an_envelope_cannot_write_to_the_terminal_either(bundle: Path, key: Path) -> None:
    change(bundle, lambda envelope: envelope["signatures"][0].update(keyid="x\x1b[2J\nVALID"))
    code, out, err = assay("verify", bundle, "--key", key.with_suffix(".pub"))
    assert (code, "\x1b" in out + err) == (1, False)
    change(bundle, lambda envelope: envelope.update(signatures=envelope["signatures"] * 2))
    code, out, err = assay("verify", bundle, "--key", key.with_suffix(".pub"))
    assert (code, "\x1b" in out + err) == (2, False)


def _pems(key: Any) -> tuple[bytes, bytes]:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _pems(rsa.generate_private_key(65537, 2048)),
        lambda: _pems(ec.generate_private_key(ec.SECP256R1())),
        lambda: _pems(x25519.X25519PrivateKey.generate()),
        lambda: (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",) * 2,
        lambda: (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",) * 2,
        lambda: (b"", b""),
        lambda: (bytes(1 << 17),) * 2,
    ],
    ids=["rsa", "p-256", "x25519", "damaged private", "damaged public", "empty", "large"],
)
def test_a_key_that_is_none(
    artifact: Artifact, bundle: Path, tmp_path: Path, make: Callable[[], tuple[bytes, bytes]]
) -> None:
    private, public = make()
    (tmp_path / "odd.key").write_bytes(private)
    (tmp_path / "odd.pub").write_bytes(public)
    assert verify(bundle, tmp_path / "odd.key") == (2, [])
    assert serve(artifact, tmp_path / "odd.key")[0] == 2
    with pytest.raises(AssayError) as refusal:
        sign(artifact, tmp_path / "odd.key")
    assert refusal.value.exit_code == 2


def test_a_private_key_in_the_place_of_the_public_one(bundle: Path, key: Path) -> None:
    code, _, err = assay("verify", bundle, "--key", key)
    assert (code, "this is a private key" in err) == (2, True)
    body = key.read_text().splitlines()[1]
    assert body not in err


def test_no_bundle_at_all(artifact: Artifact, key: Path) -> None:
    code, said = serve(artifact, key)
    assert (code, "there is no signed verdict" in said) == (1, True)
    write_verdicts(artifact.verdict_path, [make_verdict(artifact)])
    assert serve(artifact, key)[0] == 1, "a pass that nobody signed does not do"


def test_a_signature_does_not_lift_what_is_known_here(bundle: Path, key: Path, artifact: Artifact) -> None:
    """An older signed pass, and a later evaluation that took it away."""
    write_verdicts(artifact.verdict_path, [make_verdict(artifact)])
    write_verdicts(artifact.verdict_path, [make_verdict(artifact, "fail")], on=basis(301))
    code, said = serve(artifact, key)
    assert (code, "kl_mean_gold (fail)" in said) == (1, True)


def test_a_signature_does_not_end_what_was_begun(bundle: Path, key: Path, artifact: Artifact) -> None:
    write_begun(artifact.verdict_path, artifact.digest)
    code, said = serve(artifact, key)
    assert (code, "begun and not finished" in said) == (1, True)


def test_a_signature_does_not_make_the_inconclusive_pass(bundle: Path, key: Path, artifact: Artifact) -> None:
    write_verdicts(artifact.verdict_path, [make_verdict(artifact, "inconclusive")])
    assert serve(artifact, key)[0] == 1


def test_a_verdict_given_beside_the_signature_must_pass_too(
    bundle: Path, key: Path, artifact: Artifact, tmp_path: Path
) -> None:
    write_verdicts(tmp_path / "v.json", [make_verdict(artifact, "fail")])
    assert serve(artifact, key, "--verdict", tmp_path / "v.json")[0] == 1


@pytest.mark.engine
def test_a_signature_stands_in_for_a_verdict_that_is_not_here(bundle: Path, key: Path, artifact: Artifact) -> None:
    """It comes as far as the engine, which cannot load the dummy: exit 2, and no word of the proof."""
    pytest.importorskip("llama_cpp")
    for told in (False, True):
        if told:
            write_verdicts(artifact.verdict_path, [replace(make_verdict(artifact), digest="5" * 64)])
        code, said = serve(artifact, key)
        assert (code, "not proven" in said) == (2, False)


def test_options_that_contradict_each_other(bundle: Path, key: Path, artifact: Artifact) -> None:
    assert serve(artifact, key, "--allow-unproven")[0] == 2
    assert assay("serve", artifact.path, "--bundle", bundle)[0] == 2


def test_the_types_are_what_in_toto_names() -> None:
    assert (STATEMENT_TYPE, PREDICATE_TYPE) == ("https://in-toto.io/Statement/v1", "urn:assay:verdict:1")


def test_examining_takes_what_lies_there_now(bundle: Path, key: Path, artifact: Artifact) -> None:
    """An artifact that was opened before it was changed is hashed again."""
    opened = open_artifact(artifact.path)
    path = artifact.gguf_path
    path.write_bytes(path.read_bytes()[:-1] + b"1")
    with pytest.raises(AssayError, match="not intact"):
        refuse_unsigned(opened, key.with_suffix(".pub"))
    examined = examine(read_bundle(bundle), read_public_key(key.with_suffix(".pub")), artifact.path)
    assert [problem.code for problem in examined.problems] == ["artifact"]
