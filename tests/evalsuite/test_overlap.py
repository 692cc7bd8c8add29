from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
from nltk.translate.meteor_score import meteor_score

from contract.errors import AssayError
from evalsuite.metrics.overlap import (
    bleu_tokenizer,
    corpus_bleu,
    corpus_chrf,
    meteor,
    meteor_name,
    sentence_bleu,
    sentence_chrf,
)
from evalsuite.metrics.text import words

ROOT = Path(__file__).resolve().parents[2]
PREDICTIONS = ["The bus leaves at nine, Mara says.", "Olin pays 10 crowns for two beers.", ""]
REFERENCES = [
    ["Mara says that the bus leaves at nine.", "The bus goes at nine."],
    ["Olin paid ten crowns for the beers.", "Two beers cost Olin 10 crowns."],
    ["Nobody spoke.", "There was silence."],
]


def test_corpus_figures_are_sacrebleus_own() -> None:
    streams = [list(stream) for stream in zip(*REFERENCES, strict=True)]
    assert corpus_bleu(REFERENCES, PREDICTIONS).score == sacrebleu.corpus_bleu(PREDICTIONS, streams).score
    assert corpus_chrf(REFERENCES, PREDICTIONS).score == sacrebleu.corpus_chrf(PREDICTIONS, streams).score
    assert 0 < corpus_bleu(REFERENCES, PREDICTIONS).score < 100


def test_signatures_say_how() -> None:
    for found, parts in (
        (
            corpus_bleu(REFERENCES, PREDICTIONS),
            ["nrefs:2", "tok:13a", "smooth:exp", f"version:{sacrebleu.__version__}"],
        ),
        (corpus_chrf(REFERENCES, PREDICTIONS), ["nrefs:2", "nc:6", "nw:0", f"version:{sacrebleu.__version__}"]),
        (corpus_bleu([["a b"], ["a", "b"]], ["a", "b"]), ["nrefs:var"]),
    ):
        assert set(parts) <= set(found.signature.split("|"))


def test_documents_may_have_different_numbers_of_references() -> None:
    uneven = [REFERENCES[0], REFERENCES[1][:1], REFERENCES[2]]
    streams = [[REFERENCES[0][0], REFERENCES[1][0], REFERENCES[2][0]], [REFERENCES[0][1], None, REFERENCES[2][1]]]
    assert corpus_bleu(uneven, PREDICTIONS).score == sacrebleu.BLEU().corpus_score(PREDICTIONS, streams).score
    assert corpus_bleu(uneven, PREDICTIONS).score != corpus_bleu(REFERENCES, PREDICTIONS).score


def test_sentence_figures_are_sacrebleus_own() -> None:
    for texts, prediction in zip(REFERENCES, PREDICTIONS, strict=True):
        assert sentence_chrf(texts, prediction) == sacrebleu.sentence_chrf(prediction, texts).score
        expected = sacrebleu.BLEU(effective_order=True).sentence_score(prediction, texts).score
        assert sentence_bleu(texts, prediction) == expected
    assert sentence_bleu(["two words"], "two words") == pytest.approx(100)  # fewer than four, so effective order
    assert sentence_chrf(["two words"], "two words") == pytest.approx(100)
    assert sentence_chrf(["zzz", "two words"], "two words") == pytest.approx(100)


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("会议推迟到星期五下午三点。", "zh"),
        ("会議は金曜日に延期されました。", "char"),
        ("การประชุมเลื่อนเป็นวันศุกร์", "char"),
        ("The meeting was moved to Friday.", "13a"),
        ("Встречу перенесли на пятницу.", "13a"),
    ],
)
def test_scripts_without_spaces_get_a_tokenizer_that_needs_none(text: str, tokenizer: str) -> None:
    assert bleu_tokenizer([[text]]) == tokenizer
    assert corpus_bleu([[text]], [text]).score == pytest.approx(100)
    assert f"tok:{tokenizer}" in corpus_bleu([[text]], [text]).signature
    assert corpus_bleu([[text]], [text[1:]]).score > 50


def test_nothing_to_compare_with_is_said() -> None:
    for call in (
        lambda: corpus_bleu([], []),
        lambda: corpus_chrf([["a"], []], ["a", "b"]),
        lambda: corpus_bleu([["a"]], []),
    ):
        with pytest.raises(AssayError, match="needs a reference"):
            call()
    for call in (lambda: sentence_bleu([], "a"), lambda: sentence_chrf([], "a"), lambda: meteor([], "a")):
        with pytest.raises(AssayError, match="without a reference"):
            call()


class NoSynonyms:
    def synsets(self, word: str) -> list[str]:
        return []


@pytest.mark.skipif(meteor_name() == "meteor", reason="WordNet is installed here")
def test_meteor_without_wordnet_is_nltks_own_without_synonyms() -> None:
    assert meteor_name() == "meteor_exact_stem"
    for texts, prediction in zip(REFERENCES, PREDICTIONS, strict=True):
        expected = meteor_score([words(text) for text in texts], words(prediction), wordnet=NoSynonyms())
        assert meteor(texts, prediction) == 100 * expected
    assert meteor(["moved meetings"], "moving meeting") == pytest.approx(100 - 50 / 2**3)  # stems match
    assert meteor(["a car"], "a cab") == pytest.approx(25)


def test_meteor_with_wordnet_knows_synonyms_and_says_so(tmp_path: Path) -> None:
    make_wordnet(tmp_path / "corpora" / "wordnet")
    code = "from evalsuite.metrics.overlap import meteor, meteor_name; print(meteor_name(), meteor(['a car'], 'a cab'))"
    environment = {**os.environ, "NLTK_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    name, score = done.stdout.split()
    assert name == "meteor"
    assert float(score) == pytest.approx(100 - 50 / 2**3)


def make_wordnet(folder: Path) -> None:
    """A WordNet of one set of synonyms, in the format of the database files; short words, for NLTK looks up stems."""
    folder.mkdir(parents=True)
    head = "  1 WordNet 3.0 Copyright 2006\n"
    line = f"{len(head):08d} 00 n 02 car 0 cab 0 000 | a machine\n"
    for name in ("adj", "adv", "noun", "verb"):
        (folder / f"data.{name}").write_text(head + (line if name == "noun" else ""))
        entries = [f"{word} n 1 0 1 0 {len(head):08d}\n" for word in ("cab", "car")] if name == "noun" else []
        (folder / f"index.{name}").write_text(head + "".join(entries))
        (folder / f"{name}.exc").write_text("")
    (folder / "lexnames").write_text("00\tnoun.artifact\t1\n")
    (folder / "index.sense").write_text("")
    (folder / "cntlist.rev").write_text("")
