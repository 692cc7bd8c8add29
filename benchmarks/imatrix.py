"""What an importance matrix changes at 2 to 4 bits: KL with one over KL without, three times, with intervals.

    python -m benchmarks.imatrix [--run runs/tiny] [--documents 200] [--chunks 100] [--threads N] [--types q4_k_m,…]

The merged model in torch is what every GGUF is held against: mean KL(merged‖GGUF) per token of the test split's
reference summaries. The matrix is made three times, each from other training rows (seeds 0, 1, 2). A ratio below 1 says
that the matrix helps; its interval is a bootstrap over documents, the three seeds taken together, and where it holds 1
there is no effect to be seen. Types that cannot be made without a matrix have no ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from contract.artifact import Artifact, open_artifact
from contract.artifact_prompt import prompt_of
from contract.cpu import usable_cores
from contract.example import Example, read_examples
from evalsuite.distance import LogitsSpool, Pair, score_against
from evalsuite.stats import interval_of_ratio
from export.gguf_file import plan_gguf
from export.gguf_write import write_ggufs
from export.imatrix import Calibration, make_imatrix
from export.quantize import LADDER
from export.source import open_model
from runtimes import load_runtime

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "assets" / "dialogues"
TYPES = ("q4_k_m", "q4_k_s", "q4_0", "iq4_xs", "q3_k_m", "q3_k_s", "iq3_xxs", "q2_k", "iq2_m", "iq2_xs")
SEEDS = (0, 1, 2)


@dataclass
class Judge:
    """The test's target ids, and the merged model's logits for them."""

    pairs: list[Pair]
    kept: LogitsSpool
    threads: int

    @classmethod
    def of(cls, merged: Artifact, examples: Sequence[Example], path: Path, threads: int) -> Judge:
        """Score the merged model once."""
        runtime, spec = load_runtime(merged, threads=threads), prompt_of(merged)
        asked = [(spec.messages(example.document), example.references[0]) for example in examples]
        pairs: list[Pair] = [(runtime.encode(turns), runtime.encode_completion(turns, text)) for turns, text in asked]
        kept = LogitsSpool(path, runtime.vocab_size, [len(target) for _, target in pairs])
        score_against(runtime, pairs, [], kept)
        runtime.close()
        return cls(pairs, kept, threads)

    def kl(self, path: Path) -> np.ndarray:
        """Nats per document, summed over its tokens, float64 [documents]."""
        runtime = load_runtime(open_artifact(path), threads=self.threads, kv_dtype="f32")
        [distances] = score_against(runtime, self.pairs, [self.kept])
        runtime.close()
        return np.array([found.kl.sum() for found in distances])


def compare(label: str, without: np.ndarray | None, weighed: Sequence[np.ndarray], tokens: int) -> str:
    """One row: KL per token without and with a matrix, the ratio of each seed, and of all with its interval."""
    means = " ".join(f"{kl.sum() / tokens:.4f}" for kl in weighed)
    if without is None:
        return f"{label:<9}{'-':>8}   {means}"
    ratios = " ".join(f"{kl.sum() / without.sum():.3f}" for kl in weighed)
    found = interval_of_ratio(list(np.mean(weighed, axis=0)), list(without))
    effect = "no effect seen" if found.low <= 1 <= found.high else "helps" if found.high < 1 else "harms"
    interval = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return f"{label:<9}{without.sum() / tokens:>8.4f}   {means}   {ratios}   {interval}  {effect}"


def run(merged: Artifact, types: Sequence[str], documents: int, chunks: int, threads: int) -> None:
    """Make every type without and with each seed's matrix, and print its row."""
    training = read_examples(DATA / "train.jsonl")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        judge = Judge.of(merged, read_examples(DATA / "test.jsonl", limit=documents), folder / "logits.f32", threads)
        tokens = sum(len(target) for _, target in judge.pairs)
        source = open_model(merged).source(folder)
        plan = plan_gguf(source)
        matrices = []
        for seed in SEEDS:
            matrices.append(folder / f"{seed}.imatrix.gguf")
            calibration = Calibration(training, chunks, seed)
            made = make_imatrix(merged, plan, source, calibration, matrices[-1], threads=threads)
        print(f"{len(judge.pairs)} documents, {tokens} tokens; matrices of {made['tokens']} tokens each")
        print("type      without   with, seed 0 1 2       ratios              of all, 95 %")
        for quant in types:
            found = []
            for matrix in [*([] if LADDER[quant].needs_matrix else [None]), *matrices]:
                path = {quant: folder / "q.gguf"}
                write_ggufs(path, plan, source, name="m", threads=threads, imatrix=matrix)
                found.append(judge.kl(folder / "q.gguf"))
            without = found.pop(0) if len(found) > len(SEEDS) else None
            print(compare(quant, without, found, tokens), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "tiny", help="made by `make demo`")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--types", default=",".join(TYPES))
    options = parser.parse_args()
    types = options.types.split(",")
    run(open_artifact(options.run / "merged"), types, options.documents, options.chunks, options.threads)


if __name__ == "__main__":
    main()
