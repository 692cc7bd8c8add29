"""The training stage: recipe and splits in, an adapter out, or a whole model."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.artifact import Artifact, Parent, new_artifact, open_artifact, refuse_existing, tool_versions
from contract.errors import AssayError
from contract.memory import peak_rss_bytes
from contract.model_folder import import_command, is_encoder_decoder, license_of, resolve_model
from trainer.checkpoint import LOG_FILE, Checkpoint, at_work, best_of, complete_checkpoints, prepare, work_folder
from trainer.data import Splits
from trainer.order import evaluation_steps, step_count, training_order

if TYPE_CHECKING:
    from contract.recipe import Recipe
    from trainer.rows import AnyEncoder, AnyRow

# The parts of a recipe an adapter depends on.
RECIPE_PARTS = ("model", "data", "prompt", "train")
TOOLS = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
# Validation is to cost a tenth of the training at most, so of very many rows an even sample is taken.
MAX_VALIDATION_ROWS = 1000
_LOG_ROWS = 100  # about so many points in the loss curve


@dataclass
class _Plan:
    """Everything that is settled before a model is loaded."""

    folder: Path
    encoder: AnyEncoder
    tokenizer: Any
    stops: list[int]
    train: list[AnyRow]  # in the order they are seen, epochs end to end
    valid: list[AnyRow]
    supervised: dict[str, float]
    cut_rows: int
    steps: int
    tokens_after: list[int]


def train_adapter(
    recipe: Recipe, splits: Splits, out: Path, *, resume: bool = False, device: str = "auto", threads: int = 2
) -> Artifact:
    """Fine-tune an adapter; the checkpoint with the lowest validation loss becomes it.

    TRL's SFTTrainer trains a causal model, transformers' Seq2SeqTrainer an encoder-decoder: the base's config.json
    decides. With train.method "full" there is no adapter: what comes out is a whole model, of kind "merged", in
    merge.dtype. Checkpoints lie in a hidden folder beside `out`, which is removed when the result is written. It is the
    same, byte for byte, whether training was interrupted or not, on the same machine and with as many threads.

    Args:
        recipe: what to train and how; train.max_steps, where given, takes the place of train.epochs.
        splits: what to learn from, and what to choose the checkpoint by.
        out: the result's folder, which must not exist.
        resume: go on from the newest complete checkpoint; start afresh where there is none.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads.

    Raises:
        AssayError: `out` exists, an unfinished training is in the way or is another one, rows cannot be learned from,
            the machine lacks the device or the memory, or the loss is not finite.
    """
    started = time.monotonic()
    out = Path(out).absolute()
    refuse_existing(out)
    folder = resolve_model(recipe.model.base, recipe.model.revision)
    base = open_artifact(folder)
    if base.kind != "merged":
        raise AssayError(
            "the base is not a plain model folder",
            where=str(folder),
            got=base.kind,
            hint=import_command(base.path) if base.kind == "gguf" else None,
        )
    work = work_folder(out)
    with ExitStack() as held:
        with _quiet():
            import torch

            from trainer.model import choose_device

            torch.set_num_threads(threads)
            device = choose_device(device, recipe.train, folder)
            plan = _make_plan(recipe, splits, folder)
            fingerprint = _fingerprint(recipe, splits, base)
            held.enter_context(at_work(work))
            newest = prepare(work, fingerprint, resume=resume)
            try:
                facts, figures = _train(recipe, plan, work, fingerprint, newest, device)
            except torch.OutOfMemoryError as error:
                raise _out_of_memory(error) from None
            except RuntimeError as error:
                if _lacked_memory(error):
                    raise _out_of_memory(error) from None
                raise
        figures["wall_time_s"] = time.monotonic() - started
        return _write(recipe, splits, base, plan, work, out, facts, figures)


def _make_plan(recipe: Recipe, splits: Splits, folder: Path) -> _Plan:
    from trainer.rows import encoder_of
    from trainer.tokenize import all_stop_ids, encode_rows, load_tokenizer

    part = recipe.train
    tokenizer = load_tokenizer(folder)
    encoder: Any = encoder_of(folder, recipe, tokenizer)  # its rows are of one kind, whichever
    if encoder.plain:
        _say("the base has no chat template: prompts are written in the plain completion format")
    stops = all_stop_ids(folder, encoder, tokenizer.eos_token_id)
    train, valid = encode_rows(encoder, splits.train), encode_rows(encoder, splits.valid)
    supervised = encoder.check(train, stops)
    encoder.check(valid, stops)
    if len(valid) > MAX_VALIDATION_ROWS:
        valid = [valid[i * len(valid) // MAX_VALIDATION_ROWS] for i in range(MAX_VALIDATION_ROWS)]
        _say(f"validation loss is measured on {MAX_VALIDATION_ROWS} rows, evenly spaced")
    cut_rows = sum(row.cut_tokens > 0 for row in train)
    if cut_rows:
        _say(f"{cut_rows} of {len(train)} documents are cut to fit {part.max_length} tokens; no summary is")
    _say(f"supervised tokens per row: at least {supervised['min']:.0f}, {supervised['mean']:.1f} on average")

    per_step = part.batch_size * part.accumulation_steps
    steps = step_count(len(train), per_step, part.epochs, part.max_steps)
    seen = steps * per_step if part.max_steps is not None else round(len(train) * part.epochs)
    lengths = [row.tokens for row in train]
    order = training_order(lengths, part.batch_size, max(1, seen), part.seed)
    tokens = [sum(lengths[index] for index in order[i : i + per_step]) for i in range(0, len(order), per_step)]
    return _Plan(
        folder,
        encoder,
        tokenizer,
        stops,
        [train[index] for index in order],
        valid,
        supervised,
        cut_rows,
        steps,
        [0, *itertools.accumulate(tokens)],
    )


def _fingerprint(recipe: Recipe, splits: Splits, base: Artifact) -> dict[str, str]:
    from contract.recipe import recipe_sha256

    return {
        **({"recipe.merge": recipe_sha256(recipe, "merge")} if recipe.train.method == "full" else {}),
        "recipe.prompt": recipe_sha256(recipe, "prompt"),
        "recipe.train": recipe_sha256(recipe, "train"),
        "base model": base.digest,
        "training data": splits.sha256["train"],
        "validation data": splits.sha256["valid"],
    }


def _train(
    recipe: Recipe, plan: _Plan, work: Path, fingerprint: dict[str, str], newest: Checkpoint | None, device: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    from trainer.callbacks import Course
    from trainer.loss import validation_loss
    from trainer.model import adapted_modules, count_parameters, load_base, trainable, trained_on
    from trainer.muon import muon_of

    kind: Any  # the two modules offer the same functions
    if is_encoder_decoder(plan.folder):
        from trainer import seq2seq as kind
    else:
        from trainer import sft as kind
    model = trainable(load_base(plan.folder, recipe, device), recipe)
    trained, total = count_parameters(model)
    config = kind.make_config(recipe.train, work, device, plan.steps, max(1, round(plan.steps / _LOG_ROWS)))

    def validate() -> float:
        return validation_loss(model, plan.valid, trainer.batch_of, trainer.nll, device)

    course = Course(
        work,
        fingerprint,
        evaluation_steps(plan.steps, recipe.train.evaluations),
        plan.tokens_after,
        validate,
        newest.log() if newest else [],
    )
    trainer = kind.make_trainer(model, config, plan.train, plan.tokenizer, course, plan.stops)
    if recipe.train.optimizer == "muon":
        trainer.optimizer = muon_of(model, recipe.train.learning_rate, recipe.train.weight_decay)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "resumed_at_step": newest.step if newest else None,
    }
    if newest is None or newest.step < plan.steps:
        if newest is not None:
            _say(f"going on from step {newest.step}")
        trainer.train(resume_from_checkpoint=str(newest.path) if newest else None)
        figures |= {
            "input_tokens_per_s": course.input_tokens_per_s(plan.steps),
            "validation_s": course.validation_s,
            "training_s": time.monotonic() - course.started,
        }
    figures["peak_rss_bytes"] = peak_rss_bytes()
    if device == "cuda":
        figures["peak_cuda_bytes"] = torch.cuda.max_memory_allocated()
    facts: dict[str, Any] = {"trainable_parameters": trained, "total_parameters": total}
    if recipe.train.method == "full":
        return facts | {"dtype": recipe.merge.dtype}, figures
    facts["trained_on"] = trained_on(model, recipe)
    facts["lora"] = {**recipe.train.lora.model_dump(), "target_modules": adapted_modules(model)}
    return facts, figures


def _write(
    recipe: Recipe,
    splits: Splits,
    base: Artifact,
    plan: _Plan,
    work: Path,
    out: Path,
    facts: dict[str, Any],
    figures: dict[str, Any],
) -> Artifact:
    from contract.recipe import recipe_sha256
    from trainer.adapter_folder import write_adapter, write_model
    from trainer.plot import plot_loss

    checkpoints = complete_checkpoints(work)
    best, last = best_of(checkpoints), checkpoints[-1]
    local = Path(recipe.model.base).is_dir()
    reference = str(plan.folder) if local else recipe.model.base
    details = {
        "base": reference,
        "license": license_of(plan.folder),
        "prompt": recipe.prompt.spec().as_dict(),
        **facts,
        "generate": recipe.generate.recorded(),
        "train": recipe.train.model_dump(),
        "seed": recipe.train.seed,
        "steps": plan.steps,
        "best_step": best.step,
        "validation_loss": best.validation_loss,
        "final_validation_loss": last.validation_loss,
        "validation_rows": len(plan.valid),
        "cut_rows": plan.cut_rows,
        "supervised_tokens_per_row": plan.supervised,
        "stop_ids": plan.stops,
        "plain_template": plan.encoder.plain,
    }
    full = recipe.train.method == "full"
    with new_artifact(
        out,
        "merged" if full else "adapter",
        recipe.name,
        parents=[Parent("base", reference, base.digest)],
        recipe_sha256=recipe_sha256(recipe, *RECIPE_PARTS, *(["merge"] if full else [])),
        data_sha256=splits.sha256,
        tools=tool_versions(*TOOLS),
        details=details,
    ) as draft:
        if full:
            write_model(draft.path, best.path, plan.folder, recipe.merge.dtype)
        else:
            write_adapter(draft.path, best.path, reference, None if local else recipe.model.revision)
        _write_text_files(draft.path, plan)
        shutil.copyfile(last.path / LOG_FILE, draft.measured / LOG_FILE)
        plot_loss(last.log(), best.step, draft.measured / "loss.png")
        draft.measurements |= figures
    shutil.rmtree(work)
    what = "model" if full else "adapter"
    _say(f"the {what} is the checkpoint of step {best.step}, validation loss {best.validation_loss:.4f}")
    return draft.finished


def _write_text_files(folder: Path, plan: _Plan) -> None:
    """The tokenizer, and how text is generated."""
    from trainer.adapter_folder import write_generation_config, write_pair_generation_config, write_tokenizer
    from trainer.seq2seq_rows import PairEncoder

    if isinstance(plan.encoder, PairEncoder):
        write_tokenizer(folder, plan.folder, None)
        write_pair_generation_config(folder, plan.folder)
        return
    write_tokenizer(folder, plan.folder, plan.encoder.chat)
    pad_id = plan.tokenizer.pad_token_id
    write_generation_config(
        folder, plan.encoder.bos_id, plan.stops, plan.tokenizer.eos_token_id if pad_id is None else pad_id
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, bars or logs of the libraries: stderr is for progress that was asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        yield


def _lacked_memory(error: RuntimeError) -> bool:
    """torch has a class of its own for a device's memory only; of the host's it says no more than these words."""
    return "DefaultCPUAllocator" in str(error) or "out of memory" in str(error)


def _out_of_memory(error: RuntimeError) -> AssayError:
    return AssayError(
        "the memory does not suffice for this training",
        got=str(error).splitlines()[0],
        hint="halve train.batch_size and double train.accumulation_steps, or set train.gradient_checkpointing: true",
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
