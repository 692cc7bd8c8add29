"""Runs a model of any size in float32, one decoder layer in memory at a time, by the model's own forward in torch.

Transformers builds the model without values. Every text passes the first layer before the second layer's weights are
read, and so on; what the layers hand over waits on disk. The model's own forward is called once per layer and text, and
the layers in front of that one are passed by, so that masks, positions and the kinds of layers are the model's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from export.skeleton import skeleton_of
from export.source import Source
from export.spool import Spool


class _Passed(Exception):  # noqa: N818 - it is no error
    """The layer at work is done with a text: the rest of the forward is not wanted."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


class LayeredModel:
    """A language model, causal or T5, whose weights are read from a source while texts pass through it."""

    def __init__(self, source: Source, *, attention: str | None = None) -> None:
        """Build it without values.

        Args:
            source: the model.
            attention: transformers' name of an implementation; None takes "sdpa", or "eager" where the model caps
                attention, which no other one does.
        """
        skeleton = skeleton_of(source.folder)
        self.network: Any = _without_values(source.folder, attention)
        self._weights = source.weights
        self._stored = {place: name for name, place in skeleton.names_of(source.weights.names(), source.where).items()}
        self._embedding = skeleton.embedding
        self._head = self._stored[skeleton.embedding if skeleton.tied else skeleton.head]
        self.rows: int = source.weights.shape(self._head)[0]
        parameters = [name for name, _ in self.network.named_parameters()]
        self._layers: list[list[str]] = []  # the encoder's, then the decoder's
        for stack, layers in _stacks(self.network):
            for number, layer in enumerate(layers):
                layer.forward = self._forward(len(self._layers), number == 0, layer.forward)
                self._layers.append([name for name in parameters if name.startswith(f"{stack}.{number}.")])
        ends = {skeleton.embedding, skeleton.head, *skeleton.aliases}  # embedded texts go in, whatever it is called
        within = {name for names in self._layers for name in names}
        self._rest = [name for name in parameters if name not in within | ends]
        self.network.get_output_embeddings().forward = self._head_forward
        self._spare: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        self._at = 0  # the layer at work
        self._given: torch.Tensor | None = None  # what it gets
        self._through = False  # does its output go on to what comes behind the layers
        self._beside: dict[int, Any] = {}  # per text what layers answer with beside hidden states; None: no tuple
        self._text = 0  # the one at work

    @torch.inference_mode()
    def run(self, texts: Sequence[Sequence[int]], scratch: Path, logits: Spool | None = None) -> None:
        """Pass every text through all layers of a causal model.

        Args:
            texts: token ids, each at most as many as the context.
            scratch: a folder on a disk with room for the texts' hidden states.
            logits: where to put the logits, [len(text), rows] per text; None: the head is left out.
        """

        def call(_: int) -> torch.Tensor:
            found: torch.Tensor = self.network(inputs_embeds=self._given, use_cache=False).logits
            return found

        with self._embedded(texts, scratch) as states:
            self._load(self._rest)
            self._pass(range(len(self._layers)), call, states, logits)
            self._free(self._rest)

    @torch.inference_mode()
    def run_pairs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], scratch: Path, logits: Spool) -> None:
        """Pass (encoder ids, decoder input ids) through all layers of a T5; otherwise as `run`."""
        border = self.network.config.num_layers

        def encode(_: int) -> torch.Tensor:
            found: torch.Tensor = self.network.get_encoder()(inputs_embeds=self._given).last_hidden_state
            return found

        def decode(text: int) -> torch.Tensor:
            read = torch.from_numpy(encoded.get(text)).unsqueeze(0)
            inputs = {"encoder_outputs": (read,), "decoder_inputs_embeds": self._given, "use_cache": False}
            found: torch.Tensor = self.network(**inputs).logits
            return found

        sources, targets = zip(*pairs, strict=True)
        with self._embedded(sources, scratch) as encoded, self._embedded(targets, scratch) as states:
            self._load(self._rest)
            self._pass(range(border), encode, encoded, encoded)
            self._pass(range(border, len(self._layers)), decode, states, logits)
            self._free(self._rest)

    def _embedded(self, texts: Sequence[Sequence[int]], scratch: Path) -> Spool:
        """The texts' embeddings, by the model's own module; only their ids' rows are in memory."""
        stored = self._stored[self._embedding]
        ids = torch.tensor(sorted({token for text in texts for token in text}))
        rows = [
            block[ids[(ids >= start) & (ids < start + len(block))] - start].float()
            for start, block in self._weights.blocks(stored)
        ]
        self._set(self._embedding, torch.cat(rows))
        del rows
        assert len(self.network.get_input_embeddings().weight) == len(ids), "ids beyond the vocabulary"
        states = Spool(scratch, [(len(text), self._weights.shape(stored)[1]) for text in texts])
        embed = self.network.get_input_embeddings()
        for index, text in enumerate(texts):
            states.put(index, embed(torch.searchsorted(ids, torch.tensor(text))).numpy())
        self._set(self._embedding, torch.empty(0, device="meta"))
        return states

    def _pass(self, layers: range, call: Callable[[int], torch.Tensor], states: Spool, through: Spool | None) -> None:
        """Pass all texts' states through layers one by one; the last one's go on through the rest, if anywhere.

        Args:
            layers: the numbers of an encoder's or decoder's layers.
            call: the model's forward of a text.
            states: of all texts, changed layer by layer.
            through: where to put what the forward ends with; None: it is left after the last layer.
        """
        self._beside = {}
        for self._at in layers:
            self._load(self._layers[self._at])
            self._through = through is not None and self._at == layers[-1]
            spool = through if through is not None and self._through else states
            for self._text in range(len(states)):
                self._given = torch.from_numpy(states.get(self._text)).unsqueeze(0)
                try:
                    found = call(self._text)
                except _Passed as passed:
                    found = passed.states
                spool.put(self._text, found[0].numpy())
            self._free(self._layers[self._at])

    def _forward(self, number: int, first: bool, own: Callable[..., Any]) -> Callable[..., Any]:
        """What a layer does in place of its own forward."""

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if number < self._at:
                beside = self._beside[self._text]
                return hidden_states if beside is None else (hidden_states, *beside)
            # the model's forward may do something to embeddings before the first layer
            found = own(hidden_states if first else self._given, *args, **kwargs)
            in_tuple = isinstance(found, tuple)
            self._beside[self._text] = found[1:] if in_tuple else None
            if self._through:
                return found
            raise _Passed(found[0] if in_tuple else found)

        return forward

    def _head_forward(self, states: torch.Tensor) -> torch.Tensor:
        """The head's product, some of its rows at a time."""
        bias = self.network.get_output_embeddings().bias
        found = states.new_empty(*states.shape[:-1], self.rows)
        for start, rows in self._weights.blocks(self._head):
            part = slice(start, start + len(rows))
            found[..., part] = torch.nn.functional.linear(states, rows.float(), None if bias is None else bias[part])
        return found

    def _load(self, names: Iterable[str]) -> None:
        for name in names:
            stored = self._stored[name]
            shape = self._weights.shape(stored)
            # the last layer's memory is used again: given back, much of it would stay in the allocator's hands
            values = self._spare[shape].pop() if self._spare[shape] else torch.empty(shape)
            for start, rows in self._weights.blocks(stored):
                values[start : start + len(rows)] = rows
            self._set(name, values)

    def _free(self, names: Iterable[str]) -> None:
        for name in names:
            values = self.network.get_parameter(name).data
            self._spare[tuple(values.shape)].append(values)
            self._set(name, values.to("meta"))

    def _set(self, name: str, values: torch.Tensor) -> None:
        module, _, leaf = name.rpartition(".")
        setattr(self.network.get_submodule(module), leaf, torch.nn.Parameter(values, requires_grad=False))


def _without_values(folder: Path, attention: str | None) -> Any:
    """The model of a folder's config.json, which `skeleton_of` has accepted: parameters empty, buffers computed."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    plain = "eager" if capped or config.is_encoder_decoder else "sdpa"
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with init_empty_weights():
        model = auto.from_config(
            config, trust_remote_code=False, dtype=torch.float32, attn_implementation=attention or plain
        )
    model.tie_weights()  # each parameter was replaced by itself, shared ones too
    return model.eval()


def _stacks(network: Any) -> list[tuple[str, torch.nn.ModuleList]]:
    """The decoder's list of layers with its name, and in front of it the encoder's where there is one."""
    both = network.config.is_encoder_decoder
    parts = {"encoder.": network.get_encoder(), "decoder.": network.get_decoder()} if both else {"": network}
    return [
        next(
            (prefix + name, module)
            for name, module in part.named_modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == part.config.num_hidden_layers
        )
        for prefix, part in parts.items()
    ]
