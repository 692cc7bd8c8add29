"""What every request passes first: the API key and the size limit; and the header that every response bears."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from serve.judged import PROVEN_HEADER, mark_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/healthz",)  # answered without a key, so that a container's health check needs none


class Marked:
    """The outermost ASGI layer: every response says whether the text in it is proven, also one to a defect of ours.

    A route says "true" of the text it made; whatever else a response is, nothing in it was judged. Of an artifact that
    is not `proven` nothing can say so.
    """

    def __init__(self, app: App, *, proven: bool) -> None:
        self._app, self._proven = app, proven

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let a request through, and mark its response."""
        name = PROVEN_HEADER.encode()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = [value for header, value in message.get("headers", ()) if header.lower() == name]
                mark = mark_of(proven=self._proven, judged=said == [b"true"] and message["status"] == 200)
                others = [header for header in message.get("headers", ()) if header[0].lower() != name]
                message = {**message, "headers": [*others, (name, mark.encode())]}
            await send(message)

        await self._app(scope, receive, send_marked)


class Guard:
    """ASGI middleware. `api_key` None: everybody may ask. `max_body_bytes`: larger bodies are answered with 413."""

    def __init__(self, app: App, *, api_key: bytes | None, max_body_bytes: int) -> None:
        self._app, self._api_key, self._max_body_bytes = app, api_key, max_body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        too_large = f"a request may have {self._max_body_bytes} bytes"
        received_bytes = 0

        async def receive_limited() -> Message:
            nonlocal received_bytes
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                if received_bytes > self._max_body_bytes:
                    raise HTTPException(413, too_large)  # the one exception FastAPI lets through while it reads a body
            return message

        if not self._allowed(scope["path"], headers.get(b"authorization", b"")):
            await _refuse(
                send,
                401,
                "invalid_api_key",
                "give the API key as Authorization: Bearer KEY",
                (b"www-authenticate", b"Bearer"),
            )
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body_bytes:
            await _refuse(send, 413, "request_too_large", too_large, (b"connection", b"close"))
            return
        await self._app(scope, receive_limited, send)

    def _allowed(self, path: str, authorization: bytes) -> bool:
        if self._api_key is None or path in OPEN_PATHS:
            return True
        scheme, _, key = authorization.partition(b" ")
        return hmac.compare_digest(key.strip(), self._api_key) and scheme.lower() == b"bearer"


async def _refuse(send: Send, status: int, code: str, message: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}})
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body.encode()})
