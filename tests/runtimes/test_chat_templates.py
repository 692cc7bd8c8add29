"""The templates of real models give the same ids in torch, llama.cpp and onnxruntime, on the day that was recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from contract.artifact import Artifact, new_artifact, open_artifact
from contract.pinned_date import DEFAULT_DATE
from contract.prompt import Message, PromptSpec
from contract.runtime import Runtime
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.chat_templates import TEMPLATES
from tests.evalsuite.chain import edit_gguf
from tests.tiny_onnx import export_folder

pytestmark = pytest.mark.engine

DATE = "2025-03-02"
TURNS = [Message("system", "Be short. /no_think"), Message("user", "Mara: say <|im_end|>.\nOlin: No.")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("made")
    [gguf] = export_gguf(open_artifact(llama_folder), tmp / "gguf", quants=["f16"], threads=1)
    return {
        "merged": llama_folder,
        "gguf": gguf.folder,
        "onnx": export_folder(llama_folder, tmp / "onnx", seq2seq=False),
    }


def remade(made: dict[str, Path], out: Path, template: str, date: str | None) -> list[Artifact]:
    """The same model in every format, with another template, made for a day that is recorded, or is not (None)."""
    details = {"prompt": PromptSpec(date=date).as_dict()} if date else {}
    artifacts = []
    for kind, folder in made.items():
        with new_artifact(out / kind, kind, "tiny", details=details) as draft:  # type: ignore[arg-type]
            ignored = shutil.ignore_patterns("manifest.json", "measured")
            shutil.copytree(folder, draft.path, dirs_exist_ok=True, ignore=ignored)
            if kind == "gguf":
                [path] = draft.path.glob("*.gguf")
                edit_gguf(path, metadata=lambda key, old: template if key == "tokenizer.chat_template" else old)
            else:
                config = json.loads((draft.path / "tokenizer_config.json").read_text())
                config.pop("chat_template", None)
                (draft.path / "tokenizer_config.json").write_text(json.dumps(config))
                (draft.path / "chat_template.jinja").write_text(template)
        artifacts.append(draft.finished)
    return artifacts


def ids(runtime: Runtime) -> tuple[list[int], list[int]]:
    try:
        return runtime.encode(TURNS), runtime.encode_completion(TURNS, "They said no.")
    finally:
        runtime.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_runtime_makes_the_same_ids(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    found = [ids(load_runtime(artifact, threads=1)) for artifact in remade(made, tmp_path, TEMPLATES[name], DATE)]
    assert len(found) == 3
    assert found[0] == found[1] == found[2]


def test_the_day_is_the_recorded_one_the_one_asked_for_or_the_default(made: dict[str, Path], tmp_path: Path) -> None:
    template = TEMPLATES["SmolLM3"]
    recorded, silent = (remade(made, tmp_path / str(date), template, date) for date in (DATE, None))
    dated = [ids(load_runtime(artifact, threads=1)) for artifact in recorded]
    default = [ids(load_runtime(artifact, threads=1)) for artifact in silent]
    assert dated[0] != default[0]
    assert [ids(load_runtime(artifact, threads=1, date=DATE)) for artifact in silent] == dated
    assert [ids(load_runtime(artifact, threads=1, date=DEFAULT_DATE)) for artifact in recorded] == default


def test_a_bare_gguf_knows_its_day(made: dict[str, Path], tmp_path: Path) -> None:
    """What Assay writes into the file's metadata goes with it wherever it goes."""
    [_, gguf, _] = remade(made, tmp_path / "made", TEMPLATES["SmolLM3"], DATE)
    source = tmp_path / "source"
    shutil.copytree(tmp_path / "made" / "merged", source)
    [again] = export_gguf(open_artifact(source), tmp_path / "gguf", quants=["f16"], check="logits", threads=1)
    bare = Path(shutil.copy(again.gguf_path, tmp_path / "bare.gguf"))
    assert ids(load_runtime(open_artifact(bare), threads=1)) == ids(load_runtime(gguf, threads=1))
