"""An OpenAI-compatible endpoint over HTTP: which model it has, and one greedy chat completion at a time.

Wire format: https://platform.openai.com/docs/api-reference/chat, as `assay serve`, llama-server, Ollama and vLLM speak
it. One connection per request, and no retry, redirect or proxy: what is judged is what answers at that address.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from contract.errors import AssayError, did_you_mean, listed
from contract.prompt import Message

TIMEOUT_S = 600.0  # of one answer: a large model on a slow CPU takes minutes
_SHOWN = 300  # characters of a foreign message
_FLEETING = ("created", "permission")  # in a model's card: the time of the start or of the request, and a random id


@dataclass(frozen=True)
class Answer:
    """One chat completion; what the endpoint did not report is None."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class Endpoint:
    """A model behind a URL. Made by `connect`."""

    url: str  # ends with /v1
    model: str
    engine: str  # what /v1/models or the Server header says
    digest: str | None  # of the artifact, where the server says it
    api_key: bytes | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S
    concurrency: int = 1  # requests under way at a time
    card: str = ""  # all that /v1/models says of the model, as JSON, but for what changes by itself

    def chat(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        """The greedy answer to `messages`.

        Raises:
            AssayError: it cannot be reached, answers with an error, or with something else than a chat completion.
        """
        body = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": False,
        }
        url = f"{self.url}/chat/completions"
        answer, _ = _request(url, body, self.api_key, self.timeout_s)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            reason = choice.get("finish_reason")
            usage = answer.get("usage") or {}
            counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _not_ours(url, "a chat completion", answer) from None
        if not isinstance(text, str | None) or not isinstance(reason, str | None):
            raise _not_ours(url, "a chat completion", answer)
        return Answer(text or "", reason, _count(counts[0], 1), _count(counts[1], 0))


def is_url(text: str) -> bool:
    """Is this an endpoint's address and not a path?"""
    return text.startswith(("http://", "https://"))


def connect(
    url: str,
    *,
    model: str | None = None,
    api_key: bytes | None = None,
    timeout_s: float = TIMEOUT_S,
    concurrency: int = 1,
) -> Endpoint:
    """Ask the endpoint which models it has.

    Args:
        url: http://host:port, with or without /v1.
        model: which one is meant; None takes the only one.
        api_key: sent as a bearer token.
        timeout_s: for each answer.
        concurrency: requests under way at a time, when it is asked for many answers.

    Raises:
        AssayError: the address is none, nothing answers there, or there is not the one model that is meant.
    """
    base = _base(url)
    where = f"{base}/models"
    answer, server = _request(where, None, api_key, timeout_s)
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
        raise _not_ours(where, "a list of models", answer)
    card = _chosen(cards, model, where)
    owner, digest = card.get("owned_by"), card.get("digest")
    engine = owner if isinstance(owner, str) and owner else server or "not reported"
    return Endpoint(
        base,
        card["id"],
        engine,
        digest if isinstance(digest, str) else None,
        api_key,
        timeout_s,
        concurrency,
        json.dumps({name: value for name, value in card.items() if name not in _FLEETING}, sort_keys=True),
    )


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AssayError("not the address of an endpoint", where=url, got=str(error)) from None
    if parts.username is not None or parts.password is not None:
        raise AssayError("a URL with a password would be written into the results", hint="give --api-key-file FILE")
    if not host or parts.query or parts.fragment:
        raise AssayError(
            "not the address of an endpoint", where=url, expected="http://host:port or http://host:port/v1"
        )
    name = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}{path.removesuffix('/v1')}/v1"


def _chosen(cards: Sequence[dict[str, Any]], wanted: str | None, where: str) -> dict[str, Any]:
    names = [card["id"] for card in cards]
    if wanted is None and len(cards) == 1:
        return cards[0]
    for card in cards:
        if wanted is not None and card["id"] in (wanted, f"{wanted}:latest"):  # Ollama's default tag
            return card
    raise AssayError(
        "which model of the endpoint is meant?" if wanted is None else f'the endpoint has no model "{wanted}"',
        where=where,
        expected="one model" if wanted is None else None,
        got=listed(names) or "no model",
        hint=did_you_mean(wanted or "", names) or ("--endpoint-model NAME" if names else "load a model in the server"),
    )


def _request(url: str, body: Any, api_key: bytes | None, timeout_s: float) -> tuple[Any, str | None]:
    """GET, or with a body POST; the JSON that came back, and the Server header."""
    parts = urlsplit(url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Accept": "application/json", "Connection": "close"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key.decode('latin-1')}"
    if body is not None:
        headers["Content-Type"] = "application/json"
    content = None if body is None else json.dumps(body).encode()
    try:
        connection = make(parts.hostname or "", parts.port, timeout=timeout_s)
        try:
            connection.request("GET" if body is None else "POST", parts.path, content, headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
    except TimeoutError:
        raise AssayError("the endpoint did not answer in time", where=url, expected=f"{timeout_s:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AssayError(
            "the endpoint does not answer", where=url, got=told, hint="is the server running, and does its log say why?"
        ) from None
    if response.status != 200:
        raise _refused(url, response.status, data, with_key=api_key is not None)
    try:
        return json.loads(data), response.headers.get("Server")
    except (ValueError, RecursionError):
        raise _not_ours(url, "JSON", data.decode("utf-8", "replace")) from None


def _refused(url: str, status: int, data: bytes, *, with_key: bool) -> AssayError:
    told = _message(data)
    what, hint = f"the endpoint answered with HTTP {status}", None
    if status in (401, 403):
        what = "the endpoint refuses the API key" if with_key else "the endpoint asks for an API key"
        hint = "--api-key-file FILE"
    elif status == 404:
        hint = "is it an OpenAI-compatible server, and the model's name right? --endpoint-model NAME"
    elif status in (429, 503):
        hint = "--concurrency 1, or try again when the server is less busy"
    elif "context" in told.lower():
        hint = "give the server the artifact's context: assay serve --context, llama-server -c, Ollama's num_ctx"
    return AssayError(what, where=url, got=f"HTTP {status}: {told}" if told else f"HTTP {status}", hint=hint)


def _message(data: bytes) -> str:
    """What an error body says: {"error": {"message"}}, {"error"}, {"message"}, {"detail"}, or its text."""
    text = data.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        while isinstance(found, dict):
            found = next(found[key] for key in ("error", "message", "detail") if key in found)
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, StopIteration, RecursionError):
        pass
    return _one_line(text)


def _not_ours(url: str, expected: str, got: Any) -> AssayError:
    text = got if isinstance(got, str) else json.dumps(got)
    return AssayError(
        "the endpoint answers with something else",
        where=url,
        expected=expected,
        got=_one_line(text) or "nothing",
        hint="is it an OpenAI-compatible server?",
    )


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _count(value: Any, least: int) -> int | None:
    """A count of tokens; None where none was reported. Some servers say 0 for a prompt they had cached."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= least else None
