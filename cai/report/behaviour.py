"""What each principle of a run did: the constitution beside the behaviour."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from cai.constitution import Constitution, Principle, shares
from cai.evaluation.edits import word_distance
from cai.records import Revision, Verdict
from cai.report.examples import Example
from cai.runs.summary import words


class Behaviour(NamedTuple):
    """What one principle did; a figure without rows to tell it is None, rates are in [0, 1]."""

    id: str
    principle: Principle | None  # None of one that rows name and the constitution does not hold
    share: float | None  # of the draws, by its weight
    revisions: int
    flagged: float | None  # of its revisions, by hygiene
    changed: float | None  # words that differ between the answer before and the revision
    longer: float | None  # words that the revision has more
    verdicts: int  # as the judge of a pair
    sure: float | None  # mean probability of the answer it prefers
    same_position: float | None
    outside: float | None


class _Revised(NamedTuple):
    flagged: bool
    changed: float
    longer: int


class _Judged(NamedTuple):
    sure: float
    same_position: bool | None  # None where only one order was asked
    outside: float


class Tally:
    """What the principles did, example by example, without keeping any text."""

    def __init__(self) -> None:
        self._revised: dict[str, list[_Revised]] = {}
        self._judged: dict[str, list[_Judged]] = {}

    def add(self, example: Example) -> None:
        """Count an example in; the verdicts of the referee are not the constitution's."""
        for row in example.revisions:
            self._revised.setdefault(row.principle_id, []).append(_revised(row))
        for pair in example.preferences:
            for verdict in pair.verdicts:
                self._judged.setdefault(verdict.principle_id, []).append(_judged(verdict))

    def behaviours(self, constitution: Constitution | None) -> list[Behaviour]:
        """In the order of the constitution; then principles that only the rows know."""
        of_id = {p.id: p for p in constitution.principles} if constitution else {}
        share = shares(constitution) if constitution else {}
        ids = dict.fromkeys([*of_id, *self._revised, *self._judged])
        return [self._behaviour(i, of_id.get(i), share.get(i)) for i in ids]

    def _behaviour(self, i: str, principle: Principle | None, share: float | None) -> Behaviour:
        revised, judged = self._revised.get(i, []), self._judged.get(i, [])
        return Behaviour(
            id=i,
            principle=principle,
            share=share,
            revisions=len(revised),
            flagged=_mean([r.flagged for r in revised]),
            changed=_mean([r.changed for r in revised]),
            longer=_mean([r.longer for r in revised]),
            verdicts=len(judged),
            sure=_mean([j.sure for j in judged]),
            same_position=_mean([j.same_position for j in judged if j.same_position is not None]),
            outside=_mean([j.outside for j in judged]),
        )


def _revised(row: Revision) -> _Revised:
    return _Revised(bool(row.flags), word_distance(row.before, row.revision), words(row.revision) - words(row.before))


def _judged(verdict: Verdict) -> _Judged:
    return _Judged(max(verdict.p, 1 - verdict.p), verdict.same_position, verdict.outside)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
