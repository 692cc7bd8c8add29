"""What an ONNX folder is held against: ids, logits and texts of the model in torch and transformers, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import AssayError
from contract.model_folder import chat_format, context_of, is_encoder_decoder, stop_ids
from contract.prompt import Message, PromptSpec, completion_ids, hf_tokenize, prompt_ids
from contract.runtime import GenerateParams
from contract.seq2seq import decoder_input_ids, read_format, source_ids, target_ids

if TYPE_CHECKING:
    import numpy as np

_DOCUMENTS = (
    "Mara: Could we move the meeting to room 418?\nOlin: No, room 527 is free. I will tell Kesto about it.",
    "Tom: Bus 84 leaves at nine.\nAda: It costs 315 crowns!\nTom: Then we walk. See you at half past eight.\n" * 4,
    "A: 👍 naïve café?\nB: Да, 漢字。",
    "Hi.",
)
_ANSWER = "They moved the meeting to room 527."
_NEW_TOKENS = 24
_BEAMS = 3


@dataclass(frozen=True)
class Row:
    """A prompt and an answer. `fed`: what goes through the (causal) decoder so that its last rows predict `target`."""

    messages: Sequence[Message]
    prompt: tuple[int, ...]
    fed: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """Generated ids per row, without what the decoder starts with and without the stop id."""

    params: GenerateParams
    ids: list[tuple[int, ...]]


@dataclass(frozen=True)
class Reference:
    """Per row float32 logits [len(target), vocabulary]; texts by name, "greedy" and "beams"."""

    rows: list[Row]
    logits: list[np.ndarray]
    noise: list[np.ndarray]  # the same logits from torch again, all rows as one padded batch
    largest: tuple[float, str]  # the largest activation of what float16 would hold, and the module it was met at
    texts: dict[str, Texts]
    stop_ids: frozenset[int]


def reference_of(folder: Path, spec: PromptSpec, threads: int) -> Reference:
    """Load the folder, run it row by row without padding, and let go of it.

    Args:
        folder: a model folder.
        spec: the words around the documents.
        threads: CPU threads.

    Raises:
        AssayError: the folder makes no model, its tokenizer cannot be used, or its context is too short for any row.
    """
    import torch

    from export.gguf_tokenizer import load_tokenizer
    from export.onnx_trace import load_model

    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder).eval()
    seq2seq = bool(model.config.is_encoder_decoder)
    rows = rows_of(folder, tokenizer, spec)
    ends = sorted({*stop_ids(folder), tokenizer.eos_token_id} - {None})
    greedy = GenerateParams(max_new_tokens=_NEW_TOKENS)
    beams = GenerateParams(max_new_tokens=_NEW_TOKENS, num_beams=_BEAMS, length_penalty=2.0, no_repeat_ngram_size=3)
    wanted = {"greedy": greedy, **({"beams": beams} if seq2seq else {})}
    with torch.inference_mode():
        with _watched(model) as largest:
            logits = [_logits(model, [row], seq2seq)[0] for row in rows]
        noise = _logits(model, rows, seq2seq)
        texts = {}
        for name, params in wanted.items():
            model.generation_config = _settings(model, params, ends)
            texts[name] = Texts(params, [_text(model, row, ends, seq2seq) for row in rows])
    worst = max(largest.items(), key=lambda item: item[1])
    return Reference(rows, logits, noise, (worst[1], worst[0]), texts, frozenset(ends))


@contextmanager
def _watched(model: Any) -> Iterator[dict[str, float]]:
    """The largest absolute value by module, at every layer with weights; what export.onnx_fp16 leaves in float32 is not
    watched: norms (what goes into them is, but for T5's), and T5's feed-forward behind its gate."""
    import torch

    largest: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        norm, t5 = "norm" in name.rpartition(".")[2].lower(), "DenseReluDense" in name or "T5" in type(module).__name__
        if next(module.children(), None) is not None or not any(True for _ in module.parameters(recurse=False)):
            continue
        if (norm and t5) or (t5 and name.endswith(".wo")):
            continue

        def watch(_: Any, inputs: Any, output: Any, name: str = name, norm: bool = norm) -> None:
            for values in (*inputs, *(() if norm else (output,))):
                if isinstance(values, torch.Tensor) and values.is_floating_point():
                    largest[name] = max(largest.get(name, 0.0), float(values.abs().max()))

        handles.append(module.register_forward_hook(watch))
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


def rows_of(folder: Path, tokenizer: Any, spec: PromptSpec) -> list[Row]:
    """The prompts and answers that a folder is checked with: those its context holds.

    Raises:
        AssayError: it holds none, or the tokenizer or config lacks what prompts are made of.
    """
    return (_seq2seq_rows if is_encoder_decoder(folder) else _causal_rows)(folder, tokenizer, spec)


def _causal_rows(folder: Path, tokenizer: Any, spec: PromptSpec) -> list[Row]:
    chat = chat_format(folder, date=spec.date)
    tokenize, bos = hf_tokenize(tokenizer), tokenizer.bos_token_id
    rows = []
    for document in _DOCUMENTS:
        messages = spec.messages(document)
        prompt = prompt_ids(chat, messages, tokenize, bos)
        ids = [*prompt, *completion_ids(chat, messages, _ANSWER, tokenize, bos)][: context_of(folder)]
        rows.append(Row(messages, tuple(prompt), tuple(ids[:-1]), tuple(ids[1:])))
    return _fitting(rows, [len(row.prompt) + _NEW_TOKENS + 1 for row in rows], folder)


def _seq2seq_rows(folder: Path, tokenizer: Any, spec: PromptSpec) -> list[Row]:
    from runtimes.logits_rules import read_target_format

    tokenize = hf_tokenize(tokenizer)
    form = read_format(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda text: tokenizer(text)["input_ids"],
        read_target_format(folder, _NEW_TOKENS).start_id,
    )
    rows = []
    for document in _DOCUMENTS:
        messages = spec.messages(document)
        target = target_ids(form, _ANSWER, tokenize, stop_ids(folder)[:1])
        prompt = tuple(source_ids(form, messages, tokenize))
        rows.append(Row(messages, prompt, tuple(decoder_input_ids(form, target)), tuple(target)))
    return _fitting(rows, [max(len(row.prompt), len(row.target), _NEW_TOKENS + 1) for row in rows], folder)


def _fitting(rows: Sequence[Row], needed: Sequence[int], folder: Path) -> list[Row]:
    """The rows whose tokens, `needed` of each, the context holds."""
    context = context_of(folder)
    if min(needed) > context:
        raise AssayError(
            "the context is too short for the texts that logits are checked with",
            where=str(folder / "config.json"),
            expected=f"at least {min(needed)} tokens",
            got=str(context),
            hint="check the structure only: --check structure",
        )
    return [row for row, tokens in zip(rows, needed, strict=True) if tokens <= context]


def _logits(model: Any, rows: Sequence[Row], seq2seq: bool) -> list[np.ndarray]:
    import torch

    fed, mask = (torch.from_numpy(array) for array in padded([row.fed for row in rows], in_front=False))
    if seq2seq:
        ids, mask = (torch.from_numpy(array) for array in padded([row.prompt for row in rows], in_front=False))
        made = model(input_ids=ids, attention_mask=mask, decoder_input_ids=fed, use_cache=False)
    else:
        made = model(input_ids=fed, attention_mask=mask, use_cache=False)
    values = made.logits.float().numpy()
    return [values[at, : len(row.fed)] for at, row in enumerate(rows)]


def padded(rows: Sequence[Sequence[int]], *, in_front: bool) -> tuple[np.ndarray, np.ndarray]:
    """int64 ids [rows, longest] with zeros for padding, and the mask of what is none."""
    import numpy as np

    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for at, row in enumerate(rows):
        place = slice(width - len(row), None) if in_front else slice(0, len(row))
        ids[at, place], mask[at, place] = row, 1
    return ids, mask


def _settings(model: Any, params: GenerateParams, ends: Sequence[int]) -> Any:
    """A generation config of the folder's own special and forced tokens, and of `params`; nothing else of the folder's.

    It must become the model's: transformers fills what is at its default in one that is passed to generate.
    """
    from transformers import GenerationConfig

    own = model.generation_config.to_dict()
    kept = ("decoder_start_token_id", "bos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id")
    return GenerationConfig(
        **{name: own[name] for name in kept if own.get(name) is not None},
        eos_token_id=list(ends),
        do_sample=False,
        max_new_tokens=params.max_new_tokens,
        num_beams=params.num_beams,
        length_penalty=params.length_penalty,
        no_repeat_ngram_size=params.no_repeat_ngram_size,
    )


def _text(model: Any, row: Row, ends: Sequence[int], seq2seq: bool) -> tuple[int, ...]:
    """What transformers' generate writes, without what the decoder starts with and without the stop id."""
    import torch

    mask = torch.ones(1, len(row.prompt), dtype=torch.long)
    made = model.generate(torch.tensor([row.prompt]), attention_mask=mask)[0].tolist()
    ids = made[1:] if seq2seq else made[len(row.prompt) :]
    end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[:end])
