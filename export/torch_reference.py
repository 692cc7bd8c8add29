"""What a source itself makes of prompts, in torch, layer by layer: the reference of the checks of its exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contract.model_folder import chat_format, context_of, is_encoder_decoder, stop_ids
from contract.prompt import Message, completion_ids, hf_tokenize, prompt_ids
from contract.seq2seq import Seq2SeqFormat, decoder_input_ids, read_format, source_ids, target_ids
from export.spool import Spool

if TYPE_CHECKING:
    from export.source import Source

Pair = tuple[list[int], list[int]]  # prompt and target: a runtime's score takes them


@dataclass(frozen=True)
class SourceWords:
    """How a source turns messages into ids."""

    encode: Callable[[Sequence[Message]], list[int]]
    encode_completion: Callable[[Sequence[Message], str], list[int]]
    stop_ids: frozenset[int]
    form: Seq2SeqFormat | None  # of an encoder-decoder model


def source_words(source: Source, date: str) -> SourceWords:
    """Read them off the source's folder, as the torch runtimes do; its chat template is told `date`.

    Raises:
        AssayError: the tokenizer cannot be loaded.
    """
    from export.gguf_tokenizer import load_tokenizer
    from runtimes.logits_rules import read_target_format

    tokenizer = load_tokenizer(source.folder)
    tokenize, bos = hf_tokenize(tokenizer), tokenizer.bos_token_id
    declared = frozenset(stop_ids(source.folder))
    if is_encoder_decoder(source.folder):
        start = read_target_format(source.folder, context_of(source.folder)).start_id
        form = read_format(lambda text: tokenize(text, False), lambda text: tokenizer(text)["input_ids"], start)
        return SourceWords(
            lambda messages: source_ids(form, messages, tokenize),
            lambda messages, text: target_ids(form, text, tokenize),
            declared,
            form,
        )
    chat = chat_format(source.folder, date=date)
    return SourceWords(
        lambda messages: prompt_ids(chat, messages, tokenize, bos),
        lambda messages, text: completion_ids(chat, messages, text, tokenize, bos),
        declared | frozenset({tokenizer.eos_token_id} - {None}),
        None,
    )


def source_logits(
    source: Source, pairs: Sequence[Pair], scratch: Path, threads: int, form: Seq2SeqFormat | None
) -> Spool:
    """The logits of every target, float32 [len(target), vocabulary] per pair, in memory one layer at a time.

    Args:
        source: the model.
        pairs: prompts and targets.
        scratch: a folder on a disk with room for the logits.
        threads: CPU threads.
        form: of an encoder-decoder model.

    Raises:
        AssayError: a pair is longer than the context, or has ids the model does not know.
    """
    import torch

    from export.layered import LayeredModel
    from runtimes.answer import check_pairs
    from runtimes.seq2seq_inputs import check_source_pairs

    torch.set_num_threads(threads)
    model = LayeredModel(source)
    context = context_of(source.folder)
    if form is not None:
        check_source_pairs(pairs, context, context, model.rows)
        logits = Spool(scratch, [(len(target), model.rows) for _, target in pairs])
        model.run_pairs([(prompt, decoder_input_ids(form, target)) for prompt, target in pairs], scratch, logits)
        return logits
    check_pairs(pairs, context, model.rows)
    texts = [[*prompt, *target[:-1]] for prompt, target in pairs]
    with Spool(scratch, [(len(text), model.rows) for text in texts]) as whole:
        model.run(texts, scratch, whole)
        logits = Spool(scratch, [(len(target), model.rows) for _, target in pairs])
        for number, (prompt, _) in enumerate(pairs):
            logits.put(number, whole.get(number)[len(prompt) - 1 :])
    return logits
