from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from click.testing import CliRunner

from contract.errors import AssayError
from evalsuite.metrics.bertscore import bertscore_available
from evalsuite.metrics.score_cli import score_command
from evalsuite.metrics.score_rows import read_score_rows
from evalsuite.metrics.scores import score_documents

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = [
    {"id": "a", "document": "Mara: the bus leaves at nine.\nOlin: fine.", "summary": "The bus leaves at nine."},
    {"id": "b", "document": "Olin: two beers.\nMara: 10 crowns.", "references": ["Olin pays 10.", "Mara sells beer."]},
    {"id": 3, "document": "Mara: it rains.\nOlin: again.", "summary": "It rains again."},
]
PREDICTIONS = [
    {"id": "3", "prediction": "It rains again"},
    {"id": "b", "prediction": "", "stop": "length"},
    {"id": "a", "prediction": "The bus leaves at 10, says Mara."},
]
Run = Callable[..., tuple[int, str, str]]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run() -> Run:
    """The command in this process: exit code, stdout, and the message that the front door would print."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        done = CliRunner().invoke(score_command, [str(argument) for argument in arguments])
        if isinstance(done.exception, AssayError):
            return done.exception.exit_code, done.stdout, str(done.exception)
        return done.exit_code, done.stdout, done.stderr

    return command


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, str, str]:
    predictions, references = write(tmp_path / "p.jsonl", PREDICTIONS), write(tmp_path / "r.jsonl", REFERENCES)
    return "--predictions", str(predictions), "--references", str(references)


def test_json_has_every_mean_with_interval_and_signature(run: Run, files: tuple[str, ...]) -> None:
    code, out, _ = run(*files, "--bertscore", "none", "--json")
    found = json.loads(out)
    assert code == 0
    documents = [row["document"] for row in REFERENCES]
    references = [["The bus leaves at nine."], ["Olin pays 10.", "Mara sells beer."], ["It rains again."]]
    texts = ["The bus leaves at 10, says Mara.", "", "It rains again"]
    expected = score_documents(documents, references, texts)
    assert {name: found[name] for name in expected.means()} == pytest.approx(expected.means())
    assert found["n"] == 3
    assert found["rouge1"] == pytest.approx(fmean(expected.by_document["rouge1"]))
    assert set(found["intervals"]) == set(expected.by_document)
    assert all(
        found["intervals"][name]["low"] <= found[name] <= found["intervals"][name]["high"]
        for name in found["intervals"]
    )
    assert found["signatures"] == expected.signatures
    assert set(found["baselines"]) == {"lead-3", "oracle-extractive"}
    assert found["baselines"]["oracle-extractive"]["rouge1"] >= found["baselines"]["lead-3"]["rouge1"] > 0
    seen = {name: count for name, count in found["buckets"].items() if count}
    assert seen == {"empty": 1, "never_stopped": 1, "cut_off": 1, "invented_number": 1}
    assert found["left_out"] == {"bertscore": "--bertscore none"}


def test_the_table_names_metric_unit_interval_n_and_baselines(run: Run, files: tuple[str, ...]) -> None:
    code, out, _ = run(*files, "--bertscore", "none")
    assert code == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["metric"] == ["metric", "unit", "figure", "95%", "interval", "n"]
    assert lines["rouge1"][1] == "0-100"
    assert lines["rouge1"][-1] == "3"
    assert lines["novelty_1"][1] == "share"
    assert {"lead-3", "oracle-extractive", "predictions", "never_stopped", "rouge:", "bertscore:"} <= set(lines)


def test_stemming_can_be_switched_off(run: Run, tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", [{"id": 1, "prediction": "buys beer"}])
    references = write(tmp_path / "r.jsonl", [{"id": 1, "summary": "buying beers"}])
    common = ("--predictions", predictions, "--references", references, "--bertscore", "none", "--json")
    assert json.loads(run(*common)[1])["rouge1"] == pytest.approx(100)
    assert json.loads(run(*common, "--no-stemming")[1])["rouge1"] == 0


def test_csv_has_every_score_and_bucket_per_summary(run: Run, files: tuple[str, ...], tmp_path: Path) -> None:
    assert run(*files, "--bertscore", "none", "--csv", tmp_path / "out.csv")[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert [row["id"] for row in rows] == ["a", "b", "3"]
    assert rows[0]["document"] == REFERENCES[0]["document"]
    assert (rows[1]["reference"], rows[1]["reference_2"]) == ("Olin pays 10.", "Mara sells beer.")
    assert rows[1]["buckets"] == "empty never_stopped"
    assert float(rows[2]["rouge1"]) == pytest.approx(100)
    assert {"chrf_sentence", "novelty_2", "invented_names", "rouge2_mean"} < set(rows[0])


def test_references_without_documents(run: Run, tmp_path: Path) -> None:
    references = write(tmp_path / "r.jsonl", [{"id": "x", "references": ["It rains.", "Rain."]}])
    predictions = write(tmp_path / "p.jsonl", [{"id": "x", "prediction": "It rains."}])
    code, out, _ = run("--predictions", predictions, "--references", references, "--bertscore", "none", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["rouge1"] == pytest.approx(100)
    assert found["rouge1_mean"] < 100
    assert "novelty_1" not in found
    assert found["baselines"] == {}


def test_marks_line_ends_and_blank_lines_do_not_matter(tmp_path: Path, files: tuple[str, ...]) -> None:
    plain = read_score_rows(Path(files[1]), files[3])
    windows = []
    for name, rows in (("p2.jsonl", PREDICTIONS), ("r2.jsonl", REFERENCES)):
        text = "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in rows) + "\r\n"
        (tmp_path / name).write_bytes(text.encode())
        windows.append(tmp_path / name)
    assert read_score_rows(windows[0], str(windows[1])) == plain
    assert [(row.id, row.prediction, row.stop) for row in plain] == [
        ("a", "The bus leaves at 10, says Mara.", "unknown"),
        ("b", "", "length"),
        ("3", "It rains again", "unknown"),
    ]


GOOD = '{"id": "a", "prediction": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no prediction in the file"),
        (b"\n \n", "there is no prediction in the file"),
        (b"{\n", "p.jsonl:1"),
        (GOOD.encode() + b"nonsense\n", "p.jsonl:2"),
        (GOOD.encode() + b'["a"]\n', "p.jsonl:2"),
        (GOOD.encode() + b"[" * 100_000 + b"\n", "p.jsonl:2"),
        (b'{"id": "a", "prediction": ' + b"1" * 5000 + b"}\n", "p.jsonl:1"),
        (GOOD.encode() + b'{"id": "b", "prediction": "\xff\xfe"}\n', "p.jsonl:2"),
        ("id prediction".encode("utf-16"), "not UTF-8"),
        (b'{"id": "a", "predictions": "x"}\n', 'did you mean "predictions"'),
        (b'{"id": "a", "prediction": null}\n', "expected text, got NoneType"),
        (b'{"id": "a", "prediction": ["x"]}\n', "expected text, got list"),
        (b'{"id": "a", "prediction": "\\ud83d"}\n', "half a surrogate pair"),
        (b'{"prediction": "x"}\n', "expected an id (text or a whole number), got none"),
        (b'{"id": null, "prediction": "x"}\n', "got NoneType"),
        (b'{"id": true, "prediction": "x"}\n', "got bool"),
        (b'{"id": "a", "prediction": "x", "stop": "never"}\n', 'field "stop"'),
        ((GOOD + GOOD).encode(), 'p.jsonl:2: id "a" was already used at'),
        (GOOD.encode(), "2 without a prediction: b, 3"),
        ((GOOD + '{"id": "zz", "prediction": "x"}\n').encode(), "p.jsonl:2)"),
    ],
)
def test_bad_predictions_are_one_message_with_the_place(
    run: Run, files: tuple[str, ...], tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    code, out, err = run(*files, "--bertscore", "none", "--json")
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert message in err
    assert "p.jsonl" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no reference in the file"),
        (b'{"id": "a", "summary": ""}\n', 'r.jsonl:1: field "summary" is empty'),
        (b'{"id": "a", "references": []}\n', 'r.jsonl:1: field "references" is empty'),
        (b'{"id": "a", "references": ["x", 3]}\n', "expected text, got int"),
        (b'{"id": "a", "title": "x"}\n', "no summary column found"),
        (b'{"id": "a", "summary": "x"}\n{"id": "a", "summary": "x"}\n', "r.jsonl:2"),
        (b'{"id": "a", "summary": "x", "document": "y"}\n{"id": "b", "summary": "x"}\n', "r.jsonl:2"),
        (b'{"id": "a", "document": "y"}\n', "no summary column found"),
        (b'{"id": "a", "document": "y", "summary": 3}\n', "expected text, got int"),
        (b'{"id": "a", "summary": "x"}\n\xff\n', "r.jsonl:2"),
        (b'{"id": "q", "summary": "x"}\n', 'without a reference: "3"'),
        (b'{"summary": "x"}\n', "expected an id"),
        (b'{"document": "y", "summary": "x"}\n', "numbered 000001"),
    ],
)
def test_bad_references_too(run: Run, files: tuple[str, ...], tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.jsonl").write_bytes(content)
    code, out, err = run(*files, "--bertscore", "none", "--json")
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert message in err
    assert "r.jsonl" in err


def test_missing_files_and_encoders_are_said(run: Run, files: tuple[str, ...], tmp_path: Path) -> None:
    for arguments, message in (
        (("--predictions", tmp_path / "no.jsonl", *files[2:]), "no such file of predictions"),
        ((*files[:2], "--references", tmp_path / "no.jsonl"), "no such file of references"),
        ((*files[:2], "--references", tmp_path / "no.csv"), "no such data file"),
        ((*files, "--bertscore", tmp_path / "no"), "no encoder there"),
        ((*files, "--bertscore", "none", "--layer", "3"), "--layer is the encoder's"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert message in err


@pytest.mark.engine
@pytest.mark.skipif(not bertscore_available(), reason="the bertscore extra is not installed")
def test_bertscore_is_there_where_its_extra_is(run: Run, files: tuple[str, ...]) -> None:
    code, out, _ = run(*files, "--threads", "1", "--json")
    found = json.loads(out)
    assert code == 0
    assert 0 < found["bertscore_f1"] < 100
    assert "layer 5" in found["signatures"]["bertscore"]
    assert found["baselines"]["lead-3"]["bertscore_f1"] > 0
    assert found["left_out"] == {}


def test_without_the_extra_bertscore_is_left_out_and_said(
    run: Run, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalsuite.metrics.encoder.DEFAULT_PACKAGE", "no_such_package")
    code, out, _ = run(*files, "--json")
    assert code == 0
    assert "bertscore_f1" not in json.loads(out)
    assert "not installed" in json.loads(out)["left_out"]["bertscore"]


def test_through_the_front_door(files: tuple[str, ...], tmp_path: Path) -> None:
    door = [sys.executable, "-m", "assay", "score", *files, "--bertscore", "none", "--json"]
    done = subprocess.run(door, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, json.loads(done.stdout)["n"]) == (0, 3)
    nowhere = [*door, "--csv", str(tmp_path / "no" / "out.csv")]
    done = subprocess.run(nowhere, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)
    (tmp_path / "p.jsonl").write_text("nonsense")
    done = subprocess.run(door, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)


def test_the_docs_name_every_metric_and_bucket(run: Run, files: tuple[str, ...]) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    found = json.loads(run(*files, "--bertscore", "none", "--json")[1])
    for name in {*found["intervals"], "bleu", "chrf", "meteor", "meteor_exact_stem", *found["buckets"]}:
        number = name.rpartition("_")[2]
        shown = (f"`{name}`", f"`_{number}`", f"`{name.removesuffix('_mean')}`")
        assert any(form in page for form in shown), name


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, assay\ntry:\n    assay.main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, "score", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert not loaded & {
        "torch",
        "transformers",
        "bert_score",
        "nltk",
        "sacrebleu",
        "rouge_score",
        "matplotlib",
        "numpy",
    }
    assert "--predictions" in done.stdout


DIALOGUE = "Mara: the bus leaves at nine.\nOlin: fine."
THREE = [  # as DialogSum's public test set: three rows of a dialogue
    {"id": f"test_{at}_{n}", "dialogue": f"{DIALOGUE}{' Bye.' * at}", "summary": summary}
    for at in range(2)
    for n, summary in enumerate(("The bus leaves at nine.", "Nine is fine with Olin.", "They take the bus."), 1)
]


def test_rows_of_one_document_are_its_references(run: Run, tmp_path: Path) -> None:
    references = write(tmp_path / "r.jsonl", THREE)
    common = ("--references", references, "--bertscore", "none")
    one_each = write(
        tmp_path / "p.jsonl",
        [
            {"id": "test_0_1", "prediction": "They take the bus."},
            {"id": "test_1_2", "prediction": "Nine is fine with Mara."},  # any of the document's ids will do
        ],
    )
    code, out, _ = run("--predictions", one_each, *common, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["n"], found["predictions"]) == (2, 2)
    assert found["rouge1"] == pytest.approx((100 + 80) / 2)
    assert [row.references for row in read_score_rows(one_each, str(references))] == [
        tuple(row["summary"] for row in THREE[:3])
    ] * 2
    assert "2 summaries, 3 references each" in run("--predictions", one_each, *common)[1]


def test_predictions_of_one_document_count_once(run: Run, tmp_path: Path) -> None:
    """The same summary under three ids is no more evidence than under one; different ones are averaged first."""
    references = write(tmp_path / "r.jsonl", THREE)
    common = ("--references", references, "--bertscore", "none")

    def scored(name: str, texts: dict[str, str]) -> dict[str, Any]:
        rows = [{"id": key, "prediction": text} for key, text in texts.items()]
        code, out, _ = run("--predictions", write(tmp_path / name, rows), *common, "--json")
        assert code == 0
        return dict(json.loads(out))

    once = scored("once.jsonl", {"test_0_1": "They take the bus.", "test_1_1": "Zebras gallop."})
    thrice = scored(
        "thrice.jsonl",
        {row["id"]: "They take the bus." if row["id"].startswith("test_0") else "Zebras gallop." for row in THREE},
    )
    assert (thrice["n"], thrice["predictions"]) == (2, 6)
    for name, interval in once["intervals"].items():
        assert thrice["intervals"][name] == pytest.approx(interval)
    assert thrice["baselines"] == once["baselines"]
    assert thrice["rouge1"] == once["rouge1"] == 50
    right, wrong = "They take the bus.", "Zebras gallop."
    mixed = scored("mixed.jsonl", {"test_0_1": right, "test_0_2": wrong, "test_1_1": right})
    assert mixed["rouge1"] == pytest.approx(75)
    assert (mixed["n"], mixed["intervals"]["rouge1"]["high"]) == (2, 100)
    rows = [{"id": row["id"], "prediction": "x"} for row in THREE]
    table = run("--predictions", write(tmp_path / "all.jsonl", rows), *common, "--csv", tmp_path / "out.csv")[1]
    assert "6 summaries of 2 documents, each of which counts once, 3 references each" in table
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))) == 6


def test_a_document_without_any_prediction_is_named(run: Run, tmp_path: Path) -> None:
    references = write(tmp_path / "r.jsonl", THREE)
    predictions = write(tmp_path / "p.jsonl", [{"id": "test_0_3", "prediction": "x"}])
    code, _, message = run("--predictions", predictions, "--references", references)
    assert code == 2
    assert "1 without a prediction: test_1_1" in message


def test_without_documents_numbered_columns_are_references_and_an_id_stands_once(run: Run, tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.jsonl", [{"id": "x", "prediction": "Rain."}])
    wide = write(tmp_path / "r.jsonl", [{"id": "x", "summary1": "It rains.", "summary2": "Rain."}])
    arguments = ("--predictions", predictions, "--bertscore", "none", "--json", "--references")
    assert json.loads(run(*arguments, wide)[1])["rouge1"] == pytest.approx(100)
    twice = write(tmp_path / "t.jsonl", [{"id": "x", "summary": "It rains."}, {"id": "x", "summary": "Rain."}])
    code, _, message = run(*arguments, twice)
    assert code == 2
    assert 'id "x" was already used' in message
