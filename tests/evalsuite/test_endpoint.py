"""The HTTP client: addresses, choosing a model, and one clear message for every kind of bad answer."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from contract.errors import AssayError
from contract.prompt import Message
from evalsuite.served.endpoint import Endpoint, connect
from tests.evalsuite.proxy import Body, answering

HELLO = [Message("user", "hello")]


def models(*names: str, **card: Any) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, **card} for name in names]}).encode()


def completion(**changes: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": " A text. "}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}, **changes}
    return json.dumps(body).encode()


def test_what_is_asked_and_what_is_taken() -> None:
    asked: list[tuple[str, Body | None, dict[str, str]]] = []

    def reply(path: str, body: Body | None, headers: dict[str, str]) -> tuple[int, bytes]:
        asked.append((path, body, headers))
        return 200, models("m", owned_by="llamacpp") if body is None else completion()

    with answering(reply) as url:
        endpoint = connect(url, api_key=b"k")
        answer = endpoint.chat(HELLO, 7)
    assert (endpoint.model, endpoint.engine, endpoint.digest) == ("m", "llamacpp", None)
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == (
        " A text. ",
        "stop",
        9,
        3,
    )
    assert [path for path, _, _ in asked] == ["/v1/models", "/v1/chat/completions"]
    assert asked[1][1] == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "temperature": 0,
        "stream": False,
    }
    assert {headers["Authorization"] for _, _, headers in asked} == {"Bearer k"}
    assert "api_key" not in repr(endpoint)


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_addresses(tail: str) -> None:
    with answering(lambda path, *_: (200 if path == "/v1/models" else 404, models("m"))) as url:
        assert connect(url + tail).url == f"{url}/v1"


@pytest.mark.parametrize("bad", ["http://", "http://host:port", "http://h/v1?key=1", "http://h:99999", "http://[::1"])
def test_addresses_that_are_none(bad: str) -> None:
    with pytest.raises(AssayError, match="not the address"):
        connect(bad)


def test_the_model_that_is_meant() -> None:
    with answering(lambda *_: (200, models("mara:latest", "olin"))) as url:
        assert connect(url, model="mara").model == "mara:latest"
        assert connect(url, model="olin").model == "olin"
        with pytest.raises(AssayError, match=r"(?s)which model.*mara:latest, olin.*--endpoint-model"):
            connect(url)
        with pytest.raises(AssayError, match=r'(?s)no model "olim".*did you mean "olin"'):
            connect(url, model="olim")
    with answering(lambda *_: (200, models())) as url, pytest.raises(AssayError, match="no model"):
        connect(url)


@pytest.mark.parametrize(
    ("status", "data", "says"),
    [
        (500, b'{"error": {"message": "out of\\nmemory"}}', "HTTP 500: out of memory"),
        (400, b'{"error": "context too long"}', "num_ctx"),
        (422, b'{"detail": [{"msg": "no"}]}', 'HTTP 422: [{"msg": "no"}]'),
        (502, b"<html>Bad Gateway</html>", "HTTP 502: <html>Bad Gateway</html>"),
        (401, b"", "asks for an API key"),
        (404, b'{"message": "no such model"}', "--endpoint-model NAME"),
        (503, b"", "--concurrency 1"),
        (302, b"", "HTTP 302"),
        (200, b"<html>hello</html>", "answers with something else"),
        (200, b"", "got: nothing"),
        (200, b"[]", "expected: a chat completion"),
        (200, b'{"choices": []}', "expected: a chat completion"),
        (200, b'{"choices": [{"message": {"content": 7}}]}', "expected: a chat completion"),
        (200, b'{"choices": [{"message": {"content": "x"}}], "usage": [1]}', "expected: a chat completion"),
        (200, b"[" * 100_000, "answers with something else"),
        (0, b"", "does not answer"),
    ],
)
def test_bad_answers(status: int, data: bytes, says: str) -> None:
    with answering(lambda *_: (status, data)) as url, pytest.raises(AssayError) as raised:
        Endpoint(f"{url}/v1", "m", "", None).chat(HELLO, 1)
    assert says in str(raised.value)


def test_what_is_not_reported_is_none() -> None:
    cases: list[tuple[dict[str, Any], tuple[object, ...]]] = [
        ({"usage": None}, ("stop", None, None)),
        ({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}, ("stop", None, 0)),
        ({"usage": {"prompt_tokens": "9"}}, ("stop", None, None)),
        ({"choices": [{"message": {"content": None}}]}, (None, 9, 3)),
    ]
    for changes, expected in cases:
        with answering(lambda *_, changes=changes: (200, completion(**changes))) as url:
            answer = Endpoint(f"{url}/v1", "m", "", None).chat(HELLO, 1)
        assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == expected


def test_silence_ends() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(AssayError, match="did not answer in time"):
            connect(url, timeout_s=0.05)


def test_half_an_answer_is_none() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        import threading

        def half() -> None:
            connection, _ = listening.accept()
            connection.recv(1 << 16)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data"')
            connection.close()

        threading.Thread(target=half, daemon=True).start()
        with pytest.raises(AssayError, match="does not answer"):
            connect(f"http://127.0.0.1:{listening.getsockname()[1]}")
