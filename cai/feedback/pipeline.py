"""The feedback stage of a run: each prompt's way from draft to labelled pairs, and the files its rows go to.

A prompt is judged while another is still being drafted. Judges that are other models read answers and revisions once
the models that write are closed, one after the other, so that a judge never needs to fit in memory beside them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cai.config.errors import RequestRefused
from cai.constitution.principles import Constitution, questions
from cai.constitution.templates import Templates
from cai.data.filters import repeats_itself
from cai.data.jsonl import RowWriter
from cai.data.records import Applicability, Preference, Prompt, Ranking, Revision, Skipped
from cai.feedback.judge import Judge, JudgeConfig, Verdicts, calls_for_answers, calls_for_revision
from cai.feedback.pairs import JudgedAnswers, by_vote, judged_preferences, judged_revision, panel_verdicts, rank_judged
from cai.feedback.revise import REVISION_PAIRS, ReviseConfig, Reviser, calls_of_loop, revision_preference
from cai.feedback.yes_no import NothingApplies, applying_to, ask_applicability
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Completion
from cai.inference.models import Model
from cai.inference.scheduler import Scheduler, Stage, gather

JUDGED_PAIRS = "judged pairs"  # the stage of samples that make no pair
TRUNCATED_ANSWER = "the better answer is truncated at max_tokens"
REPEATING_ANSWER = "the better answer repeats itself"
REVISION_VERDICTS = "verdicts on revisions"  # the stage of a prompt on whose revision a judge gave no verdict


@dataclass(frozen=True)
class FeedbackJob:
    """The inputs and settings of a run's feedback stage, and the files it writes."""

    prompts: Sequence[Prompt]
    constitution: Constitution
    templates: Templates
    revise: ReviseConfig
    judge: JudgeConfig
    seed: int
    model: Model
    reviser: Model  # which criticises and revises what the model answered
    judges: Sequence[Model]  # of several, each counts alike; of none, texts are written and no more
    input_preferences: Sequence[Preference]  # labels from a file, which join the run's own
    input_skipped: Sequence[Skipped]  # its rows that are not used
    revisions_jsonl: Path
    preferences_jsonl: Path
    rankings_jsonl: Path  # written of more than two samples
    applicability_jsonl: Path  # written where principles have questions


@dataclass
class _Feedback:
    """The models of a job at work: what every journey shares."""

    job: FeedbackJob
    model: CachedEngine
    critic: CachedEngine
    judges: list[CachedEngine]
    reviser: Reviser = field(init=False)

    def __post_init__(self) -> None:
        self.reviser = Reviser(self.job.templates, self.model, self.job.revise, self.job.seed, self.critic)

    @property
    def judge_name(self) -> str:
        """The judges' fingerprints, as a row's `judge` has them."""
        return "+".join(engine.fingerprint for engine in self.judges)

    @property
    def other_judges(self) -> list[CachedEngine]:
        """The judges that are not the run's own model."""
        return [engine for engine in self.judges if engine is not self.model]

    def judge(self, engine: CachedEngine) -> Judge:
        """One of the judges, as the job's settings have it."""
        return Judge(self.job.templates, engine, self.job.judge, self.job.seed)


class Journey:
    """One prompt's way through the feedback stage: draft, samples, revision, verdicts, rows.

    `revisions` are its rounds; `skipped` is what of it is not used, and why.
    """

    def __init__(self, prompt: Prompt, feedback: _Feedback) -> None:
        self.prompt = prompt
        self.revisions: list[Revision] = []
        self.skipped: list[Skipped] = []
        self.applicability: list[Applicability] = []
        self._feedback, self._job = feedback, feedback.job
        self._constitution = feedback.job.constitution  # the principles that apply
        self._samples: list[str] = []
        self._thoughts: list[str | None] = []  # before each of them
        self._truncated: list[bool] = []  # whether each reached max_tokens
        self._verdicts: list[tuple[str, Verdicts]] = []  # on the samples, of each judge by its fingerprint
        self._revision_pair: Preference | None = None
        self._revision_verdicts: list[tuple[str, Verdicts]] = []

    async def generate(self) -> None:
        """Write all texts; a judge that is the same model judges each as soon as it is there.

        A prompt that no principle applies to is skipped. A refused draft is raised; revision and samples may be refused
        each without the other.
        """
        constitution, templates = self._job.constitution, self._job.templates
        self.applicability = await ask_applicability(constitution, self.prompt, templates, self._feedback.critic)
        try:
            self._constitution = applying_to(constitution, self.prompt, self.applicability)
        except NothingApplies as reason:
            self._skip("feedback", reason)
            return
        draft = await self._feedback.reviser.respond(self.prompt)
        results = await asyncio.gather(self._revise(draft), self._sample(draft), return_exceptions=True)
        for result, stage in zip(results, ("revisions", JUDGED_PAIRS), strict=True):
            if isinstance(result, RequestRefused):
                self._skip(stage, result)
            elif isinstance(result, BaseException):
                raise result

    async def judge(self, engine: CachedEngine) -> None:
        """One judge's verdicts on samples and revision."""
        judge = self._feedback.judge(engine)
        asked = self._judge_samples(judge), self._judge_revision(judge)
        for result in await asyncio.gather(*asked, return_exceptions=True):  # a refusal of one leaves the other to end
            if isinstance(result, BaseException):
                raise result

    def preferences(self) -> list[Preference]:
        """The revision pair and the pairs of samples, if every judge has answered; why pairs are missing is skipped."""
        found: list[Preference | Skipped] = []
        if (labelled := self._labelled_revision()) is not None:
            found.append(labelled)
        if (judged := self._judged()) is not None:
            found += judged_preferences(judged, self._job.judge, JUDGED_PAIRS)
        pairs = []
        for pair in found:
            if isinstance(pair, Skipped):
                self.skipped.append(pair)
            elif (reason := self._unfit(pair)) is not None:
                stage = REVISION_PAIRS if pair.source == "revision" else JUDGED_PAIRS
                self.skipped.append(Skipped(prompt_id=self.prompt.id, stage=stage, reason=reason))
            else:
                pairs.append(pair)
        return pairs

    def _unfit(self, pair: Preference) -> str | None:
        """Why the better answer is none to learn from; None for one that is fit."""
        if "chosen" in pair.truncated and not self._job.revise.keep_truncated:
            return TRUNCATED_ANSWER
        return REPEATING_ANSWER if repeats_itself(pair.chosen) else None

    def ranking(self) -> Ranking | None:
        """The samples ranked; None where none of them could be compared."""
        judged = self._judged()
        return None if judged is None else rank_judged(judged, self._job.judge)

    async def _sample(self, draft: Completion) -> None:
        numbers = range(1, self._job.judge.samples)  # the draft is number 0
        more = await gather([self._feedback.reviser.respond(self.prompt, number) for number in numbers])
        self._samples = [completion.text for completion in (draft, *more)]
        self._thoughts = [completion.reasoning for completion in (draft, *more)]
        self._truncated = [completion.finish == "length" for completion in (draft, *more)]
        if self._feedback.model in self._feedback.judges:
            await self._judge_samples(self._feedback.judge(self._feedback.model))

    async def _revise(self, draft: Completion) -> None:
        self.revisions = await self._feedback.reviser.rounds(self.prompt, draft, self._constitution)
        if not self.revisions:
            return
        if self._job.revise.label == "off":
            return
        pair = revision_preference(self.revisions)
        if isinstance(pair, Skipped):
            self.skipped.append(pair)
            return
        self._revision_pair = pair
        if self._feedback.model in self._feedback.judges:
            await self._judge_revision(self._feedback.judge(self._feedback.model))

    async def _judge_samples(self, judge: Judge) -> None:
        if self._samples:
            verdicts = await judge.judge_answers(self.prompt, self._samples, self._constitution)
            self._verdicts.append((judge.engine.fingerprint, verdicts))

    async def _judge_revision(self, judge: Judge) -> None:
        if self._revision_pair is None or not self._job.judge.revisions:
            return
        try:
            verdicts = await judge.judge_revision(self._revision_pair, self._constitution)
            self._revision_verdicts.append((judge.engine.fingerprint, verdicts))
        except RequestRefused as refusal:  # with `revise.label: certain` the pair stands without its verdicts
            self._skip(REVISION_VERDICTS, refusal)

    def _judged(self) -> JudgedAnswers | None:
        """The samples with all verdicts, or None where a judge is missing."""
        if not self._samples or len(self._verdicts) < len(self._feedback.judges):
            return None
        verdicts, model = panel_verdicts(self._verdicts), self._feedback.model.fingerprint
        judge, seed = self._feedback.judge_name, self._job.seed
        return JudgedAnswers(self.prompt, self._samples, verdicts, model, judge, seed, self._thoughts, self._truncated)

    def _labelled_revision(self) -> Preference | Skipped | None:
        """The revision pair with its label and the verdicts on it; None where the label needs verdicts it has not.

        Why a verdict is missing is skipped where it was asked.
        """
        pair, certain = self._revision_pair, self._job.revise.label == "certain"
        if pair is None:
            return None
        if len(self._revision_verdicts) < max(1, len(self._feedback.judges)):
            return pair if certain else None
        verdicts = panel_verdicts(self._revision_verdicts)[0, 1]
        pair = pair.model_copy(update={"judge": self._feedback.judge_name})
        if certain:
            return pair.model_copy(update=by_vote(verdicts))
        return judged_revision(pair, verdicts, self._job.judge, REVISION_PAIRS)

    def _skip(self, stage: str, refusal: RequestRefused) -> None:
        row = Skipped.refused(self.prompt.id, stage, refusal)
        self.skipped.append(row)


async def collect_feedback(job: FeedbackJob, scheduler: Scheduler) -> None:
    """Write revisions.jsonl, preferences.jsonl, of more than two samples rankings.jsonl, and answers to questions.

    What is not used goes to `scheduler.skipped`, prompt by prompt in their order.
    """
    model, critic = scheduler.engine(job.model), scheduler.engine(job.reviser)
    feedback = _Feedback(job, model, critic, [scheduler.engine(judge) for judge in job.judges])
    with ExitStack() as files:
        revisions, preferences = (
            files.enter_context(RowWriter(path)) for path in (job.revisions_jsonl, job.preferences_jsonl)
        )
        rankings = files.enter_context(RowWriter(job.rankings_jsonl)) if job.judge.samples > 2 else None
        asked = files.enter_context(RowWriter(job.applicability_jsonl)) if questions(job.constitution) else None

        def write(journey: Journey) -> None:
            for pair in journey.preferences():
                preferences.write(pair)
            if rankings is not None and (ranking := journey.ranking()) is not None:
                rankings.write(ranking)
            scheduler.skipped += journey.skipped

        waiting: list[Journey] = []  # for judges that are other models
        try:
            async for journey in _generate(feedback, scheduler):
                if asked is not None:
                    for answer in journey.applicability:
                        asked.write(answer)
                for row in journey.revisions:
                    revisions.write(row)
                if feedback.other_judges:
                    waiting.append(journey)
                else:
                    write(journey)
        finally:
            await feedback.model.close()
            await feedback.critic.close()
        for pair in job.input_preferences:
            preferences.write(pair.model_copy(update={"from_file": True}))
        scheduler.skipped += job.input_skipped
        for engine in feedback.other_judges:
            await _judge(feedback, scheduler, waiting, engine)
        for journey in waiting:
            write(journey)


async def _generate(feedback: _Feedback, scheduler: Scheduler) -> AsyncIterator[Journey]:
    """The journey of every prompt whose draft is not refused, in order, once all its texts are there."""
    job = feedback.job
    calls = len(questions(job.constitution)) + 1 + calls_of_loop(job.revise) + max(0, job.judge.samples - 1)
    if feedback.model in feedback.judges:
        calls += _judge_calls(job)
    engines = list(dict.fromkeys((feedback.model, feedback.critic)))
    stage = Stage("feedback", engines, len(job.prompts), calls * len(job.prompts))
    journeys = (Journey(prompt, feedback) for prompt in job.prompts)  # each is dropped once its rows are written
    async for journey, _ in scheduler.each(stage, journeys, Journey.generate, _prompt_id):
        yield journey


async def _judge(feedback: _Feedback, scheduler: Scheduler, journeys: Sequence[Journey], engine: CachedEngine) -> None:
    stage = Stage("judging", [engine], len(journeys), _judge_calls(feedback.job) * len(journeys))
    try:
        async for _ in scheduler.each(stage, journeys, partial(Journey.judge, engine=engine), _prompt_id):
            pass
    finally:
        await engine.close()


def _prompt_id(journey: Journey) -> str:
    return journey.prompt.id


def _judge_calls(job: FeedbackJob) -> int:
    """The requests that one judge gets for a prompt, at most."""
    principles = len(job.constitution.principles)
    rounds = 0 if job.revise.label == "off" else job.revise.rounds
    return calls_for_answers(job.judge, principles, job.judge.samples) + calls_for_revision(job.judge, rounds)
