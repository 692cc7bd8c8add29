"""One prompt, one answer, for the command line: load an artifact, generate, free it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, open_artifact
from contract.artifact_prompt import prompt_of
from contract.errors import AssayError
from contract.prompt import Message
from contract.runtime import Completion, GenerateParams, Runtime
from serve.blank import refuse_blank
from serve.fit import answer_tokens


@dataclass(frozen=True)
class Answer:
    """What came out, and of what."""

    artifact: Artifact
    engine: str
    completion: Completion

    def as_dict(self, text_key: str, text: str) -> dict[str, Any]:
        """For --json; *_ms are wall time in milliseconds."""
        return {
            text_key: text,
            "stop": self.completion.stop,
            "prompt_tokens": self.completion.prompt_tokens,
            "completion_tokens": len(self.completion.ids),
            "first_token_ms": round(self.completion.first_token_ms, 3),
            "total_ms": round(self.completion.total_ms, 3),
            "engine": self.engine,
            "model": self.artifact.name,
            "digest": self.artifact.digest,
        }


def read_document(path: Path) -> str:
    """The text of a file, or of standard input for "-".

    Raises:
        AssayError: it cannot be read, or is not UTF-8.
    """
    try:
        return (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise AssayError("the document cannot be read", where=str(path), got=error.strerror) from None
    except UnicodeDecodeError as error:
        raise AssayError("the document is not UTF-8", where=str(path), got=str(error)) from None


def summarize(path: Path, document: str, *, max_new_tokens: int | None, threads: int) -> Answer:
    """The summary of a document, asked for in the artifact's own words and written as its recipe says.

    Raises:
        AssayError: the document is empty, or does not fit the context (it is never cut).
    """
    refuse_blank(document)
    artifact = open_artifact(path, verify=True)
    messages = prompt_of(artifact).messages(document)
    params = GenerateParams.recorded(artifact.details)
    if max_new_tokens is not None:
        params = replace(params, max_new_tokens=max_new_tokens)
    own_length = max_new_tokens is None
    return _answer(artifact, lambda runtime: runtime.encode(messages), params, threads, own_length=own_length)


def generate(path: Path, prompt: str, *, raw: bool, params: GenerateParams, threads: int) -> Answer:
    """The continuation of a prompt: one user turn through the model's template, or (raw) the text itself.

    Raises:
        AssayError: prompt and answer do not fit the context.
    """
    messages: Sequence[Message] = [Message("user", prompt)]
    return _answer(
        open_artifact(path, verify=True),
        lambda runtime: runtime.encode_raw(prompt) if raw else runtime.encode(messages),
        params,
        threads,
    )


def _answer(
    artifact: Artifact,
    encode: Callable[[Runtime], list[int]],
    params: GenerateParams,
    threads: int,
    *,
    own_length: bool = False,
) -> Answer:
    """`own_length`: nobody asked for `max_new_tokens`, so no more than the model writes at all."""
    from runtimes import load_runtime

    with closing(load_runtime(artifact, threads=threads)) as runtime:
        ids = encode(runtime)
        params = params.within(runtime.target_length) if own_length else params
        tokens = answer_tokens(len(ids), params.max_new_tokens, runtime.context_length, runtime.target_length)
        (completion,) = runtime.generate([ids], replace(params, max_new_tokens=tokens))
        return Answer(artifact, runtime.engine, completion)
