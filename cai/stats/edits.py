"""How far apart two texts are, in words."""

from collections.abc import Sequence


def word_distance(a: str, b: str) -> float:
    """`distance` of the words of two texts, split at white space."""
    return distance(a.split(), b.split())


def distance(a: Sequence[str], b: Sequence[str]) -> float:
    """The share of the words of both that must be taken out or put in to turn one into the other.

    0 for the same words in the same order, 1 for no word in common: 1 − 2 · LCS / (words of a + words of b), LCS being
    the length of the longest common subsequence. Bit i of `row` is 0 where that subsequence grows at word i of `a`
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    if a == b:
        return 0.0
    places: dict[str, int] = {}
    bit = 1
    for word in a:
        places[word] = places.get(word, 0) | bit
        bit <<= 1
    row = all_words = bit - 1
    for place in filter(None, map(places.get, b)):
        met = row & place
        row = row + met | row ^ met
    common = len(a) - (row & all_words).bit_count()
    return 1 - 2 * common / (len(a) + len(b))
