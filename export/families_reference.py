"""What GGUF export takes, as Markdown: `python -m export.families_reference > docs/families.md`."""

from __future__ import annotations

from collections.abc import Iterable

from export.gguf_families import FAMILIES
from export.gguf_pre_tokenizers import KNOWN
from export.quantize import FLOATS, LADDER, NEED_MATRIX

HEAD = """# What becomes a GGUF

`assay export gguf` writes these model families, tokenizers and types. Anything else is refused, by name. Every file is
read back: each tensor against its source, token ids in llama.cpp against Hugging Face's on a list of hard texts, and
with `--check logits` its logits against torch: an F32 file to 1e-3 between logits. llama.cpp looks GELU up in a table
of half-precision values, so that Gemma, GPT-2 and T5 1.1 are held to 1e-5 nats (mean KL) instead. It is that table and
no more: in the tests their logits agree to 1e-3 with torch that looks GELU up as llama.cpp does, and to 1e-4, through
all layers, with plain torch where GELU's inputs lie beyond the table (±10). Random Gemma and GPT-2 models, as
transformers initialises them, agree to 1e-3 as they are.

T5, mT5 and UMT5 are run by encoding a prompt once and decoding from what was encoded, as Assay's own runtime does;
hosts that skip the encoder write garbage from the very same file. BART and other encoder-decoder models have no form in
llama.cpp: `assay export onnx` ([onnx.md](onnx.md)) takes them all.

A sliding window as long as the context (Phi-4-mini's, Ministral's) leaves nothing out, and counts as none.

This page is made from the program (`python -m export.families_reference > docs/families.md`); a test holds it true.
"""

TOKENIZERS = """## Tokenizers

SentencePiece BPE, from `tokenizer.model` or from the merges of a `tokenizer.json` with byte fallback; text may get a
space in front or not. SentencePiece Unigram (T5's), with its map of characters. Byte-level BPE, where the way text is
cut before merging is one that llama.cpp has a name for. It is recognised by its steps and regular expressions:
"""

AFTER_TOKENIZERS = """\
`--pre-tokenizer NAME` names another one of llama.cpp's. Token ids are compared all the same. Where llama.cpp is known
to cut some text otherwise, that is said and recorded, and `--strict` refuses it; any other difference is an error.

A tokenizer that composes characters (NFC) first, or spares leading spaces, or makes one space of many without putting
one in front, is written with a note: llama.cpp does none of it. Assay's own runtime makes up for it, other hosts don't.
Ids that end a generation are written as EOS, EOT and EOM; a model that stops at more ids than those is refused, unless
llama.cpp knows the others by name.
"""

TYPES = """## Types

Bits are those of the type most tensors get; the mixtures give some tensors, above all the embeddings, a finer one, and
the manifest says what came out. A tensor whose columns are no multiple of the block falls back to another type, which
is said; `--strict` refuses it.
"""

MATRIX = """\
llama.cpp does not make {types} without an importance matrix ([imatrix.md](imatrix.md)): `--imatrix EXAMPLES`, in a
recipe `export.gguf.imatrix: true`. The other types below 8 bits can be made with one too. Floats and Q8_0 do not depend
on it.
"""


def reference() -> str:
    """The whole page."""
    matrix = ", ".join(f"`{name}`" for name in NEED_MATRIX)
    return "\n".join(
        [
            HEAD,
            "## Families\n",
            *_table(
                ("family", "class in config.json", "llama.cpp's name", "carried over", "refused"),
                (
                    (family.title, _code(family.classes), f"`{family.arch}`", family.carried, family.refused)
                    for family in FAMILIES
                ),
            ),
            TOKENIZERS,
            *_table(
                ("llama.cpp's name", "met in", "whole tokens skip merges", "llama.cpp is known to differ on"),
                (
                    (f"`{row.name}`", row.models, "yes" if row.ignore_merges else "no", row.differs_where or "nothing")
                    for row in KNOWN
                ),
            ),
            AFTER_TOKENIZERS,
            TYPES,
            *_table(
                ("type", "bits per weight", "columns per block", "of the output embeddings"),
                ((f"`{name}`", f"{kind.bits:g}", *_blocks(name)) for name, kind in LADDER.items()),
            ),
            MATRIX.format(types=matrix),
        ]
    )


def _blocks(name: str) -> tuple[str, str]:
    kind = LADDER[name]
    return ("any", "any") if name in FLOATS else (str(kind.block), str(kind.head_block))


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, tuple("---" for _ in head), *rows)]
    return [*lines, ""]


if __name__ == "__main__":
    print(reference(), end="")
