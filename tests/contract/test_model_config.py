"""RoPE and tied heads of configs by transformers 4 and 5: read alike, given back in either's words, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import AssayError
from contract.loaded_model import refuse_misread
from contract.model_config import (
    FULL,
    SLIDING,
    NoOldWordsError,
    as_written_by_4,
    as_written_by_both,
    head_is_tied,
    ropes,
    scales_tied_head,
)

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}
TWINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what version 4 and version 5 write of one model
    "plain": (
        {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": None},
        {"model_type": "llama", "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    ),
    "scaled": (
        {
            "model_type": "llama",
            "rope_theta": 500000.0,
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
        },
        {
            "model_type": "llama",
            "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
        },
    ),
    "an older key": (
        {"model_type": "llama", "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"model_type": "llama", "rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}},
    ),
    "part of each head": (
        {"model_type": "stablelm", "rope_theta": 10000, "partial_rotary_factor": 0.25, "rope_scaling": None},
        {
            "model_type": "stablelm",
            "rope_parameters": {"rope_theta": 10000, "partial_rotary_factor": 0.25, "rope_type": "default"},
        },
    ),
    "gpt-neox": (
        {"model_type": "gpt_neox", "rotary_emb_base": 25000, "rotary_pct": 0.25, "rope_scaling": None},
        {
            "model_type": "gpt_neox",
            "rope_parameters": {"rope_theta": 25000, "partial_rotary_factor": 0.25, "rope_type": "default"},
        },
    ),
    "longrope": (
        {
            "model_type": "phi3",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 1024,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "longrope", **FACTORS},
        },
        {
            "model_type": "phi3",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 1024,
                **FACTORS,
            },
        },
    ),
    "two bases": (
        {
            "model_type": "gemma3_text",
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {
            "model_type": "gemma3_text",
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_both_forms_are_read_alike_and_given_back(name: str) -> None:
    old, new = TWINS[name]
    assert ropes(old) == ropes(new)
    assert ropes(as_written_by_4(new)) == ropes(old)
    assert not {"rope_parameters", "scale_decoder_outputs"} & set(as_written_by_4(new))
    for both in (as_written_by_both(old), as_written_by_both(new)):
        assert ropes(both) == ropes(old)
        assert ropes({key: value for key, value in both.items() if key in new}) == ropes(old)
        assert as_written_by_4(both) == as_written_by_4(new)
    assert as_written_by_4(old) == old


def test_which_base_turns_which_layer() -> None:
    found = ropes(TWINS["two bases"][1])
    assert (found[FULL].theta, found[FULL].kind, found[FULL].scaling) == (1e6, "linear", {"factor": 8.0})
    assert (found[SLIDING].theta, found[SLIDING].kind) == (1e4, "default")


ORIGINAL = "original_max_position_embeddings"
ROPE = {"rope_theta": 500000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope_theta": 10000.0, "rope_parameters": ROPE}, "base 10000.0 and 500000.0"),
        ({"rope_scaling": {**LLAMA3}, "rope_parameters": ROPE}, 'kind "llama3" and "default"'),
        ({"rope_scaling": None, "rope_parameters": {**LLAMA3, "rope_theta": 1e4}}, 'kind "default" and "llama3"'),
        ({"rope_scaling": {**LLAMA3}, "rope_parameters": {**LLAMA3, "factor": 4.0}}, "factor 8.0 and 4.0"),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5}}, "base"),
        ({"partial_rotary_factor": 0.5, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}, "share of each"),
        ({ORIGINAL: 4096, "rope_scaling": {**LLAMA3, ORIGINAL: 8192}}, "8192, and 4096"),
        ({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}}, "two kinds"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "mrope"),
        ({"rope_parameters": {**ROPE, "twist": 3}}, "twist"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, 'factor "2"'),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"some_attention": ROPE}}, "some_attention"),
        ({"rope_parameters": {FULL: ROPE, "twist": 3}}, "twist"),
        ({"rope_parameters": [1]}, "[1]"),
        ({"rope_scaling": "linear"}, "linear"),
        ({"model_type": "gemma3_text", "rope_parameters": ROPE}, "each kind of layer"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_or_is_not_known_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(AssayError) as error:
        ropes(config, "base/config.json")
    assert said in str(error.value)
    assert "base/config.json" in str(error.value)


def test_what_version_4_cannot_say_is_refused_there_and_kept_for_version_5() -> None:
    config = {"model_type": "gemma4_text", "rope_parameters": {"rope_type": "proportional", "rope_theta": 1e6}}
    with pytest.raises(NoOldWordsError, match="proportional"):
        as_written_by_4(config)
    bases = {"model_type": "llama", "rope_parameters": {FULL: ROPE, SLIDING: {**ROPE, "rope_theta": 1e4}}}
    with pytest.raises(NoOldWordsError, match="kind of layer"):
        as_written_by_4(bases)


T5 = {"model_type": "t5"}
HEAD = {"lm_head.weight"}


@pytest.mark.parametrize(
    ("config", "stored", "tied", "scaled"),
    [
        ({**T5}, set(), True, True),
        ({**T5, "tie_word_embeddings": True, "scale_decoder_outputs": True}, set(), True, True),
        ({**T5, "tie_word_embeddings": True, "scale_decoder_outputs": False}, HEAD, False, False),
        ({**T5, "tie_word_embeddings": True, "scale_decoder_outputs": False}, set(), True, False),
        ({**T5, "tie_word_embeddings": False}, HEAD, False, False),
        ({"model_type": "mt5", "tie_word_embeddings": True, "transformers_version": "5.2.0"}, HEAD, False, False),
        ({"model_type": "mt5", "tie_word_embeddings": False}, HEAD, False, False),
    ],
)
def test_the_head_of_a_t5(config: dict[str, Any], stored: set[str], tied: bool, scaled: bool) -> None:
    assert (head_is_tied(config, stored, usual=True), scales_tied_head(config)) == (tied, scaled)
    both = as_written_by_both(config)
    assert both["tie_word_embeddings"] == as_written_by_4(both)["tie_word_embeddings"] == scaled
    assert scales_tied_head(both) == scaled


@pytest.mark.parametrize(
    "config",
    [
        {**T5, "tie_word_embeddings": False, "scale_decoder_outputs": True},
        {"model_type": "mt5", "tie_word_embeddings": True, "transformers_version": "4.57.1"},
        {"model_type": "mt5", "tie_word_embeddings": True},
    ],
)
def test_a_t5_that_says_two_things_of_its_head_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(AssayError, match="head"):
        scales_tied_head(config, "config.json")


def test_a_library_that_reads_otherwise_is_not_believed() -> None:
    config = {"model_type": "olmo3", "rope_theta": 1e6, "rope_scaling": None}
    made = {**ROPE, "rope_theta": 1e6}
    understood = {"model_type": "olmo3", "rope_parameters": {FULL: made, SLIDING: {**made, "rope_theta": 5e5}}}
    with pytest.raises(AssayError, match="reads this config otherwise") as error:
        refuse_misread(config, understood, "config.json")
    assert "sliding_attention: base 1000000.0 and 500000.0" in str(error.value)
    refuse_misread(config, {"model_type": "olmo3", "rope_parameters": {FULL: made, SLIDING: made}}, "config.json")
