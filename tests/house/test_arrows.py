"""The arrows between rooms hold, contract stays light, and help stays quick to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("assets", "contract", "evalsuite", "export", "flow", "runtimes", "serve", "trainer")
MAY_IMPORT = {
    "assets": set(),
    "contract": set(),
    "trainer": {"contract"},
    "runtimes": {"contract"},
    "export": {"contract", "runtimes"},
    "evalsuite": {"contract", "runtimes"},
    "serve": {"contract", "runtimes"},
    "flow": set(ROOMS),
}
HEAVY = {"torch", "transformers", "onnxruntime", "llama_cpp", "peft", "trl", "datasets", "bitsandbytes", "matplotlib"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """First parts of everything a file imports; TYPE_CHECKING blocks count as not top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def crossings(room: str, files: list[Path]) -> list[str]:
    return [
        f"{path.name} imports {other}"
        for path in files
        for other in sorted(imports(path) & set(ROOMS) - {room} - MAY_IMPORT[room])
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_arrows(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert crossings(room, files) == []


def test_a_wrong_arrow_is_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from evalsuite.gate import judge\n    return judge\n")
    assert crossings("trainer", [bad]) == ["bad.py imports evalsuite"]


def test_contract_imports_nothing_heavy() -> None:
    for path in (ROOT / "contract").glob("*.py"):
        assert not imports(path, top_level_only=True) & HEAVY, path


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["data"],
        ["train"],
        ["merge"],
        ["export"],
        ["export", "gguf"],
        ["export", "onnx"],
        ["export", "lora-gguf"],
        ["export", "ollama"],
        ["score"],
        ["eval"],
        ["gate"],
        ["verify"],
        ["summarize"],
        ["generate"],
        ["serve"],
        ["inspect"],
        ["doctor"],
    ],
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys, assay\ntry:\n    assay.main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert not loaded & (HEAVY | {"numpy", "pydantic", "fastapi"})
    assert "Usage:" in done.stdout


def test_every_file_says_its_job() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
