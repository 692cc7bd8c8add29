"""Latency and memory of one artifact, in its own process: python -P -m evalsuite.speed < question.json > answer.json

Greedy decoding, one document at a time, a fixed number of output tokens (stop ids ignored), after one warm-up. Time per
output token is (total - first token) / (tokens - 1) for each document, as vLLM's serving benchmark defines it; p50 and
p95 are over documents. Peak memory is VmHWM: everything resident at its highest, mapped weights and the interpreter
with its libraries included, because that is what a machine must have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from contract.artifact import Artifact, open_artifact
from contract.errors import AssayError
from contract.memory import peak_rss_bytes
from contract.own_process import own_environment, own_module
from contract.runtime import GenerateParams
from evalsuite.results import Speed

OUTPUT_TOKENS = 32
DOCUMENTS = 6
_TIMEOUT_S = 1800


def measure_speed(artifact: Artifact, prompts: Sequence[Sequence[int]], threads: int) -> Speed:
    """Ask a fresh process.

    Args:
        artifact: what to load, on the weights it was made for.
        prompts: ids of the documents; the first DOCUMENTS are used.
        threads: CPU threads.

    Raises:
        AssayError: the process fails, with the end of what it said.
    """
    question = {
        "path": str(artifact.path.absolute()),
        "threads": threads,
        "prompts": [list(ids) for ids in prompts[:DOCUMENTS]],
    }
    try:
        done = subprocess.run(
            own_module("evalsuite.speed"),
            input=json.dumps(question),
            text=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
            env=own_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AssayError(
            "measuring the speed took too long", where=str(artifact.path), got=f"no answer in {_TIMEOUT_S} s"
        ) from None
    if done.returncode != 0:
        raise AssayError(
            "the speed could not be measured",
            where=str(artifact.path),
            got="\n    ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}",
        )
    return Speed(**json.loads(done.stdout.strip().splitlines()[-1]))


def _measure(path: str, prompts: Sequence[Sequence[int]], threads: int) -> Speed:
    import numpy as np

    from runtimes import load_runtime

    artifact = open_artifact(path)
    started = time.perf_counter()
    runtime = load_runtime(artifact, threads=threads, parallel=1)
    load_s = time.perf_counter() - started
    room = runtime.target_length or runtime.context_length - max(len(prompt) for prompt in prompts)
    params = GenerateParams(max_new_tokens=min(OUTPUT_TOKENS, room), ignore_stop=True)
    runtime.generate(prompts[:1], params)
    done = [runtime.generate([prompt], params)[0] for prompt in prompts]
    runtime.close()
    first, first_p95 = (float(v) for v in np.percentile([completion.first_token_ms for completion in done], [50, 95]))
    rest = [(c.total_ms - c.first_token_ms) / max(1, len(c.ids) - 1) for c in done]
    tokens = sum(len(completion.ids) for completion in done)
    total_s = sum(completion.total_ms for completion in done) / 1000
    per_token, per_token_p95 = (float(value) for value in np.percentile(rest, [50, 95]))
    return Speed(
        load_s,
        first,
        first_p95,
        per_token,
        per_token_p95,
        tokens / total_s,
        len(done) / total_s,
        peak_rss_bytes(),
        threads,
        len(done),
        round(sum(len(prompt) for prompt in prompts) / len(prompts)),
        len(done[0].ids),
    )


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    try:
        answer = _measure(asked["path"], asked["prompts"], asked["threads"])
    except AssayError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(answer)))
