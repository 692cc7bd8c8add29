"""JSON Lines: what is passed over, and one message with its place for what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.jsonl import read_jsonl


def test_rows_come_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\r\n\n  \n{"id": "\xe2\x80\xa8"}')
    assert list(read_jsonl(path)) == [(f"{path}:1", {"id": "a"}), (f"{path}:4", {"id": "\u2028"})]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"id": "\xe9"}', "not UTF-8"),
        (b'{"id": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + line + b"\n")
    with pytest.raises(AssayError, match=says) as raised:
        list(read_jsonl(path))
    assert raised.value.where == f"{path}:2"
