"""What a model family says of one model: llama.cpp's metadata, every tensor's origin and layout, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError, listed
from contract.loaded_model import refuse_misread
from export.weights import FLOAT_DTYPES, Weights

if TYPE_CHECKING:
    import torch

Value = int | float | bool | str | list[bool]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """How a tensor of the checkpoint is stored in the GGUF, where that is not as it is."""

    heads: int | None = None  # rows reordered per head, for RoPE over neighbouring pairs
    transposed: bool = False
    plus: float = 0.0  # added to every value, in float32
    times: float = 1.0  # every value is multiplied by, in float32


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the GGUF file and where it comes from."""

    name: str
    source: str | None  # the checkpoint's name; None: computed from the configuration
    shape: tuple[int, ...]
    layout: Layout = Layout()
    computed: tuple[float, ...] | None = None

    def blocks(self, weights: Weights) -> Iterator[tuple[int, torch.Tensor]]:
        """Its rows in llama.cpp's layout, some at a time, each with its first row's number.

        They are in the dtype they are stored in (computed ones, and sums, in float32). Transposed ones come whole.
        """
        import torch

        if self.source is None:
            yield 0, torch.tensor(self.computed, dtype=torch.float32)
        elif self.layout.transposed:
            yield 0, weights.read(self.source).T.contiguous()
        else:
            head = 1 if self.layout.heads is None else self.shape[0] // self.layout.heads
            for start, rows in weights.blocks(self.source, head):
                if self.layout.heads is not None:
                    rows = interleave_halves(rows, len(rows) // head)
                changed = self.layout.plus != 0.0 or self.layout.times != 1.0
                yield start, rows.float() * self.layout.times + self.layout.plus if changed else rows


def interleave_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from Hugging Face's rotate-half order to llama.cpp's order of neighbouring pairs.

    Args:
        tensor: [heads × head_dim, …], a query or key projection or its bias.
        heads: attention heads for a query, key-value heads for a key.
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()


@dataclass(frozen=True)
class GgufModel:
    """One model as its family describes it, before a weight is read."""

    arch: str  # llama.cpp's name of the architecture
    layers: int
    context: int
    metadata: Mapping[str, Value]  # GGUF key -> value, all that llama.cpp's loader reads
    shapes: Shapes  # checkpoint name -> shape, in the order they are written
    embedding: str  # the checkpoint's name of the input embeddings
    tied: bool
    head: str = "lm_head.weight"
    layout: Callable[[str], Layout] = lambda _name: Layout()
    computed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # GGUF name -> values
    buffers: re.Pattern[str] = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # stored, never read
    prefix: str = ""  # checkpoints of the bare model leave it out of every name
    half_precision_activation: bool = False  # llama.cpp looks its GELU up in a table of half-precision values
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A row of the table of families."""

    title: str
    classes: tuple[str, ...]  # as config.json's architectures name them
    arch: str  # llama.cpp's name
    keys: tuple[str, ...]  # config.json must hold them
    read: Callable[[Config, int], GgufModel]  # (configuration, embedding rows)
    carried: str  # what of the family's own is carried over, for the docs
    refused: str  # what is not, for the docs


class Config:
    """A configuration with transformers' defaults filled in. What does not fit is collected and raised once."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self.problems: list[str] = []
        self.notes: list[str] = []

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def only(self, key: str, *allowed: Any) -> None:
        """Note a problem unless the value is missing, null or one of `allowed`."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            self.problems.append(f"{key} {value!r}: llama.cpp has {' or '.join(map(repr, allowed))} here")

    def problem(self, text: str) -> None:
        """Note a problem."""
        self.problems.append(text)

    def raise_problems(self, title: str) -> None:
        """Refuse the model, if there is anything to refuse.

        Raises:
            AssayError: naming every problem.
        """
        if self.problems:
            raise AssayError(
                f"this model cannot be written as a llama.cpp {title}", where=self.where, got=listed(self.problems, 20)
            )

    def context(self, window: int | None) -> int:
        """The context to write: the model's own, or no more than a sliding window that llama.cpp would not slide.

        Up to that length every token sees every other, with or without the window.
        """
        own = int(self["max_position_embeddings"])
        if not window or window >= own:
            return own
        self.notes.append(
            f"the context is {window} tokens instead of {own}: beyond it this model attends to a sliding window, "
            "which llama.cpp does not do for this architecture"
        )
        return int(window)


@dataclass(frozen=True)
class Sizes:
    """What every decoder with grouped attention has."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float

    @classmethod
    def of(cls, config: Config) -> Sizes:
        """Read a configuration."""
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            feed_forward=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim", hidden // heads),
            norm_eps=float(config["rms_norm_eps"]),
        )

    @property
    def query(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Rows of the key and of the value projection."""
        return self.kv_heads * self.head_dim

    def refuse_other_widths(self, config: Config) -> None:
        """Note a problem unless all heads together are as wide as the hidden size."""
        if self.query != self.hidden:
            config.problem(
                f"{self.heads} heads of {self.head_dim} for a hidden size of {self.hidden}: llama.cpp has them equal"
            )

    def metadata(self, arch: str, context: int, rows: int) -> dict[str, Value]:
        """The keys all of llama.cpp's loaders read."""
        return {
            f"{arch}.context_length": context,
            f"{arch}.embedding_length": self.hidden,
            f"{arch}.block_count": self.layers,
            f"{arch}.feed_forward_length": self.feed_forward,
            f"{arch}.attention.head_count": self.heads,
            f"{arch}.attention.head_count_kv": self.kv_heads,
            f"{arch}.attention.key_length": self.head_dim,
            f"{arch}.attention.value_length": self.head_dim,
            f"{arch}.attention.layer_norm_rms_epsilon": self.norm_eps,
            f"{arch}.vocab_size": rows,
        }

    def separate_attention(self, *, qkv_bias: bool = False, output_bias: bool = False) -> Shapes:
        """Query, key, value and output projections as four tensors."""
        return {
            **linear("self_attn.q_proj", self.query, self.hidden, qkv_bias),
            **linear("self_attn.k_proj", self.key, self.hidden, qkv_bias),
            **linear("self_attn.v_proj", self.key, self.hidden, qkv_bias),
            **linear("self_attn.o_proj", self.hidden, self.query, output_bias),
        }

    def gated_feed_forward(self, *, bias: bool = False) -> Shapes:
        """Gate, up and down projections."""
        return {
            **linear("mlp.gate_proj", self.feed_forward, self.hidden, bias),
            **linear("mlp.up_proj", self.feed_forward, self.hidden, bias),
            **linear("mlp.down_proj", self.hidden, self.feed_forward, bias),
        }

    def norms(self, *names: str) -> Shapes:
        """Norms over the hidden size."""
        return {f"{name}.weight": (self.hidden,) for name in names}

    def decoder(self, rows: int, layer: Shapes, *, tied: bool) -> Shapes:
        """A whole decoder: embeddings, `layer` as often as there are layers, the last norm, and an untied head."""
        found: Shapes = {"model.embed_tokens.weight": (rows, self.hidden)}
        for index in range(self.layers):
            found |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
        found["model.norm.weight"] = (self.hidden,)
        return found if tied else {**found, "lm_head.weight": (rows, self.hidden)}


def linear(name: str, rows: int, columns: int, bias: bool = False) -> Shapes:
    """A projection's weight, and its bias."""
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def resolved_config(folder: Path, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json with the defaults of transformers' class: what torch computes with is what is written.

    Raises:
        AssayError: transformers cannot read it, or reads it otherwise than it says.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssayError(
            "config.json does not describe a model", where=where, got=str(error).strip().splitlines()[0]
        ) from None
    made = config.to_dict()
    refuse_misread(raw, made, where)
    return {**raw, **made}


def plan_tensors(model: GgufModel, weights: Weights, where: str) -> list[GgufTensor]:
    """Every tensor of the GGUF, in file order.

    Raises:
        AssayError: naming every tensor that is missing, surplus, of another shape or not a float.
    """
    import gguf

    present = set(weights.names())
    bare = model.prefix and model.embedding not in present and model.embedding.removeprefix(model.prefix) in present
    sources = {name.removeprefix(model.prefix) if bare else name: name for name in model.shapes}
    head = model.head
    embedding = model.embedding.removeprefix(model.prefix) if bare else model.embedding
    problems = [f"{name}: missing" for name in sources if name not in present]
    for name in sorted(present - set(sources)):
        if model.buffers.fullmatch(name):
            continue
        if name == head and model.tied and embedding in present:
            problems += _untied(weights, head, embedding)
            continue
        problems.append(f"{name}: not a tensor of this architecture")
    for name, known in sources.items():
        if name not in present:
            continue
        if weights.shape(name) != model.shapes[known]:
            problems.append(f"{name}: shape {list(weights.shape(name))}, config.json says {list(model.shapes[known])}")
        if weights.dtype(name) not in FLOAT_DTYPES:
            problems.append(f"{name}: stored as {weights.dtype(name)}, not as 16 or 32 bit floats")
    if problems:
        raise AssayError("the weights do not fit the configuration", where=where, got=listed(problems, 40))
    names = gguf.get_tensor_name_map(_arch(model.arch), model.layers)
    plan = [GgufTensor(name, None, (len(values),), computed=values) for name, values in model.computed.items()]
    for name, known in sources.items():
        layout, shape = model.layout(known), model.shapes[known]
        found = names.get_name(known, (".weight", ".bias"))
        assert found is not None, known
        plan.append(GgufTensor(found, name, shape[::-1] if layout.transposed else shape, layout))
    return plan


def _untied(weights: Weights, head: str, embedding: str) -> list[str]:
    import torch

    if torch.equal(weights.read(head), weights.read(embedding)):
        return []
    return [f"{head}: differs from {embedding} though tie_word_embeddings is true"]


def _arch(name: str) -> Any:
    import gguf

    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
