"""Attacks on a server's word: a client, or who may touch the files, wants "proven" said of what was never judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import serve.start
from contract.artifact import Artifact, new_artifact
from contract.errors import AssayError
from contract.prompt import PromptSpec
from contract.runtime import GenerateParams
from serve.cli import serve as serve_command
from serve.server import Served, create_app
from serve.worker import Worker
from tests.serve.fake import FakeRuntime

SPEC = PromptSpec(user="Sum up: {document}", system="Be brief.")
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = [SYSTEM, {"role": "user", "content": "Sum up: Mara: room 418?"}]
CHAT = "/v1/chat/completions"


class House:
    """A server of an artifact with this prompt, its worker and its runtime."""

    def __init__(self, *, proven: bool = True, params: GenerateParams | None = None, **options: Any) -> None:
        self.runtime = FakeRuntime()
        self.worker = Worker(self.runtime, most_waiting=0)
        served = Served("tiny", "d" * 64, SPEC, params or GenerateParams(40), proven)
        app = create_app(self.worker, served, **options)
        self.client = TestClient(app, raise_server_exceptions=False)

    def mark(self, path: str, body: Any = None, *, method: str = "POST", status: int = 200, **given: Any) -> str:
        """The header of the answer; the JSON field has to say the same."""
        answer = self.client.request(method, path, json=body, **given)
        assert answer.status_code == status, answer.text
        said = answer.headers.get_list("x-assay-proven")
        assert len(said) == 1
        if path == "/summarize" and status == 200:
            assert answer.json()["proven"] is (said[0] == "true")
        return said[0]

    def chat(self, messages: Any = ASKED, **fields: Any) -> str:
        return self.mark(CHAT, {"messages": messages, **fields})


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.worker.close()


@pytest.fixture
def unproven() -> Iterator[House]:
    house = House(proven=False)
    yield house
    house.worker.close()


def test_what_was_judged_is_said_to_be_proven(house: House) -> None:
    assert house.mark("/summarize", {"document": "Mara: room 418?"}) == "true"
    assert house.mark("/summarize", {"document": "x", "max_new_tokens": 40}) == "true"
    for fields in (
        {},
        {"max_tokens": 40},
        {"temperature": 0, "seed": 3, "top_p": 0.5},
        {"stream": True},
        {"user": "x"},
    ):
        assert house.chat(**fields) == "true", fields
    parts = [{"type": "text", "text": "Sum up: "}, {"type": "text", "text": "x"}]
    assert house.chat([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]) == "true"
    # the same prompt and, without a limit, the same length: the answer is the one that /summarize gives
    assert {prompt.partition("Sum up")[0] for prompt in house.runtime.prompts} == {"system: Be brief.\nuser: "}
    assert {(params.max_new_tokens, params.temperature) for params in house.runtime.params} == {(40, 0.0)}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.01},
        {"temperature": 1, "seed": 1},
        {"stop": "."},
        {"stop": ["never written"]},
        {"max_tokens": 41},
        {"max_tokens": 39},
        {"max_completion_tokens": 1},
        {"temperature": 0.5, "stream": True},
        {"stop": ".", "stream": True},
        {"max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    ],
)
def test_another_way_to_write_was_not_judged(house: House, fields: dict[str, Any]) -> None:
    assert house.chat(**fields) == "not-judged"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "What is the capital of France?"}],
        [{"role": "user", "content": "Sum up: x"}],  # the system turn is missing
        [SYSTEM, {"role": "user", "content": "x"}],
        [SYSTEM, {"role": "user", "content": "sum up: x"}],
        [{"role": "system", "content": "Be brief. And lie."}, {"role": "user", "content": "Sum up: x"}],
        [{"role": "user", "content": "Be brief."}, {"role": "user", "content": "Sum up: x"}],
        [*ASKED, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Sum up: x"}],
        [*ASKED, {"role": "user", "content": "Sum up: x"}],
        [SYSTEM, {"role": "assistant", "content": "Sum up: x"}, {"role": "user", "content": "Sum up: x"}],
        [{"role": "user", "content": "Sum up: x"}, SYSTEM],
        [SYSTEM, {"role": "user", "content": "Sum up: "}],
        [SYSTEM, {"role": "user", "content": "Sum up:  \n "}],
    ],
)
def test_another_prompt_was_not_judged(house: House, messages: Any) -> None:
    assert house.chat(messages) == "not-judged"
    assert house.chat(messages, stream=True) == "not-judged"


def test_another_length_was_not_judged(house: House) -> None:
    for most in (1, 39, 41):
        assert house.mark("/summarize", {"document": "x", "max_new_tokens": most}) == "not-judged"


def test_beams_are_judged_as_beams_and_lost_where_stop_strings_are_given() -> None:
    house = House(params=GenerateParams(40, num_beams=4))
    assert house.chat() == "true"
    assert house.chat(stop="x") == "not-judged"
    assert house.chat(temperature=0.5) == "not-judged"
    house.worker.close()


REFUSED: list[tuple[str, str, Any, int]] = [
    ("POST", "/summarize", {}, 400),
    ("POST", "/summarize", {"document": ""}, 400),
    ("POST", "/summarize", {"document": " \n"}, 400),
    ("POST", "/summarize", {"document": "\u200b"}, 400),
    ("POST", "/summarize", {"document": "private \uf8f0"}, 400),
    ("POST", "/summarize", {"document": "long " * 60}, 400),
    ("POST", CHAT, {"messages": ASKED, "n": 2}, 400),
    ("POST", CHAT, {"messages": [SYSTEM, {"role": "user", "content": "Sum up: " + "long " * 60}], "stream": True}, 400),
    ("POST", CHAT, {"messages": ASKED, "model": "gpt-9"}, 404),
    ("GET", "/summarize", None, 405),
    ("DELETE", CHAT, None, 405),
    ("HEAD", "/summarize", None, 405),
    ("GET", "/nothing", None, 404),
    ("GET", "/openapi.json/../..", None, 404),
    ("GET", "/healthz", None, 200),
    ("GET", "/v1/models", None, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REFUSED)
def test_a_response_without_a_text_is_not_judged(
    house: House, unproven: House, method: str, path: str, body: Any, status: int
) -> None:
    assert house.mark(path, body, method=method, status=status) == "not-judged"
    assert unproven.mark(path, body, method=method, status=status) == "false"


def test_a_blank_document_is_refused_in_words(house: House) -> None:
    for blank in (" ", "\n\n\n", "\u200b\ufeff \u00ad"):
        answer = house.client.post("/summarize", json={"document": blank})
        assert answer.status_code == 400
        assert "the document is empty" in answer.json()["error"]["message"]
    assert not house.runtime.prompts


def test_the_guard_and_what_it_lets_in() -> None:
    house = House(api_key=b"s3cret", max_body_bytes=1000)
    body = {"document": "x"}
    right = {"Authorization": "Bearer s3cret", "Content-Type": "application/json"}
    assert house.mark("/summarize", body, status=401) == "not-judged"
    assert house.mark("/summarize", {"document": "x" * 2000}, status=413, headers=right) == "not-judged"
    chunked = iter([b'{"document": "', b"x" * 2000, b'"}'])
    assert house.mark("/summarize", status=413, headers=right, content=chunked) == "not-judged"
    assert house.mark("/summarize", body, headers=right) == "true"
    house.worker.close()


def test_a_defect_and_a_busy_server_are_marked_as_well(house: House, unproven: House) -> None:
    for one, mark in ((house, "not-judged"), (unproven, "false")):
        one.runtime.fail_after = 0
        assert one.mark("/summarize", {"document": "x"}, status=500) == mark
        one.runtime.failure = AssayError("no")
        assert one.mark("/summarize", {"document": "x"}, status=400) == mark
        one.runtime.fail_after = None
        one.worker.submit = _busy  # type: ignore[method-assign]
        assert one.mark("/summarize", {"document": "x"}, status=503) == mark


def _busy(*_: Any) -> Any:
    from serve.worker import BusyError

    raise BusyError(1)


def test_nothing_of_an_unproven_artifact_is_called_proven(unproven: House) -> None:
    assert unproven.mark("/summarize", {"document": "x"}) == "false"
    assert unproven.chat() == unproven.chat(stream=True) == unproven.chat(temperature=1) == "false"


def test_a_client_cannot_have_its_own_word_sent_back(house: House) -> None:
    told = {"X-Assay-Proven": "true"}
    assert house.mark(CHAT, {"messages": ASKED, "temperature": 1}, headers=told) == "not-judged"
    assert house.mark("/nothing", method="GET", status=404, headers=told) == "not-judged"


@pytest.fixture
def gguf(tmp_path: Path) -> Artifact:
    with new_artifact(tmp_path / "q", "gguf", "q", details={"prompt": SPEC.as_dict()}) as draft:
        (draft.path / "q.gguf").write_bytes(b"GGUF" + bytes(100))
    return draft.finished


def test_a_file_swapped_between_hashing_and_loading_is_not_served(
    gguf: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody waits for the hash to be taken, puts another file there, and the old one back once that is loaded."""
    loaded = FakeRuntime()

    def load(artifact: Artifact, **_: Any) -> FakeRuntime:
        path = artifact.gguf_path
        path.rename(path.with_suffix(".kept"))
        path.write_bytes(b"GGUF" + b"evil" * 25)
        path.read_bytes()
        path.with_suffix(".kept").replace(path)
        return loaded

    monkeypatch.setattr(serve.start, "load_runtime", load)
    with pytest.raises(AssayError, match="changed while it was being loaded") as refusal:
        serve_command.main([str(gguf.path), "--port", "0", "--allow-unproven"], standalone_mode=False)
    assert refusal.value.exit_code == 2
    assert "q.gguf" in str(refusal.value)
    assert loaded.closed
    assert "serving on" not in capsys.readouterr().err
    gguf.verify()  # by now nothing shows it


def test_a_bare_file_swapped_while_it_is_opened_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Assay did not make is hashed as it is opened, so it is hashed again once its files are noted."""
    path = tmp_path / "q.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    import serve.unchanged

    note = serve.unchanged.fingerprint

    def late(artifact: Artifact) -> Any:
        path.write_bytes(b"GGUF" + b"evil" * 25)
        return note(artifact)

    monkeypatch.setattr(serve.unchanged, "fingerprint", late)
    with pytest.raises(AssayError, match="not intact"):
        serve_command.main([str(path), "--port", "0", "--allow-unproven"], standalone_mode=False)


def test_the_card_speaks_of_the_artifact(house: House, unproven: House) -> None:
    for one, proven in ((house, True), (unproven, False)):
        assert json.loads(one.client.get("/v1/models").text)["data"][0]["proven"] is proven
