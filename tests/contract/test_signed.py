"""A signed verdict: what is signed, by which key, and what holds on another machine."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.errors import AssayError
from contract.signed import examine, read_bundle, seal, write_bundle
from contract.signing_key import read_private_key, read_public_key
from contract.statement import Claim, read_statement, write_statement
from contract.strictness import changed_limits
from contract.verdict import Reason, Verdict
from tests.kit.signing import assay, make_artifact, make_claim, make_key, make_verdict, payload_of, sign
from tests.kit.verdicts import basis, limits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path / "q4_k_m")


def test_a_claim_comes_back_as_it_was_written(artifact: Artifact) -> None:
    claim = make_claim(artifact)
    payload = write_statement(claim)
    assert read_statement(payload, "here") == claim
    assert write_statement(claim) == payload


def test_the_statement_names_each_file_as_generic_tools_expect(artifact: Artifact, key: Path) -> None:
    said = payload_of(sign(artifact, key))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "urn:assay:verdict:1"
    found = hashlib.sha256((artifact.folder / "tiny-Q4_K_M.gguf").read_bytes()).hexdigest()
    assert said["subject"] == [{"name": "tiny-Q4_K_M.gguf", "digest": {"sha256": found}}]
    assert said["predicate"]["artifact"] == {
        "kind": "gguf",
        "name": "tiny",
        "digest": artifact.digest,
        "files_digest": artifact.manifest.files_digest,
        "foreign": False,
    }
    rests = said["predicate"]["basis"]
    assert rests["documents"] == 300
    assert rests["limits"] == limits()
    keys = json.dumps(sorted(f"{number:032x}" for number in range(300))).encode()
    assert rests["documents_sha256"] == hashlib.sha256(keys).hexdigest()


def test_the_envelope_is_plain_dsse(artifact: Artifact, key: Path) -> None:
    """Checked without securesystemslib: DSSE's pre-authentication encoding, and ed25519 over it."""
    body = json.loads(sign(artifact, key).read_text())
    payload, kind = base64.b64decode(body["payload"]), body["payloadType"].encode()
    assert kind == b"application/vnd.in-toto+json"
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    [signature] = body["signatures"]
    public = load_pem_public_key(key.with_suffix(".pub").read_bytes())
    public.verify(base64.b64decode(signature["sig"]), encoded)  # type: ignore[union-attr, call-arg]
    assert signature["keyid"] == read_public_key(key.with_suffix(".pub")).keyid


def test_signing_again_gives_the_same_bytes(artifact: Artifact, key: Path) -> None:
    first = sign(artifact, key).read_text()
    assert sign(artifact, key).read_text() == first


def test_openssls_keys_are_taken(tmp_path: Path, artifact: Artifact) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "o.key"]
    public = ["openssl", "pkey", "-in", "o.key", "-pubout", "-out", "o.pub"]
    for command in (made, public):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    code, out, _ = assay("verify", sign(artifact, tmp_path / "o.key"), artifact.path, "--key", tmp_path / "o.pub")
    assert (code, "VALID" in out) == (0, True)


def test_the_bundle_lies_outside_the_digest(artifact: Artifact, key: Path) -> None:
    sign(artifact, key)
    assert artifact.signed_path == artifact.folder / "verdict.dsse.json"
    assert open_artifact(artifact.path, verify=True).digest == artifact.digest


def test_a_verified_bundle_says_what_the_verdict_rests_on(artifact: Artifact, key: Path) -> None:
    quant = {"q4_k_m": {"max_kl_nats": 0.5}, "q8_0": {"max_kl_nats": 0.001}}
    bundle = sign(artifact, key, quant=quant)
    code, out, err = assay("verify", bundle, artifact.path, "--key", key.with_suffix(".pub"))
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("signed by    key ")
    assert "documents    300," in out
    assert "looser than this version's default: quant.q4_k_m.max_kl_nats 0.5 (default 0.08)" in out
    assert "stricter than this version's default: quant.q8_0.max_kl_nats 0.001" in out
    assert "2026-01-01T00:00:00" in out
    assert "merged pass, adapter begins it" in out
    assert out.splitlines()[-1] == "VALID        the verdict is pass, and signed"


def test_it_is_told_as_json_too(artifact: Artifact, key: Path) -> None:
    bundle = sign(artifact, key, max_eos_rate_loss=0.2)
    code, out, _ = assay("verify", bundle, artifact.path, "--key", key.with_suffix(".pub"), "--json")
    told = json.loads(out)
    assert (code, told["valid"], told["problems"], told["whole"]) == (0, True, [], True)
    assert told["claim"]["verdict"]["digest"] == artifact.digest
    assert told["limits_changed"] == [{"name": "max_eos_rate_loss", "value": 0.2, "default": 0.05, "way": "looser"}]


def test_without_an_artifact_the_signature_and_the_word_hold(artifact: Artifact, key: Path) -> None:
    code, out, _ = assay("verify", sign(artifact, key), "--key", key.with_suffix(".pub"))
    assert code == 0
    assert "no ARTIFACT was given" in out


def test_without_a_key_the_claim_is_told_and_nothing_is_proven(artifact: Artifact, key: Path) -> None:
    code, out, _ = assay("verify", sign(artifact, key), artifact.path)
    assert code == 1
    assert "nobody that is trusted" in out
    assert "documents    300," in out
    assert "NO           no_key:" in out
    assert "VALID" not in out


def test_a_gguf_copied_out_of_its_folder_is_known_by_its_bytes(artifact: Artifact, key: Path, tmp_path: Path) -> None:
    bundle = sign(artifact, key)
    copy = tmp_path / "elsewhere" / "renamed.gguf"
    copy.parent.mkdir()
    shutil.copy(artifact.gguf_path, copy)
    code, out, _ = assay("verify", bundle, copy, "--key", key.with_suffix(".pub"))
    assert code == 0
    assert "its manifest (prompt, settings, origin) was not there to be checked" in out
    copy.write_bytes(copy.read_bytes()[:-1] + b"1")
    code, out, _ = assay("verify", bundle, copy, "--key", key.with_suffix(".pub"))
    assert code == 1
    assert "NO           artifact: the sha256 of renamed.gguf" in out


def test_what_assay_did_not_make_is_signed_by_its_bytes(tmp_path: Path, key: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(9))
    artifact = open_artifact(tmp_path / "m.gguf")
    bundle = sign(artifact, key)
    assert bundle.name == "m.gguf.verdict.dsse.json"
    examined = examine(read_bundle(bundle), read_public_key(key.with_suffix(".pub")), tmp_path / "m.gguf")
    assert (examined.problems, examined.whole) == ((), True)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"outcome": "fail"}, "the verdict is fail: kl_mean_gold"),
        ({"outcome": "inconclusive"}, "the verdict is inconclusive"),
        ({"above": "fail"}, "hangs from merged, whose verdict is fail"),
        ({"above": "inconclusive"}, "hangs from merged"),
    ],
)
def test_only_a_pass_all_the_way_up_is_sealed(
    artifact: Artifact, key: Path, verdict: dict[str, str], said: str
) -> None:
    made = make_verdict(artifact, **verdict)  # type: ignore[arg-type]
    with pytest.raises(AssayError, match="is not signed") as refusal:
        seal(Claim.of(artifact, made, basis()), read_private_key(key))
    assert said in str(refusal.value)


def test_a_pass_for_no_reason_or_against_one_is_not_sealed(artifact: Artifact, key: Path) -> None:
    for reasons in ((), (Reason("kl_mean_gold", "fail", "too far"),)):
        claim = replace(make_claim(artifact), verdict=Verdict("q4_k_m", artifact.digest, "pass", reasons))
        with pytest.raises(AssayError, match="is not signed"):
            seal(claim, read_private_key(key))


def test_an_encrypted_key_is_opened_by_the_environment(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path, "locked", password="a long one")
    for password, said in ((None, "there is no password"), ("", "there is no password"), ("wrong", "is wrong")):
        if password is None:
            monkeypatch.delenv("ASSAY_KEY_PASSWORD", raising=False)
        else:
            monkeypatch.setenv("ASSAY_KEY_PASSWORD", password)
        with pytest.raises(AssayError, match=said) as refusal:
            read_private_key(key)
        assert "ASSAY_KEY_PASSWORD" in str(refusal.value)
        assert refusal.value.exit_code == 2
    monkeypatch.setenv("ASSAY_KEY_PASSWORD", "a long one")
    bundle = sign(artifact, key)
    assert read_bundle(bundle).is_signed_by(read_public_key(key.with_suffix(".pub")))
    sign(artifact, make_key(tmp_path, "open"))  # the variable does not stand in the way of a key that is not encrypted


def test_a_bundle_replaces_only_a_bundle(artifact: Artifact, key: Path, tmp_path: Path) -> None:
    text = sign(artifact, key).read_text()
    write_bundle(artifact.signed_path, text)
    artifact.signed_path.write_text('{"mine": 1}')
    with pytest.raises(AssayError, match="is not overwritten"):
        write_bundle(artifact.signed_path, text)
    assert artifact.signed_path.read_text() == '{"mine": 1}'
    (tmp_path / "target").write_text(text)
    artifact.signed_path.unlink()
    artifact.signed_path.symlink_to(tmp_path / "target")
    with pytest.raises(AssayError, match="place of a link"):
        write_bundle(artifact.signed_path, text)


def test_limits_are_told_by_the_way_they_go() -> None:
    assert changed_limits(limits()) == []
    changed = limits(max_eos_rate_loss=0.01, served={"allow_control_text": False, "min_same_text": 0.8})
    del changed["merge"]
    assert {each.name: each.way for each in changed_limits({**changed, "max_new_thing": 3})} == {
        "max_eos_rate_loss": "stricter",
        "served.allow_control_text": "stricter",
        "served.min_same_text": "looser",
        "merge": "looser",
        "max_new_thing": "stricter",
    }


def test_verifying_needs_no_engine(artifact: Artifact, key: Path) -> None:
    """As where only the core dependencies are installed: whatever an extra brings cannot be imported."""
    extras = ["torch", "transformers", "llama_cpp", "onnxruntime", "pandas", "fastapi", "matplotlib", "datasets"]
    code = f"import sys\nfor name in {extras}:\n    sys.modules[name] = None\nimport assay\nassay.main()\n"
    command = [sys.executable, "-c", code, "verify", str(sign(artifact, key)), str(artifact.path), "--key"]
    done = subprocess.run([*command, str(key.with_suffix(".pub"))], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "VALID" in done.stdout) == (0, True), done.stderr


def test_an_artifact_of_many_files_is_checked_file_by_file(tmp_path: Path, key: Path) -> None:
    with new_artifact(tmp_path / "int8", "onnx", "tiny") as draft:
        (draft.path / "onnx").mkdir()
        (draft.path / "onnx" / "model.onnx").write_bytes(b"graph")
        (draft.path / "config.json").write_text("{}")
    bundle = sign(draft.finished, key)
    public = key.with_suffix(".pub")
    assert [subject["name"] for subject in payload_of(bundle)["subject"]] == ["config.json", "onnx/model.onnx"]
    assert assay("verify", bundle, tmp_path / "int8", "--key", public)[0] == 0
    (tmp_path / "int8" / "onnx" / "model.onnx").write_bytes(b"graPh")
    code, out, _ = assay("verify", bundle, tmp_path / "int8", "--key", public)
    assert (code, "onnx/model.onnx: its bytes were changed" in out) == (1, True)


def test_where_there_is_no_artifact_the_input_is_at_fault(artifact: Artifact, key: Path, tmp_path: Path) -> None:
    bundle = sign(artifact, key)
    assert assay("verify", bundle, tmp_path / "none", "--key", key.with_suffix(".pub"))[0] == 2
    (tmp_path / "notes.txt").write_text("no model")
    code, out, _ = assay("verify", bundle, tmp_path / "notes.txt", "--key", key.with_suffix(".pub"))
    assert (code, "not a model file" in out) == (1, True), "there is something, and it is not what was signed"
