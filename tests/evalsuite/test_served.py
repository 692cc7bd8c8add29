"""What is served, as served: a faithful endpoint passes, real damage behind or before it is named by its code."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.example import Example, read_examples, write_examples
from contract.history import read_history, read_verdicts
from contract.limits import GatePart
from contract.recipe import Recipe
from evalsuite.cli import eval_command, gate_command
from evalsuite.evaluate import evaluate
from evalsuite.gate import judge
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.results import Results, read_predictions, read_results
from evalsuite.served.endpoint import connect
from export.to_gguf import export_gguf
from tests.evalsuite.chain import edit_gguf, examples
from tests.evalsuite.proxy import Body, assay_serve, proxy
from tests.evalsuite.quick import figures_only

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = 24  # of what happens on the way: too few for the default limits, so that theirs are wider
ENOUGH = 76  # for the default limits
WIDER = Recipe.model_validate(
    {
        "name": "wider",
        "model": {"base": "none"},
        "gate": {"max_eos_rate_loss": 0.2, "served": {"min_same_text": 0.8, "max_rouge_l_loss": 4.0}},
    }
)
PROMPTS = DOCUMENTS + len(HARD_TEXTS)
LONG = "\n".join(f"Mara: line {index}, and nothing else." for index in range(40))


@pytest.fixture(autouse=True)
def without_bertscore(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder takes longer than all the rest, and says nothing of an endpoint."""
    monkeypatch.setattr("evalsuite.scorer.bertscore_available", lambda: False)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base, which ends its answers by itself, as a bare .gguf."""
    tmp = tmp_path_factory.mktemp("served")
    [made] = export_gguf(open_artifact(ROOT / "assets" / "tiny-base"), tmp / "made", quants=["f16"], check="structure")
    return Path(shutil.copy(made.gguf_path, tmp / made.gguf_path.name))


@pytest.fixture(scope="module")
def url(gguf: Path) -> Iterator[str]:
    with assay_serve(gguf) as address:
        yield address


@pytest.fixture(scope="module")
def documents() -> list[Example]:
    return some(DOCUMENTS)


def some(count: int) -> list[Example]:
    """From the embedded test split, and two long ones."""
    found = list(read_examples(ROOT / "assets" / "dialogues" / "test.jsonl", limit=count - 2))
    return [*found, *(Example(f"long-{n}", f"{n}: {LONG}", ("Mara counts lines.",)) for n in range(2))]


def scored(gguf: Path, url: str, documents: list[Example], out: Path, **how: Any) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        figures_only(patch)
        endpoint = connect(url, **how)
        return evaluate([open_artifact(gguf)], documents, out, recipe=WIDER, threads=1, speed=False, endpoint=endpoint)


def not_passed(out: Path) -> dict[str, str]:
    [verdict] = [verdict for verdict in read_verdicts(out / "verdict.json") if verdict.label == "served"]
    assert verdict.outcome != "pass" or all(reason.outcome == "pass" for reason in verdict.reasons)
    return {reason.code: reason.outcome for reason in verdict.reasons if reason.outcome != "pass"}


def words(out: Path, code: str) -> str:
    [verdict] = [verdict for verdict in read_verdicts(out / "verdict.json") if verdict.label == "served"]
    return next(reason.text for reason in verdict.reasons if reason.code == code)


def run(*arguments: object) -> Result:
    return CliRunner(catch_exceptions=False).invoke(eval_command, [*map(str, arguments), "--threads", "1"])


def test_what_is_served_faithfully_passes(gguf: Path, url: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "eval"
    write_examples(data, some(ENOUGH))
    done = run(f"{url}/v1/", gguf, "--data", data, "--out", out)
    assert done.exit_code == 0, done.stdout
    assert "PASS         served" in done.stdout
    results = read_results(out)
    assert [(row.label, row.role, row.kind) for row in results.rows] == [
        ("f16", "reference", "gguf"),
        ("served", "candidate", "endpoint"),
    ]
    row = results.row("served")
    assert (row.name, row.engine, row.path, row.size_bytes) == (gguf.stem, "assay", f"{url}/v1", 0)
    assert row.task == results.row("f16").task
    [comparison] = row.comparisons
    served = comparison.served
    assert served is not None
    assert (comparison.purpose, comparison.prompts, comparison.prompt_ids_differ) == (
        "serving",
        ENOUGH + len(HARD_TEXTS),
        0,
    )
    assert (served.digest, served.same_text.mean, served.completion_tokens_differ) == (
        row.comparisons[0].reference_digest,
        1,
        0,
    )
    assert (served.offset, served.truncated, served.control_text_tokens) == (0, 0, 0)
    said = [p.prediction for p in read_predictions(out / "predictions" / "served.jsonl")]
    assert said == [p.prediction for p in read_predictions(out / "predictions" / "f16.jsonl")]
    report = (out / "report.html").read_text()
    assert "Is what is served what was proven?" in report
    assert "Texts equal to those of f16, character for character: 100.0%." in report
    assert "endpoint, not made by Assay" not in report
    again = CliRunner(catch_exceptions=False).invoke(gate_command, [str(out)])
    assert again.exit_code == 0, again.stdout
    assert not (gguf.parent / "verdict.json").exists()


def test_requests_side_by_side_change_nothing(
    gguf: Path,
    url: str,
    documents: list[Example],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evalsuite.progress._EVERY_S", 0.0)
    results = scored(gguf, url, documents, tmp_path / "eval", concurrency=4)
    assert results.row("served").comparisons[0].same_text == 1
    assert "assay eval · served: 100% of everything scored, about 0 s left" in capsys.readouterr().err


def swap_template(old: str, new: str) -> Callable[[str, object], object]:
    def change(key: str, value: object) -> object:
        if key != "tokenizer.chat_template":
            return value
        assert old in str(value)
        return str(value).replace(old, new, 1)

    return change


def shuffled(name: str, data: Any) -> Any:
    return data[::-1].copy() if name == "blk.1.ffn_down.weight" else data


DAMAGED: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "template-newline": (
        {"metadata": swap_template("<|im_end|>\\n", "\\n<|im_end|>\\n")},
        {"served_prompt_tokens_differ": "fail"},
        "most by +1",
    ),
    "double-bos": (
        {"metadata": swap_template("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")},
        {"served_prompt_tokens_differ": "fail"},
        "BOS twice",
    ),
    "other-weights": ({"tensor": shuffled}, {"served_text_differs": "fail"}, "of the texts are those of f16"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_another_artifact_behind_the_url(damage: str, gguf: Path, documents: list[Example], tmp_path: Path) -> None:
    changes, expected, says = DAMAGED[damage]
    bad = Path(shutil.copy(gguf, tmp_path / gguf.name))
    edit_gguf(bad, **changes)
    with assay_serve(bad) as url:
        scored(gguf, url, documents, tmp_path / "eval")
    found = not_passed(tmp_path / "eval")
    assert expected.items() <= found.items()
    assert found["served_digest_differs"] == "inconclusive", "the server says which artifact it serves"
    assert says in words(tmp_path / "eval", next(iter(expected)))


def cut(body: Body) -> None:
    message = body["messages"][-1]
    message["content"] = message["content"][:900]


def with_system_turn(body: Body) -> None:
    body["messages"].insert(0, {"role": "system", "content": "You are a helpful assistant."})


def finish(reason: str | None) -> Callable[[Body], object]:
    return lambda body: body["choices"][0].update(finish_reason=reason)


def count(**usage: int) -> Callable[[Body], object]:
    return lambda body: body["usage"].update(usage)


def speak_otherwise(body: Body) -> None:
    message = body["choices"][0]["message"]
    message["content"] = "Well, " + message["content"]


BETWEEN: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "truncates": ({"request": cut}, {"served_truncated": "fail"}, "num_ctx"),
    "adds-a-system-turn": (
        {"request": with_system_turn},
        {"served_prompt_tokens_differ": "fail"},
        "another template or system turn",
    ),
    "says-no-usage": (
        {"answer": lambda body: body.pop("usage")},
        {"served_prompt_tokens_differ": "inconclusive", "served_truncated": "inconclusive"},
        f"not reported for {PROMPTS} of {PROMPTS} prompts",
    ),
    "counts-cached-prompts-as-none": (
        {"answer": count(prompt_tokens=0)},
        {"served_prompt_tokens_differ": "inconclusive", "served_truncated": "inconclusive"},
        "not reported",
    ),
    "never-stops": (
        {"answer": finish("length")},
        {"served_stop_differs": "fail", "eos_rate_loss": "fail"},
        "0.0% of the texts stopped for the same reason",
    ),
    "says-not-why": ({"answer": finish(None)}, {"served_stop_differs": "inconclusive"}, f"{DOCUMENTS} documents"),
    "alters-texts": (
        {"answer": speak_otherwise},
        {"served_text_differs": "fail"},
        "at character 1 (word 1): 'Well, ",
    ),
}


@pytest.mark.parametrize("damage", BETWEEN)
def test_what_happens_on_the_way(damage: str, gguf: Path, url: str, documents: list[Example], tmp_path: Path) -> None:
    changes, expected, says = BETWEEN[damage]
    with proxy(url, **changes) as address:
        scored(gguf, address, documents, tmp_path / "eval")
    found = not_passed(tmp_path / "eval")
    assert expected.items() <= found.items(), found
    assert found.keys() - expected.keys() <= {"served_text_differs", "served_rouge_l_loss"}, found
    assert says in words(tmp_path / "eval", next(iter(expected)))


def test_text_that_becomes_control_tokens_is_told_and_refused_where_the_recipe_says_so(
    gguf: Path, url: str, documents: list[Example], tmp_path: Path
) -> None:
    def parse(body: Body) -> None:
        message = body["messages"][-1]
        message["content"] = message["content"].replace("<|im_end|>", "").replace("<|im_start|>", "")

    with proxy(url, request=parse) as address:
        results = scored(gguf, address, documents, tmp_path / "eval")
    assert not_passed(tmp_path / "eval") == {}
    assert "a document can end its own turn" in words(tmp_path / "eval", "served_control_text")
    [verdict] = judge(results, GatePart.model_validate({"served": {"allow_control_text": False}}))
    assert [reason.code for reason in verdict.reasons if reason.outcome == "fail"] == ["served_control_text"]


def test_an_endpoint_that_dies_leaves_the_earlier_evaluation_as_it_was(
    gguf: Path, url: str, documents: list[Example], tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    scored(gguf, url, documents, out)

    def files() -> dict[Path, bytes]:
        left = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith("answer-")]
        return {path: path.read_bytes() for path in left if path != out / "verdict.json"}

    before, old = files(), read_history(out)
    replies = {"hangs up": (0, b""), "HTTP 500: out of memory": (500, b'{"error": {"message": "out of memory"}}')}
    for says, reply in replies.items():
        with (
            proxy(url, chat=lambda done, reply=reply: reply if done >= 7 else None) as address,
            pytest.raises(AssayError) as raised,
        ):
            scored(gguf, address, documents, out)
        assert raised.value.exit_code == 2
        assert f"after 7 of {DOCUMENTS} documents" in str(raised.value)
        assert says == "hangs up" or says in str(raised.value)
    assert before == files()
    assert read_history(out)[: len(old)] == old
    with pytest.raises(AssayError, match="was not finished"):
        read_verdicts(out)  # nobody knows what the figures of the new one would have said
    assert not list(tmp_path.glob(".*"))


def test_an_endpoint_that_died_is_asked_for_the_rest_only(
    gguf: Path, url: str, documents: list[Example], tmp_path: Path
) -> None:
    left, asked = 9.0, []

    def chat(_: int) -> tuple[int, bytes] | None:
        nonlocal left
        left -= 1
        return (0, b"") if left < 0 else None

    out = tmp_path / "eval"
    with proxy(url, request=lambda body: asked.append(body["messages"][-1]["content"]), chat=chat) as address:
        with pytest.raises(AssayError, match=f"after 9 of {DOCUMENTS} documents") as raised:
            scored(gguf, address, documents, out)
        assert raised.value.exit_code == 2
        assert "run it again to go on: 9 answers are kept" in str(raised.value)
        assert not (out / "metrics.json").exists()
        left = math.inf
        results = scored(gguf, address, documents, out)
    assert len(asked) == PROMPTS + 3, "three of those that were answered are asked again"
    assert results.row("served").comparisons[0].same_text == 1
    assert results.row("served").task == results.row("f16").task
    assert not list((out / "cache").glob("answer-*")), "a complete evaluation leaves no answers to the next"


def test_what_an_endpoint_says_of_itself_is_kept_but_for_times(url: str) -> None:
    card = json.loads(connect(url).card)
    assert {"id", "digest", "context_length"} <= card.keys()
    assert "created" not in card


def test_a_context_too_small_is_the_servers_own_message(gguf: Path, documents: list[Example], tmp_path: Path) -> None:
    with assay_serve(gguf, "--context", "600") as url, pytest.raises(AssayError) as raised:
        scored(gguf, url, documents, tmp_path / "eval")
    assert "does not fit the context" in str(raised.value)
    assert "assay serve --context" in str(raised.value)
    assert not (tmp_path / "eval" / "metrics.json").exists()


def test_a_key_is_sent(gguf: Path, documents: list[Example], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    write_examples(tmp_path / "data.jsonl", documents[:2])
    with assay_serve(gguf, "--api-key-file", tmp_path / "key") as url:
        common = (url, gguf, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "eval", "--json")
        with pytest.raises(AssayError, match="asks for an API key"):
            run(*common)
        (tmp_path / "wrong").write_text("other")
        with pytest.raises(AssayError, match="refuses the API key"):
            run(*common, "--api-key-file", tmp_path / "wrong")
        done = run(*common, "--api-key-file", tmp_path / "key")
    [verdict] = json.loads(done.stdout)["verdicts"]
    assert (done.exit_code, verdict["outcome"]) == (1, "inconclusive"), "two documents are too few"
    assert "s3cret" not in done.stdout
    assert "s3cret" not in "".join(p.read_text(errors="replace") for p in (tmp_path / "eval").rglob("*") if p.is_file())


def test_the_digest_decides_which_artifact_is_meant(gguf: Path, url: str, llama_folder: Path, tmp_path: Path) -> None:
    artifacts = [open_artifact(llama_folder), open_artifact(gguf)]

    results = evaluate(artifacts, examples(2), tmp_path / "a", threads=1, speed=False, endpoint=connect(url))
    assert results.row("served").comparisons[0].reference_label == "f16"
    assert [(row.label, row.role) for row in results.rows][:2] == [("merged", "candidate"), ("f16", "reference")]
    unsaid = replace(connect(url), digest=None)
    with pytest.raises(AssayError, match="which of the local artifacts is served"):
        evaluate(artifacts, examples(2), tmp_path / "b", threads=1, speed=False, endpoint=unsaid)
    assert not (tmp_path / "b").exists()


def test_arguments_that_do_not_go_together(gguf: Path, tmp_path: Path) -> None:
    write_examples(tmp_path / "data.jsonl", [Example("a", "Mara: hi", ("Hi.",))])
    common = ("--data", tmp_path / "data.jsonl", "--out", tmp_path / "eval")
    for arguments, says in (
        (("http://127.0.0.1:9",), "the local artifact it claims to be, and there is none"),
        ((gguf, "http://127.0.0.1:9", "http://127.0.0.1:7"), "one endpoint at a time"),
        ((gguf, "--endpoint-model", "x"), "are for a URL, and there is none"),
        ((gguf, "http://127.0.0.1:9"), "the endpoint does not answer"),
        ((gguf, "http://me:pass@127.0.0.1:9"), "--api-key-file"),
    ):
        with pytest.raises(AssayError, match=says):
            run(*arguments, *common)
