"""Holds a model that transformers has loaded against its folder's config.json: it must compute what stands there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed
from contract.model_config import T5_FAMILY, differences, ropes, scales_tied_head
from contract.model_folder import read_json
from contract.tensor_names import tensor_names


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers' bar for the weights that it loads from stderr, which is for progress that was asked for."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def refuse_misread(config: Mapping[str, Any], made: Mapping[str, Any], where: str) -> None:
    """Raise where transformers' configuration turns or scales otherwise than the folder's.

    Args:
        config: the folder's config.json.
        made: the `to_dict` of what transformers made of it.
        where: config.json, for messages.

    Raises:
        AssayError: RoPE or the scale in front of the head differ, or `config` contradicts itself.
    """
    said, understood = ropes(config, where), ropes(made, where)
    full = next(iter(understood.values()))
    problems = [
        f"RoPE of {layer}: {text} (the second is transformers')"
        for layer, rope in said.items()
        for text in differences(rope, understood.get(layer, full), whole=False)
    ]
    if made.get("model_type") in T5_FAMILY and "scale_decoder_outputs" in made:
        wanted = scales_tied_head(config, where)
        if bool(made["scale_decoder_outputs"]) != wanted:
            problems.append(f"scale_decoder_outputs: {wanted} and {made['scale_decoder_outputs']}")
    if problems:
        raise AssayError("the installed transformers reads this config otherwise", where=where, got=listed(problems))


def settle_head(model: Any, folder: Path) -> None:
    """Hold a loaded model against its folder, and have its configuration say whether its head is the embeddings.

    transformers 5 calls every T5 tied: what is resized, trained or saved after loading would be tied in truth.

    Args:
        model: a transformers PreTrainedModel with its weights.
        folder: where it was loaded from.

    Raises:
        AssayError: as `refuse_misread`, or embeddings and head differ in a model whose config ties them.
    """
    where = str(folder / "config.json")
    config = read_json(folder / "config.json")
    refuse_misread(config, model.config.to_dict(), where)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embeddings is None or head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    separate = head.weight is not embeddings.weight
    if config.get("model_type") not in T5_FAMILY or scales_tied_head(config, where):
        if separate:
            raise AssayError(
                "the config ties the head to the input embeddings, and the weights have another head",
                where=where,
                expected='"tie_word_embeddings": false, or one tensor for both',
                got="two tensors that differ",
            )
        return
    if not separate and "lm_head.weight" in tensor_names(folder):  # stored twice and alike: still two
        head.weight = type(head.weight)(head.weight.detach().clone())
        separate = True
    model.config.tie_word_embeddings = not separate
