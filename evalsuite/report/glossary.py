"""The report's glossary: the field's words, each in a sentence or two."""

from __future__ import annotations

GLOSSARY = (
    ("95% interval", "From a bootstrap: the documents are drawn again 10,000 times, and 95% of the means lie within."),
    ("adapter", "What fine-tuning made: a small file of changes (LoRA) that needs its base model beside it."),
    ("BERTScore", "Nearness in meaning: every word is matched with the most similar one by a language model, 0-100."),
    ("bits per weight", "How much storage one number of the model takes on average. 16 is half precision."),
    ("BLEU, chrF, METEOR", "Other counts of shared words or letters: runs of words, runs of letters, words and stems."),
    ("bucket", "A rule that finds one plain kind of failure. It is there to be looked at, not a grade."),
    ("digest", "A fingerprint (sha256) of an artifact's files. A verdict holds for those very bytes and no others."),
    ("end by themselves", "The model wrote its end token (EOS) instead of being cut at the longest allowed length."),
    (
        "gold and greedy",
        "Two texts that every artifact is read along: gold is the reference summary that a person wrote, greedy what "
        "the reference artifact writes when it always takes the likeliest token.",
    ),
    (
        "KL divergence",
        "How far apart two models' probabilities for the next token are, in nats, 0 for none: what is lost when one "
        "stands in for the other. It shows damage long before the text changes.",
    ),
    (
        "lead-3, oracle-extractive",
        "Summaries without a model: the first three sentences; the three that fit the reference best.",
    ),
    ("merging", "Adding the adapter's changes into the base model's own numbers, so that it can be shipped as one."),
    ("oracle-extractive", "A summary without a model, made with the reference in sight: what copying can about reach."),
    ("p50, p95", "The median and the 95th percentile: half, and 95%, of the measurements are below."),
    ("Pareto front", "The artifacts that no other one beats in both: whoever is better than these costs more."),
    (
        "perplexity",
        "How surprised a model is by the reference summaries, 1 for not at all. The ratio is to its reference.",
    ),
    (
        "quantization",
        "Storing a model's numbers with fewer bits. q8_0 has about 8, q4_k_m about 5 bits per weight; f16 is half "
        "precision and not yet quantized.",
    ),
    ("RMS Δp", "How much the probability of the right token changes, typically: root mean square over the tokens."),
    (
        "ROUGE",
        "Words shared with the reference, 0-100: single (1), in pairs (2), in the longest sequence (L, Lsum).",
    ),
    ("same first choice", "Share of tokens where both models think the same token likeliest (top-1)."),
    ("SE", "Standard error: how much a mean would waver if measured again, here from the tokens alone."),
    ("token", "A piece of a word, the unit a model reads and writes."),
)
