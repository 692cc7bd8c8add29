"""What an architecture consists of: every tensor by name, shape and kind of layer, made without any values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed
from contract.loaded_model import refuse_misread
from contract.model_config import T5_FAMILY, head_is_tied, scales_tied_head
from contract.model_folder import read_json
from contract.tensor_names import tensor_names

# Old folders store buffers that are computed nowadays.
_COMPUTED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)")


@dataclass(frozen=True)
class Skeleton:
    """A language model, causal or with an encoder and a decoder, as transformers builds it from a config.json."""

    shapes: dict[str, tuple[int, ...]]  # without the other names of `embedding`
    embedding: str  # the weight of the input embeddings
    head: str  # the weight of the output embeddings, whether stored or not
    tied: bool  # are they one tensor
    linears: frozenset[str]  # weights stored [out, in], without the head
    transposed: frozenset[str]  # weights stored [in, out]: Conv1D's
    prefix: str  # what folders saved from the bare model leave out: "transformer."
    nf4: frozenset[str]  # of `linears`, what QLoRA training keeps in NF4
    aliases: frozenset[str] = frozenset()  # other names of `embedding`: the encoder's and the decoder's own
    optional: frozenset[str] = frozenset()  # made up where they are not stored: BART's final_logits_bias
    unused: tuple[str, ...] = ()  # patterns of what old folders store and no model has
    tied_head_scale: float = 1.0  # what T5 multiplies hidden states with in front of a tied head, and of no other
    tied_unscaled: bool = False  # a T5 that is tied and has no such scale, which transformers 4 knows not

    def copies_of_embedding(self, stored: Iterable[str]) -> list[str]:
        """Stored names that stand for the input embeddings; where there are several, they must hold the same."""
        places = {self.embedding, *self.aliases, *([self.head] if self.tied else [])}
        return [name for name in stored if name in places or self.prefix + name in places]

    def names_of(self, stored: Iterable[str], where: str) -> dict[str, str]:
        """The model's name of every stored tensor; buffers that are computed nowadays are left out.

        Args:
            stored: names in the folder.
            where: the folder, for messages.

        Raises:
            AssayError: tensors without a place, or places without a tensor; all are named.
        """
        found: dict[str, str] = {}
        others: dict[str, str] = {}
        problems = []
        for name in stored:
            place = name if name in self.shapes or name in self.aliases else self.prefix + name
            if place in self.shapes:
                found[name] = place
            elif place in self.aliases:
                others[name] = self.embedding
            elif not _COMPUTED.fullmatch(name) and not _matches(name, self.unused):
                problems.append(f"{name}: the model has no such tensor")
        if self.embedding not in found.values():
            found |= dict(list(others.items())[:1])
        missing = set(self.shapes) - self.optional - set(found.values()) - ({self.head} if self.tied else set())
        if self.head in missing:
            raise AssayError(
                "the base has no output embeddings though it says they are not tied", where=where, expected=self.head
            )
        problems += [f"{name}: missing" for name in sorted(missing)]
        if problems:
            raise AssayError(
                "the base's tensors are not those of its config.json", where=where, got=listed(problems, 20)
            )
        return found


def skeleton_of(folder: Path) -> Skeleton:
    """Build the model of a folder's config.json on torch's meta device: no values, no memory.

    Raises:
        AssayError: config.json does not describe a language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.pytorch_utils import Conv1D

    from runtimes.nf4 import nf4_layers

    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")  # says itself what is wrong with it
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if hasattr(config, "quantization_config"):  # a residue: packed weights are refused where they are read
            del config.quantization_config
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False, attn_implementation="eager")
    except Exception as error:  # every architecture has its own ways to fail on a wrong number
        said = str(error).splitlines() or [type(error).__name__]
        raise AssayError("config.json does not describe a language model", where=str(folder), got=said[0]) from None
    refuse_misread(raw, config.to_dict(), where)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    stored_as = _stored_names(model)
    names = {module: stored_as(f"{name}.weight") for name, module in model.named_modules()}
    if embeddings not in names or head not in names:
        raise AssayError(
            "the architecture has no input or output embeddings of its own", where=str(folder), got=type(model).__name__
        )
    tensors = {stored_as(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    aliases = {name for name, tensor in tensors.items() if tensor is embeddings.weight} - {names[embeddings]}
    aliases -= {names[head]}
    usual = bool(getattr(config, "tie_word_embeddings", True))
    tied = head_is_tied(raw, tensor_names(folder), usual=usual, where=where)
    scaled = tied and _scales_head(raw, where)
    return Skeleton(
        {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in aliases},
        names[embeddings],
        names[head],
        tied,
        frozenset(name for module, name in names.items() if isinstance(module, torch.nn.Linear) and module is not head),
        frozenset(name for module, name in names.items() if isinstance(module, Conv1D)),
        f"{model.base_model_prefix}.",
        frozenset(stored_as(f"{name}.weight") for name in nf4_layers(model, head)),
        frozenset(aliases),
        frozenset(
            name
            for name, tensor in tensors.items()
            if not isinstance(tensor, torch.nn.Parameter) and _matches(name, model._keys_to_ignore_on_load_missing)
        ),
        tuple(sorted(model._keys_to_ignore_on_load_unexpected or ())),
        config.d_model**-0.5 if scaled else 1.0,
        tied and not scaled and raw.get("model_type") in T5_FAMILY,
    )


def _stored_names(model: Any) -> Callable[[str], str]:
    """From a model's name of a tensor to the one in folders: transformers 5 calls GPT-NeoX's head otherwise inside."""
    from transformers.conversion_mapping import extract_weight_conversions_for_model
    from transformers.core_model_loading import WeightRenaming

    found = extract_weight_conversions_for_model(model) or []
    back = [one.reverse_transform() for one in reversed(found) if type(one) is WeightRenaming]

    def stored(name: str) -> str:
        for one in back:
            name, _ = one.rename_source_key(name)
        return name

    return stored


def _scales_head(config: dict[str, Any], where: str) -> bool:
    family = config.get("model_type")
    return family == "switch_transformers" or (family in T5_FAMILY and scales_tied_head(config, where))


def _matches(name: str, patterns: Iterable[str] | None) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())
