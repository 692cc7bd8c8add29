"""Kills work at random moments: one process forked for each, so that what is slow is imported once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Warms up, times undisturbed work, then forks one process per moment and kills it there.
_CHILD = """
import os, random, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from contract.artifact import open_artifact
from contract.errors import AssayError
{setup}
model = open_artifact({model!r})
def work(out):
    begun = time.perf_counter()
    {work}
    return time.perf_counter() - begun
out = Path({out!r})
work(out / "warm")
duration = min(work(out / "timed"), work(out / "again"))
draw = random.Random(0)
for number in range({moments}):
    pid = os.fork()
    if pid == 0:
        work(out / str(number))
        os._exit(0)
    time.sleep(draw.uniform(0, 1.1 * duration))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)
"""


def kill_at_random_moments(model: Path, out: Path, moments: int, *, setup: str, work: str) -> None:
    """Do `work` undisturbed in out/warm, then in out/0, out/1 … with a SIGKILL at some moment of each.

    Args:
        model: what is worked on, open as `model`.
        out: in `work` this is the folder for one time.
        moments: how many times.
        setup: lines of Python: the imports, above all.
        work: one statement.
    """
    script = _CHILD.format(root=str(ROOT), out=str(out), model=str(model), moments=moments, setup=setup, work=work)
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, capture_output=True, timeout=500)


def environment() -> dict[str, str]:
    """Of a process that forks: no threads beside it, and no hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
