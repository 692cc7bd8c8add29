"""How our own Python processes are started, so that they run our code whatever lies in the working folder.

`python -m NAME` looks for modules in the working folder first: a `contract.py`, `json.py` or `numpy.py` of the user's
there would be taken for ours, the library's or numpy's, and what it says would be measured. `-P` leaves that folder out
(https://docs.python.org/3.11/using/cmdline.html#cmdoption-P), PYTHONSAFEPATH does so for processes further down.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module, ours or pip, in a process of its own; start it with `own_environment`."""
    return [sys.executable, "-P", "-m", name, *arguments]


def own_environment() -> dict[str, str]:
    """This process's environment, with our code before whatever else PYTHONPATH names."""
    home = str(Path(__file__).resolve().parent.parent)
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([home, *others]), "PYTHONSAFEPATH": "1"}
