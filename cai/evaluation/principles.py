"""Principles one by one: how often each is right, and which say the same or the opposite of the same pairs."""

import itertools
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

from pydantic import PlainSerializer

from cai.evaluation.agreement import Agreement, agreement
from cai.evaluation.judged import Interval, Judged, Opinion, hit, over_prompts, same_position
from cai.records import Row

SHARED = 20  # pairs that two principles must both have judged before their agreement is told
REDUNDANT = 0.8  # κ; "almost perfect" from 0.81 (Landis & Koch 1977, Biometrics 33)

Agreed = Annotated[Agreement, PlainSerializer(lambda a: a._asdict())]


class PrincipleQuality(Row):
    """One principle's verdicts on the pairs it judged."""

    by: str
    pairs: int
    accuracy: Interval
    same_position: float
    outside: float


class PrinciplePair(Row):
    """Two principles that judged the same pairs."""

    a: str
    b: str
    agreement: Agreed

    @property
    def redundant(self) -> bool:
        """Whether they say nearly the same of every pair."""
        return self.agreement.kappa is not None and self.agreement.kappa >= REDUNDANT

    @property
    def contradicting(self) -> bool:
        """Whether they disagree more often than chance would have it, beyond what chance may bring."""
        return self.agreement.high is not None and self.agreement.high < 0


def principle_qualities(pairs: Sequence[Judged]) -> list[PrincipleQuality]:
    """Each principle alone, as if it were the whole constitution, on the pairs it judged."""
    found: dict[str, list[tuple[Judged, Opinion]]] = {}
    for pair in pairs:
        for opinion in pair.opinions:
            found.setdefault(opinion.by, []).append((pair, opinion))
    qualities = [
        PrincipleQuality(
            by=by,
            pairs=len(rows),
            accuracy=over_prompts((pair.prompt_id, hit(opinion.p, pair.label)) for pair, opinion in rows),
            same_position=fmean(same_position(opinion) for _, opinion in rows),
            outside=fmean(opinion.outside for _, opinion in rows),
        )
        for by, rows in found.items()
    ]
    return sorted(qualities, key=lambda quality: (-quality.accuracy.mean, quality.by))


def between_principles(pairs: Sequence[Judged]) -> list[PrinciplePair]:
    """The agreement of every two principles that judged SHARED pairs or more in common, least first."""
    shared: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for pair in pairs:
        by_name = sorted(pair.opinions, key=lambda opinion: opinion.by)
        for a, b in itertools.combinations(by_name, 2):
            of_a, of_b = shared.setdefault((a.by, b.by), ([], []))
            of_a.append(a.p)
            of_b.append(b.p)
    found = [
        PrinciplePair(a=a, b=b, agreement=agreed)
        for (a, b), (of_a, of_b) in shared.items()
        if len(of_a) >= SHARED and (agreed := agreement(of_a, of_b)) is not None
    ]
    return sorted(
        found, key=lambda pair: (1.0 if pair.agreement.kappa is None else pair.agreement.kappa, pair.a, pair.b)
    )
