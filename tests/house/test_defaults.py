"""What a command takes where nothing is said: the recipe file's run folder, as make does; the cores it may use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import assay
import flow.run
import trainer.data
import trainer.train
from contract.cpu import usable_cores
from contract.recipe import run_folder
from flow.cli import run_command
from flow.train_cli import train

ROOT = Path(__file__).resolve().parents[2]


class _CaughtError(Exception):
    """Ends a command where its work would begin."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `assay run` and `assay train` hand over to the stage that does the work."""
    seen: dict[str, Any] = {}

    def stage(recipe: Any, *paths: Any, **settings: Any) -> None:
        seen.update(settings, out=paths[-1])
        raise _CaughtError

    monkeypatch.setattr(flow.run, "run_recipe", stage)
    monkeypatch.setattr(trainer.train, "train_adapter", stage)
    monkeypatch.setattr(trainer.data, "load_splits", lambda *_: None)
    return seen


def typed(command: click.Command, *arguments: object) -> None:
    with pytest.raises(_CaughtError):
        command.main([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A recipe that somebody copied, and whose name was left as it is."""
    return Path(shutil.copy(ROOT / "recipes" / "tiny.yaml", tmp_path / "mine.v2.yaml"))


def test_a_copied_recipe_does_not_run_in_the_first_ones_folder(copied: Path, given: dict[str, Any]) -> None:
    typed(run_command, copied)
    assert given["out"] == run_folder(copied) == Path("runs/mine.v2")
    typed(train, copied)
    assert given["out"] == Path("runs/mine.v2/adapter")
    typed(run_command, copied, "--out", "elsewhere")
    assert given["out"] == Path("elsewhere")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["serve", "run", "demo", "eval-all"])
@pytest.mark.parametrize("name", ["mine.v2.yaml", "tiny.yaml", "deep/er/x.yml"])
def test_make_and_assay_mean_the_same_folder(target: str, name: str) -> None:
    done = subprocess.run(
        ["make", "-n", target, f"RECIPE=recipes/{name}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    [line] = [line for line in done.stdout.splitlines() if "runs/" in line and "flow.demo" not in line]
    assert str(run_folder(f"recipes/{name}")) in line.replace(")", " ").split()
    assert "--threads" not in line  # whatever assay takes by itself


def options() -> Iterator[click.Option]:
    context = click.Context(assay.cli)
    for name in assay.COMMANDS:
        command = assay.cli.get_command(context, name)
        assert command is not None
        below = command.commands.values() if isinstance(command, click.Group) else [command]
        for one in below:
            yield from (
                option for option in one.params if isinstance(option, click.Option) and option.name == "threads"
            )


def test_every_command_takes_the_cores_it_may_use() -> None:
    found = list(options())
    assert len(found) >= 10
    for option in found:
        assert option.default is usable_cores  # asked when the command runs, so that help is alike everywhere
        assert option.show_default == "the cores this process may use"


def test_the_cores_are_counted_when_the_command_runs(
    copied: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    typed(run_command, copied)
    assert given["threads"] == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    typed(train, copied)
    assert given["threads"] == usable_cores() > 0
    typed(run_command, copied, "--threads", 3)
    assert given["threads"] == 3
