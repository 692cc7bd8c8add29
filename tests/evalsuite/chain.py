"""A whole chain made by the real rooms: base, adapter trained on NF4, merged, GGUFs; and examples to score it on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from contract.artifact import Artifact, Parent, new_artifact, open_artifact
from contract.example import Example
from contract.limits import Quant
from contract.prompt import PromptSpec
from tests.kit.trained import Trained
from tests.tiny import make_adapter, make_llama

QUANTS: list[Quant] = ["f16", "q8_0", "q4_k_m"]


@dataclass(frozen=True)
class Chain:
    """A base, an adapter trained on it as NF4, what was merged onto those very weights, and its GGUFs."""

    base: Path
    artifacts: dict[str, Artifact]  # "adapter", "merged", "f16", "q8_0", "q4_k_m"
    other_merged: Path  # another adapter on the same base

    @cached_property
    def base_tensors(self) -> dict[str, Any]:
        """The float32 weights the adapter was trained on, under the merged model's names."""
        from runtimes.torch_load import load_adapter

        state = load_adapter(self.artifacts["adapter"], base_weights="nf4", merge_dtype=None).model.state_dict()
        return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}


def make_chain(tmp: Path, seed: int) -> Chain:
    """Made by the real rooms from random weights of that seed."""
    base = make_llama(tmp / "base", seed=seed)
    one, other = (make_adapter(tmp / f"peft-{at}", base, seed=seed + at) for at in (1000, 2000))
    return chain_of(tmp, base, one, other)


def trained_chain(tmp: Path, model: Trained) -> Chain:
    """Made by the real rooms from a model that has learned its task; `other_merged` is its adapter half-way."""
    return chain_of(tmp, model.base, model.peft, model.early)


def chain_of(tmp: Path, base: Path, peft: Path, other_peft: Path) -> Chain:
    """What the real rooms make of a base and two adapters that were trained on it as NF4."""
    from export.merge import merge_adapter
    from export.to_gguf import export_gguf

    adapter = make_adapter_artifact(tmp / "adapter", base, peft)
    other = make_adapter_artifact(tmp / "other-adapter", base, other_peft)
    merged = merge_adapter(adapter, tmp / "merged", base_weights="nf4")
    other_merged = merge_adapter(other, tmp / "other", base_weights="nf4")
    made = export_gguf(merged, tmp / "gguf", quants=QUANTS)
    return Chain(
        base, {"adapter": adapter, "merged": merged, **dict(zip(QUANTS, made, strict=True))}, other_merged.path
    )


NAMES = ("Mara", "Olin", "Kesto", "Tarvo", "Sela", "Brin")


def examples(count: int = 24) -> list[Example]:
    found = []
    for index in range(count):
        one, two = NAMES[index % 6], NAMES[(index + 1 + index // 6) % 6]
        found.append(
            Example(
                f"d{index}",
                f"{one}: Could we take bus {30 + index} at {index % 12 + 1}?\n{two}: No, "
                f"it leaves from Tarvo. I will tell {one} later.",
                (f"{one} asks {two} about bus {30 + index}.",),
            )
        )
    return found


def make_adapter_artifact(path: Path, base: Path, peft: Path, quant: str = "nf4") -> Artifact:
    """What the trainer leaves: plain PEFT, tokenizer, generation config, and a manifest."""
    details = {
        "prompt": PromptSpec().as_dict(),
        "generate": {"max_new_tokens": 12},
        "trained_on": {"quant": quant, "block_size": 64, "double_quant": True, "compute_dtype": "float32"},
    }
    with new_artifact(
        path, "adapter", "tiny", parents=[Parent("base", str(base), open_artifact(base).digest)], details=details
    ) as draft:
        for folder, names in (
            (peft, ("adapter_config.json", "adapter_model.safetensors")),
            (
                base,
                (
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "chat_template.jinja",
                    "generation_config.json",
                ),
            ),
        ):
            for name in names:
                if (folder / name).is_file():
                    shutil.copy(folder / name, draft.path / name)
    return draft.finished


def remake(artifact: Artifact, path: Path, damage: Callable[[Path], object]) -> Artifact:
    """The same artifact with the same parents and a valid manifest, after `damage` has had the folder."""
    old = artifact.manifest
    with new_artifact(path, old.kind, old.name, parents=old.parents, tools=old.tools, details=old.details) as draft:
        for record in old.files:
            (draft.path / record.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(artifact.folder / record.path, draft.path / record.path)
        damage(draft.path)
    return open_artifact(draft.finished.path, verify=True)


def edit_tensors(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Let `change` alter the tensors of model.safetensors by name."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_template(folder: Path, change: Callable[[str], str]) -> None:
    """Change the chat template wherever a folder keeps it."""
    changed = 0
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        jinja.write_text(change(jinja.read_text()))
        changed += 1
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if "chat_template" in config:
        config["chat_template"] = change(config["chat_template"])
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        changed += 1
    assert changed


def edit_gguf(
    path: Path,
    *,
    metadata: Callable[[str, object], object] = lambda key, value: value,
    tensor: Callable[[str, object], object] = lambda name, data: data,
    added: Mapping[str, int | str] | None = None,
) -> None:
    """Rewrite a .gguf with changed metadata values (None drops a key), keys added, or other tensor data."""
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()
    changed = path.with_suffix(".changed")
    writer = gguf.GGUFWriter(changed, architecture)
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = metadata(key, entry.contents())
        if value is not None:
            sub_type = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, value, entry.types[0], sub_type=sub_type)
    for key, number in (added or {}).items():
        (writer.add_string if isinstance(number, str) else writer.add_uint32)(key, number)
    for entry in reader.tensors:
        writer.add_tensor(entry.name, tensor(entry.name, entry.data.copy()), raw_dtype=entry.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    changed.replace(path)
