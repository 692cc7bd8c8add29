"""Answers of an endpoint are kept as they come: what died is asked for the rest, what changed for everything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.prompt import PromptSpec
from evalsuite.cache import Cache
from evalsuite.hard_texts import HARD_TEXTS
from evalsuite.served.ask import ask
from evalsuite.served.endpoint import Answer, Endpoint
from tests.evalsuite.proxy import Body, answering

DOCUMENTS = [f"Mara: line {index}, {'and more, ' * index}Olin." for index in range(12)]
PROMPTS = len(DOCUMENTS) + len(HARD_TEXTS)


class Server:
    """A chat server of a few lines, which dies after so many answers and remembers what it was asked for."""

    def __init__(self) -> None:
        self.left: float = math.inf
        self.asked: list[str] = []
        self.says = "Well: "
        self.tells_counts = True
        self.url = ""

    def reply(self, path: str, body: Body | None, headers: dict[str, str]) -> tuple[int, bytes]:
        assert body is not None
        self.left -= 1
        if self.left < 0:
            return 0, b""
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        choice = {"message": {"content": self.says + text[: body["max_tokens"]]}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(text), "completion_tokens": 3} if self.tells_counts else None
        return 200, json.dumps({"choices": [choice], "usage": usage}).encode()

    def ask(self, folder: Path, documents: list[str] = DOCUMENTS, most: int = 20, **changes: object) -> list[Answer]:
        endpoint = replace(Endpoint(self.url, "m", "e", "d"), **changes)  # type: ignore[arg-type]
        return ask(endpoint, PromptSpec(), documents, most, Cache(folder))

    def dies_and_comes_back(self, folder: Path, after: int = 8, **changes: object) -> str:
        """What is said when it dies."""
        self.left = after
        with pytest.raises(AssayError) as raised:
            self.ask(folder, **changes)  # type: ignore[arg-type]
        self.left, self.asked = math.inf, []
        return str(raised.value)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with answering(made.reply) as made.url:
        yield made


@pytest.mark.parametrize("concurrency", [1, 3])
def test_what_died_is_asked_for_the_rest(
    concurrency: int, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_once = server.ask(tmp_path / "whole")
    said = server.dies_and_comes_back(tmp_path / "cache", concurrency=concurrency)
    assert "the endpoint does not answer, after 8 of 12 documents" in said
    assert "does its log say why?; run it again to go on: 8 answers are kept" in said
    assert server.ask(tmp_path / "cache", concurrency=concurrency) == at_once
    assert "answers are kept; asking for 3 of them again …" in capsys.readouterr().err
    # side by side, what was under way when one failed may still be answered
    assert PROMPTS - 8 + 3 - (concurrency - 1) <= len(server.asked) <= PROMPTS - 8 + 3 + (concurrency - 1)


def test_it_may_die_again_and_nothing_is_lost(server: Server, tmp_path: Path) -> None:
    at_once = server.ask(tmp_path / "whole")
    for after, kept in ((8, 8), (1, 8), (3 + 2, 10), (3 + 7, 17)):
        said = server.dies_and_comes_back(tmp_path / "cache", after)
        assert f"after {min(kept, 12)} of 12 documents" in said
        assert f"{kept} answers are kept" in said
    assert server.ask(tmp_path / "cache") == at_once
    assert len(server.asked) == PROMPTS - 17 + 3


def test_the_longest_documents_are_asked_again(server: Server, tmp_path: Path) -> None:
    server.dies_and_comes_back(tmp_path / "cache")
    server.ask(tmp_path / "cache")
    again = [text for text in DOCUMENTS[:8] if any(text in asked for asked in server.asked)]
    assert again == DOCUMENTS[5:8]


def test_where_nothing_was_answered_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    said = server.dies_and_comes_back(tmp_path / "cache", 0)
    assert "after 0 of 12 documents" in said
    assert "kept" not in said


@pytest.mark.parametrize(
    "changes", [{"digest": "other"}, {"card": "other"}, {"model": "n"}, {"engine": "other"}, {"most": 21}]
)
def test_another_artifact_or_length_is_asked_for_everything(
    changes: dict[str, object], server: Server, tmp_path: Path
) -> None:
    server.dies_and_comes_back(tmp_path / "cache")
    server.ask(tmp_path / "cache", **changes)  # type: ignore[arg-type]
    assert len(server.asked) == PROMPTS


def test_one_that_answers_otherwise_is_asked_for_everything(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.dies_and_comes_back(tmp_path / "cache", digest=None)
    server.says = "Oh: "
    found = server.ask(tmp_path / "cache", digest=None)
    assert all(answer.text.startswith("Oh: ") for answer in found)
    assert len(server.asked) == PROMPTS + 1
    told = capsys.readouterr().err
    assert "it does not say which artifact it serves" in told
    assert "it answers otherwise than before, so everything is asked anew" in told


def test_answers_from_before_a_change_are_gone_even_where_it_dies_again(server: Server, tmp_path: Path) -> None:
    server.dies_and_comes_back(tmp_path / "cache")
    server.says = "Oh: "
    assert "2 answers are kept" in server.dies_and_comes_back(tmp_path / "cache", 1 + 2)
    assert all(answer.text.startswith("Oh: ") for answer in server.ask(tmp_path / "cache"))


def test_counts_that_are_no_longer_told_are_no_change(server: Server, tmp_path: Path) -> None:
    server.dies_and_comes_back(tmp_path / "cache")
    server.tells_counts = False
    server.ask(tmp_path / "cache")
    assert len(server.asked) == PROMPTS - 8 + 3


def test_another_document_is_asked_for(server: Server, tmp_path: Path) -> None:
    server.dies_and_comes_back(tmp_path / "cache")
    changed = ["Mara: something else.", *DOCUMENTS[1:]]
    assert "something" in server.ask(tmp_path / "cache", changed, most=400)[0].text
