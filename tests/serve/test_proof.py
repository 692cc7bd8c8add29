"""Only what has a passing verdict on its very bytes counts as proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.errors import AssayError
from contract.verdict import Outcome, Reason, Verdict
from serve.proof import UnprovenError, refuse_unproven
from tests.kit.verdicts import write_verdicts


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    with new_artifact(tmp_path / "q4_k_m", "gguf", "tiny") as draft:
        (draft.path / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(100))
    return draft.finished


def judge(artifact: Artifact, outcome: Outcome, path: Path | None = None, digest: str | None = None) -> None:
    reasons = (
        Reason("rouge_l_loss", "pass", "ROUGE-L lost 0.1 points"),
        Reason("kl_mean", outcome, "mean KL 0.31 nats is over the limit of 0.08"),
    )
    verdicts = [Verdict("merged", "0" * 64, "pass", ()), Verdict("q4_k_m", digest or artifact.digest, outcome, reasons)]
    write_verdicts(path or artifact.folder / "verdict.json", verdicts)


def test_a_passing_verdict_beside_the_manifest_or_given(artifact: Artifact, tmp_path: Path) -> None:
    judge(artifact, "pass", tmp_path / "other.json")
    assert refuse_unproven(artifact, tmp_path / "other.json").state == "pass"
    judge(artifact, "pass")
    assert refuse_unproven(artifact).verdict.label == "q4_k_m"


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_another_outcome_is_refused_with_its_reasons(artifact: Artifact, outcome: Outcome) -> None:
    judge(artifact, outcome)
    with pytest.raises(UnprovenError, match=f'verdict on it is "{outcome}"') as refusal:
        refuse_unproven(artifact)
    assert "kl_mean" in str(refusal.value)
    assert "over the limit of 0.08" in str(refusal.value)
    assert "rouge_l_loss" not in str(refusal.value)
    assert refusal.value.exit_code == 1


def test_no_verdict_is_refused(artifact: Artifact) -> None:
    with pytest.raises(UnprovenError, match="there is no verdict"):
        refuse_unproven(artifact)


def test_a_verdict_on_other_bytes_is_refused(artifact: Artifact) -> None:
    judge(artifact, "pass", digest="1" * 64)
    with pytest.raises(UnprovenError, match="no verdict is about these bytes"):
        refuse_unproven(artifact)


def test_a_verdict_file_that_is_not_there_or_broken_is_the_users_fault(artifact: Artifact, tmp_path: Path) -> None:
    for text in (None, "{"):
        if text:
            (tmp_path / "v.json").write_text(text)
        with pytest.raises(AssayError) as refusal:
            refuse_unproven(artifact, tmp_path / "v.json")
        assert refusal.value.exit_code == 2


def test_one_failing_verdict_among_several_on_the_same_bytes_decides(artifact: Artifact) -> None:
    verdicts = [Verdict("q4_k_m", artifact.digest, "pass", ()), Verdict("again", artifact.digest, "fail", ())]
    write_verdicts(artifact.folder / "verdict.json", verdicts)
    with pytest.raises(UnprovenError, match='"fail"'):
        refuse_unproven(artifact)


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_files_are_refused_whatever_the_verdict_says(artifact: Artifact, damage: str) -> None:
    judge(artifact, "pass")
    data = bytearray(artifact.gguf_path.read_bytes())
    data[50] ^= 1
    artifact.gguf_path.write_bytes(data[:-1] if damage == "truncate" else data)
    with pytest.raises(AssayError, match="not intact") as refusal:
        refuse_unproven(open_artifact(artifact.path))
    assert refusal.value.exit_code == 2


def test_a_foreign_gguf_is_known_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(9))
    artifact = open_artifact(tmp_path / "m.gguf")
    judge(artifact, "pass", tmp_path / "v.json")
    assert refuse_unproven(artifact, tmp_path / "v.json").state == "pass"
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(8) + b"1")
    with pytest.raises(UnprovenError, match="no verdict is about these bytes"):
        refuse_unproven(open_artifact(tmp_path / "m.gguf"), tmp_path / "v.json")
