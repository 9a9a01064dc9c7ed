"""Texts as numbers: words hashed once, then n-grams, MinHash signatures and overlaps on whole arrays of them."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

PERMUTATIONS = 128  # of a signature; the estimate's standard error is sqrt(J (1 - J) / 128), at most 0.044
SEED = 42  # of the permutations; signatures of one version of rensa are the same everywhere
EMPTY = np.uint16(0xFFFF)

# A letter of a script without spaces is a word, and so is a mark: 2+2 and 2-2 differ.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, of well mixed bits: 2^64 over the golden ratio


def content_hash(text: str) -> int:
    """A text's hash, 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Words:
    """The hashes of words, each computed once. A mark's hash is even, that of a word with letters or digits odd."""

    LARGEST = 1 << 20  # words remembered; rare ones of a large file would fill the memory

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
        """The hashes of the words of all texts, case aside, in one array, and where each text begins, and the end."""
        found: list[int] = []
        starts = [0]
        known = self._known
        for text in texts:
            for word in WORD.findall(text.casefold()):
                value = known.get(word)
                if value is None:
                    value = content_hash(word)
                    value = value | 1 if word[0].isalnum() or word[0] == "_" else value & ~1
                    if len(known) >= self.LARGEST:
                        known.clear()
                    known[word] = value
                found.append(value)
            starts.append(len(found))
        return np.array(found, dtype=np.uint64), np.array(starts, dtype=np.int64)


def signatures(words: Hashes, starts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """MinHash signatures of the sets of words and pairs of words of each text.

    Args:
        words, starts: As `Words.of` gives them, for n texts.

    Returns:
        The lower 16 bits of each of 128 minima, shape (n, 128): what is left of two texts' chance to agree by accident
        is 1 in 65,536, and four of them make the key of a band.
    """
    from rensa import RMinHash

    count = len(starts) - 1
    if not count:
        return np.zeros((0, PERMUTATIONS), np.uint16)
    pairs = _grams(words, 2)
    sizes = np.diff(starts)
    # Behind each text's words come its pairs: one flat array, as rensa takes it. The last pair of a text reaches into
    # the next one and is left out.
    kept = np.ones(len(pairs), dtype=bool)
    ends = starts[1:-1] - 1
    kept[ends[(ends >= 0) & (ends < len(pairs))]] = False
    owner = np.repeat(np.arange(count), sizes)
    tokens = np.concatenate([words, pairs[kept]])
    owners = np.concatenate([owner, owner[: len(pairs)][kept]])
    order = np.argsort(owners, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(tokens[order], offsets, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint16)


def grams_of_words(words: Hashes, starts: NDArray[np.int64], length: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of each run of `length` words, marks aside, and the text that each run stands in."""
    is_word = (words & np.uint64(1)).astype(bool)
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[is_word]
    runs = _grams(words[is_word], length)
    inside = owner[: len(runs)] == owner[length - 1 :][: len(runs)]
    return runs[inside], owner[: len(runs)][inside]


def _grams(words: Hashes, length: int) -> Hashes:
    """A hash of each run of words, in their order."""
    if len(words) < length:
        return np.zeros(0, np.uint64)
    runs = np.zeros(len(words) - length + 1, np.uint64)
    for i in range(length):
        runs = runs * _STEP + words[i : i + len(runs)]
    runs ^= runs >> np.uint64(31)
    return runs * _STEP


def similarity(first: Hashes, second: Hashes) -> float:
    """Jaccard similarity of two texts' words and pairs of words."""
    sets = [np.unique(np.concatenate([words, _grams(words, 2)])) for words in (first, second)]
    both = np.sort(np.concatenate(sets))
    shared = int((both[1:] == both[:-1]).sum())
    return shared / (len(both) - shared) if len(both) else 1.0
