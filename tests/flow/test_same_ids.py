"""What the trainer learns on and what every runtime is asked: the same ids, for every document and every hard text."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import Artifact, open_artifact
from contract.example import read_examples
from contract.prompt import PromptSpec
from evalsuite.hard_texts import HARD_TEXTS
from export.to_gguf import export_gguf
from runtimes import load_runtime
from trainer.tokenize import all_stop_ids, load_tokenizer, make_encoder

pytestmark = pytest.mark.engine

ASSETS = Path(__file__).parents[2] / "assets"
BASE = ASSETS / "tiny-base"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """The embedded base, as the torch reference and llama.cpp run it."""
    base = open_artifact(BASE)
    return [base, *export_gguf(base, tmp_path_factory.mktemp("ids") / "gguf", quants=["q8_0"])]


def test_the_trainers_rows_are_what_runtimes_encode(artifacts: list[Artifact]) -> None:
    spec = PromptSpec(user="Summarize the dialogue in a few sentences.\n\n{document}")
    tokenizer = load_tokenizer(BASE)
    encoder = make_encoder(BASE, spec, 2048, tokenizer)
    examples = read_examples(str(ASSETS / "dialogues" / "test.jsonl"), None)
    texts = [*((example.document, example.references[0]) for example in examples)]
    texts += [(text, text.strip()) for text in HARD_TEXTS]
    assert len(texts) >= 300 + len(HARD_TEXTS)
    rows = [encoder.row(str(index), document, summary) for index, (document, summary) in enumerate(texts)]
    for artifact in artifacts:
        runtime = load_runtime(artifact, threads=1)
        for row, (document, summary) in zip(rows, texts, strict=True):
            messages = spec.messages(document)
            assert runtime.encode(messages) == row.input_ids[: row.prompt_tokens], document
            assert runtime.encode_completion(messages, summary) == row.input_ids[row.prompt_tokens :], summary
        assert runtime.stop_ids == set(all_stop_ids(BASE, encoder, tokenizer.eos_token_id))
        runtime.close()
