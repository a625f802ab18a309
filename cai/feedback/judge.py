"""The AI judge: which of several answers a principle prefers, as probabilities (Bai et al. 2022, §4.1).

The judge reads the conversation and the answers, and its next token is the verdict: the log-probabilities of the
letters, renormalised. Each answer stands in each place once (two answers: both orders), since small judges have a
position bias (Lee et al. 2023, §2.2); orders are averaged in log-odds, which cancels a constant bias. Labels stay soft.

The judge as a reward (direct RLAIF, Lee et al. 2023, arXiv:2309.00267v3) rates one answer by a principle instead.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cai.config.errors import CaiError
from cai.config.hashing import derive_seed
from cai.config.yaml_files import PositiveTemperature, Tokens
from cai.constitution.principles import APPLIES_FROM, Constitution, Principle, assign
from cai.constitution.templates import Form, Templates
from cai.data.records import Messages, Preference, Prompt, Verdict
from cai.feedback.yes_no import MIN_LOG_PROB, YesNo, ask_at_issue
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate, Sampling
from cai.inference.scheduler import gather
from cai.stats.logistic import logit, sigmoid

Pair = tuple[int, int]
Verdicts = dict[Pair, list[Verdict]]
"""The verdicts on each pair of answers, by their numbers; the probabilities are those of the first."""


class JudgeConfig(Sampling):
    """`judge:` in a run file; `top_p`, `stop` and the like are for chains of thought."""

    samples: Annotated[int, Field(ge=0, le=len(ascii_uppercase))] = 2
    """Answers sampled for each prompt, all pairs of which are judged; the draft is the first. 0 or 1 judges none."""
    principles: Annotated[int, Field(ge=1)] | Literal["all"] = 4
    """Principles per pair, sampled by weight; `all` takes every one and weights its verdict."""
    model: str | Annotated[list[str], Field(min_length=1)] | None = None
    """The judge; null: the run's own model. A list is a panel, whose first is also the eval judge."""
    key_env: str | dict[str, str] | None = None
    """Environment variable with the key for the judge's server; of a panel on several hosts by host. null: OpenAI's."""
    ask: Literal["pairs", "choice"] = "pairs"
    """`choice` shows the judge all answers at once instead of pairs."""
    ensemble: Annotated[int, Field(ge=1, le=9)] = 1
    """Wordings of the question, of those in judge.jinja, that are asked of each pair; their verdicts are averaged."""
    ties: bool = False
    """The judge may also say that the answers are equally good; half of that probability goes to each."""
    verify: bool = False
    """First ask whether a principle tells the answers apart; it votes where that is likely, with P as its weight."""
    swap: bool = True
    """false shows each pair in one order only."""
    revisions: bool = True
    """Also judge whether revisions are better than drafts, by the principles of their rounds; see `revise.label`."""
    cot_samples: Annotated[int, Field(ge=0, le=1000)] = 0
    """Chains of thought sampled before each verdict, whose verdicts are averaged; 0 judges without reasoning."""
    cot_max_tokens: Tokens = 256
    """Maximum tokens of a chain of thought."""
    cot_clamp: tuple[Annotated[float, Field(ge=0, le=0.5)], Annotated[float, Field(ge=0.5, le=1)]] = (0.4, 0.6)
    """Range that each order of a verdict after a chain of thought is clamped to (Bai et al. 2022 §4.1)."""
    engine: EngineConfig | None = None
    """Settings of the judges' engines that differ from `engine:`."""
    temperature: PositiveTemperature = 1.0
    """Divides a label's log-odds: above 1 labels are softer."""

    @property
    def templates_needed(self) -> tuple[str, ...]:
        """The names of the templates that judging with these settings reads."""
        return ("judge", "verify") if self.verify else ("judge",)

    def check_templates(self, templates: Templates) -> None:
        """Raises: CaiError where a template does not put the question as these settings ask."""
        templates.check_wordings(self.ensemble)
        if self.ties:
            templates.check_tie()


class _OrderVerdict(NamedTuple):
    """The verdict on answers in the order shown: the log-probability of each, renormalised, and last that of a tie."""

    logps: list[float]
    non_option_mass: float
    cot: Sequence[Completion]


class Judge:
    """One model as judge: its questions, in every order, each after as many chains of thought as the settings say.

    Of the settings those matter here that say by what, in which form and how often it is asked. `seed` decides which
    principles are sampled for a prompt, and the sampling of chains of thought.
    """

    def __init__(
        self, templates: Templates, engine: Engine, settings: JudgeConfig | None = None, seed: int = 0
    ) -> None:
        self.engine = engine
        self._templates, self._settings, self._seed = templates, settings or JudgeConfig(), seed

    async def compare(
        self, conversation: Messages, answers: Sequence[str], principles: Sequence[Principle], cot_seed: int = 0
    ) -> Verdicts:
        """A verdict a principle on every pair of 2 to 26 answers: as many calls a principle as there are answers.

        Without `swap` one call, which shows the answers in the order they come in. With `verify` one more call a
        principle, and no others about one that does not tell the answers apart, whose verdict has no vote.

        Raises: CaiError for more answers than letters.
        """
        most = len(ascii_uppercase) - self._settings.ties
        if not 2 <= len(answers) <= most:
            raise CaiError(f"a judge chooses among 2 to {most} answers, not {len(answers)}")
        starts = range(len(answers)) if self._settings.swap else [0]
        orders = [[*range(start, len(answers)), *range(start)] for start in starts]

        shown = [dict(zip(ascii_uppercase, (answers[i] for i in order), strict=False)) for order in orders]
        at_issue = await self._at_issue(principles, conversation, answers)
        voting = [p for p, reply in zip(principles, at_issue, strict=True) if reply is None or reply.p >= APPLIES_FROM]
        asked = iter(await gather([self._ask(p, conversation, options, cot_seed) for p in voting for options in shown]))
        by_principle = [
            self._pair_verdicts(p, orders, list(itertools.islice(asked, len(orders) if p in voting else 0)), reply)
            for p, reply in zip(principles, at_issue, strict=True)
        ]
        pairs = itertools.combinations(range(len(answers)), 2)
        return dict(zip(pairs, map(list, zip(*by_principle, strict=True)), strict=True))

    async def judge_answers(self, prompt: Prompt, answers: Sequence[str], constitution: Constitution) -> Verdicts:
        """The verdicts on the pairs of different, non-empty answers to a prompt, by the principles sampled for it."""
        principles = principles_met(constitution, self._seed, prompt.id, self._settings)
        cot_seed = self._cot_seed(prompt.id)
        distinct = [i for i, text in enumerate(answers) if text and text not in answers[:i]]

        async def compare(numbers: Sequence[int]) -> Verdicts:
            texts = [answers[i] for i in numbers]
            verdicts = await self.compare(prompt.messages, texts, principles, cot_seed)
            return {(numbers[i], numbers[j]): of_pair for (i, j), of_pair in verdicts.items()}

        if self._settings.ask == "choice":
            return await compare(distinct) if len(distinct) > 1 else {}
        parts = await gather([compare(pair) for pair in itertools.combinations(distinct, 2)])
        return {pair: verdicts for part in parts for pair, verdicts in part.items()}

    async def judge_revision(self, pair: Preference, constitution: Constitution) -> Verdicts:
        """Whether a revision is better than its draft, by each principle of its rounds.

        They count alike: the weight of a principle decided how often it was sampled for a round.
        """
        made_by = (principle for principle in constitution.principles if principle.id in pair.principle_ids)
        principles = [principle.model_copy(update={"weight": 1.0}) for principle in made_by]
        cot_seed = self._cot_seed(pair.prompt_id)
        return await self.compare(pair.messages, (pair.chosen, pair.rejected), principles, cot_seed)

    async def _at_issue(
        self, principles: Sequence[Principle], conversation: Messages, answers: Sequence[str]
    ) -> list[YesNo | None]:
        """Of each principle whether it tells the answers apart; None where that is not asked."""
        if not self._settings.verify:
            return [None] * len(principles)
        return await gather([ask_at_issue(p, conversation, answers, self._templates, self.engine) for p in principles])

    def _cot_seed(self, prompt_id: str) -> int:
        return derive_seed(self._seed, prompt_id, "thoughts")  # part of cache keys: the word stays

    def _pair_verdicts(
        self,
        principle: Principle,
        orders: Sequence[list[int]],
        by_order: Sequence[_OrderVerdict],
        at_issue: YesNo | None,
    ) -> list[Verdict]:
        """One principle's verdict on every pair of answers, from those on the orders they were shown in."""
        pairs = list(itertools.combinations(range(len(orders[0])), 2))
        if at_issue is not None and not by_order:
            return [_abstention(principle, at_issue)] * len(pairs)
        count = len(orders[0])
        shown_logps = zip(orders, (shown.logps[:count] for shown in by_order), strict=True)
        logps = [dict(zip(order, of_order, strict=True)) for order, of_order in shown_logps]
        ties = [math.exp(logp) for shown in by_order for logp in shown.logps[count:]]  # one an order, or none

        def side(i: int, j: int) -> float | None:
            """P(i is better than j) over the orders that show i before j."""
            before = [number for number, order in enumerate(orders) if order.index(i) < order.index(j)]
            if not before:
                return None
            odds = [logps[number][i] - logps[number][j] for number in before]
            if ties:  # half of a tie to each side, order by order
                shares = ((1 - ties[n]) * sigmoid(x) + ties[n] / 2 for n, x in zip(before, odds, strict=True))
                odds = [logit(share) for share in shares]
            return sigmoid(fmean(odds))

        thoughts = [chain.reasoning or "" for shown in by_order for chain in shown.cot]
        return [
            Verdict(
                principle_id=principle.id,
                principle_hash=principle.fingerprint,
                weight=principle.weight * (1.0 if at_issue is None else at_issue.p),
                p_forward=side(i, j),
                p_reverse=_complement(side(j, i)),
                share_forward=1 - (j - i) / len(orders) if self._settings.swap else 1.0,
                non_option_mass=fmean(shown.non_option_mass for shown in by_order),
                at_issue=None if at_issue is None else at_issue.p,
                tie_mass=fmean(ties) if ties else None,
                cot=[chain.text for shown in by_order for chain in shown.cot],
                cot_reasoning=thoughts if any(thoughts) else None,
            )
            for i, j in pairs
        ]

    async def _ask(
        self, principle: Principle, conversation: Messages, options: dict[str, str], cot_seed: int
    ) -> _OrderVerdict:
        """One question about the answers as shown, in every wording; the mean of the verdicts."""
        wordings = range(1, self._settings.ensemble + 1)
        return _mean_verdict(
            await gather([self._ask_worded(principle, conversation, options, cot_seed, n) for n in wordings])
        )

    async def _ask_worded(
        self, principle: Principle, conversation: Messages, options: dict[str, str], cot_seed: int, wording: int
    ) -> _OrderVerdict:
        """As `_ask`, in one wording; several chains of thought give the mean of their verdicts."""
        samples, max_tokens = self._settings.cot_samples, self._settings.cot_max_tokens
        session = conversation[0]["content"]  # all questions about it begin with it
        tie = ascii_uppercase[len(options)] if self._settings.ties else None
        form = Form(wording, tie)

        async def choose(cot: Completion | None) -> _OrderVerdict:
            messages = self._templates.judge(principle, conversation, options, cot.text if cot else None, form)
            letters = [*options, *([tie] if tie else [])]
            chosen = await choose_letter(messages, letters, self.engine, session)
            return _OrderVerdict(*chosen, cot=[cot] if cot else [])

        if not samples:
            return await choose(None)

        async def think(number: int) -> Completion:
            question = self._templates.judge_cot(principle, conversation, options, form)
            temperature = 1.0 if samples > 1 else 0.0
            seed = derive_seed(cot_seed, principle.id, list(options.values()), number)
            drawn = self._settings.sampling
            request = Generate(question, max_tokens, temperature, seed, "chain_of_thought", drawn, session)
            return await self.engine.generate(request)

        chains = await gather([think(number) for number in range(samples)])
        return _mean_verdict(await gather([choose(chain) for chain in chains]))


def _mean_verdict(verdicts: Sequence[_OrderVerdict]) -> _OrderVerdict:
    """Probabilities averaged; one verdict stays as it is, to the bit."""
    if len(verdicts) == 1 and not verdicts[0].cot:
        return verdicts[0]
    by_option = zip(*(verdict.logps for verdict in verdicts), strict=True)
    mean = [math.log(fmean(math.exp(x) for x in logps)) for logps in by_option]
    cot = [chain for verdict in verdicts for chain in verdict.cot]
    return _OrderVerdict(mean, fmean(verdict.non_option_mass for verdict in verdicts), cot)


def _abstention(principle: Principle, at_issue: YesNo) -> Verdict:
    return Verdict(
        principle_id=principle.id,
        principle_hash=principle.fingerprint,
        weight=principle.weight,
        p_forward=None,
        p_reverse=None,
        non_option_mass=at_issue.non_option_mass,
        at_issue=at_issue.p,
    )


def _complement(p: float | None) -> float | None:
    """P(the second is better)."""
    return None if p is None else 1.0 - p


async def choose_letter(
    messages: Messages, letters: Iterable[str], engine: Engine, session: str | None = None
) -> tuple[list[float], float]:
    """The log-probability of each letter as the end of the last message, renormalised; and the non-option mass.

    `session` as in Choose.
    """
    logps = await engine.choose(Choose(messages, tuple(f" {letter}" for letter in letters), session=session))
    kept = [max(x, MIN_LOG_PROB) for x in logps]
    total = max(kept) + math.log(sum(math.exp(x - max(kept)) for x in kept))
    return [x - total for x in kept], min(1.0, max(0.0, 1.0 - math.exp(total)))


def principles_met(constitution: Constitution, seed: int, prompt_id: str, settings: JudgeConfig) -> list[Principle]:
    """The principles that judge a prompt's answers.

    Where all do, each counts by its weight; where some are sampled, the weight decided the draw, and they count alike.
    """
    if settings.principles == "all" or settings.principles >= len(constitution.principles):
        return constitution.principles
    drawn = assign(constitution, seed, prompt_id, "judge", settings.principles)
    return [p if p.weight == 1 else p.model_copy(update={"weight": 1.0}) for p in drawn]


def calls_for_answers(settings: JudgeConfig, principles: int, answers: int) -> int:
    """How many requests one judge gets to judge `answers` under a constitution of `principles`, at most.

    With `verify` a principle that does not tell the answers apart has fewer.
    """
    met = principles if settings.principles == "all" else min(settings.principles, principles)
    orders = 1 if not settings.swap else answers if settings.ask == "choice" else 2
    sets = 1 if settings.ask == "choice" else math.comb(answers, 2)
    return met * sets * (settings.verify + orders * _calls_for_verdict(settings)) if answers > 1 else 0


def calls_for_revision(settings: JudgeConfig, rounds: int) -> int:
    """How many requests one judge gets about a revision of so many rounds, at most: a principle may recur."""
    orders = 2 if settings.swap else 1
    return rounds * (settings.verify + orders * _calls_for_verdict(settings)) if settings.revisions else 0


def _calls_for_verdict(settings: JudgeConfig) -> int:
    """How many requests one verdict in one order takes."""
    return settings.ensemble * (2 * settings.cot_samples or 1)


# Lee et al.'s numbers go from 1 to 10; here they end at 9, since many tokenizers write 10 as 1 and 0, so that the
# probability of the first token of 10 would count as that of 1. No chain of thought, as there.
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
