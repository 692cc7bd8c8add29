"""transformers' Seq2SeqTrainer, told what we know: rows are ready, their order is fixed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from contract.errors import AssayError
from trainer.ordered import OrderedRows
from trainer.settings import on_one_device, settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from contract.recipe import TrainPart
    from trainer.seq2seq_rows import PairRow


class PairTrainer(OrderedRows, Seq2SeqTrainer):
    """Trains an encoder-decoder on rows in the order given."""

    def nll(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Negative log-likelihood in nats, summed over the targets' tokens."""
        return pair_nll(model, batch)

    def batch_of(self, rows: Sequence[PairRow]) -> dict[str, torch.Tensor]:
        """Rows through transformers' collator."""
        return dict(self.data_collator([_features(row) for row in rows]))


def pair_nll(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The negative log-likelihood in nats, summed over every label that is not -100, as a float32 scalar.

    Args:
        model: an encoder-decoder.
        batch: input_ids and attention_mask, int64 [rows, source tokens]; labels and decoder_input_ids, int64
            [rows, target tokens]; all padded on the right.
    """
    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    logits = model(**inputs, use_cache=False).logits
    wanted = labels != -100
    return torch.nn.functional.cross_entropy(logits[wanted].float(), labels[wanted], reduction="sum")


def make_config(train: TrainPart, work: Path, device: str, steps: int, log_every: int) -> Seq2SeqTrainingArguments:
    """The recipe's settings in transformers' words."""
    config = Seq2SeqTrainingArguments(
        **settings(train, work, device, steps, log_every),
        remove_unused_columns=False,
        # frozen embeddings have no gradient for the reentrant kind to follow
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
    )
    on_one_device(config)
    return config


def make_trainer(
    model: Any,
    config: Seq2SeqTrainingArguments,
    rows: Sequence[PairRow],
    tokenizer: PreTrainedTokenizerBase,
    callback: TrainerCallback,
    stops: Iterable[int],
) -> PairTrainer:
    """The trainer over `rows`, already in their order, after an audit of what the collator made of them.

    Raises:
        AssayError: the batch is not the rows.
    """
    from datasets import Dataset

    tokenizer.padding_side = "right"  # where positions are counted from the left, padding there would shift them
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    trainer = PairTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([_features(row) for row in rows]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=whole),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.settle()
    audit_batch(trainer, rows, stops, whole.config.decoder_start_token_id)
    return trainer


def audit_batch(trainer: PairTrainer, rows: Sequence[PairRow], stops: Iterable[int], decoder_start: int) -> None:
    """Check the first batch as the model gets it: sources whole, padding masked, labels and decoder inputs as meant."""
    stops = frozenset(stops)
    given = len(trainer.train_dataset)
    problems = [] if given == len(rows) else [f"{given} rows instead of {len(rows)}"]
    batch = {name: tensor.tolist() for name, tensor in next(iter(trainer.get_train_dataloader())).items()}
    for number, row in enumerate(rows[: len(batch["input_ids"])]):
        ids, mask, labels, fed = (
            batch[name][number] for name in ("input_ids", "attention_mask", "labels", "decoder_input_ids")
        )
        read, written = len(row.source), len(row.target)
        if ids[:read] != row.source:
            problems.append(f"{row.id}: other ids")
        elif mask != [1] * read + [0] * (len(ids) - read):
            problems.append(f"{row.id}: the mask does not tell source from padding")
        elif labels != row.target + [-100] * (len(labels) - written):
            problems.append(f"{row.id}: labels are not its summary")
        elif fed[:written] != [decoder_start, *row.target[:-1]]:
            problems.append(f"{row.id}: the decoder is not fed its start and then the labels")
        elif row.target[-1] not in stops:
            problems.append(f"{row.id}: no stop token in the labels")
    if problems:
        raise AssayError(
            "the batch that would be learned is not the rows that were prepared", got="; ".join(problems[:5])
        )


def _features(row: PairRow) -> dict[str, list[int]]:
    """A row as transformers' collator takes it."""
    return {"input_ids": row.source, "attention_mask": [1] * len(row.source), "labels": row.target}
