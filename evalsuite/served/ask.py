"""Asks an endpoint for every document's summary, with progress, and says how far it came where it dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from contract.errors import AssayError
from contract.prompt import Message, PromptSpec
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.progress import Progress
from evalsuite.served.endpoint import Answer, Endpoint


def ask(endpoint: Endpoint, spec: PromptSpec, documents: Sequence[str], max_new_tokens: int) -> list[Answer]:
    """Greedy answers to the documents, then one token for each hard text, in order.

    Args:
        endpoint: from `connect`.
        spec: the words around a document. Contents are sent without surrounding white space, as every runtime here
            renders them: servers differ in whether they strip it.
        documents: as the local artifact saw them, shortened where they had to be.
        max_new_tokens: per answer.

    Raises:
        AssayError: a request failed; the message says after how many documents.
    """
    texts = [*documents, *HARD_TEXTS]

    def one(index: int) -> Answer:
        messages = [Message(m.role, m.content.strip()) for m in spec.messages(texts[index])]
        return endpoint.chat(messages, max_new_tokens if index < len(documents) else 1)

    progress = Progress()
    progress.say(f"served: asking {endpoint.url} for {len(documents)} summaries …")
    progress.expect(len(texts))
    answers: list[Answer] = []
    try:
        for answer in _in_order(one, len(texts), endpoint.concurrency):
            answers.append(answer)
            progress.step("served")
    except AssayError as error:
        done = min(len(answers), len(documents))
        raise AssayError(
            f"{error.what}, after {done} of {len(documents)} documents",
            where=error.where,
            expected=error.expected,
            got=error.got,
            hint=error.hint,
        ) from None
    return answers


def _in_order(one: Callable[[int], Answer], count: int, concurrency: int) -> Iterator[Answer]:
    if concurrency == 1:
        yield from map(one, range(count))
        return
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="endpoint")
    try:
        yield from pool.map(one, range(count))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
