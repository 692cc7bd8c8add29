"""Loads a merged folder from disk, as a stranger would, before it is taken for an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contract.errors import AssayError, listed
from export.weights import FolderWeights


def prove_reload(folder: Path, changed: Sequence[str], base_folder: Path) -> None:
    """Open configuration, tokenizer, generation config and weights with transformers, in their stored dtype.

    Args:
        folder: the merged model, before it is moved to its place.
        changed: the weights the adapter changes; at least one must differ from the base's.
        base_folder: where the base lies.

    Raises:
        AssayError: keys missing, unexpected or of another shape, a tensor that is not finite, or a merged model that
            is its base.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        GenerationConfig.from_pretrained(folder).validate(strict=True)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AssayError(
            "the merged model does not load again", where=str(folder), got=f"{type(error).__name__}: {error}"
        ) from None
    problems = [
        f"{name}: {kind}"
        for kind, key in (
            ("missing", "missing_keys"),
            ("unexpected", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
        for name in info[key]
    ]
    problems += [
        f"{name}: not finite" for name, tensor in model.named_parameters() if not bool(torch.isfinite(tensor).all())
    ]
    if problems:
        raise AssayError(
            "the merged model does not load again as it was written", where=str(folder), got=listed(problems, 20)
        )
    loaded = dict(model.named_parameters())
    base = FolderWeights.open(base_folder)
    for name in changed:
        if name not in base.files or name not in loaded:
            return  # a head of its own that the base did not have
        before = base.read(name)
        if before.shape != loaded[name].shape or not torch.equal(before.to(loaded[name].dtype), loaded[name].data):
            return
    raise AssayError("the merged model is its base: the adapter changed nothing", where=str(folder))
