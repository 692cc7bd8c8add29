"""When two texts are the same or nearly the same, and finding those among many.

Two texts are the same when they agree but for case, white space, what cannot be seen, and forms that Unicode calls
compatible (about its NFKC_Casefold, DerivedNormalizationProps.txt). They are nearly the same when
the Jaccard similarity of their sets of 8-word shingles is at least 0.8 (Broder, "On the resemblance and containment of
documents", 1997).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from zlib import crc32

SHINGLE_WORDS = 8
NEAR_JACCARD = 0.8

# Control characters that are no white space, and Unicode's Default_Ignorable_Code_Point: soft hyphens, zero-width
# characters, direction marks, variation selectors, tags …
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def normalised(text: str) -> str:
    """Case folded, white space collapsed, Unicode's compatibility forms made one (NFKC), unseen characters left out."""
    text = _UNSEEN.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def same_key(text: str) -> str:
    """What texts have in common that are the same: the normalised text without any white space."""
    return normalised(text).replace(" ", "")


def shingles(text: str) -> set[int]:
    """Hashes (64 bits) of every run of 8 words of a normalised text; of all its words where it has fewer.

    The same in every process: they are hashes of whole numbers, which Python does not salt as it salts those of text.
    """
    words = [crc32(word.encode(errors="surrogatepass")) for word in text.split()]
    return {hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


class NearIndex:
    """Texts among which near-duplicates are looked for. It finds every one, and is fast for tens of thousands.

    Prefix and position filtering (Bayardo, Ma, Srikant, "Scaling up all pairs similarity search", 2007; Xiao et al.,
    "Efficient similarity joins for near duplicate detection", 2008): put in one order, the rarest first, two sets as
    near as that share one of their first elements, so only those are looked up.

    Args:
        texts: as they are written; they are normalised here.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # sorted arrays take a tenth of what sets would
        self._texts = [array("q", sorted(shingles(normalised(text)))) for text in texts]
        # How often a shingle is there, about: several may share a counter, and it stops at 255. It only orders.
        size = 1 << max(16, 3 + sum(map(len, self._texts)).bit_length())
        self._mask, self._counts = size - 1, bytearray(size)
        for own in self._texts:
            for shingle in own:
                at = shingle & self._mask
                self._counts[at] = min(255, self._counts[at] + 1)
        self._found_at: dict[int, list[tuple[int, int]]] = defaultdict(list)  # shingle -> (text, position in it)
        for index, own in enumerate(self._texts):
            for position, shingle in enumerate(self._rarest(own)):
                self._found_at[shingle].append((index, position))

    def nearest(self, text: str) -> tuple[int, float] | None:
        """(index, Jaccard similarity) of the text that is most nearly this one, the first of several; None: none is."""
        found = self._near(shingles(normalised(text)), len(self._texts))
        return max(found, key=lambda pair: (pair[1], -pair[0]), default=None)

    def pairs(self) -> list[tuple[int, int, float]]:
        """(index, index of an earlier text, Jaccard similarity) for each text that is nearly an earlier one."""
        found = ((index, next(self._near(set(own), index), None)) for index, own in enumerate(self._texts))
        return [(index, *earlier) for index, earlier in found if earlier is not None]

    def _rarest(self, own: Collection[int]) -> list[int]:
        """As many of a text's shingles, the rarest first, as a near-duplicate of it shares at least one of."""
        ordered = sorted(own, key=lambda shingle: (self._counts[shingle & self._mask], shingle))
        return ordered[: int(len(ordered) * (1 - NEAR_JACCARD) + 1e-9) + 1]

    def _near(self, own: set[int], before: int) -> Iterator[tuple[int, float]]:
        """Every text of an index below `before` that is nearly this one."""
        seen: set[int] = set()
        for position, shingle in enumerate(self._rarest(own)):
            for index, at in self._found_at.get(shingle, ()):
                if index >= before:
                    break
                if index in seen:
                    continue
                seen.add(index)
                theirs = self._texts[index]
                both = len(own) + len(theirs)
                most = min(len(own) - position, len(theirs) - at)  # nothing before these places is shared
                if most / (both - most) < NEAR_JACCARD:
                    continue
                shared = len(own.intersection(theirs))
                if (jaccard := shared / (both - shared)) >= NEAR_JACCARD:
                    yield index, jaccard


def near_duplicates(texts: Iterable[str]) -> list[tuple[int, int, float]]:
    """(index, index of an earlier text, Jaccard similarity) for each text that is nearly an earlier one."""
    return NearIndex(texts).pairs()
