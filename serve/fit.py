"""Does a prompt leave room for its answer: told in figures, never solved by cutting."""

from __future__ import annotations

from contract.errors import AssayError

# What a request that names no limit may use of the context that is left.
UNASKED_TOKENS = 1024


class DoesNotFitError(AssayError):
    """Prompt and answer exceed the context: together, or (where `target_length` is given) one of them its own."""

    def __init__(
        self, prompt_tokens: int, max_new_tokens: int, context_length: int, target_length: int | None = None
    ) -> None:
        self.prompt_tokens, self.max_new_tokens, self.context_length = prompt_tokens, max_new_tokens, context_length
        room = f"prompt and answer together at most {context_length} tokens"
        if target_length is not None:
            room = f"at most {context_length} tokens of prompt and {target_length} of answer"
        super().__init__(
            "the prompt does not fit the context, and nothing is cut silently",
            expected=room,
            got=f"{prompt_tokens} tokens of prompt and up to {max_new_tokens} of answer",
            hint="shorten the document, ask for fewer new tokens, or serve a model with a larger context",
        )


def answer_tokens(
    prompt_tokens: int, max_new_tokens: int | None, context_length: int, target_length: int | None
) -> int:
    """How many tokens the answer may have: what was asked for, or (None) what is left, at most `UNASKED_TOKENS`.

    Args:
        prompt_tokens: of the prompt.
        max_new_tokens: what was asked for.
        context_length: of prompt and answer together, or of the prompt alone where the answer has a limit of its own.
        target_length: that limit, of encoder-decoder models.

    Raises:
        DoesNotFitError: the context cannot hold that.
    """
    left = context_length - prompt_tokens if target_length is None else target_length
    wanted = max_new_tokens if max_new_tokens is not None else min(UNASKED_TOKENS, max(1, left))
    if wanted > left or prompt_tokens > context_length:
        raise DoesNotFitError(prompt_tokens, wanted, context_length, target_length)
    return wanted
