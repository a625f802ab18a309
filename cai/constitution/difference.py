"""How two constitutions differ, which calls an edit changes, and the difference of two texts, in words."""

import difflib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from cai.constitution.principles import Constitution, Principle, TextField


class Difference(NamedTuple):
    """How two constitutions differ, as principle ids in alphabetical order."""

    added: list[str]
    removed: list[str]
    reworded: list[str]
    reweighted: list[str]
    rescoped: list[str]
    """Those with another applies_to."""


def principle_changes(a: Constitution, b: Constitution) -> Difference:
    """Differences from constitution `a` to `b`, with principles matched by id."""
    before, after = ({p.id: p for p in c.principles} for c in (a, b))
    shared = sorted(before.keys() & after.keys())
    return Difference(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        reworded=[i for i in shared if before[i].fingerprint != after[i].fingerprint],
        reweighted=[i for i in shared if before[i].weight != after[i].weight],
        rescoped=[i for i in shared if before[i].applies_to != after[i].applies_to],
    )


class ChangedCalls(NamedTuple):
    """Shares of draws, in [0, 1], whose model calls an edit changes: critiques, revisions, and the judge's verdicts."""

    critiques: float
    revisions: float
    judge: float


def changed_calls(a: Constitution, b: Constitution) -> ChangedCalls:
    """The cache misses of a run of `b` after the same run of `a`, as shares of its single draws.

    A draw stays where it was with probability sum over principles i of 1 / sum over j of max(w_j / w_i, w'_j / w'_i):
    the arrival times of `assign` are the same exponentials in both, so i comes first in both when every other one
    arrives later by the larger of the two ratios of weights; 0 stands for the weight of a principle that is not there.
    A draw that stays is a cache miss where a text it uses was reworded: of a critique the critique's, of a revision,
    which follows its critique, either of them, of a verdict the judge's. Not counted are the calls about answers that
    turn out otherwise: verdicts on new revisions, and later rounds.

    With `applies_to` these are the shares of prompts that all principles apply to, and a principle with another
    applies_to counts as if each of its draws moved: on other prompts the shares differ, and a dry run counts them.
    """
    before, after = ({p.id: p for p in c.principles} for c in (a, b))
    ids = sorted(before.keys() | after.keys())

    def weight(principles: dict[str, Principle], i: str) -> float:
        return principles[i].weight if i in principles else 0.0

    stays = {
        i: 1 / sum(max(weight(before, j) / before[i].weight, weight(after, j) / after[i].weight) for j in ids)
        for i in sorted(before.keys() & after.keys())
    }

    def miss_share(*fields: TextField) -> float:
        kept = (*fields, "applies_to")
        same = (i for i in stays if all(getattr(before[i], f) == getattr(after[i], f) for f in kept))
        share = 1 - sum(stays[i] for i in same)
        return share if share > 1e-9 else 0.0  # rounding

    return ChangedCalls(miss_share("critique"), miss_share("critique", "revision"), miss_share("judge"))


Change = tuple[Literal["same", "removed", "added"], str]


def word_changes(before: str, after: str) -> list[Change]:
    """The difference of two texts, word by word.

    The same and removed pieces join to `before`, the same and added ones to `after`; a removed piece precedes the
    added one that replaces it.
    """
    a, b = (re.findall(r"\S+|\s+", text) for text in (before, after))
    changes: list[Change] = []
    removed = added = ""
    for what, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = "".join(a[a1:a2]), "".join(b[b1:b2])
        if what == "equal" and (old.strip() or not (removed or added)):
            changes += _replaced(removed, added)
            changes.append(("same", old))
            removed = added = ""
        else:  # a space that two changed words share belongs to both
            removed, added = removed + old, added + new
    return changes + _replaced(removed, added)


def _replaced(removed: str, added: str) -> list[Change]:
    changes: list[Change] = [("removed", removed), ("added", added)]
    return [change for change in changes if change[1]]


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
