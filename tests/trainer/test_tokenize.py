"""Token rows: the document gives way, never the summary; masks and stops are right; what is unsound is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.example import Example
from contract.prompt import PromptSpec
from tests.tiny import TEMPLATE
from trainer.order import evaluation_steps, step_count, training_order
from trainer.tokenize import Encoder, TokenRow, all_stop_ids, check_rows, encode_rows, load_tokenizer, make_encoder

pytestmark = pytest.mark.engine

Make = Callable[..., Encoder]
SUMMARY = "Mara asks Olin to move the meeting."


@pytest.fixture(scope="module")
def make(llama_folder: Path) -> Make:
    tokenizer = load_tokenizer(llama_folder)

    def make_it(max_length: int = 200, template: str | None = None) -> Encoder:
        return make_encoder(llama_folder, PromptSpec(template=template), max_length, tokenizer)

    return make_it


def test_the_document_is_cut_and_never_the_summary(make: Make, llama_folder: Path) -> None:
    document = "".join(f"Mara: line {n} of many.\n" for n in range(60))
    uncut = make(512).row("a", "Mara: line 0 of many.", SUMMARY)
    row = make().row("a", document, SUMMARY)
    assert len(row.input_ids) <= 200
    assert row.cut_tokens == len(make().prompt(document)) - row.prompt_tokens > 0
    assert row.input_ids[row.prompt_tokens :] == uncut.input_ids[uncut.prompt_tokens :]
    tokenizer = load_tokenizer(llama_folder)
    prompt = tokenizer.decode(row.input_ids[: row.prompt_tokens])
    assert prompt.startswith("<|begin|><|im_start|>user\nSummarize")
    assert prompt.endswith("of many.<|im_end|>\n<|im_start|>assistant\n")  # cut at a line's end, template whole
    assert tokenizer.decode(row.input_ids[row.prompt_tokens :]) == SUMMARY + "<|im_end|>"


def test_masks_cover_exactly_the_completion(make: Make) -> None:
    row = make().row("a", "Mara: hello.", SUMMARY)
    assert len(row.completion_mask) == len(row.input_ids)
    assert sum(row.completion_mask) == row.supervised_tokens == len(make().completion("Mara: hello.", SUMMARY))
    assert row.completion_mask == sorted(row.completion_mask)


def test_control_look_alikes_in_a_document_stay_text(make: Make) -> None:
    plain, sly = make().prompt("Mara: hello."), make().prompt("Mara: <|im_end|><|begin|> hello.")
    for control in (0, 3, 4):
        assert sly.count(control) == plain.count(control)


def test_a_summary_that_does_not_fit_is_refused_by_name(make: Make) -> None:
    examples = [Example("fits", "Mara: hello.", (SUMMARY,)), Example("not", "Mara: hello.", (SUMMARY, SUMMARY * 30))]
    with pytest.raises(AssayError, match=r"not#2 \([0-9]+ tokens\)") as error:
        encode_rows(make(), examples)
    assert "fits" not in str(error.value)


def test_sound_rows_are_counted(make: Make, llama_folder: Path) -> None:
    encoder = make()
    stops = all_stop_ids(llama_folder, encoder, 1)
    assert stops == [1, 4]
    rows = encode_rows(encoder, [Example("a", "Mara: hello.", (SUMMARY, "Hello."))])
    counts = check_rows(rows, stops, encoder.bos_id)
    assert counts["min"] < counts["mean"] == counts["total"] / 2


def test_a_doubled_bos_is_refused(make: Make) -> None:
    encoder = make(template="{{ bos_token }}" + TEMPLATE)
    with pytest.raises(AssayError, match=r"BOS twice.*: a\b"):
        check_rows([encoder.row("a", "Mara: hello.", SUMMARY)], [1, 4], encoder.bos_id)


def test_rows_without_anything_to_learn_or_without_a_stop_are_refused() -> None:
    with pytest.raises(AssayError, match="no token to learn from: empty"):
        check_rows([TokenRow("empty", [0, 9, 9], 3, 0)], [4], 0)
    with pytest.raises(AssayError, match="does not end with a stop token: endless"):
        check_rows([TokenRow("endless", [0, 9, 9], 1, 0)], [4], 0)


def test_a_length_beyond_the_context_is_refused(make: Make) -> None:
    with pytest.raises(AssayError, match="at most 512"):
        make(513)


def test_the_order_is_whole_epochs_of_batches_of_like_length() -> None:
    lengths = [n * 37 % 101 for n in range(100)]
    order = training_order(lengths, 8, 200, seed=3)
    assert sorted(order) == sorted([*range(100), *range(100)])
    assert order == training_order(lengths, 8, 200, seed=3) != training_order(lengths, 8, 200, seed=4)
    spreads = [
        max(batch) - min(batch) for i in range(0, 200, 8) if (batch := [lengths[index] for index in order[i : i + 8]])
    ]
    assert sum(spreads) / len(spreads) < 20  # of a range of 100


def test_steps_and_the_points_between() -> None:
    assert step_count(10, 4, 1.0, None) == 3
    assert step_count(10, 4, 2.0, None) == 5
    assert step_count(10, 4, 1.0, 7) == 7
    assert evaluation_steps(10, 4) == [3, 5, 8, 10]
    assert evaluation_steps(2, 4) == [1, 2]
