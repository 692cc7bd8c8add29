"""Failure buckets in the report: how many summaries of each artifact fell into each, and marked examples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evalsuite.metrics.buckets import BUCKETS, COPIED_RUN_WORDS, LONGEST_RATIO
from evalsuite.metrics.faithful import invented_names, invented_numbers, ordinary_words
from evalsuite.metrics.shape import REPETITION_ORDER
from evalsuite.report.table import Cell, Column, Line, Table
from evalsuite.report.word_diff import Span
from evalsuite.report.words import bucket_name
from evalsuite.results import Prediction, Results

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Faulty:
    """One summary that stands for a bucket; spans of kind "added" are what put it there, where that can be marked."""

    bucket: str
    words: str
    label: str
    id: str
    spans: tuple[Span, ...]
    references: tuple[str, ...]
    others: int  # further summaries of this artifact in the bucket


def buckets_table(results: Results) -> Table | None:
    """Counts and shares per artifact; buckets that nothing fell into are left out, None where none is left."""
    tasks = [row.task for row in results.rows]
    lines = []
    for bucket, words in BUCKETS.items():
        counts = [task.buckets.get(bucket, 0) for task in tasks]
        if any(counts):
            cells = [
                Cell(f"{count:,}", f"{100 * count / task.rougeL.n:.1f}%" if count else "")
                for count, task in zip(counts, tasks, strict=True)
            ]
            lines.append(Line(bucket_name(bucket), words, "", tuple(cells), ""))
    return Table.of([Column(row.label) for row in results.rows], lines) if lines else None


def faulty_examples(predictions: Mapping[str, Sequence[Prediction]]) -> list[Faulty]:
    """An example for every bucket that has one: of the first artifact that does, the base last, with fewest faults."""
    labels = sorted(predictions, key=lambda label: label == "base")
    found = []
    for bucket, words in BUCKETS.items():
        for label in labels:
            fallen = [prediction for prediction in predictions[label] if bucket in prediction.buckets]
            if fallen:
                chosen = min(fallen, key=lambda prediction: len(prediction.buckets))
                spans = mark(bucket, chosen, predictions[label])
                found.append(Faulty(bucket, words, label, chosen.id, spans, chosen.references, len(fallen) - 1))
                break
    return found


def mark(bucket: str, prediction: Prediction, everything: Sequence[Prediction]) -> tuple[Span, ...]:
    """The summary as spans, its words that put it into `bucket` as "added".

    Nothing is marked where no single word did (too short, another language). `everything` are the predictions of all
    documents: words in lower case there are no names at the beginning of a sentence.
    """
    text = prediction.prediction
    match bucket:
        case "invented_number":
            numbers = invented_numbers(prediction.document, text, prediction.references)
            marked = _occurrences(text, numbers, r"\d")
        case "invented_name":
            ordinary = ordinary_words(t for p in everything for t in (p.document, *p.references))
            marked = _occurrences(
                text, invented_names(prediction.document, text, prediction.references, ordinary), r"\w"
            )
        case "loops":
            marked = _repeated(text)
        case "copies":
            marked = _copied(text, prediction.document)
        case "too_long":
            longest = max(len(reference.split()) for reference in prediction.references)
            marked = [match.span() for match in _WORD.finditer(text)][int(LONGEST_RATIO * longest) :]
        case "cut_off" | "never_stopped":
            marked = [match.span() for match in _WORD.finditer(text)][-1:]
        case _:
            marked = []
    return _spans(text, marked)


def _occurrences(text: str, wanted: set[str], part: str) -> list[tuple[int, int]]:
    """Where any of the words or numbers stands, not as a part of a longer one (`part`: what those are made of)."""
    if not wanted:
        return []
    either = "|".join(re.escape(word) for word in sorted(wanted, key=lambda word: (-len(word), word)))
    return [match.span() for match in re.finditer(rf"(?<!{part})(?:{either})(?!{part})", text)]


def _repeated(text: str) -> list[tuple[int, int]]:
    """The words of every run of REPETITION_ORDER words that stood before."""
    words, places = _words(text)
    seen: set[tuple[str, ...]] = set()
    inside: set[int] = set()
    for start in range(len(words) - REPETITION_ORDER + 1):
        run = tuple(words[start : start + REPETITION_ORDER])
        if run in seen:
            inside.update(range(start, start + REPETITION_ORDER))
        seen.add(run)
    return [places[index] for index in sorted(inside)]


def _copied(text: str, document: str) -> list[tuple[int, int]]:
    """The words of every run of COPIED_RUN_WORDS that the document has too."""
    (words, places), (source, _) = _words(text), _words(document)
    runs = {tuple(source[at : at + COPIED_RUN_WORDS]) for at in range(len(source) - COPIED_RUN_WORDS + 1)}
    inside: set[int] = set()
    for start in range(len(words) - COPIED_RUN_WORDS + 1):
        if tuple(words[start : start + COPIED_RUN_WORDS]) in runs:
            inside.update(range(start, start + COPIED_RUN_WORDS))
    return [places[index] for index in sorted(inside)]


def _words(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Words without case and outer punctuation, and where they stand."""
    matches = list(_WORD.finditer(text))
    return [re.sub(r"^\W+|\W+$", "", match.group().lower()) for match in matches], [match.span() for match in matches]


def _spans(text: str, marked: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """`text` cut at the places, neighbours with nothing but white space between them joined."""
    joined: list[list[int]] = []
    for start, end in marked:
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1][1] = end
        else:
            joined.append([start, end])
    spans, at = [], 0
    for start, end in joined:
        spans += [Span(text[at:start], "same"), Span(text[start:end], "added")]
        at = end
    return tuple(span for span in (*spans, Span(text[at:], "same")) if span.text)
