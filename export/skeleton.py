"""What an architecture consists of: every tensor by name, shape and kind of layer, made without any values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from contract.errors import AssayError, listed
from contract.model_folder import read_json

# Old folders store buffers that are computed nowadays.
_COMPUTED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)")


@dataclass(frozen=True)
class Skeleton:
    """A causal language model as transformers builds it from a config.json."""

    shapes: dict[str, tuple[int, ...]]
    embedding: str  # the weight of the input embeddings
    head: str  # the weight of the output embeddings, whether stored or not
    tied: bool  # are they one tensor
    linears: frozenset[str]  # weights stored [out, in], without the head
    transposed: frozenset[str]  # weights stored [in, out]: Conv1D's
    prefix: str  # what folders saved from the bare model leave out: "transformer."

    def names_of(self, stored: Iterable[str], where: str) -> dict[str, str]:
        """The model's name of every stored tensor; buffers that are computed nowadays are left out.

        Args:
            stored: names in the folder.
            where: the folder, for messages.

        Raises:
            AssayError: tensors without a place, or places without a tensor; all are named.
        """
        found: dict[str, str] = {}
        problems = []
        for name in stored:
            place = name if name in self.shapes else self.prefix + name
            if place in self.shapes:
                found[name] = place
            elif not _COMPUTED.fullmatch(name):
                problems.append(f"{name}: the model has no such tensor")
        missing = set(self.shapes) - set(found.values()) - ({self.head} if self.tied else set())
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
        AssayError: config.json does not describe a causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    read_json(folder / "config.json")  # says itself what is wrong with it
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if hasattr(config, "quantization_config"):  # a residue: packed weights are refused where they are read
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="eager")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssayError(
            "config.json does not describe a causal language model", where=str(folder), got=str(error).splitlines()[0]
        ) from None
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    if embeddings not in names or head not in names:
        raise AssayError(
            "the architecture has no input or output embeddings of its own", where=str(folder), got=type(model).__name__
        )
    return Skeleton(
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        names[embeddings],
        names[head],
        bool(config.tie_word_embeddings),
        frozenset(name for module, name in names.items() if isinstance(module, torch.nn.Linear) and module is not head),
        frozenset(name for module, name in names.items() if isinstance(module, Conv1D)),
        f"{model.base_model_prefix}.",
    )
