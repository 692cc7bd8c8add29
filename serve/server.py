"""The HTTP server over one runtime: /summarize, OpenAI's chat completions, the model's card and a health check."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from contract.errors import AssayError, ModelError, NoEngineError, did_you_mean
from contract.prompt import Message, PromptSpec
from contract.runtime import Completion, GenerateParams
from serve import SERVING_ON
from serve.api import (
    FINISH_REASON,
    MAX_SEED,
    ChatRequest,
    SummarizeRequest,
    SummarizeResponse,
    error_body,
    usage,
)
from serve.blank import refuse_blank
from serve.fit import DoesNotFitError
from serve.guard import App, Guard, Marked
from serve.judged import PROVEN_HEADER, as_judged, mark_of
from serve.worker import BusyError, CancelledJobError, Job, Started, Worker

MAX_BODY_BYTES = 8 << 20
_DISCONNECT_POLL_S = 0.2
_GRACE_S = 10  # how long requests under way may take to finish after SIGTERM


@dataclass(frozen=True)
class Served:
    """What is served: said in every answer."""

    name: str
    digest: str
    prompt: PromptSpec
    params: GenerateParams  # how its summaries are written, where the request asks for nothing else
    proven: bool

    def judged(self, messages: Sequence[Message], params: GenerateParams) -> bool:
        """Will this be written as the texts were that the verdict is about?"""
        return as_judged(messages, params, self.prompt, self.params)

    def marked(self, judged: bool) -> dict[str, str]:
        """The header of a response with a text."""
        return {PROVEN_HEADER: mark_of(proven=self.proven, judged=judged)}


def create_app(
    worker: Worker, served: Served, *, api_key: bytes | None = None, max_body_bytes: int = MAX_BODY_BYTES
) -> App:
    """The application over a worker, which stays the caller's to close."""
    app = FastAPI(title="Assay", docs_url=None, redoc_url=None)  # the docs pages would load scripts from elsewhere
    app.add_middleware(Guard, api_key=api_key, max_body_bytes=max_body_bytes)
    _add_error_handlers(app)
    started_s = int(time.time())

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {
            "id": served.name,
            "object": "model",
            "created": started_s,
            "owned_by": "assay",
            "digest": served.digest,
            "proven": served.proven,
            "context_length": worker.context_length,
        }
        return {"object": "list", "data": [card]}

    @app.post("/summarize")
    async def summarize(body: SummarizeRequest, request: Request, response: Response) -> SummarizeResponse:
        refuse_blank(body.document)
        messages = served.prompt.messages(body.document)
        params = replace(served.params, max_new_tokens=body.max_new_tokens or served.params.max_new_tokens)
        judged = served.judged(messages, params)
        job = worker.submit(messages, params.max_new_tokens, params)
        begun, completion = await _finish(job, request)
        response.headers.update(served.marked(judged))
        return SummarizeResponse(
            summary=completion.text.strip(),
            stop=completion.stop,
            prompt_tokens=begun.prompt_tokens,
            completion_tokens=len(completion.ids),
            wait_ms=round(begun.wait_ms, 3),
            first_token_ms=round(completion.first_token_ms, 3),
            total_ms=round(completion.total_ms, 3),
            model=served.name,
            digest=served.digest,
            proven=served.proven and judged,
        )

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        if body.model not in (None, served.name):
            hint = did_you_mean(body.model or "", [served.name]) or f'this server has "{served.name}"'
            text = f'no model "{body.model}" here; {hint}'
            return JSONResponse(error_body(text, "model_not_found", param="model"), 404)
        no_beams = body.stop_strings and served.params.num_beams > 1  # beams know no stop strings
        params = replace(
            GenerateParams() if body.temperature or no_beams else served.params,
            temperature=body.temperature or 0.0,
            top_p=body.top_p or 1.0,
            stop=body.stop_strings,
            seed=body.seed if body.seed is not None else secrets.randbelow(MAX_SEED),
        )
        messages = [message.as_message() for message in body.messages]
        # who asks as /summarize does, and names no limit, gets what /summarize gives: the judged length
        own_length = replace(params, max_new_tokens=body.limit or served.params.max_new_tokens)
        judged = served.judged(messages, own_length)
        job = worker.submit(messages, own_length.max_new_tokens if judged else body.limit, params)
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.digest[:16],
        }
        if body.stream:
            events = job.events()
            async with _stopped_with_client(job, request):
                begun = await anext(events)  # a prompt that is refused is still a plain 400
            assert isinstance(begun, Started)
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(
                _chunks(job, events, request, head, begun, with_usage),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", **served.marked(judged)},
            )
        begun, completion = await _finish(job, request)
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": FINISH_REASON[completion.stop], "logprobs": None}
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage(begun.prompt_tokens, completion)},
            headers=served.marked(judged),
        )

    return Marked(app, proven=served.proven)


@asynccontextmanager
async def _stopped_with_client(job: Job, request: Request) -> AsyncIterator[None]:
    """Cancel the job when the client goes away, or when this block is left before the job has ended."""

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_DISCONNECT_POLL_S)
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        job.cancel()
        raise
    finally:
        watcher.cancel()


async def _finish(job: Job, request: Request) -> tuple[Started, Completion]:
    begun = completion = None
    async with _stopped_with_client(job, request):
        async for event in job.events():
            if isinstance(event, Started):
                begun = event
            elif isinstance(event, Completion):
                completion = event
    assert begun is not None
    assert completion is not None
    return begun, completion


async def _chunks(
    job: Job,
    events: AsyncIterator[Started | str | Completion],
    request: Request,
    head: dict[str, Any],
    begun: Started,
    with_usage: bool,
) -> AsyncIterator[bytes]:
    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _sse(
            {**head, "object": "chat.completion.chunk", "choices": [choice], **({"usage": None} if with_usage else {})}
        )

    async with _stopped_with_client(job, request):
        try:
            yield chunk({"role": "assistant", "content": ""})
            async for event in events:
                if isinstance(event, str):
                    yield chunk({"content": event})
                elif isinstance(event, Completion):
                    yield chunk({}, FINISH_REASON[event.stop])
                    if with_usage:
                        yield _sse(
                            {
                                **head,
                                "object": "chat.completion.chunk",
                                "choices": [],
                                "usage": usage(begun.prompt_tokens, event),
                            }
                        )
                    yield b"data: [DONE]\n\n"
        except CancelledJobError:
            yield _sse(error_body("generation was stopped", "stopped", kind="server_error"))
        except Exception as error:  # the status line is out: all that is left is an error event, and no [DONE]
            traceback.print_exception(error, file=sys.stderr)
            yield _sse(error_body("generation failed", "internal_error", kind="server_error"))


def _sse(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(_validation_body(error, request), 400)

    @app.exception_handler(DoesNotFitError)
    async def does_not_fit(_: Request, error: DoesNotFitError) -> JSONResponse:
        figures = {
            "prompt_tokens": error.prompt_tokens,
            "max_new_tokens": error.max_new_tokens,
            "context_length": error.context_length,
        }
        return JSONResponse(error_body(str(error), "context_length_exceeded", figures=figures), 400)

    @app.exception_handler(AssayError)
    async def refused(_: Request, error: AssayError) -> JSONResponse:
        return JSONResponse(error_body(str(error), "invalid_prompt"), 400)

    @app.exception_handler(ModelError)
    @app.exception_handler(NoEngineError)
    async def failed(_: Request, error: AssayError) -> JSONResponse:
        return JSONResponse(error_body(error.what, "model_failed", kind="server_error"), 500)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> JSONResponse:
        return JSONResponse(
            error_body(str(error), "overloaded", kind="server_error"),
            503,
            headers={"Retry-After": str(error.retry_after_s)},
        )

    @app.exception_handler(CancelledJobError)
    async def cancelled(_: Request, error: CancelledJobError) -> JSONResponse:
        return JSONResponse(error_body("generation was stopped", "stopped", kind="server_error"), 503)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
        body = error_body(str(error.detail), codes.get(error.status_code, "bad_request"))
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("generation failed", "internal_error", kind="server_error"), 500)


def _validation_body(error: RequestValidationError, request: Request) -> dict[str, Any]:
    """One message from everything that is wrong with a body; values are not echoed."""
    if "json" not in request.headers.get("content-type", "json"):
        return error_body("send JSON, with the header Content-Type: application/json", "invalid_content_type")
    problems, params = [], []
    for item in error.errors():
        where = [str(part) for part in item["loc"] if part != "body"]
        params.append(".".join(where))
        if item["type"] == "json_invalid":
            problems, params = [f"the body is not JSON: {item['ctx']['error']}"], []
            break
        known = ChatRequest.model_fields if "chat" in request.url.path else SummarizeRequest.model_fields
        hint = did_you_mean(where[-1], known) if item["type"] == "extra_forbidden" and len(where) == 1 else None
        text = "not a field that is known here" if item["type"] == "extra_forbidden" else item["msg"]
        problems.append(": ".join(part for part in (".".join(where), text) if part) + (f"; {hint}" if hint else ""))
    return error_body("; ".join(problems[:8]), "invalid_request", param=params[0] if params else None)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address (port 0: any free one), not yet listening.

    Raises:
        AssayError: the address is taken or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        raise _unusable(host, port, error) from None


def _unusable(host: str, port: int, error: OSError) -> AssayError:
    return AssayError(
        "the address cannot be served on",
        where=f"{host}:{port}",
        got=error.strerror or str(error),
        hint="give another --port; 0 takes a free one",
    )


def url_of(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: App, bound: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then let what is under way finish and return. The URL goes to stderr.

    Raises:
        AssayError: somebody else began to listen there meanwhile.
    """
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(128)
    except OSError as error:
        raise _unusable(host, port, error) from None
    print(f"{SERVING_ON}{url_of(bound)}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    # uvicorn raises the signal it was stopped with once more when it is done; by then it has been obeyed
    former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
