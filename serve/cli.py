"""The commands `assay summarize`, `assay generate` and `assay serve`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from contract.threads import threads_option

_ARTIFACT = click.argument("artifact", type=click.Path(path_type=Path))
_THREADS = threads_option()
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@_ARTIFACT
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Default: what the artifact was made for.")
@_THREADS
@_JSON
def summarize(artifact: Path, file: Path, max_new_tokens: int | None, threads: int, as_json: bool) -> None:
    """Print the summary of the document in FILE (default: standard input)."""
    from serve import once

    answer = once.summarize(artifact, once.read_document(file), max_new_tokens=max_new_tokens, threads=threads)
    summary = answer.completion.text.strip()
    if answer.completion.stop == "length":
        click.echo("the summary reached --max-new-tokens before its end", err=True)
    click.echo(json.dumps(answer.as_dict("summary", summary), ensure_ascii=False) if as_json else summary)


@click.command()
@_ARTIFACT
@click.option("--prompt", required=True, help="The text to continue or answer.")
@click.option("--raw", is_flag=True, help="No template: the tokenizer's own default special tokens.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@_THREADS
@_JSON
def generate(
    artifact: Path,
    prompt: str,
    raw: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Print the decoded continuation of a prompt, unchanged, and one newline."""
    from contract.runtime import GenerateParams
    from serve import once

    params = GenerateParams(max_new_tokens, temperature, seed=seed)
    answer = once.generate(artifact, prompt, raw=raw, params=params, threads=threads)
    text = answer.completion.text
    click.echo(json.dumps(answer.as_dict("text", text), ensure_ascii=False) if as_json else text)


@click.command()
@_ARTIFACT
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 picks a free one.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Ask every client for the key in this file.")
@click.option("--allow-unproven", is_flag=True, help="Serve without a passing verdict.")
@click.option("--verdict", type=click.Path(path_type=Path), help="Default: verdict.json in the artifact's folder.")
@click.option(
    "--require-signature", metavar="PUB", type=click.Path(path_type=Path), help="Serve only what this key signed."
)
@click.option("--bundle", type=click.Path(path_type=Path), help="Default: the signed verdict beside the artifact.")
@_THREADS
@click.option("--context", type=click.IntRange(min=1), help="Tokens of prompt and answer. Default: the model's.")
def serve(
    artifact: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    allow_unproven: bool,
    verdict: Path | None,
    require_signature: Path | None,
    bundle: Path | None,
    threads: int,
    context: int | None,
) -> None:
    """Serve a proven GGUF or ONNX folder: POST /summarize, POST /v1/chat/completions, GET /v1/models, GET /healthz."""
    from contract.artifact import open_artifact
    from contract.errors import AssayError
    from serve import signature
    from serve.as_evaluated import any_as_evaluated, as_evaluated
    from serve.proof import UnprovenError, refuse_spoken_against, refuse_unproven
    from serve.unchanged import fingerprint

    if bundle and not require_signature:
        raise click.UsageError("--bundle is for --require-signature: a signature without a trusted key proves nothing")
    if allow_unproven and require_signature:
        raise click.UsageError("--allow-unproven and --require-signature exclude each other")
    opened = open_artifact(artifact)
    if opened.kind not in ("gguf", "onnx"):
        raise AssayError(
            "only a GGUF or an ONNX folder is served",
            where=str(artifact),
            got=f"an artifact of kind {opened.kind}",
            expected="gguf or onnx",
            hint="assay export gguf MODEL --out DIR --quant q4_k_m, or assay export onnx MODEL --out DIR",
        )
    before = fingerprint(opened)
    if opened.foreign:  # its digest was computed before anything was noted of its files
        opened.verify()
    judged = None
    claim = signature.refuse_unsigned(opened, require_signature, bundle) if require_signature else None
    try:
        if verdict or claim is None or signature.has_word(opened):
            judged = any_as_evaluated(opened, refuse_unproven(opened, verdict))
        else:
            refuse_spoken_against(opened)
            judged = as_evaluated(opened, claim.basis.generate)
    except UnprovenError as refusal:
        if not allow_unproven:
            raise
        click.secho(f"WARNING: serving what is NOT PROVEN (--allow-unproven)\n{refusal}", fg="red", bold=True, err=True)

    from serve.start import start

    start(
        opened,
        judged=judged,
        before=before,
        host=host,
        port=port,
        api_key_file=api_key_file,
        threads=threads,
        context=context,
    )
    sys.stderr.write("stopped\n")
