"""Labelled pairs from a judge's verdicts: soft labels, preferences, rankings, how much they say, how principles agree.

Two principles that always agree count as one of double weight. Two that go against each other pull labels to one half,
and what one of them makes of a draft the other undoes: a constitution that excludes itself.
"""

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer

from cai.data.records import Preference, Prompt, Ranking, Row, Skipped, Source, Verdict
from cai.feedback.judge import JudgeConfig, Pair, Verdicts
from cai.stats.agreement import Agreement, agreement
from cai.stats.formatting import counted, percent
from cai.stats.intervals import Z
from cai.stats.logistic import bradley_terry, logit, sigmoid
from cai.stats.significance import holm, two_sided
from cai.stats.win_rate import win

NOT_AT_ISSUE = "no principle tells the two answers apart"  # why a pair has no label


def has_votes(verdicts: Sequence[Verdict]) -> bool:
    """Whether a label can be made of the verdicts; see `judge.verify`."""
    return any(verdict.votes for verdict in verdicts)


def by_vote(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts as the fields of a Preference: those with a vote and those without."""
    return {"verdicts": [v for v in verdicts if v.votes], "abstentions": [v for v in verdicts if not v.votes]}


def soft_label(verdicts: Sequence[Verdict], temperature: float = 1.0, clamp: tuple[float, float] = (0.0, 1.0)) -> float:
    """P(first better), in [0, 1]: the mean of the verdicts by weight, each order of each within `clamp`.

    `temperature` divides the mean's log-odds. Verdicts without a vote do not count; of these alone it is one half.
    """
    votes = [v for v in verdicts if v.votes]
    if not votes:
        return 0.5
    p = sum(v.weight * v.clamped(*clamp) for v in votes) / sum(v.weight for v in votes)
    return p if temperature == 1 else sigmoid(logit(p) / temperature)


def label(verdicts: Sequence[Verdict], settings: JudgeConfig) -> float:
    """`soft_label` with the temperature and the clamp of a run file's `judge:`."""
    return soft_label(verdicts, settings.temperature, settings.cot_clamp if settings.cot_samples else (0.0, 1.0))


def panel_verdicts(parts: Sequence[tuple[str, Verdicts]]) -> Verdicts:
    """The verdicts of several judges, each with its engine's fingerprint, on the same pairs."""
    joined: Verdicts = {}
    for judge_fingerprint, by_pair in parts:
        for pair, verdicts in by_pair.items():
            if len(parts) > 1:
                verdicts = [v.model_copy(update={"judge": judge_fingerprint}) for v in verdicts]
            joined[pair] = joined.get(pair, []) + verdicts
    return joined


@dataclass(frozen=True)
class JudgedAnswers:
    """A prompt's answers, the verdicts of all judges on their pairs, and which engines both come from."""

    prompt: Prompt
    answers: Sequence[str]
    verdicts: Verdicts
    model: str  # engine fingerprint of who answered
    judge: str  # of who judged; of a panel joined by `+`
    seed: int
    reasoning: Sequence[str | None] = ()  # what was thought before each answer, where that is known
    truncated: Sequence[bool] = ()  # whether each reached max_tokens, where that is known


def judged_preferences(judged: JudgedAnswers, settings: JudgeConfig, stage: str) -> list[Preference | Skipped]:
    """Each pair of answers as a preference, the likelier one as `chosen`, or why there is none."""
    answers, prompt = judged.answers, judged.prompt

    def skipped(reason: str) -> Skipped:
        return Skipped(prompt_id=prompt.id, stage=stage, reason=reason)

    def preference(i: int, j: int) -> Preference | Skipped:
        if not answers[i] or not answers[j]:
            return skipped("a sample is empty")
        if answers[i] == answers[j]:
            return skipped("samples identical")
        if (i, j) not in judged.verdicts:  # a choice among distinct answers names the first of equal ones
            return skipped("one of two identical samples, of which the other is judged")
        verdicts = judged.verdicts[i, j]
        if not has_votes(verdicts):
            return skipped(NOT_AT_ISSUE)
        p = label(verdicts, settings)
        swap = p < 0.5
        better, worse = (j, i) if swap else (i, j)
        thoughts = judged.reasoning or [None] * len(answers)
        cut: dict[Literal["chosen", "rejected"], int] = {"chosen": better, "rejected": worse}
        return Preference(
            prompt_id=prompt.id,
            messages=prompt.messages,
            tags=prompt.tags,
            chosen=answers[better],
            rejected=answers[worse],
            p=1.0 - p if swap else p,
            source="judge",
            truncated=[side for side, number in cut.items() if judged.truncated and judged.truncated[number]],
            **by_vote([v.swapped() for v in verdicts] if swap else verdicts),
            model=judged.model,
            judge=judged.judge,
            seeds=[judged.seed],
            chosen_reasoning=thoughts[better],
            rejected_reasoning=thoughts[worse],
        )

    return [preference(i, j) for i, j in itertools.combinations(range(len(answers)), 2)]


def judged_revision(
    pair: Preference, verdicts: list[Verdict], settings: JudgeConfig, stage: str
) -> Preference | Skipped:
    """A pair (revision ≻ draft) with the label of the verdicts on it, as judged pairs have it: the likelier one first.

    A revision that is judged worse than its draft becomes `rejected`, so that nothing learns the opposite. Skipped is
    the pair on which no principle has a vote.
    """
    if not has_votes(verdicts):
        return Skipped(prompt_id=pair.prompt_id, stage=stage, reason=NOT_AT_ISSUE)
    p = label(verdicts, settings)
    if p >= 0.5:
        return pair.model_copy(update={"p": p, **by_vote(verdicts)})
    swapped = {
        "chosen": pair.rejected,
        "rejected": pair.chosen,
        "chosen_reasoning": pair.rejected_reasoning,
        "rejected_reasoning": pair.chosen_reasoning,
        "draft_chosen": True,
        "truncated": ["rejected" if name == "chosen" else "chosen" for name in pair.truncated],
    }
    return pair.model_copy(update={**swapped, "p": 1.0 - p, **by_vote([v.swapped() for v in verdicts])})


def rank_answers(judged: JudgedAnswers, labels: Mapping[Pair, float]) -> Ranking:
    """The answers that the labels of pairs compare, best first; of equals the earlier one."""
    strengths = bradley_terry(labels)
    order = sorted(strengths, key=lambda number: (-strengths[number], number))
    return Ranking(
        prompt_id=judged.prompt.id,
        messages=judged.prompt.messages,
        tags=judged.prompt.tags,
        responses=[judged.answers[number] for number in order],
        strengths=[strengths[number] for number in order],
        model=judged.model,
        judge=judged.judge,
        seed=judged.seed,
    )


def rank_judged(judged: JudgedAnswers, settings: JudgeConfig) -> Ranking | None:
    """The answers ranked by the labels that the settings make of their verdicts; None where there is no label."""
    labels = {pair: label(verdicts, settings) for pair, verdicts in judged.verdicts.items() if has_votes(verdicts)}
    return rank_answers(judged, labels) if labels else None


class LabelMass:
    """How much the labels of pairs say, by their source: the sum of weight · |2p − 1|.

    A pair counts 0 at p = ½ and its weight at p = 1, as the size of a soft label's first step in DPO does.
    """

    def __init__(self) -> None:
        self.pairs: Counter[Source] = Counter()
        self._mass: dict[Source, float] = {}

    def add(self, row: Preference) -> None:
        """Count one pair."""
        self.pairs[row.source] += 1
        self._mass[row.source] = self._mass.get(row.source, 0.0) + row.weight * abs(2 * row.p - 1)

    def shares(self) -> dict[Source, float]:
        """The share of each source, in [0, 1]; empty where no label says anything."""
        total = sum(self._mass.values())
        return {source: mass / total for source, mass in self._mass.items()} if total else {}


LABEL_MASS = "label mass"
LABEL_MASS_MEANING = "share of Σ|2p − 1|, what the labels say, by source"


def label_mass_text(shares: Mapping[Any, float]) -> str:
    """The shares of `LabelMass`, as every surface shows them; empty for none."""
    return ", ".join(f"{percent(share)} by {source}" for source, share in shares.items())


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
