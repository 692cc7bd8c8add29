"""How often the gate is wrong: simulated evaluations at the limit, with ruined documents, and well within the limits.

    python -m benchmarks.coverage [--simulations 10000] [--seed 0]

Every simulated evaluation goes through the functions that judge a real one. Its documents are drawn so that the truth
is known: exactly at the limit, where at most 3.5% may pass; 3% of the documents ruined, where whoever sees none of them
has to pass (0.97^n); a quarter of the limit, where with 120 documents 90% should pass. Nothing is read, no model runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from contract.limits import GatePart, Quant
from contract.sample_size import sample_report
from contract.verdict import Outcome, worst
from evalsuite.distance import TokenDistances, summarize
from evalsuite.judged import difference_of_rouge, difference_of_shares, interval_of_change, interval_of_costs
from evalsuite.ruined import ruined_documents
from evalsuite.stats import at_most, exp_interval, non_inferior

SIZES = (20, 30, 50, 100, 300)
ENOUGH = 120  # documents with which an artifact at a quarter of every limit should pass
GATE = GatePart()
LIMITS = GATE.quant["q4_k_m"]
TOKENS = 30  # of a summary
LABELS = ("merged", "f16", "q8_0", "q4_k_m", "onnx-fp32", "onnx-int8")

Draw = Callable[[np.random.Generator, int], Outcome]


def eos(lost: float, gained: float = 0.0) -> Draw:
    """Of all documents the shares `lost` stop ending by themselves, and `gained` begin to."""

    def one(random: np.random.Generator, n: int) -> Outcome:
        at = random.random(n)
        theirs, ours = at >= gained, at < 1 - lost
        return non_inferior(difference_of_shares(ours.tolist(), theirs.tolist()), GATE.max_eos_rate_loss)

    return one


def kl(part: float, spread: float = 1.0, *, varied: bool = False) -> Draw:
    """The mean KL is this part of the limit; documents are lognormal, with `varied` of very different lengths."""

    def one(random: np.random.Generator, n: int) -> Outcome:
        tokens = lengths(random, n) if varied else np.full(n, float(TOKENS))
        sums = tokens * part * LIMITS.max_kl_nats * random.lognormal(-(spread**2) / 2, spread, n)
        return at_most(interval_of_costs(sums.tolist(), tokens.tolist()), LIMITS.max_kl_nats)

    return one


def top1(part: float, quant: Quant = "q4_k_m", alike: float = 0.05) -> Draw:
    """This part of the tokens that may have another first choice have one; those of a document are `alike` (ρ)."""
    limit = 1 - GATE.quant[quant].min_top1_agreement
    size = 1 / alike - 1

    def one(random: np.random.Generator, n: int) -> Outcome:
        tokens, mean = lengths(random, n), part * limit
        differ = random.binomial(tokens.astype(int), random.beta(mean * size, (1 - mean) * size, n)).astype(float)
        return at_most(interval_of_costs(differ.tolist(), tokens.tolist(), least_jump=1.0), limit)

    return one


def perplexity(part: float) -> Draw:
    """The log ratio is this part of the limit's; per token it spreads as widely as the KL at that part lets it."""

    def one(random: np.random.Generator, n: int) -> Outcome:
        tokens, mean = lengths(random, n), part * math.log(LIMITS.max_perplexity_ratio)
        sums = tokens * mean + np.sqrt(2 * part * LIMITS.max_kl_nats * tokens) * random.normal(size=n)
        return at_most(exp_interval(interval_of_change(sums.tolist(), tokens.tolist())), LIMITS.max_perplexity_ratio)

    return one


def rouge(part: float, changed: float = 0.5, spread: float = 1.5) -> Draw:
    """This part of the points that may be lost are; `changed` summaries differ, and all by `spread` times the limit."""

    def one(random: np.random.Generator, n: int) -> Outcome:
        mean = part * LIMITS.max_rouge_l_loss / changed
        deviation = math.sqrt((spread * LIMITS.max_rouge_l_loss) ** 2 / changed - mean**2 * (1 - changed))
        differ = (random.random(n) < changed) * random.normal(-mean, deviation, n)
        return non_inferior(difference_of_rouge(differ.tolist(), [0.0] * n), LIMITS.max_rouge_l_loss)

    return one


def rouge_in_few(share: float) -> Draw:
    """All that may be lost is lost by this share of the summaries, the others stay as they are."""

    def one(random: np.random.Generator, n: int) -> Outcome:
        differ = (random.random(n) < share) * (-LIMITS.max_rouge_l_loss / share)
        return non_inferior(difference_of_rouge(differ.tolist(), [0.0] * n), LIMITS.max_rouge_l_loss)

    return one


def with_ruined(share: float, times: float, part: float) -> Draw:
    """`share` of the documents has `times` the KL that the mean may have; the others together have `part` of it."""
    none = np.empty(0)
    token = np.zeros(1)
    empty = summarize("gold", [TokenDistances(token, token == 0, token, token, token, none, 0)])

    def one(random: np.random.Generator, n: int) -> Outcome:
        documents = LIMITS.max_kl_nats * np.where(
            random.random(n) < share, times, part * random.lognormal(-0.5, 1.0, n)
        )
        found = replace(empty, documents=n, kl_by_document=tuple(documents.tolist()))
        counted = ruined_documents("ruined_documents", [found], [LIMITS.max_kl_nats], GATE.max_ruined_share)
        mean = at_most(interval_of_costs(found.kl_by_document, [1.0] * n), LIMITS.max_kl_nats)
        return worst([mean, counted.outcome])

    return one


def lengths(random: np.random.Generator, n: int) -> np.ndarray:
    """Tokens per summary, float64 [n]: lognormal with σ 0.5, TOKENS in the middle."""
    return np.ceil(random.lognormal(math.log(TOKENS), 0.5, n))


AT_LIMIT: dict[str, Draw] = {
    "EOS: 5% lost": eos(0.05),
    "EOS: 8% lost, 3% gained": eos(0.08, 0.03),
    "KL: lognormal, σ 1": kl(1),
    "the same, lengths vary": kl(1, varied=True),
    "top-1": top1(1),
    "perplexity": perplexity(1),
    "ROUGE-L": rouge(1),
}
QUARTER: dict[str, Draw] = {
    "KL: lognormal, σ 1": kl(0.25),
    "the same, lengths vary": kl(0.25, varied=True),
    "the same with σ 1.5": kl(0.25, 1.5, varied=True),
    "top-1": top1(0.25),
    "perplexity": perplexity(0.25),
    "ROUGE-L, spread 1.5 times the limit": rouge(0.25),
    "no document is ruined": with_ruined(0.0, 0.0, 0.25),
}


# The gate does not keep to 3.5% here: a heavier tail than it was calibrated on, and faults in few documents.
NOT_COVERED: dict[str, Draw] = {
    "KL: lognormal, σ 1.5": kl(1, 1.5),
    "top-1 of f16 (0.5%), ρ 0.2": top1(1, "f16", 0.2),
    "ROUGE-L: 5% of the summaries lose it all": rouge_in_few(0.05),
}
# Rare faults and wide spreads, for which 120 documents may be too few.
HARDER: dict[str, Draw] = {
    "EOS": eos(0.05 / 4),
    "top-1 of f16 (0.5%), ρ 0.02": top1(0.25, "f16", 0.02),
    "top-1 of f32 (0.1%), ρ 0.02": top1(0.25, "f32", 0.02),
    "ROUGE-L, spread 2 times the limit": rouge(0.25, spread=2.0),
    "ROUGE-L, spread 2.5 times the limit": rouge(0.25, spread=2.5),
}


def shares(draw: Draw, n: int, simulations: int, seed: int) -> tuple[float, float]:
    """How many of the simulated evaluations pass, and how many fail."""
    random = np.random.default_rng([seed, n])
    outcomes = [draw(random, n) for _ in range(simulations)]
    return outcomes.count("pass") / simulations, outcomes.count("fail") / simulations


def best_of_eos(n: int, level: float = 0.035) -> float:
    """How often the best test whose error at the limit is `level` lets a quarter of it pass (Neyman and Pearson)."""
    limit = GATE.max_eos_rate_loss

    def chance(lost: int, share: float) -> float:
        return math.comb(n, lost) * share**lost * (1 - share) ** (n - lost)

    at_limit = passed = 0.0
    for lost in range(n):
        if at_limit + chance(lost, limit) > level:  # the last one it lets pass by lot
            return passed + chance(lost, limit / 4) * (level - at_limit) / chance(lost, limit)
        at_limit += chance(lost, limit)
        passed += chance(lost, limit / 4)
    return passed


def table(simulations: int, seed: int) -> Iterator[str]:
    """The lines that are printed."""
    for title, draws in (("at the limit", AT_LIMIT), ("at the limit, not covered", NOT_COVERED)):
        yield f"{f'{title}: % that pass / fail':<44}" + "".join(f"{f'n={n}':>12}" for n in SIZES)
        for name, draw in draws.items():
            found = [shares(draw, n, simulations, seed) for n in SIZES]
            yield f"  {name:<42}" + "".join(f"{f'{100 * p:.1f} / {100 * f:.1f}':>12}" for p, f in found)
    yield "3% of the documents ruined, the mean twice the limit, the others at a tenth of it: % that pass"
    times, part = (2 - 0.97 * 0.1) / 0.03, 0.1
    found = [shares(with_ruined(0.03, times, part), n, simulations, seed) for n in SIZES]
    yield f"  {'KL and the count of ruined documents':<42}" + "".join(f"{100 * p:>12.1f}" for p, _ in found)
    yield f"  {'0.97^n: no check can do better':<42}" + "".join(f"{100 * 0.97**n:>12.1f}" for n in SIZES)
    sizes = (ENOUGH, 250, 300)
    for title, draws in (("a quarter of the limit", QUARTER), ("a quarter of the limit, harder", HARDER)):
        yield f"{f'{title}: % that pass':<44}" + "".join(f"{f'n={n}':>12}" for n in sizes)
        for name, draw in draws.items():
            passed = [shares(draw, n, simulations, seed)[0] for n in sizes]
            yield f"  {name:<42}" + "".join(f"{100 * p:>12.1f}" for p in passed)
    yield f"  {'EOS by the best test there can be':<42}" + "".join(f"{100 * best_of_eos(n):>12.1f}" for n in sizes)
    yield f"the least n that can pass under the default limits, where nothing is lost ({TOKENS} tokens a summary)"
    for need in sample_report(GATE, LABELS, ENOUGH, TOKENS).needs:
        yield f"  {need.code:<18} limit {need.limit:<8g} {need.documents:>5}   {', '.join(need.labels)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=10_000, help="a cell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for line in table(options.simulations, options.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
