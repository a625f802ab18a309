"""The judge as a reward: how well one answer does by a principle, as a number (direct RLAIF, Lee et al. 2023,
arXiv:2309.00267v3).

The judge reads the conversation and one answer, and its next token is the rating: the mean of the numbers under their
log-probabilities, renormalised. The paper's numbers go from 1 to 10; here they end at 9, since many tokenizers write 10
as 1 and 0, so that the probability of the first token of 10 would count as that of 1. No chain of thought, as there.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from cai.constitution.principles import Constitution, Principle
from cai.constitution.templates import Templates
from cai.data.records import Messages, Prompt
from cai.feedback.judge import JudgeConfig, principles_met
from cai.feedback.yes_no import MIN_LOG_PROB
from cai.inference.engine import Choose, Engine
from cai.inference.scheduler import gather

NUMBERS = tuple("123456789")
MIDDLE, HALF_RANGE = 5.0, 4.0  # of the numbers, which become rewards from −1 to 1 as in the paper


class Rating(NamedTuple):
    """One principle's rating of an answer, from 1 to 9, and the probability outside the numbers."""

    principle: Principle
    value: float
    non_option_mass: float


class Rater:
    """One judge that rates answers by the principles that judge their prompt's pairs: one call a principle."""

    def __init__(self, templates: Templates, engine: Engine, settings: JudgeConfig, seed: int) -> None:
        self.engine = engine
        self._templates, self._settings, self._seed = templates, settings, seed

    async def rate(self, prompt: Prompt, answer: str, constitution: Constitution) -> list[Rating]:
        """The ratings of an answer, by the principles of `constitution`, all of which apply to the prompt."""
        principles = principles_met(constitution, self._seed, prompt.id, self._settings)
        return await gather([self.rate_by(principle, prompt.messages, answer) for principle in principles])

    async def rate_by(self, principle: Principle, messages: Messages, answer: str) -> Rating:
        """The rating of an answer by one principle."""
        session = messages[0]["content"]  # all questions about it begin with it
        request = Choose(self._templates.rate(principle, messages, answer), NUMBERS, "rating", session)
        kept = [max(logp, MIN_LOG_PROB) for logp in await self.engine.choose(request)]
        masses = [math.exp(logp) for logp in kept]
        mean = sum(mass * int(number) for mass, number in zip(masses, NUMBERS, strict=True)) / sum(masses)
        return Rating(principle, mean, min(1.0, max(0.0, 1.0 - sum(masses))))


def reward_of(ratings: Sequence[Rating]) -> float:
    """The mean of ratings by the weights of their principles, from −1 to 1."""
    total = sum(rating.principle.weight for rating in ratings)
    mean = sum(rating.principle.weight * rating.value for rating in ratings) / total
    return (mean - MIDDLE) / HALF_RANGE


def calls_for_rating(settings: JudgeConfig, principles: int) -> int:
    """How many requests one judge gets to rate one answer under a constitution of so many principles, at most."""
    return principles if settings.principles == "all" else min(settings.principles, principles)


def mean_non_option_mass(ratings: Sequence[Rating]) -> float:
    """The mean over ratings of the probability outside the numbers."""
    return fmean(rating.non_option_mass for rating in ratings)
