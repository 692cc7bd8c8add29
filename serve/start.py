"""From an artifact to a running server: bind, load, serve, and free everything at the end."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from contract.api_key import read_api_key
from contract.artifact import Artifact
from contract.artifact_prompt import prompt_of
from contract.prompt import PromptSpec
from contract.runtime import GenerateParams
from runtimes import load_runtime
from serve.server import Served, create_app, open_socket, run
from serve.unchanged import Fingerprint, refuse_changed
from serve.worker import Worker


def start(
    artifact: Artifact,
    *,
    judged: tuple[PromptSpec, GenerateParams] | None,
    before: Fingerprint,
    host: str,
    port: int,
    api_key_file: Path | None,
    threads: int,
    context: int | None,
) -> None:
    """Serve until stopped by a signal. The address and the key are looked at before the model is loaded.

    Args:
        artifact: what was hashed.
        judged: how it was asked and how it wrote when it passed; None: it is not proven.
        before: its `serve.unchanged.fingerprint` from before it was hashed.
        host: the address to listen on.
        port: 0 takes a free one.
        api_key_file: holds the key to ask every client for.
        threads: CPU threads.
        context: tokens of prompt and answer; None takes the model's own.

    Raises:
        AssayError: the address is taken, the key file is unusable, the model cannot be loaded, or its files changed
            since they were hashed.
    """
    api_key = read_api_key(api_key_file) if api_key_file else None
    spec, params = judged or (prompt_of(artifact), GenerateParams.recorded(artifact.details))
    with (
        closing(open_socket(host, port)) as bound,
        closing(load_runtime(artifact, threads=threads, context_length=context, parallel=1, date=spec.date)) as runtime,
        closing(Worker(runtime)) as worker,
    ):
        refuse_changed(artifact, before)
        own = params.within(runtime.target_length)
        served = Served(artifact.name, artifact.digest, spec, own, proven=judged is not None)
        run(create_app(worker, served, api_key=api_key), bound)
