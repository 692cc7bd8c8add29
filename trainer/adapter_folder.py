"""An adapter as a plain PEFT folder: config, weights, the tokenizer with the chosen template, every stop token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import AssayError, listed
from contract.model_folder import TOKENIZER_FILES, read_json

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


def write_tokenizer(folder: Path, base_folder: Path, chat: ChatFormat) -> None:
    """The base's tokenizer files as they are, but for the chat template, which is the one that was trained with."""
    for name in TOKENIZER_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)
    config = read_json(folder / "tokenizer_config.json")
    if config.pop("chat_template", None) is not None:
        _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(chat.template, encoding="utf-8")


def write_generation_config(folder: Path, bos_id: int | None, stops: Sequence[int], pad_id: int | None) -> None:
    """Greedy decoding that ends at any of `stops`."""
    ids = {"bos_token_id": bos_id, "eos_token_id": list(stops), "pad_token_id": pad_id}
    _write_json(
        folder / "generation_config.json",
        {"do_sample": False} | {name: value for name, value in ids.items() if value is not None},
    )


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
