"""The end of `make demo`: serve what the run ships on a free port and ask it for one summary over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

from contract.errors import AssayError
from contract.own_process import own_environment
from flow.shipped import refused, shipped
from serve import SERVING_ON


def ask(run: Path, artifact: Path) -> dict[str, str]:
    """Start `assay serve` on an artifact, post the first test document, stop the server.

    Raises:
        AssayError: the server did not come up, or did not answer.
    """
    with (run / "eval" / "predictions" / "merged.jsonl").open(encoding="utf-8") as rows:
        document = json.loads(next(rows))["document"]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("assay")), "serve", str(artifact), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=own_environment(),
    )
    try:
        url = _url(server)
        request = urllib.request.Request(
            f"{url}/summarize", json.dumps({"document": document}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            summary = json.load(answer)["summary"]
    except urllib.error.URLError as error:
        raise AssayError("the server did not answer", got=str(error)) from None
    finally:
        server.terminate()
        server.wait(timeout=20)
    return {"url": f"{url}/summarize", "document": document, "summary": summary}


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    said = []
    timer = threading.Timer(60, server.kill)  # a server that says nothing ends the loop below too
    timer.start()
    try:
        for line in server.stderr:
            said.append(line.rstrip())
            if line.startswith(SERVING_ON):
                return line.removeprefix(SERVING_ON).strip()
    finally:
        timer.cancel()
    raise AssayError("the server did not come up", got="\n    ".join(said[-8:]))


def main() -> None:
    """Print the document, the summary and where the report is."""
    run = Path(sys.argv[1])
    try:
        artifact = shipped(run).path
        answer = ask(run, artifact)
        refusals = refused(run)
    except AssayError as error:
        print(f"assay: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    for label, said in refusals.items():
        print(f"\nassay serve {label}: refused\n    " + said.replace("\n", "\n    "))
    print(f"\nPOST {answer['url']}, served: {artifact.name}\n")
    print("\n".join("    " + line for line in answer["document"].splitlines()))
    print(f"\n→ {answer['summary']}\n")
    print(f"report: {run / 'eval' / 'report.html'}\nserve it: make serve   (or: .venv/bin/assay serve {artifact})")


if __name__ == "__main__":
    main()
