"""NF4 is put on linear layers only; where the weights lie the other way round it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from runtimes.torch_load import load_merged
from tests.export.peft_makers import make_gpt2

pytestmark = pytest.mark.engine


def test_conv1d_is_refused(tmp_path: Path) -> None:
    base = open_artifact(make_gpt2(tmp_path / "base"))
    with pytest.raises(AssayError, match="Conv1D layers have no NF4 form here") as error:
        load_merged(base, base_weights="nf4")
    assert "transformer.h.0.attn.c_attn" in str(error.value.got)
    assert error.value.exit_code == 2
