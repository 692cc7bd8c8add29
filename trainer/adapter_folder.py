"""What training leaves as a folder: a plain PEFT adapter or a whole model, its tokenizer, how its text ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from contract.gguf_leftovers import tokenizer_files
from contract.model_folder import read_json

if TYPE_CHECKING:
    from contract.prompt import ChatFormat


def write_adapter(folder: Path, checkpoint: Path, base: str, revision: str | None) -> None:
    """Config and weights from a checkpoint; what has no order is sorted, so equal adapters are equal files.

    Raises:
        AssayError: a weight is not finite, or no update was ever made.
    """
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "adapter_model.safetensors")
    wrong = sorted(name for name, tensor in weights.items() if not tensor.isfinite().all())
    if wrong:
        raise AssayError(
            "the adapter holds weights that are not finite", got=listed(wrong), hint="lower train.learning_rate"
        )
    if not any(tensor.any() for name, tensor in weights.items() if "lora_B" in name):
        raise AssayError(
            "the adapter learned nothing: all its B matrices are zero",
            hint="raise train.learning_rate or the number of steps",
        )
    shutil.copyfile(checkpoint / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = read_json(checkpoint / "adapter_config.json")
    config |= {
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }
    _write_json(folder / "adapter_config.json", config)


def write_model(folder: Path, checkpoint: Path, base_folder: Path, dtype: str) -> None:
    """The base's config and a checkpoint's weights, rounded to `dtype`.

    Raises:
        AssayError: a weight is not finite, in itself or in `dtype`.
    """
    import torch
    from safetensors.torch import load_file, save_file

    stored = getattr(torch, dtype)
    wrong, overflows = [], []
    for path in sorted(checkpoint.glob("model*.safetensors")):
        weights = load_file(path)
        rounded = {name: tensor.to(stored).contiguous() for name, tensor in weights.items()}
        wrong += [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        overflows += [name for name, tensor in rounded.items() if not tensor.isfinite().all()]
        save_file(rounded, folder / path.name, metadata={"format": "pt"})
        (folder / path.name).chmod(0o644)  # safetensors writes it for the owner alone
    if wrong:
        raise AssayError("trained weights are not finite", got=listed(wrong), hint="lower train.learning_rate")
    if overflows:
        raise AssayError(f"trained weights do not fit into {dtype}", got=listed(overflows), hint="set merge.dtype")
    index = checkpoint / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index)
        size = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
        _write_json(folder / index.name, shards | {"metadata": {"total_size": size}})
    config = read_json(base_folder / "config.json")
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "_name_or_path")}
    _write_json(folder / "config.json", config | {"dtype": dtype, "use_cache": True})


def write_tokenizer(folder: Path, base_folder: Path, chat: ChatFormat | None) -> None:
    """The base's tokenizer files as they are, but for the chat template, which is the one that was trained with."""
    for name in tokenizer_files(base_folder):
        shutil.copyfile(base_folder / name, folder / name)
    if chat is None:
        return
    config = read_json(folder / "tokenizer_config.json")
    if config.pop("chat_template", None) is not None:
        _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(chat.template, encoding="utf-8")


def write_pair_generation_config(folder: Path, base_folder: Path) -> None:
    """An encoder-decoder's own generation settings: what starts it, what is forced, its beams.

    A folder from before there were generation configs has them in its config.json.
    """
    from transformers import GenerationConfig, PretrainedConfig

    settings = read_json(base_folder / "generation_config.json")
    if not settings:
        config = PretrainedConfig.from_dict(read_json(base_folder / "config.json"))
        made: dict[str, Any] = GenerationConfig.from_model_config(config).to_diff_dict()
        settings = {key: value for key, value in made.items() if not key.startswith("_")}
    settings.pop("transformers_version", None)
    _write_json(folder / "generation_config.json", settings)


def write_generation_config(folder: Path, bos_id: int | None, stops: Sequence[int], pad_id: int | None) -> None:
    """Greedy decoding that ends at any of `stops`."""
    ids = {"bos_token_id": bos_id, "eos_token_id": list(stops), "pad_token_id": pad_id}
    _write_json(
        folder / "generation_config.json",
        {"do_sample": False} | {name: value for name, value in ids.items() if value is not None},
    )


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
