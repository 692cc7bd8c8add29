"""How much faster an artifact is evaluated than by the plain loop, one document at a time: ratios, in one run.

    python -m benchmarks.evaluation [--run runs/tiny] [--documents 200] [--threads N]
    python -m benchmarks.evaluation --model FOLDER [--data ROWS.jsonl] [--documents 16] [--threads N]
    python -m benchmarks.evaluation --random

What costs time in `assay eval` is measured: greedy summaries, and teacher-forced logits on the reference summaries and
on the greedy ones of the model it is compared with, with the distances between them. The plain loop is what one writes
first: transformers' `generate` and a forward pass for a PEFT adapter on its base, llama-cpp-python's `Llama` with
`logits_all` for a GGUF. Both sides get the same prompt ids, stop ids and references; models are loaded before the clock
starts. Outputs are compared: summaries token for token, and the mean distance. `--random` does the same with random
weights of about 0.3 billion parameters on a few documents, for information.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from contract.artifact import Artifact, open_artifact
from contract.artifact_prompt import prompt_of
from contract.cpu import this_cpu, usable_cores
from contract.example import Example, read_examples
from contract.runtime import Completion, GenerateParams
from evalsuite.distance import LogitsSpool, TokenDistances, mean_kl, score_against, token_distances
from evalsuite.own_targets import chunk_size, write_and_spool
from evalsuite.own_words import Start, start_of, write
from evalsuite.targets import Targets, make_targets
from runtimes import load_runtime

ROOT = Path(__file__).resolve().parent.parent
PARALLEL = 32

Generate = Callable[[Sequence[int]], list[int]]
Score = Callable[[Sequence[int], Sequence[int]], np.ndarray]


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds since then, and seconds of the processor."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


@dataclass
class Outcome:
    """What one side made of the documents, and how long it took."""

    seconds: float
    cpu_seconds: float
    summaries: list[list[int]]
    distances: list[TokenDistances]  # empty where there is nothing to compare with


@dataclass
class Work:
    """What is scored; `reference` holds the logits of what it is compared with, `most` limits a summary's tokens."""

    targets: Targets
    reference: LogitsSpool | None
    most: int

    @property
    def prompts(self) -> Sequence[tuple[int, ...]]:
        """Of the documents, without the hard texts."""
        return self.targets.prompts[: len(self.targets.documents)]


def assay_reference(
    artifact: Artifact, examples: Sequence[Example], most: int, spool: Path, threads: int
) -> tuple[Work, Outcome]:
    """The root of an evaluation: it writes the greedy targets, and its logits are kept."""
    runtime = load_runtime(artifact, threads=threads, parallel=PARALLEL)
    params = GenerateParams(max_new_tokens=most)
    clock = Clock()

    def write_targets(prompts: Sequence[Sequence[int]], golds: Sequence[Sequence[int]]) -> tuple[Completion, ...]:
        size = chunk_size(runtime, golds, most, spool)
        if not size:
            return tuple(runtime.generate(prompts, params))
        return write_and_spool(runtime, prompts, golds, params, spool, size, lambda _: None, lambda *_: None)

    targets = make_targets(runtime, prompt_of(artifact), examples, write_targets)
    kept = LogitsSpool(spool, runtime.vocab_size, [len(target) for _, target in targets.pairs])
    if not kept.complete:
        score_against(runtime, targets.pairs, [], kept)
    seconds = clock.read()
    runtime.close()
    return Work(targets, kept, most), Outcome(*seconds, [list(c.ids) for c in targets.greedy], [])


def assay_candidate(artifact: Artifact, work: Work, threads: int) -> Outcome:
    """Held against the reference; its own summaries follow from that as far as they agree."""
    assert work.reference is not None
    runtime = load_runtime(artifact, threads=threads, parallel=PARALLEL)
    clock = Clock()
    [distances] = score_against(runtime, work.targets.pairs, [work.reference])
    greedy = zip(work.targets.pairs[1::2], distances[1::2], strict=True)
    starts: list[Start] = [start_of(target, found, runtime.stop_ids, work.most) for (_, target), found in greedy]
    written = write(runtime, work.prompts, starts, GenerateParams(max_new_tokens=work.most))
    seconds = clock.read()
    runtime.close()
    return Outcome(*seconds, [list(completion.ids) for completion in written], distances)


def plain_loop(work: Work, generate: Generate, score: Score, *, compare: bool) -> Outcome:
    """One document after the other."""
    clock = Clock()
    summaries = [generate(prompt) for prompt in work.prompts]
    distances = []
    for index, (prompt, target) in enumerate(work.targets.pairs):
        logits = score(prompt, target)
        if compare and work.reference is not None:
            distances.append(token_distances(work.reference.read(index), logits, target))
    return Outcome(*clock.read(), summaries, distances)


def plain_torch(artifact: Artifact, work: Work, threads: int, *, compare: bool) -> Outcome:
    """transformers, on the same float32 weights."""
    import torch

    from runtimes.torch_load import load_adapter, load_merged

    torch.set_num_threads(threads)
    if artifact.kind == "adapter":
        model = load_adapter(artifact, base_weights=None, merge_dtype=None).model
    else:
        model = load_merged(artifact, base_weights=None).model

    @torch.inference_mode()
    def generate(prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=work.most,
            do_sample=False,
            eos_token_id=list(work.targets.stop_ids),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        return made[:-1] if made and made[-1] in work.targets.stop_ids else made

    @torch.inference_mode()
    def score(prompt: Sequence[int], target: Sequence[int]) -> np.ndarray:
        logits = model(torch.tensor([[*prompt, *target]])).logits[0]
        return logits[len(prompt) - 1 : -1].float().numpy()

    return plain_loop(work, generate, score, compare=compare)


def plain_llama(artifact: Artifact, work: Work, threads: int) -> Outcome:
    """llama-cpp-python's high-level class."""
    from llama_cpp import Llama

    _without_amx()
    longest = max(len(prompt) + max(len(target), work.most) for prompt, target in work.targets.pairs)
    model = Llama(
        str(artifact.gguf_path),
        n_ctx=longest + 8,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )

    def generate(prompt: Sequence[int]) -> list[int]:
        summary: list[int] = []
        for token in model.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
            if token in work.targets.stop_ids:
                break
            summary.append(int(token))
            if len(summary) == work.most:
                break
        return summary

    def score(prompt: Sequence[int], target: Sequence[int]) -> np.ndarray:
        model.reset()
        model.eval([*prompt, *target])
        found: np.ndarray = model.scores[len(prompt) - 1 : len(prompt) + len(target) - 1]
        return found

    return plain_loop(work, generate, score, compare=True)


def _without_amx() -> None:
    """As `runtimes.llama_engine` loads a model: with llama.cpp's AMX kernels, built by GCC 12, the process dies."""
    import llama_cpp

    defaults = llama_cpp.llama_model_default_params

    def params() -> Any:
        made = defaults()
        made.use_extra_bufts = "amx_int8" not in this_cpu().features
        return made

    llama_cpp.llama_cpp.llama_model_default_params = params
    llama_cpp.llama_model_default_params = params


def compared(fast: Outcome, slow: Outcome) -> str:
    """Both sides' seconds and their ratios."""
    wall = f"assay {fast.seconds:.1f} s, plain loop {slow.seconds:.1f} s: ratio {slow.seconds / fast.seconds:.2f}x"
    cpu = f"{fast.cpu_seconds:.1f} s and {slow.cpu_seconds:.1f} s: {slow.cpu_seconds / fast.cpu_seconds:.2f}x"
    return f"{wall}; of the processor {cpu}"


def report(title: str, fast: Outcome, slow: Outcome) -> None:
    """Print the ratio, and whether both sides found the same."""
    same = sum(a == b for a, b in zip(fast.summaries, slow.summaries, strict=True))
    print(f"{title}: {len(fast.summaries)} documents")
    print(f"  {compared(fast, slow)}")
    print(f"  {same} of {len(fast.summaries)} summaries are the same, token for token")
    if fast.distances:
        print(f"  mean KL from the reference {mean_kl(fast.distances):.4g} and {mean_kl(slow.distances):.4g} nats")


def run(reference: Artifact, q8_0: Artifact, examples: Sequence[Example], most: int, threads: int, what: str) -> None:
    """Both artifacts, both ways."""
    with TemporaryDirectory() as scratch:
        work, fast = assay_reference(reference, examples, most, Path(scratch) / "logits.f32", threads)
        slow = plain_torch(reference, work, threads, compare=False)
        report(f"{what}, torch in float32", fast, slow)
        fast_q8_0, slow_q8_0 = assay_candidate(q8_0, work, threads), plain_llama(q8_0, work, threads)
        report(f"{what}, Q8_0 in llama.cpp", fast_q8_0, slow_q8_0)
    both = [
        Outcome(one.seconds + other.seconds, one.cpu_seconds + other.cpu_seconds, [], [])
        for one, other in ((fast, fast_q8_0), (slow, slow_q8_0))
    ]
    print(f"both together: {compared(*both)}")


def random_model(folder: Path) -> Artifact:
    """A Llama of about 0.3 billion random parameters with the embedded tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source = ROOT / "assets" / "tiny-base"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = LlamaConfig.from_pretrained(
        source,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=18,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(folder)
    return open_artifact(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "tiny", help="made by `make demo`")
    parser.add_argument("--model", type=Path, help="a model folder in place of the run's adapter")
    parser.add_argument("--data", default=str(ROOT / "assets" / "dialogues" / "test.jsonl"))
    parser.add_argument("--documents", type=int, help="default: 200, of a model of real size 16")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--random", action="store_true", help="a random model of 0.3 billion parameters instead")
    options = parser.parse_args()
    large = options.random or options.model
    examples = read_examples(options.data, None, limit=options.documents or (16 if large else 200))
    if not large:
        adapter, q8_0 = (open_artifact(options.run / path) for path in ("adapter", "gguf/q8_0"))
        run(adapter, q8_0, examples, 128, options.threads, "the tuned default")
        return
    from export.to_gguf import export_gguf

    with TemporaryDirectory() as scratch:
        model = open_artifact(options.model) if options.model else random_model(Path(scratch) / "model")
        [q8_0] = export_gguf(model, Path(scratch) / "gguf", quants=["q8_0"])
        if options.model:
            run(model, q8_0, examples, 96, options.threads, options.model.name)
        else:
            run(model, q8_0, examples[:8], 32, options.threads, "0.3 billion random parameters")


if __name__ == "__main__":
    main()
