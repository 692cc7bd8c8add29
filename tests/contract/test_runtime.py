"""What a manifest records of generating: known settings of the right type, or one clear message."""

from __future__ import annotations

from typing import Any

import pytest

from contract.errors import AssayError
from contract.runtime import GenerateParams


def test_what_is_recorded_is_read_and_the_rest_is_the_default() -> None:
    found = GenerateParams.recorded({"generate": {"max_new_tokens": 7, "length_penalty": 2, "early_stopping": True}})
    assert found == GenerateParams(max_new_tokens=7, length_penalty=2, early_stopping=True)
    assert GenerateParams.recorded({}) == GenerateParams.recorded({"generate": None}) == GenerateParams()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 5}, 'not known here: "top_k"'),
        ({"max_new_tokens": None}, "details.generate.max_new_tokens"),
        ({"num_beams": 2.5}, "details.generate.num_beams"),
        ({"num_beams": True}, "details.generate.num_beams"),
        ({"early_stopping": 1}, "details.generate.early_stopping"),
        ({"repetition_penalty": "1"}, "details.generate.repetition_penalty"),
    ],
)
def test_what_makes_no_sense_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(AssayError) as raised:
        GenerateParams.recorded({"generate": given})
    assert message in str(raised.value)


def test_a_model_writes_no_more_than_it_can() -> None:
    params = GenerateParams(max_new_tokens=90, num_beams=2)
    assert params.within(None) == params
    assert params.within(40) == GenerateParams(max_new_tokens=40, num_beams=2)
