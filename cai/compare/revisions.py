"""`cai compare --judge`: the last revisions of two runs to the same prompts, head to head before one judge.

Each run's own judge asks by its own principles, so its values say what a run thinks of itself. Here one model compares
the revisions of both, by an eval constitution that is the same for all, and by the constitution of each run. As in
`cai eval`, all principles that apply are asked, in both orders. The cache answers what was asked before.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from cai.compare.compare import LETTERS
from cai.compare.reading import RunData, read_run, shared_prompts
from cai.compare.record import RevisionHeadToHead, RevisionPreference
from cai.config.errors import CaiError, RequestRefused
from cai.config.locate import find_file
from cai.constitution.principles import Constitution, load_constitution, questions
from cai.constitution.templates import Templates, names_for
from cai.data.records import Verdict
from cai.evaluation.policy import AnswerPair, verdicts_on
from cai.feedback.pairs import soft_label
from cai.feedback.yes_no import NothingApplies
from cai.inference.cache import AnyCache, Cache
from cai.inference.chat_template import check_chat
from cai.inference.engine import EngineConfig
from cai.inference.models import Model
from cai.inference.reporter import Reporter
from cai.inference.scheduler import EngineWork, OpenEngine, Scheduler, Stage, open_model
from cai.inference.servers import resolve_judges
from cai.runs.dry_run import DryRun, forecast_work, open_placeholders
from cai.runs.find import find_constitution
from cai.runs.folder import CACHE_FILE, RunFolder
from cai.runs.run_file import engine_settings
from cai.stats.formatting import counted
from cai.stats.significance import paired
from cai.stats.win_rate import win

COMMAND = Path("cai compare")  # where options come from, for messages
EVAL = "eval"


class Options(NamedTuple):
    """The options of `cai compare` about its judge."""

    judge: str
    constitution: str | None  # None: that of the first run's evaluation
    key_env: str | None
    templates: str
    settings: Sequence[str]


@dataclass(frozen=True)
class RevisionJudge:
    """A judge of revisions, resolved."""

    name: str
    model: Model
    engine: EngineConfig
    constitution: Constitution
    templates: Templates
    runs: Path  # the folder with the cache


def plan_judge(options: Options, folders: Sequence[RunFolder], runs: Path) -> RevisionJudge:
    """Read and check the options; raises CaiError naming the one to mend."""
    if options.constitution is None:
        constitution = load_constitution(folders[0].eval_constitution_yaml)
    else:
        try:
            file = find_constitution(options.constitution, runs)
        except CaiError as error:
            raise CaiError(f"--constitution {error}") from error
        constitution = load_constitution(file)
    asked = [constitution, *(folder.constitution() for folder in folders)]
    templates = Templates(find_file("--templates", options.templates, COMMAND), names_for(asked, ("judge",)))
    engine = engine_settings(list(options.settings), EngineConfig(), COMMAND)
    (model,) = resolve_judges([options.judge], options.key_env, engine)
    check_chat(model, engine.chat, "--set engine")
    return RevisionJudge(options.judge, model, engine, constitution, templates, runs)


def judge_revisions(
    judge: RevisionJudge, runs: Sequence[RunData], reporter: Reporter, open_engine: OpenEngine = open_model
) -> dict[int, RevisionHeadToHead]:
    """The first run's revisions against those of each other run, by its place; without runs that share none."""
    with closing(Cache(judge.runs / CACHE_FILE)) as cache:
        scheduler = Scheduler(judge.engine, cache, reporter, open_engine)
        return asyncio.run(_judged(judge, runs, scheduler))


def forecast_revisions(judge: RevisionJudge, folders: Sequence[RunFolder]) -> DryRun:
    """The calls of `judge_revisions`, their tokens and time; calls no model."""
    runs = [read_run(folder) for folder in folders]

    def count(cache: AnyCache) -> list[EngineWork]:
        scheduler = Scheduler(judge.engine, cache, None, open_placeholders)
        asyncio.run(_judged(judge, runs, scheduler))
        return scheduler.work

    return forecast_work(judge.runs / CACHE_FILE, count)


async def _judged(judge: RevisionJudge, runs: Sequence[RunData], scheduler: Scheduler) -> dict[int, RevisionHeadToHead]:
    engine = scheduler.engine(judge.model)
    found = {}
    try:
        for number, other in enumerate(runs[1:], start=1):
            pairs = _pairs(runs[0], other)
            if pairs:
                axes = _axes(judge, runs[0], other, number)
                found[number] = await _head_to_head(judge, pairs, axes, scheduler)
    finally:
        await engine.close()
    return found


def _pairs(a: RunData, b: RunData) -> list[AnswerPair]:
    """B's last revision beside A's, of the prompts that both revised."""
    in_a, in_b = a.revised or {}, b.revised or {}
    both = (i for i in shared_prompts(a, b) if i in in_a and i in in_b)
    return [AnswerPair(a.prompts[i], b.name, a.name, in_b[i].text, in_a[i].text) for i in both]


class _Axis(NamedTuple):
    """A constitution, and whose it is: the eval judge's, or runs'."""

    by: list[str]
    constitution: Constitution


def _axes(judge: RevisionJudge, a: RunData, b: RunData, number: int) -> list[_Axis]:
    """The eval constitution, A's and B's; what is the same in several is asked and tested once."""
    axes: dict[str, _Axis] = {}
    letters = (EVAL, "A", LETTERS[number])
    for letter, constitution in zip(letters, (judge.constitution, a.constitution, b.constitution), strict=True):
        if constitution is not None:  # one that cannot be read has no row
            axes.setdefault(constitution.fingerprint, _Axis([], constitution)).by.append(letter)
    return list(axes.values())


async def _head_to_head(
    judge: RevisionJudge, pairs: Sequence[AnswerPair], axes: Sequence[_Axis], scheduler: Scheduler
) -> RevisionHeadToHead:
    engine = scheduler.engine(judge.model)
    skipped, failed = Counter[str](), 0
    of_axes: list[list[float]] = [[] for _ in axes]

    async def compare(pair: AnswerPair) -> list[list[Verdict] | NothingApplies]:
        asked = (verdicts_on(axis.constitution, pair, judge.templates, engine) for axis in axes)
        return list(await asyncio.gather(*asked))

    different = sum(pair.own != pair.other for pair in pairs)
    calls = sum(2 * len(axis.constitution.principles) + len(questions(axis.constitution)) for axis in axes)
    name = f"revisions: {pairs[0].policy} and {pairs[0].against}"
    stage = Stage(name, [engine], len(pairs), calls * different)
    async for _, verdicts in scheduler.run(stage, pairs, compare):
        if isinstance(verdicts, RequestRefused):
            skipped[str(verdicts)] += len(axes)
            failed += len(axes)
            continue
        for values, of_axis in zip(of_axes, verdicts, strict=True):
            if isinstance(of_axis, NothingApplies):
                skipped[str(of_axis)] += 1
            else:
                values.append(soft_label(of_axis) if of_axis else 0.5)
    return RevisionHeadToHead(
        judge=judge.name,
        prompts=len(pairs),
        equal=len(pairs) - different,
        preferences=[_preference(axis, values) for axis, values in zip(axes, of_axes, strict=True) if values],
        skipped=dict(skipped),
        failed=failed,
    )


def _preference(axis: _Axis, values: Sequence[float]) -> RevisionPreference:
    """`values` are P(B's revision is better), one a prompt."""
    b = fmean(values)
    return RevisionPreference(
        by=axis.by,
        constitution=axis.constitution.name,
        a=1 - b,
        b=b,
        win_rate=fmean(map(win, values)),
        effect=paired([p - 0.5 for p in values]),
    )


def revision_notes(met: RevisionHeadToHead) -> list[str]:
    """What the preferences are of, and what is not among them."""
    alike = f", {met.equal} of them alike: a tie without a call" if met.equal else ""
    skipped = [f"skipped: {counted(count, 'verdicts')}: {reason}" for reason, count in met.skipped.items()]
    return [f"{counted(met.prompts, 'prompts')} that both revised{alike}", *skipped]


def revision_row(row: RevisionPreference) -> str:
    """Whose principles a preference is by, as every surface shows it: `eval: plain`, `A, B: harmless`."""
    return f"{', '.join(row.by)}: {row.constitution}"
