"""The shapes of requests and responses: /summarize, and the part of OpenAI's chat API that is honoured.

Fields follow https://platform.openai.com/docs/api-reference/chat. A field that is not listed here is refused, and so is
one whose value asks for something that is not done (n=2, penalties, tools): no wish is dropped silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from contract.prompt import Message
from contract.runtime import Completion

MAX_SEED = 2**32 - 1  # llama.cpp's seed is an unsigned 32-bit number
FINISH_REASON: dict[str, Literal["stop", "length"]] = {"eos": "stop", "length": "length"}


class Request(BaseModel):
    """A request body: strict types, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SummarizeRequest(Request):
    """POST /summarize."""

    document: str = Field(min_length=1)
    max_new_tokens: int | None = Field(None, ge=1)


class SummarizeResponse(BaseModel):
    """What /summarize answers; *_ms are wall time in milliseconds."""

    summary: str
    stop: Literal["eos", "length"]
    prompt_tokens: int
    completion_tokens: int
    wait_ms: float
    first_token_ms: float
    total_ms: float
    model: str
    digest: str
    proven: bool  # true exactly where the header says so: a proven artifact, asked in the judged way


class TextPart(Request):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Request):
    """One turn. Fields that OpenAI's clients send back as null are taken as null only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[None, BeforeValidator(lambda value: value or None)] = None
    annotations: Annotated[None, BeforeValidator(lambda value: value or None)] = None

    def as_message(self) -> Message:
        """The turn as every runtime takes it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class StreamOptions(Request):
    """include_usage adds a last chunk with the token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(Request):
    """Plain text only."""

    type: Literal["text"]


class ChatRequest(Request):
    """POST /v1/chat/completions. Temperature is 0 (greedy) unless given: that is what was proven."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: str | list[str] | None = None
    # labels for the caller's own books: they change nothing that is generated
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # what is not done: only the value that asks for nothing is taken
    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        if not 0 <= len(self.stop_strings) <= 16 or "" in self.stop_strings:
            raise ValueError("stop takes up to 16 strings, none of them empty")
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's; an answer is not continued")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def limit(self) -> int | None:
        """The most new tokens asked for, or None."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def usage(prompt_tokens: int, completion: Completion) -> dict[str, int]:
    """OpenAI's usage object."""
    made = len(completion.ids)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}


def error_body(
    message: str,
    code: str,
    *,
    param: str | None = None,
    kind: str = "invalid_request_error",
    figures: dict[str, int] | None = None,
) -> dict[str, Any]:
    """OpenAI's error object; `figures` (token counts) are added beside the message.

    Lone surrogates, which JSON can carry and UTF-8 cannot, are written as escapes.
    """
    return {
        "error": {
            "message": _printable(message),
            "type": kind,
            "param": param and _printable(param),
            "code": code,
            **(figures or {}),
        }
    }


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
