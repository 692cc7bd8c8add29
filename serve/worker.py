"""One thread that owns the runtime: jobs run one after another, a few wait, the event loop never blocks.

Engines are not thread-safe, so every call (tokenizing too) happens in this thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from contract.prompt import Message
from contract.runtime import Completion, GenerateParams, Runtime
from serve.fit import answer_tokens


class BusyError(Exception):
    """As many jobs wait as may."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"too many requests are waiting; try again in {retry_after_s} s")


class CancelledJobError(Exception):
    """The job was stopped: its client is gone, or the server is closing."""


@dataclass(frozen=True)
class Started:
    """The first event of a job: the prompt fits and generation begins."""

    prompt_tokens: int
    wait_ms: float  # from being submitted to being begun


class Job:
    """One generation, seen from the event loop that submitted it."""

    def __init__(self, messages: Sequence[Message], max_new_tokens: int | None, params: GenerateParams) -> None:
        self.messages, self.max_new_tokens, self.params = tuple(messages), max_new_tokens, params
        self.submitted_s = time.perf_counter()
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Started | str | Completion | Exception] = asyncio.Queue()

    @property
    def cancelled(self) -> bool:
        """Was it stopped."""
        return self._stop.is_set()

    def cancel(self) -> None:
        """Stop before the next token; harmless when it has ended."""
        self._stop.set()

    def put(self, event: Started | str | Completion | Exception) -> None:
        """Hand an event over to the event loop. Called in the worker thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has closed: nobody listens any more
            self.cancel()

    async def events(self) -> AsyncIterator[Started | str | Completion]:
        """`Started`, then pieces of text, then the Completion.

        Raises:
            AssayError: the prompt is bad or does not fit.
            CancelledJobError: it was stopped.
            Exception: whatever else the runtime raised.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Completion):
                return


class Worker:
    """Runs jobs on a runtime, one at a time. `most_waiting`: jobs that may wait behind the one that runs."""

    def __init__(self, runtime: Runtime, most_waiting: int = 8) -> None:
        self.context_length = runtime.context_length
        self._runtime = runtime
        self._most_waiting = most_waiting
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runtime")
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()  # the one that runs and those that wait
        self._last_job_s = 1.0

    def submit(self, messages: Sequence[Message], max_new_tokens: int | None, params: GenerateParams) -> Job:
        """Queue a generation. `max_new_tokens` None: what the context has left.

        Raises:
            BusyError: too many wait already.
        """
        with self._lock:
            if len(self._jobs) > self._most_waiting:
                raise BusyError(retry_after_s=1 + int(self._last_job_s * len(self._jobs)))
            job = Job(messages, max_new_tokens, params)
            self._jobs.add(job)
        self._pool.submit(self._run, job)
        return job

    def close(self) -> None:
        """Stop what runs and what waits, and wait for the thread to end. The runtime stays open."""
        with self._lock:
            for job in self._jobs:
                job.cancel()
        self._pool.shutdown(wait=True)

    def _run(self, job: Job) -> None:
        began_s = time.perf_counter()
        try:
            self._generate(job, wait_ms=(began_s - job.submitted_s) * 1000)
        except Exception as error:  # handed to whoever awaits the job, who reports it
            job.put(error)
        finally:
            with self._lock:
                self._jobs.discard(job)
                self._last_job_s = time.perf_counter() - began_s

    def _generate(self, job: Job, wait_ms: float) -> None:
        if job.cancelled:
            raise CancelledJobError
        prompt = self._runtime.encode(job.messages)
        tokens = answer_tokens(len(prompt), job.max_new_tokens, self.context_length, self._runtime.target_length)
        job.put(Started(len(prompt), wait_ms))
        for event in self._runtime.stream(prompt, replace(job.params, max_new_tokens=tokens)):
            if job.cancelled:
                raise CancelledJobError
            job.put(event)
