"""The HTTP layer over a hand-written runtime: endpoints, streaming, refusals, the queue."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from contract.errors import AssayError, ModelError, NoEngineError
from contract.prompt import PromptSpec
from contract.runtime import GenerateParams
from serve.server import Served, create_app, open_socket
from serve.worker import Worker
from tests.serve.fake import FakeRuntime

SERVED = Served("tiny-q4_k_m", "d" * 64, PromptSpec(user="Sum up: {document}"), GenerateParams(40), proven=True)


class House:
    """A runtime, its worker and a client."""

    def __init__(self, runtime: FakeRuntime, most_waiting: int = 8, **options: Any) -> None:
        self.runtime = runtime
        self.worker = Worker(runtime, most_waiting)
        self.client = TestClient(create_app(self.worker, SERVED, **options), raise_server_exceptions=False)

    def chat(self, text: str = "Hello", **fields: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.client.post("/v1/chat/completions", json={"messages": messages, **fields})


@pytest.fixture
def house() -> Iterator[House]:
    house = House(FakeRuntime())
    yield house
    house.worker.close()


def chunks_of(body: str) -> list[Any]:
    events = [line for line in body.split("\n\n") if line]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def test_summarize(house: House) -> None:
    answer = house.client.post("/summarize", json={"document": "Mara: room 418?"})
    assert answer.status_code == 200
    assert answer.headers["x-assay-proven"] == "true"
    body = answer.json()
    assert body["summary"] == "Über 315 crowns — said Mara."
    assert (body["stop"], body["completion_tokens"]) == ("eos", len(house.runtime.answer))
    assert body["prompt_tokens"] == 1 + len("user: Sum up: Mara: room 418?")
    assert (body["model"], body["digest"], body["proven"]) == ("tiny-q4_k_m", "d" * 64, True)
    assert {"wait_ms", "first_token_ms", "total_ms"} <= set(body)
    assert house.runtime.prompts == ["user: Sum up: Mara: room 418?"]
    assert (house.runtime.params[0].temperature, house.runtime.params[0].max_new_tokens) == (0, 40)


def test_summarize_honours_max_new_tokens(house: House) -> None:
    body = house.client.post("/summarize", json={"document": "x", "max_new_tokens": 5}).json()
    assert (body["summary"], body["stop"]) == ("Über", "length")


def test_chat(house: House) -> None:
    body = house.chat(
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["said"],
        max_tokens=30,
        user="me",
        n=1,
        model="tiny-q4_k_m",
        response_format={"type": "text"},
        frequency_penalty=0,
        logit_bias={},
    ).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == " Über 315 crowns — "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 19
    params = house.runtime.params[0]
    assert (params.temperature, params.top_p, params.seed, params.stop) == (0.5, 0.9, 7, ("said",))


def test_chat_is_greedy_and_takes_the_room_that_is_left_unless_told_otherwise(house: House) -> None:
    assert house.chat().json()["choices"][0]["finish_reason"] == "stop"
    assert house.runtime.params[0].temperature == 0
    assert house.runtime.params[0].max_new_tokens == 200 - len("user: Hello") - 1
    assert house.chat(max_completion_tokens=4).json()["choices"][0]["finish_reason"] == "length"


def test_chat_takes_text_parts_and_every_role(house: House) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "refusal": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ]
    assert house.client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    assert house.runtime.prompts == ["system: Be brief.\nuser: a\nassistant: b\nuser: cd"]


@pytest.mark.parametrize("fields", [{}, {"stop": "said"}, {"max_tokens": 6}])
def test_streaming_equals_not_streaming(house: House, fields: dict[str, Any]) -> None:
    whole = house.chat(**fields).json()["choices"][0]
    answer = house.chat(stream=True, stream_options={"include_usage": True}, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = chunks_of(answer.text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + [whole["finish_reason"]]
    assert (last["choices"], last["usage"]) == ([], house.chat(**fields).json()["usage"])
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1


def test_models_and_health(house: House) -> None:
    (card,) = house.client.get("/v1/models").json()["data"]
    assert (card["id"], card["digest"], card["proven"], card["context_length"]) == ("tiny-q4_k_m", "d" * 64, True, 200)
    assert house.client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/summarize", {"document": "long " * 60}),
        ("/summarize", {"document": "short", "max_new_tokens": 190}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "long " * 60}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "long " * 60}], "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "short"}], "max_tokens": 190}),
    ],
)
def test_what_does_not_fit_is_refused_with_figures(house: House, path: str, body: dict[str, Any]) -> None:
    answer = house.client.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["context_length"] == 200
    assert error["prompt_tokens"] + error["max_new_tokens"] > 200
    assert str(error["prompt_tokens"]) in error["message"]
    assert not house.runtime.params


CHAT = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/summarize", {}, "document"),
        ("/summarize", {"document": 3}, "document"),
        ("/summarize", {"document": ""}, "document"),
        ("/summarize", {"document": "x", "max_new_tokens": 0}, "max_new_tokens"),
        ("/summarize", {"document": "x", "max_new_token": 3}, 'did you mean "max_new_tokens"?'),
        ("/summarize", [], ""),
        ("/summarize", {"document": "private \uf8f0"}, "U+F8F0"),
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": None}]}, "content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, "last message"),
        ("/v1/chat/completions", {**CHAT, "n": 2}, "n: "),
        ("/v1/chat/completions", {**CHAT, "tools": [{}]}, "tools"),
        ("/v1/chat/completions", {**CHAT, "logprobs": True}, "logprobs"),
        ("/v1/chat/completions", {**CHAT, "frequency_penalty": 0.1}, "frequency_penalty"),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/chat/completions", {**CHAT, "temprature": 1}, 'did you mean "temperature"?'),
        ("/v1/chat/completions", {**CHAT, "temperature": -1}, "temperature"),
        ("/v1/chat/completions", {**CHAT, "top_p": 0}, "top_p"),
        ("/v1/chat/completions", {**CHAT, "stop": ""}, "stop"),
        ("/v1/chat/completions", {**CHAT, "seed": -1}, "seed"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 2, "max_completion_tokens": 3}, "differ"),
    ],
)
def test_bad_requests_are_answered_with_what_is_wrong(house: House, path: str, body: Any, says: str) -> None:
    answer = house.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"document": "\\ud800"}',
        b'{"\\ud800": 1}',
        b"null",
        b"3",
        b'{"document": "x", "max_new_tokens": 1e400}',
        b'{"document": "x", "max_new_tokens": ' + b"9" * 5000 + b"}",
        b'{"document": "x", "max_new_tokens": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}',
    ],
)
def test_broken_bodies_are_the_clients_fault(house: House, body: bytes) -> None:
    for path in ("/summarize", "/v1/chat/completions"):
        answer = house.client.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, (path, body[:60], answer.text)
        assert answer.json()["error"]["message"]


def test_a_body_that_does_not_say_it_is_json_is_refused(house: House) -> None:
    answer = house.client.post("/summarize", content=b'{"document": "x"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_another_model_is_not_silently_served_by_this_one(house: House) -> None:
    answer = house.chat(model="gpt-9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_unknown_paths_and_methods(house: House) -> None:
    assert house.client.get("/nothing").json()["error"]["code"] == "not_found"
    assert house.client.get("/summarize").status_code == 405


def test_large_bodies_are_refused_with_and_without_a_length() -> None:
    house = House(FakeRuntime(), max_body_bytes=1000)
    declared = house.client.post("/summarize", json={"document": "x" * 2000})
    chunked = house.client.post(
        "/summarize",
        content=iter([b'{"document": "', b"x" * 2000, b'"}']),
        headers={"content-type": "application/json"},
    )
    assert [answer.status_code for answer in (declared, chunked)] == [413, 413]
    assert all(answer.json()["error"]["code"] == "request_too_large" for answer in (declared, chunked))
    house.worker.close()


def test_the_api_key_is_asked_for_everywhere_but_at_the_health_check() -> None:
    house = House(FakeRuntime(), api_key=b"s3cret")
    assert house.client.get("/healthz").status_code == 200
    wrong = ["Bearer wrong", "Bearer s3cret2", "s3cret", "Basic s3cret", "Bearer ", "Bearer é".encode()]
    for headers in ({}, *({"Authorization": value} for value in wrong)):
        for answer in (
            house.client.get("/v1/models", headers=headers),
            house.client.post("/summarize", json={"document": "x"}, headers=headers),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    right = {"Authorization": "Bearer s3cret"}
    assert house.client.get("/v1/models", headers=right).status_code == 200
    assert house.client.post("/summarize", json={"document": "x"}, headers=right).status_code == 200
    assert len(house.runtime.params) == 1
    house.worker.close()


def test_a_broken_engine_is_a_500_without_details_and_the_server_lives_on(house: House) -> None:
    house.runtime.fail_after = 3
    answer = house.client.post("/summarize", json={"document": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    streamed = house.chat(stream=True).text
    assert "internal_error" in streamed
    assert "[DONE]" not in streamed
    assert "secret" not in streamed
    house.runtime.fail_after = None
    assert house.client.post("/summarize", json={"document": "x"}).status_code == 200


@pytest.mark.parametrize("kind", [ModelError, NoEngineError])
def test_a_model_that_fails_is_not_the_clients_fault(house: House, kind: type[AssayError]) -> None:
    house.runtime.fail_after, house.runtime.failure = 0, kind("the graph does not run", where="/secret/model.onnx")
    answer = house.client.post("/summarize", json={"document": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
    assert answer.json()["error"]["message"] == "the graph does not run"


def test_requests_wait_their_turn_and_too_many_are_told_to_come_back() -> None:
    house = House(FakeRuntime(), most_waiting=1)
    house.runtime.go.clear()
    statuses: list[int] = []
    clients = [
        threading.Thread(
            target=lambda: statuses.append(house.client.post("/summarize", json={"document": "x"}).status_code)
        )
        for _ in range(2)
    ]
    for client in clients:
        client.start()
    until(lambda: len(house.worker._jobs) == 2)
    assert house.client.get("/healthz").status_code == 200  # the event loop is free meanwhile
    refused = house.client.post("/summarize", json={"document": "x"})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    house.runtime.go.set()
    for client in clients:
        client.join(timeout=30)
    assert statuses == [200, 200]
    house.worker.close()


def test_closing_the_worker_stops_what_runs() -> None:
    house = House(FakeRuntime(answer="x" * 150))
    house.runtime.go.clear()
    statuses: list[int] = []
    client = threading.Thread(target=lambda: statuses.append(house.chat().status_code))
    client.start()
    assert house.runtime.begun.wait(timeout=30)
    closing = threading.Thread(target=house.worker.close)
    closing.start()
    until(lambda: all(job.cancelled for job in house.worker._jobs))
    house.runtime.go.set()
    closing.join(timeout=30)
    client.join(timeout=30)
    assert statuses == [503]
    assert house.runtime.made <= 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/summarize", {"document": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
    ],
)
def test_a_client_that_leaves_stops_its_job(path: str, body: dict[str, Any]) -> None:
    house = House(FakeRuntime(answer="x" * 150))
    house.runtime.go.clear()
    bound = open_socket("127.0.0.1", 0)
    bound.listen()
    server = uvicorn.Server(uvicorn.Config(house.client.app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    content = json.dumps(body).encode()
    with socket.create_connection(bound.getsockname()) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        assert house.runtime.begun.wait(timeout=30)
        (job,) = house.worker._jobs
        assert not job.cancelled
    until(lambda: job.cancelled)
    house.runtime.go.set()
    until(lambda: not house.worker._jobs)
    assert house.runtime.made <= 1
    server.should_exit = True
    thread.join(timeout=30)
    bound.close()
    house.worker.close()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
