"""Principles against each other: whether two of them, asked about the same pairs of answers, prefer the same ones.

Two that always agree count as one of double weight. Two that go against each other pull labels to one half, and what
one of them makes of a draft the other undoes: a constitution that excludes itself.
"""

import itertools
from array import array
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import PlainSerializer

from cai.data.records import Preference, Row
from cai.stats.agreement import Agreement, agreement
from cai.stats.formatting import counted
from cai.stats.intervals import Z
from cai.stats.significance import holm, two_sided
from cai.stats.win_rate import win

SHARED = 20  # pairs that two principles must both have judged before their agreement is reported
REDUNDANT = 0.8  # κ; "almost perfect" from 0.81 (Landis & Koch 1977, Biometrics 33)
SIGNIFICANT = 0.05
NAMED = 3  # pairs of principles in a note
Agreed = Annotated[Agreement, PlainSerializer(lambda a: a._asdict())]


class PrinciplePair(Row):
    """Two principles that judged the same pairs."""

    a: str
    b: str
    agreement: Agreed

    @property
    def redundant(self) -> bool:
        """Whether their verdicts are nearly the same on every pair."""
        return self.agreement.kappa is not None and self.agreement.kappa >= REDUNDANT

    @property
    def p(self) -> float:
        """Two-sided, of the hypothesis κ = 0 against less: from the upper bound of κ's interval; 1 for κ above 0."""
        kappa, high = self.agreement.kappa, self.agreement.high
        if kappa is None or high is None or kappa >= 0:
            return 1.0
        return two_sided(Z * kappa / (high - kappa)) if high > kappa else 0.0

    @property
    def text(self) -> str:
        """Both names with κ, its interval and the number of pairs."""
        found = self.agreement
        kappa = f"κ {found.kappa:.2f} [{found.low:.2f}, {found.high:.2f}]"
        return f"{self.a} and {self.b} ({kappa}, {counted(found.n, 'pairs')})"


class PrincipleVerdicts:
    """The winners that principles name, pair by pair as these pass by: six bytes for two principles and a pair."""

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._winners: dict[tuple[str, str], tuple[bytearray, bytearray, array[int]]] = {}

    def add(self, prompt_id: str, verdicts: Iterable[tuple[str, float]]) -> None:
        """Count one pair of answers: of each principle's name its P(first better)."""
        prompt = self._prompts.setdefault(prompt_id, len(self._prompts))
        for (a, p), (b, q) in itertools.combinations(sorted(verdicts), 2):
            of_a, of_b, prompts = self._winners.setdefault((a, b), (bytearray(), bytearray(), array("I")))
            of_a.append(int(2 * win(p)))
            of_b.append(int(2 * win(q)))
            prompts.append(prompt)

    def add_row(self, row: Preference) -> None:
        """Count a row's verdicts; of a panel each judge's apart, since principles are compared and not judges."""
        by_judge: dict[str, list[tuple[str, float]]] = {}
        for verdict in row.verdicts:
            by_judge.setdefault(verdict.judge, []).append((verdict.principle_id, verdict.p))
        for verdicts in by_judge.values():
            self.add(row.prompt_id, verdicts)

    def pairs(self) -> list[PrinciplePair]:
        """Every two principles that judged SHARED pairs or more in common, the least agreed first."""
        measured = [
            PrinciplePair(a=a, b=b, agreement=agreed)
            for (a, b), (of_a, of_b, prompts) in self._winners.items()
            if len(of_a) >= SHARED
            and (agreed := agreement([x / 2 for x in of_a], [x / 2 for x in of_b], prompts)) is not None
        ]
        return sorted(measured, key=lambda p: (1.0 if p.agreement.kappa is None else p.agreement.kappa, p.a, p.b))


def contradicting(pairs: Sequence[PrinciplePair]) -> list[PrinciplePair]:
    """Those that agree less often than independent principles would: significantly, by Holm over all that are given."""
    corrected = holm([pair.p for pair in pairs])
    return [pair for pair, p in zip(pairs, corrected, strict=True) if p <= SIGNIFICANT]


def principle_notes(what: str, pairs: Sequence[PrinciplePair]) -> list[str]:
    """One note for all pairs of principles of a kind, naming the first; none for no pairs."""
    more = f", and {len(pairs) - NAMED} more pairs" if len(pairs) > NAMED else ""
    return [f"principles that {what}: {', '.join(pair.text for pair in pairs[:NAMED])}{more}"] if pairs else []


CONTRADICT = "contradict each other"
