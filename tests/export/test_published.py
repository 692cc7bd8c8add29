"""Real models against what others have published of them. Each needs a file that an environment variable names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contract.artifact import open_artifact
from contract.runtime import GenerateParams
from runtimes import load_runtime

pytestmark = pytest.mark.engine

SMOLLM2, STORIES = os.environ.get("ASSAY_SMOLLM2"), os.environ.get("ASSAY_STORIES260K")
# HuggingFaceTB/SmolLM2-135M-Instruct, config.json and tokenizer_config.json on the hub
SMOLLM2_SAYS = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.context_length": 8192,
    "llama.rope.freq_base": 100000.0,
    "llama.vocab_size": 49152,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
# What llama2.c's tests (test_all.py, expected_stdout) hold stories260K to: from BOS, greedy, about 200 tokens
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily "
    "was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to "
    "help her mom, so she"
)


@pytest.mark.skipif(SMOLLM2 is None, reason="ASSAY_SMOLLM2 does not name SmolLM2-135M-Instruct as a GGUF")
def test_smollm2_is_what_its_makers_say_and_knows_a_capital() -> None:
    from export.gguf_read import read_gguf

    assert SMOLLM2 is not None
    fields = read_gguf(Path(SMOLLM2)).fields
    found = {key: fields[key].contents() for key in SMOLLM2_SAYS}
    assert found == pytest.approx(SMOLLM2_SAYS)
    runtime = load_runtime(open_artifact(Path(SMOLLM2)), threads=2)
    try:
        ids = runtime.encode_raw("The capital of France is")
        [answer] = runtime.generate([ids], GenerateParams(max_new_tokens=4))
    finally:
        runtime.close()
    assert answer.text.startswith(" Paris")


@pytest.mark.skipif(STORIES is None, reason="ASSAY_STORIES260K does not name stories260K as a GGUF of floats")
def test_stories260k_tells_the_published_story() -> None:
    assert STORIES is not None
    runtime = load_runtime(open_artifact(Path(STORIES)), threads=2, kv_dtype="f32")
    try:
        assert runtime.bos_id is not None
        [told] = runtime.generate([[runtime.bos_id]], GenerateParams(max_new_tokens=210))
    finally:
        runtime.close()
    assert told.text.lstrip().startswith(STORY)
