"""The AI judge: which of several answers a principle prefers, as probabilities (Bai et al. 2022, §4.1).

The judge reads the conversation and the answers, and its next token is the verdict: the log-probabilities of the
letters, renormalised. Each answer stands in each place once (two answers: both orders), since small judges lean to a
position (Lee et al. 2023, §2.2); orders are averaged in log-odds, which cancels a constant leaning. Labels stay soft.
"""

import asyncio
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cai.config.errors import CaiError
from cai.config.hashing import derive_seed
from cai.config.yaml_files import Section
from cai.constitution.principles import Constitution, Principle, assign
from cai.constitution.templates import Templates
from cai.data.records import Messages, Preference, Prompt, Ranking, Verdict
from cai.inference.engine import Choose, Engine, Generate
from cai.stats.logistic import bradley_terry, logit, sigmoid

Pair = tuple[int, int]
Verdicts = dict[Pair, list[Verdict]]
"""What was said of each pair of answers, by their numbers; the probabilities are those of the first."""
LEAST = -30.0  # nats: log-probabilities below it carry no more opinion


class JudgeConfig(Section):
    """`judge:` in a run file."""

    samples: Annotated[int, Field(ge=0, le=len(ascii_uppercase))] = 2
    """Answers sampled for each prompt, all pairs of which are judged; the draft is the first. 0 or 1 judges none."""
    principles: Annotated[int, Field(ge=1)] | Literal["all"] = 4
    """Principles asked about each pair, drawn by weight; `all` asks every one and counts it by its weight."""
    model: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Who judges; null: the run's own model. A list is a panel, whose first is also the eval judge."""
    ask: Literal["pairs", "choice"] = "pairs"
    """`choice` puts all answers to the judge at once in place of pairs."""
    swap: bool = True
    """false shows each pair in one order alone."""
    revisions: bool = True
    """Ask too whether revisions are better than drafts by the principles they were made by; labels nothing."""
    cot_samples: Annotated[int, Field(ge=0)] = 0
    """Chains of thought sampled before each verdict, whose verdicts are averaged; 0 judges without reasoning."""
    cot_max_tokens: Annotated[int, Field(ge=1)] = 256
    """Maximum tokens of a chain of thought."""
    cot_clamp: tuple[Annotated[float, Field(ge=0, le=0.5)], Annotated[float, Field(ge=0.5, le=1)]] = (0.4, 0.6)
    """Range that a verdict after a chain of thought is clamped to, as it is overconfident (Bai et al. 2022 §4.1)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides a label's log-odds: above 1 labels are softer."""


class Thinking(NamedTuple):
    """How a judge reasons before its verdict: how often, in how many tokens, and under which seed."""

    samples: int
    tokens: int
    seed: int


async def judge(
    conversation: Messages,
    answers: Sequence[str],
    principles: Sequence[Principle],
    templates: Templates,
    engine: Engine,
    thinking: Thinking | None = None,
    swap: bool = True,
) -> Verdicts:
    """A verdict a principle on every pair of 2 to 26 answers: as many calls a principle as there are answers.

    Without `swap` one call, which shows the answers as they are given.

    Raises: CaiError for more answers than letters.
    """
    if not 2 <= len(answers) <= len(ascii_uppercase):
        raise CaiError(f"a judge chooses among 2 to {len(ascii_uppercase)} answers, not {len(answers)}")
    starts = range(len(answers)) if swap else [0]
    orders = [[*range(start, len(answers)), *range(start)] for start in starts]
    pairs = list(itertools.combinations(range(len(answers)), 2))

    async def verdicts(principle: Principle) -> list[Verdict]:
        shown = [dict(zip(ascii_uppercase, (answers[i] for i in order), strict=False)) for order in orders]
        asked = await asyncio.gather(
            *(_ask(principle, conversation, options, templates, engine, thinking) for options in shown)
        )
        logps = [dict(zip(order, found.logps, strict=True)) for order, found in zip(orders, asked, strict=True)]

        def side(i: int, j: int) -> float | None:
            """P(i is better than j) over the orders that show i before j."""
            before = [number for number, order in enumerate(orders) if order.index(i) < order.index(j)]
            if not before:
                return None
            return sigmoid(fmean(logps[number][i] - logps[number][j] for number in before))

        return [
            Verdict(
                principle_id=principle.id,
                principle_hash=principle.fingerprint,
                weight=principle.weight,
                p_forward=side(i, j),
                p_reverse=_other(side(j, i)),
                share_forward=1 - (j - i) / len(orders) if swap else 1.0,
                non_option_mass=fmean(found.non_option_mass for found in asked),
                cot=[text for found in asked for text in found.cot],
            )
            for i, j in pairs
        ]

    by_principle = await asyncio.gather(*(verdicts(principle) for principle in principles))
    return dict(zip(pairs, map(list, zip(*by_principle, strict=True)), strict=True))


def _other(p: float | None) -> float | None:
    """P(the other one is better)."""
    return None if p is None else 1.0 - p


class _Asked(NamedTuple):
    logps: list[float]  # of each answer in the order shown, renormalised
    non_option_mass: float
    cot: list[str]


async def _ask(
    principle: Principle,
    conversation: Messages,
    options: dict[str, str],
    templates: Templates,
    engine: Engine,
    thinking: Thinking | None,
) -> _Asked:
    """One question about the answers as they are shown; several chains of thought give the mean of their verdicts."""

    async def choose(thought: str | None) -> _Asked:
        logps, non_option_mass = await choose_letter(
            templates.judge(principle, conversation, options, thought), options, engine
        )
        return _Asked(logps, non_option_mass, [])

    if thinking is None:
        return await choose(None)

    async def think(number: int) -> str:
        question = templates.judge_thought(principle, conversation, options)
        temperature = 1.0 if thinking.samples > 1 else 0.0
        seed = derive_seed(thinking.seed, principle.id, list(options.values()), number)
        return (await engine.generate(Generate(question, thinking.tokens, temperature, seed, "chain_of_thought"))).text

    thoughts = await asyncio.gather(*(think(number) for number in range(thinking.samples)))
    found = await asyncio.gather(*(choose(thought) for thought in thoughts))
    mean = [math.log(fmean(math.exp(x) for x in logps)) for logps in zip(*(f.logps for f in found), strict=True)]
    return _Asked(mean, fmean(f.non_option_mass for f in found), list(thoughts))


async def choose_letter(messages: Messages, letters: Iterable[str], engine: Engine) -> tuple[list[float], float]:
    """The log-probability of each letter as the end of the last message, renormalised, and the mass outside them."""
    found = await engine.choose(Choose(messages, tuple(f" {letter}" for letter in letters)))
    kept = [max(x, LEAST) for x in found]
    total = max(kept) + math.log(sum(math.exp(x - max(kept)) for x in kept))
    return [x - total for x in kept], min(1.0, max(0.0, 1.0 - math.exp(total)))


def soft_label(verdicts: Sequence[Verdict], temperature: float = 1.0, clamp: tuple[float, float] = (0.0, 1.0)) -> float:
    """P(first is better), in [0, 1]: the mean of the verdicts by weight, each clamped to `clamp`.

    `temperature` divides the mean's log-odds.
    """
    low, high = clamp
    p = sum(v.weight * min(max(v.p, low), high) for v in verdicts) / sum(v.weight for v in verdicts)
    return p if temperature == 1 else sigmoid(logit(p) / temperature)


def label(verdicts: Sequence[Verdict], settings: JudgeConfig) -> float:
    """`soft_label` as a run file's `judge:` asks for it."""
    return soft_label(verdicts, settings.temperature, settings.cot_clamp if settings.cot_samples else (0.0, 1.0))


async def judge_answers(
    prompt: Prompt,
    answers: Sequence[str],
    constitution: Constitution,
    templates: Templates,
    engine: Engine,
    settings: JudgeConfig,
    seed: int,
) -> Verdicts:
    """One judge's verdicts on the pairs of different, non-empty answers to a prompt, by the principles it meets."""
    principles = principles_met(constitution, seed, prompt.id, settings)
    thinking = _thinking(settings, seed, prompt.id)
    distinct = [i for i, text in enumerate(answers) if text and text not in answers[:i]]

    async def ask(numbers: Sequence[int]) -> Verdicts:
        texts = [answers[i] for i in numbers]
        found = await judge(prompt.messages, texts, principles, templates, engine, thinking, settings.swap)
        return {(numbers[i], numbers[j]): verdicts for (i, j), verdicts in found.items()}

    if settings.ask == "choice":
        return await ask(distinct) if len(distinct) > 1 else {}
    found = await asyncio.gather(*(ask(pair) for pair in itertools.combinations(distinct, 2)))
    return {pair: verdicts for part in found for pair, verdicts in part.items()}


async def judge_revision(
    pair: Preference, constitution: Constitution, templates: Templates, engine: Engine, settings: JudgeConfig, seed: int
) -> Verdicts:
    """Whether a revision is better than its draft, by each principle it was revised by; its label is left alone."""
    met = [principle for principle in constitution.principles if principle.id in pair.principle_ids]
    thinking = _thinking(settings, seed, pair.prompt_id)
    return await judge(pair.messages, (pair.chosen, pair.rejected), met, templates, engine, thinking, settings.swap)


def _thinking(settings: JudgeConfig, seed: int, prompt_id: str) -> Thinking | None:
    if not settings.cot_samples:
        return None
    return Thinking(settings.cot_samples, settings.cot_max_tokens, derive_seed(seed, prompt_id, "thoughts"))


def principles_met(constitution: Constitution, seed: int, prompt_id: str, settings: JudgeConfig) -> list[Principle]:
    """The principles that judge a prompt's answers. Where all do, each counts by its weight; where some are drawn, the
    weight has had its say in the drawing, and they count alike.
    """
    if settings.principles == "all" or settings.principles >= len(constitution.principles):
        return constitution.principles
    drawn = assign(constitution, seed, prompt_id, "judge", settings.principles)
    return [principle.model_copy(update={"weight": 1.0}) for principle in drawn]


def calls(settings: JudgeConfig, principles: int, answers: int) -> int:
    """How many requests one judge gets to judge `answers` under a constitution of `principles`."""
    met = principles if settings.principles == "all" else min(settings.principles, principles)
    orders = 1 if not settings.swap else answers if settings.ask == "choice" else 2
    questions = orders if settings.ask == "choice" else orders * math.comb(answers, 2)
    return met * questions * (2 * settings.cot_samples or 1) if answers > 1 else 0


def calls_of_revisions(settings: JudgeConfig, rounds: int) -> int:
    """How many requests one judge gets about a revision of so many rounds, at most: a principle may be drawn twice."""
    asked = rounds * (2 if settings.swap else 1) * (2 * settings.cot_samples or 1)
    return asked if settings.revisions else 0


def joined(parts: Sequence[tuple[str, Verdicts]]) -> Verdicts:
    """What several judges, each with its engine's fingerprint, say of the same pairs."""
    found: Verdicts = {}
    for judge_fingerprint, verdicts in parts:
        for pair, said in verdicts.items():
            named = said if len(parts) == 1 else [v.model_copy(update={"judge": judge_fingerprint}) for v in said]
            found[pair] = found.get(pair, []) + named
    return found


def judged_preferences(
    prompt: Prompt, answers: Sequence[str], verdicts: Verdicts, model: str, judge: str, settings: JudgeConfig, seed: int
) -> list[Preference | str]:
    """Each pair of answers as a preference, the likelier one as `chosen`, or the reason why there is none."""

    def preference(i: int, j: int) -> Preference | str:
        if not answers[i] or not answers[j]:
            return "a sample is empty"
        if answers[i] == answers[j]:
            return "samples identical"
        if (i, j) not in verdicts:  # a choice was asked of the first among equals
            return "one of two identical samples, of which the other is judged"
        p = label(verdicts[i, j], settings)
        swap = p < 0.5
        chosen, rejected = (answers[j], answers[i]) if swap else (answers[i], answers[j])
        return Preference(
            prompt_id=prompt.id,
            messages=prompt.messages,
            tags=prompt.tags,
            chosen=chosen,
            rejected=rejected,
            p=1.0 - p if swap else p,
            source="judge",
            verdicts=[swapped(v) for v in verdicts[i, j]] if swap else verdicts[i, j],
            model=model,
            judge=judge,
            seeds=[seed],
        )

    return [preference(i, j) for i, j in itertools.combinations(range(len(answers)), 2)]


def swapped(verdict: Verdict) -> Verdict:
    """The same verdict said of the other answer: P(other) in each order."""
    return verdict.model_copy(
        update={
            "p_forward": _other(verdict.p_reverse),
            "p_reverse": _other(verdict.p_forward),
            "share_forward": 1.0 - verdict.share_forward,
        }
    )


# Whether a critique points out a problem: the model's next token is Yes or No, so the answer is a probability.


class ProblemFound(NamedTuple):
    """`p`, P(Yes) beside No, and `outside`, the probability of anything else; both in [0, 1]."""

    p: float
    non_option_mass: float


async def finds_problem(
    principle: Principle, request: str, answer: str, critique: str, templates: Templates, engine: Engine
) -> ProblemFound:
    """Ask whether the critique of `answer` by a principle points out a problem in it: one call."""
    messages = templates.finds(principle, request, answer, critique)
    yes, no = (max(logp, LEAST) for logp in await engine.choose(Choose(messages, (" Yes", " No"))))
    return ProblemFound(sigmoid(yes - no), min(1.0, max(0.0, 1.0 - math.exp(yes) - math.exp(no))))


def ranking(
    prompt: Prompt, answers: Sequence[str], labels: Mapping[Pair, float], model: str, judge: str, seed: int
) -> Ranking:
    """The answers that the labels compare, best first; of equals the earlier one."""
    strengths = bradley_terry(labels)
    order = sorted(strengths, key=lambda number: (-strengths[number], number))
    return Ranking(
        prompt_id=prompt.id,
        messages=prompt.messages,
        tags=prompt.tags,
        responses=[answers[number] for number in order],
        strengths=[strengths[number] for number in order],
        model=model,
        judge=judge,
        seed=seed,
    )
