"""Does a prompt leave room for its answer: told in figures, never solved by cutting."""

from __future__ import annotations

from contract.errors import AssayError

# What a request that names no limit may use of the context that is left.
UNASKED_TOKENS = 1024


class DoesNotFitError(AssayError):
    """Prompt and answer together exceed the context."""

    def __init__(self, prompt_tokens: int, max_new_tokens: int, context_length: int) -> None:
        self.prompt_tokens, self.max_new_tokens, self.context_length = prompt_tokens, max_new_tokens, context_length
        super().__init__(
            "the prompt does not fit the context, and nothing is cut silently",
            expected=f"prompt and answer together at most {context_length} tokens",
            got=f"{prompt_tokens} tokens of prompt and up to {max_new_tokens} of answer",
            hint="shorten the document, ask for fewer new tokens, or serve a model with a larger context",
        )


def answer_tokens(prompt_tokens: int, max_new_tokens: int | None, context_length: int) -> int:
    """How many tokens the answer may have: what was asked for, or (None) what is left, at most `UNASKED_TOKENS`.

    Raises:
        DoesNotFitError: the context cannot hold that.
    """
    left = context_length - prompt_tokens
    wanted = max_new_tokens if max_new_tokens is not None else min(UNASKED_TOKENS, max(1, left))
    if wanted > left:
        raise DoesNotFitError(prompt_tokens, wanted, context_length)
    return wanted
