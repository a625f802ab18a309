"""The labels that two runs gave to the same two answers: how far they agree, and the pairs on which they do not."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from cai.compare.reading import Labels, RunData, labelled
from cai.compare.record import LabelAgreement, LabelFlip, LabelFlips
from cai.data.jsonl import each_row
from cai.data.records import Preference, Source
from cai.stats.agreement import agreement
from cai.stats.formatting import counted
from cai.stats.win_rate import TIE

KEPT = 50  # label flips with their texts
PAIR_NAMES: dict[Source, str] = {"revision": "Revision pair", "judge": "Judged pair", "human": "Human pair"}
"""What a pair is called by the source of its label."""


def label_agreement(a: Labels | None, b: Labels | None, shared: Sequence[str]) -> LabelAgreement | None:
    """On pairs of the same two texts that both judges labelled; None where a judge labelled none."""
    if a is None or b is None or not (a.mass.pairs["judge"] and b.mass.pairs["judge"]):
        return None
    both = [pair for pair in _labelled_twice(a, b, shared) if pair.source == "judge"]
    of_a, of_b = [pair.a for pair in both], [pair.b for pair in both]
    apart = fmean(abs(x - y) for x, y in zip(of_a, of_b, strict=True)) if both else None
    kappa = agreement(of_a, of_b, [pair.prompt_id for pair in both])
    return LabelAgreement(pairs=len(both), agreement=kappa, mean_difference=apart)


def label_flips(a: RunData, b: RunData, shared: Sequence[str]) -> LabelFlips | None:
    """The pairs of which A's label prefers one text and B's the other; None where no pair has labels of both runs.

    A label of exactly one half prefers neither. The texts are read once more, from A's preferences.jsonl.
    Raises: CaiError if that became unreadable in the meantime.
    """
    if a.labels is None or b.labels is None:
        return None
    pairs, flips = Counter[Source](), Counter[Source]()
    flipped = []
    for pair in _labelled_twice(a.labels, b.labels, shared):
        pairs[pair.source] += 1
        if flips_label(pair.a, pair.b):
            flips[pair.source] += 1
            flipped.append(pair)
    if not pairs:
        return None
    widest = heapq.nsmallest(KEPT, flipped, key=lambda pair: (-abs(pair.a - pair.b), pair.prompt_id))
    return LabelFlips(pairs=dict(pairs), flips=dict(flips), widest=list(_with_texts(a, widest)))


def flips_label(a: float, b: float) -> bool:
    """Whether two labels, each P(the same answer is better), prefer different answers."""
    return (a - 0.5) * (b - 0.5) < 0 and min(abs(a - 0.5), abs(b - 0.5)) >= TIE


def label_flips_text(found: LabelFlips) -> str:
    """The counts, as every surface shows them: `3 of 16 revision pairs, 0 of 64 judged pairs`."""
    return ", ".join(
        f"{found.flips.get(source, 0)} of {counted(pairs, PAIR_NAMES[source].lower() + 's')}"
        for source, pairs in found.pairs.items()
    )


class _LabelledTwice(NamedTuple):
    """A pair with a label in both runs, from the same source: each P(the text that sorts first is better)."""

    prompt_id: str
    source: Source
    pair: int
    a: float
    b: float


def _labelled_twice(a: Labels, b: Labels, shared: Sequence[str]) -> Iterator[_LabelledTwice]:
    for i in shared:
        labels_b = {(label.source, label.pair): label.p for label in b.pairs.get(i, [])}
        for label in a.pairs.get(i, []):
            p_b = labels_b.get((label.source, label.pair))
            if p_b is not None:
                yield _LabelledTwice(i, label.source, label.pair, label.p, p_b)


def _with_texts(a: RunData, widest: Sequence[_LabelledTwice]) -> Iterator[LabelFlip]:
    """The flips with what A's preferences.jsonl has of them, in their order."""
    wanted = {(pair.prompt_id, pair.source, pair.pair) for pair in widest}
    rows: dict[tuple[str, Source, int], Preference] = {}
    for row in each_row(a.folder.preferences_jsonl, Preference) if wanted else ():
        key = (row.prompt_id, row.source, labelled(row).pair)
        if key in wanted:
            rows[key] = row
    for pair in widest:
        if written := rows.get((pair.prompt_id, pair.source, pair.pair)):
            first, second = sorted((written.chosen, written.rejected))
            prefers_first = pair.a > 0.5
            yield LabelFlip(
                prompt_id=pair.prompt_id,
                messages=written.messages,
                source=pair.source,
                preferred_a=first if prefers_first else second,
                preferred_b=second if prefers_first else first,
                p_a=pair.a if prefers_first else 1 - pair.a,
                p_b=pair.b if prefers_first else 1 - pair.b,
            )
