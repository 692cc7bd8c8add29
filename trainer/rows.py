"""Which encoder a base needs: prompt and completion in one row, or a pair for an encoder-decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.model_folder import is_encoder_decoder
from trainer.seq2seq_rows import PairEncoder, PairRow, make_pair_encoder
from trainer.tokenize import Encoder, TokenRow, make_encoder

if TYPE_CHECKING:
    from contract.recipe import Recipe

AnyEncoder = Encoder | PairEncoder
AnyRow = TokenRow | PairRow


def encoder_of(folder: Path, recipe: Recipe, tokenizer: Any) -> AnyEncoder:
    """The encoder of a base's folder, by its config.json.

    Raises:
        AssayError: the recipe's lengths exceed the model's context, or the folder lacks what rows are made with.
    """
    part, spec = recipe.train, recipe.prompt.spec()
    if is_encoder_decoder(folder):
        return make_pair_encoder(folder, spec, part.max_length, part.max_target_length, tokenizer)
    return make_encoder(folder, spec, part.max_length, tokenizer)
