"""What the pretraining programs share: their options, how they begin, how a model is stored and probed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from contract.cpu import usable_cores
from trainer.pretrain_corpus import read_corpus

STEPS = 2000


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every one of them is told on the command line."""
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--steps", type=int, help=f"default: {STEPS}")
    until.add_argument("--minutes", type=float)
    parser.add_argument("--probe", type=Path, help="questions of unseen names, asked at the end")
    parser.add_argument("--start", type=Path, help="train this model further instead of a new one")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=0)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of a `pretrain` function."""
    return {
        "steps": STEPS if args.steps is None and args.minutes is None else args.steps,
        "minutes": args.minutes,
        "threads": args.threads,
        "seed": args.seed,
        "probe_file": args.probe,
        "start": args.start,
    }


def begin(out: Path, threads: int, seed: int) -> None:
    """Refuse a folder that is there, set the threads and the seed."""
    if out.exists():
        raise FileExistsError(f"{out} exists already: remove it or choose another --out")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def store(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model in float16 with its tokenizer."""
    model.half().save_pretrained(folder, safe_serialization=True)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    tokenizer.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)  # what was written must load


def finish(
    out: Path,
    save: Callable[[Path], None],
    probe: Callable[[list[dict[str, Any]]], float],
    probe_file: Path | None,
) -> None:
    """Save, so that `out` appears when it is whole, and say how many of the probe's questions are answered exactly."""
    unfinished = out.with_name(out.name + ".unfinished")
    save(unfinished)
    unfinished.rename(out)
    if probe_file is not None:
        asked = read_corpus(probe_file)
        print(f"probe: {100 * probe(asked):.1f} % of {len(asked)} answers exactly right")
