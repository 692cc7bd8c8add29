"""Which base weights to merge onto: those from which the merged model is nearer to the adapter as it was trained.

A QLoRA adapter has learned on dequantized NF4 weights. Merged onto the 16-bit base it stands on other weights than
those; merged onto the NF4 ones it stands where it was, but on a coarser base. Which is nearer to what was trained is
measured, not guessed: teacher-forced on the reference summaries of validation documents.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from contract.artifact import Artifact
from contract.artifact_prompt import prompt_of
from contract.errors import AssayError
from contract.example import Example
from contract.runtime import Runtime

BaseWeights = Literal["w16", "nf4"]
Dtype = Literal["float16", "bfloat16", "float32"]
MOST_DOCUMENTS = 48


@dataclass(frozen=True)
class Choice:
    """The nearer base, and how far each merge is from the adapter on what it was trained on."""

    base: BaseWeights
    kl: dict[str, dict[str, float]]  # base -> mean nats per token with its 95% interval: mean, low, high
    documents: int
    tokens: int

    def as_details(self) -> dict[str, Any]:
        """For the merged artifact's manifest."""
        return {"chosen": self.base, "kl_nats": self.kl, "documents": self.documents, "tokens": self.tokens}

    def as_text(self) -> str:
        """One line for a person."""
        others = [name for name in self.kl if name != self.base]
        ours = self.kl[self.base]["mean"]
        line = f"base: {self.base.upper()}, mean KL {ours:.3g} nats from the adapter as it was trained"
        if not others:
            return line + "; it was trained on these very weights"
        theirs = self.kl[others[0]]["mean"]
        factor = f", {theirs / ours:.3g} times as far" if ours > 0 else ""
        return f"{line}; {others[0].upper()} {theirs:.3g}{factor} ({self.documents} documents, {self.tokens:,} tokens)"


def choose_base(
    adapter: Artifact,
    examples: Sequence[Example],
    *,
    dtype: Dtype = "float16",
    trained_on: BaseWeights | None = None,
    threads: int = 2,
) -> Choice:
    """Measure both merges against the adapter on its training base, and take the nearer.

    Args:
        adapter: Assay's own, or a plain PEFT folder.
        examples: validation documents with reference summaries; the first MOST_DOCUMENTS are used.
        dtype: what the merge will be stored in; merges are made in memory, in float32, and rounded to it.
        trained_on: for an adapter that does not record it.
        threads: CPU threads.

    Raises:
        AssayError: nobody knows what the adapter was trained on, or there are no documents that fit.
    """
    recorded = adapter.details.get("trained_on", {}).get("quant") or trained_on
    if recorded is None:
        raise AssayError(
            "it is not known what the adapter was trained on, so no base can be chosen",
            where=str(adapter.path),
            hint="--trained-on nf4 (QLoRA) or --trained-on w16 (LoRA)",
        )
    if not examples:
        raise AssayError("choosing a base needs documents", hint="--data EXAMPLES")
    bases: tuple[BaseWeights, ...] = ("nf4", "w16") if recorded == "nf4" else ("w16",)
    with TemporaryDirectory(prefix="assay-base-") as scratch:
        return _measure(adapter, list(examples[:MOST_DOCUMENTS]), dtype, recorded, bases, threads, Path(scratch))


def _measure(
    adapter: Artifact,
    examples: Sequence[Example],
    dtype: Dtype,
    trained_on: BaseWeights,
    bases: Sequence[BaseWeights],
    threads: int,
    scratch: Path,
) -> Choice:
    from evalsuite.distance import LogitsSpool, score_against, summarize
    from runtimes import load_runtime

    print(f"measuring which base is nearer, on {len(examples)} documents …", file=sys.stderr, flush=True)
    spec = prompt_of(adapter)
    reference = load_runtime(adapter, threads=threads, base_weights=trained_on)
    try:
        pairs = []
        for example in examples:
            messages = spec.messages(example.document)
            pair = reference.encode(messages), reference.encode_completion(messages, example.references[0])
            if _fits(reference, *pair):
                pairs.append(pair)
        if not pairs:
            raise AssayError("none of the documents fits the context", got=f"{reference.context_length} tokens")
        spool = LogitsSpool(scratch / "reference.f32", reference.vocab_size, [len(target) for _, target in pairs])
        score_against(reference, pairs, [], spool)
    finally:
        reference.close()
    found = {}
    for base in bases:
        merged = load_runtime(adapter, threads=threads, base_weights=base, merge_dtype=dtype)
        try:
            found[base] = summarize("gold", score_against(merged, pairs, [spool])[0])
        finally:
            merged.close()
    kl = {str(base): {"mean": d.kl.mean, "low": d.kl.low, "high": d.kl.high} for base, d in found.items()}
    nearer = min(bases, key=lambda base: found[base].kl.mean)
    return Choice(nearer, kl, len(pairs), found[nearer].tokens)


def _fits(runtime: Runtime, prompt: list[int], target: list[int]) -> bool:
    if runtime.target_length is None:
        return len(prompt) + len(target) <= runtime.context_length
    return len(prompt) <= runtime.context_length and len(target) <= runtime.target_length
