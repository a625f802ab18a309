"""Labelled pairs from a judge's verdicts: soft labels, preferences, rankings."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cai.data.records import Preference, Prompt, Ranking, Skipped, Verdict
from cai.feedback.judge import JudgeConfig, Pair, Verdicts
from cai.stats.logistic import bradley_terry, logit, sigmoid

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
