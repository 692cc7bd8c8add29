"""Asks an endpoint for every document's summary, with progress; where it dies, what it answered so far is kept.

An address says little of what stands behind it, so answers are kept only until the evaluation they were asked for is
complete: the next one asks anew. An interrupted one goes on with them where the endpoint says the same of itself (its
address, model, card and digest) and still answers the longest documents as it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from contract.errors import AssayError
from contract.prompt import Message, PromptSpec
from evalsuite.cache import Cache
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.progress import Progress
from evalsuite.served.endpoint import Answer, Endpoint

ANSWERS = "answer"  # the cache's kind of entry
_ASKED_AGAIN = 3


@dataclass(frozen=True)
class _Question:
    messages: tuple[Message, ...]
    max_tokens: int
    is_document: bool
    key: str

    @property
    def characters(self) -> int:
        return sum(len(message.content) for message in self.messages)


def ask(
    endpoint: Endpoint, spec: PromptSpec, documents: Sequence[str], max_new_tokens: int, cache: Cache
) -> list[Answer]:
    """Greedy answers to the documents, then one token for each hard text, in order.

    Args:
        endpoint: from `connect`.
        spec: the words around a document. Contents are sent without surrounding white space, as every runtime here
            renders them: servers differ in whether they strip it.
        documents: as the local artifact saw them.
        max_new_tokens: per answer.
        cache: where answers are kept as ANSWERS, each as it comes.

    Raises:
        AssayError: a request failed; the message says after how many documents, and what is kept.
    """
    questions = _questions(endpoint, spec, documents, max_new_tokens, cache)
    entries = [cache.get(ANSWERS, question.key, Answer) for question in questions]
    found = {index: entry for index, entry in enumerate(entries) if entry is not None}
    progress = Progress()
    progress.say(f"served: asking {endpoint.url} for {len(documents)} summaries …")

    def one(index: int) -> Answer:
        answer = endpoint.chat(questions[index].messages, questions[index].max_tokens)
        cache.put(ANSWERS, questions[index].key, answer)
        return answer

    try:
        if found and not _answers_as_before(endpoint, questions, found, progress):
            cache.forget(ANSWERS)
            found = {}
        missing = [index for index in range(len(questions)) if index not in found]
        progress.expect(len(missing))
        for index, answer in zip(missing, _in_order(one, missing, endpoint.concurrency), strict=True):
            found[index] = answer
            progress.step("served")
    except AssayError as error:
        answered = [q.is_document for q in questions if cache.get(ANSWERS, q.key, Answer)]
        kept = f"run it again to go on: {len(answered)} answers are kept" if answered else None
        raise AssayError(
            f"{error.what}, after {sum(answered)} of {len(documents)} documents",
            where=error.where,
            expected=error.expected,
            got=error.got,
            hint="; ".join(filter(None, [error.hint, kept])),
        ) from None
    return [found[index] for index in range(len(questions))]


def _questions(
    endpoint: Endpoint, spec: PromptSpec, documents: Sequence[str], max_new_tokens: int, cache: Cache
) -> list[_Question]:
    who = (endpoint.url, endpoint.model, endpoint.engine, endpoint.digest, endpoint.card)
    questions = []
    for index, text in enumerate((*documents, *HARD_TEXTS)):
        messages = tuple(Message(m.role, m.content.strip()) for m in spec.messages(text))
        is_document = index < len(documents)
        most = max_new_tokens if is_document else 1
        said = [(message.role, message.content) for message in messages]
        questions.append(_Question(messages, most, is_document, cache.key(who=who, at=index, said=said, most=most)))
    return questions


def _answers_as_before(
    endpoint: Endpoint, questions: Sequence[_Question], kept: Mapping[int, Answer], progress: Progress
) -> bool:
    """Nothing that it says of itself shows another template, context or system turn, so the longest are asked again."""
    longest = sorted(kept, key=lambda index: (questions[index].is_document, questions[index].characters))
    again = longest[-_ASKED_AGAIN:]
    unnamed = "" if endpoint.digest else "; it does not say which artifact it serves"
    progress.say(f"served: {len(kept)} answers are kept; asking for {len(again)} of them again{unnamed} …")
    same = all(_same(endpoint.chat(questions[at].messages, questions[at].max_tokens), kept[at]) for at in again)
    if not same:
        progress.say("served: it answers otherwise than before, so everything is asked anew")
    return same


def _same(now: Answer, before: Answer) -> bool:
    """Counts only where both were told: some servers leave out what they had cached."""
    counts = {count for count in (now.prompt_tokens, before.prompt_tokens) if count is not None}
    return (now.text, now.finish_reason) == (before.text, before.finish_reason) and len(counts) < 2


def _in_order(one: Callable[[int], Answer], indices: Sequence[int], concurrency: int) -> Iterator[Answer]:
    if concurrency == 1:
        yield from map(one, indices)
        return
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="endpoint")
    try:
        yield from pool.map(one, indices)
    except AssayError:
        pool.shutdown(wait=True, cancel_futures=True)  # what is under way may still be answered, and is kept
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
