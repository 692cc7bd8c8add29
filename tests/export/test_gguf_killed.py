"""Killed at random, or on a full disk: a whole GGUF or none, one clear message, and the input untouched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.artifact import open_artifact
from export.to_gguf import export_gguf
from tests.export.killing import kill_at_random_moments
from tests.tiny import make_llama

pytestmark = pytest.mark.engine

MOMENTS = 50
QUANT = "q4_k_m"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose GGUF is larger than the small disk."""
    return make_llama(tmp_path_factory.mktemp("killed") / "base", intermediate_size=1024)


@pytest.fixture(autouse=True)
def input_stays(model: Path) -> Iterator[None]:
    """Whatever happens, the model is what it was."""
    before = open_artifact(model).digest
    yield
    assert open_artifact(model).digest == before


def test_killed_at_random_moments(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    kill_at_random_moments(
        model,
        out,
        MOMENTS,
        setup="from export.to_gguf import export_gguf",
        work=f"export_gguf(model, out, quants=[{QUANT!r}], threads=1)",
    )
    expected = open_artifact(out / "warm" / QUANT, verify=True).digest
    killed, caught = [], []
    for number in range(MOMENTS):
        folder = out / str(number)
        if (folder / QUANT).exists():
            assert open_artifact(folder / QUANT, verify=True).digest == expected
            assert [path.name for path in folder.iterdir()] == [QUANT]
            continue
        killed.append(number)
        left = [path.name for path in folder.iterdir()] if folder.exists() else []
        assert all(name.startswith(f".{QUANT}.partial-") for name in left)
        caught += [number] if left else []
    print(f"{len(killed)} of {MOMENTS} killed before the end, {len(caught)} of them while writing")
    assert len(caught) >= 5
    for number in {killed[0], *caught[::6]}:
        folder = out / str(number)
        assert export_gguf(open_artifact(model), folder, quants=[QUANT], threads=1)[0].digest == expected
        assert [path.name for path in folder.iterdir()] == [QUANT]


@pytest.fixture
def small_disk(disk_of: Callable[[int], Path]) -> Path:
    """A tmpfs of 1 MiB; the vocabulary fits, the weights do not."""
    return disk_of(1)


@pytest.mark.parametrize("seen_beforehand", [True, False])
def test_a_full_disk(
    small_disk: Path,
    model: Path,
    seen_beforehand: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import assay
    from export import gguf_write

    if not seen_beforehand:  # as if another took the room
        monkeypatch.setattr(gguf_write, "refuse_without_room", lambda folder, needed: None)
    arguments = ["export", "gguf", str(model), "--out", str(small_disk), "--quant", "f16", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["assay", *arguments])
    with pytest.raises(SystemExit) as end:
        assay.main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("assay: ") == 1
    assert ("MB free" if seen_beforehand else "No space left") in said
    assert ("make room" in said) == (not seen_beforehand)
    assert not list(small_disk.iterdir())
