"""`cai constitution test`: what principles make of drafts, against what their authors expect.

Every text is the likeliest one (temperature 0) and every call is cached, so that a test which has not changed gives the
same result again and costs nothing.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cai.config import yaml_files
from cai.config.errors import CaiError, RequestRefused
from cai.config.hashing import fingerprint
from cai.config.validation import Location
from cai.constitution.principles import EXPECTATIONS, Constitution, Phrases, Principle, PrincipleTest, find_principle
from cai.constitution.templates import Templates
from cai.data.filters import FILTERS
from cai.data.records import Message, Messages, Prompt, Verdict
from cai.feedback.judge import Judge
from cai.feedback.revise import ReviseConfig, Reviser, revision_flags
from cai.feedback.yes_no import ask_applicability, check_critique
from cai.inference.cached_engine import CachedEngine
from cai.inference.engine import Completion
from cai.inference.models import Model
from cai.inference.scheduler import Cost, Scheduler, Stage
from cai.stats.win_rate import win

SETTINGS = ReviseConfig(rounds=1, max_tokens=256, temperature=0)
SEED = 0
SAME = str.maketrans("’‘“”\u00a0", "''\"\" ")  # characters that a model may write for those of a phrase


class Placed(NamedTuple):
    """A test, and where it stands."""

    file: Path
    line: int
    principle: Principle
    number: int  # among the principle's, from 1
    test: PrincipleTest


class Outcome(NamedTuple):
    """The outcome of one expectation."""

    expects: str  # the test's field
    passed: bool
    reason: str  # why it failed; "" when it passed
    p: float | None = None  # of what is expected; None for a revision, whose words decide
    non_option_mass: float | None = None  # probability of anything but the options
    verdict: Verdict | None = None  # the judge's; p is that of the answer that is to win


class Result(NamedTuple):
    """A test that was run: the outcome of each expectation, and the texts written on the way."""

    placed: Placed
    outcomes: list[Outcome]
    critique: Completion | None = None
    revision: Completion | None = None


def read_tests(files: Sequence[Path], principle: str | None = None) -> list[Placed]:
    """All tests of constitutions, or those of the principle with an id, in the files' order.

    Raises: CaiError for a file that is no constitution, an id that no file has, or no test at all.
    """
    tests, principles = [], []
    for path in files:  # not constitution.load, which forgets lines
        source = yaml_files.read_kind(path, "constitution")
        constitution = yaml_files.validate(source, Constitution)
        principles += constitution.principles
        for number, owner in enumerate(constitution.principles):
            if principle in (None, owner.id):
                tests += [
                    Placed(path, _line(source, number, index), owner, index + 1, test)
                    for index, test in enumerate(owner.tests)
                ]
    names = ", ".join(map(str, files))
    if principle is not None:
        find_principle(principles, principle, names)
    if not tests:
        whose = "no principle has tests" if principle is None else f"the principle '{principle}' has no tests"
        raise CaiError(f"{names}: {whose}; write some under `tests:` beside the principle's texts")
    return tests


def _line(source: yaml_files.YamlSource, principle: int, test: int) -> int:
    at: Location = ("principles", principle, "tests", test)
    while at not in source.places:  # from a merged mapping
        at = at[:-1]
    return int(source.places[at].rpartition(":")[2])


def run_tests(
    tests: Sequence[Placed], model: Model, templates: Templates, scheduler: Scheduler
) -> tuple[list[Result], Cost]:
    """Run tests on one model; `templates` are those OF_TESTS. Returns: the tests in order, and what they cost."""
    begun = time.monotonic()
    results = asyncio.run(_run(tests, templates, scheduler, scheduler.engine(model)))
    return results, scheduler.cost(time.monotonic() - begun)


async def _run(
    tests: Sequence[Placed], templates: Templates, scheduler: Scheduler, engine: CachedEngine
) -> list[Result]:
    async def run_one(placed: Placed) -> Result:
        return await run_test(placed, templates, engine)

    stage = Stage("testing", [engine], len(tests), sum(calls(placed.test) for placed in tests), "tests")
    results = []
    async for placed, result in scheduler.run(stage, tests, run_one):
        results.append(_refused(placed, result) if isinstance(result, RequestRefused) else result)
    await engine.close()  # not after an interrupt, which would wait for a model that is still loading
    return results


def calls(test: PrincipleTest) -> int:
    """How many requests a test makes."""
    judged = sum(answer is not None for answer in (test.better, test.worse))
    writes = test.critique is not None or test.revision is not None
    return (test.applies is not None) + writes + (test.critique is not None) + (test.revision is not None) + 2 * judged


def _refused(placed: Placed, refusal: RequestRefused) -> Result:
    expected = (name for name in EXPECTATIONS if getattr(placed.test, name) is not None)
    return Result(placed, [Outcome(name, False, f"not answered: {refusal}") for name in expected])


async def run_test(placed: Placed, templates: Templates, engine: CachedEngine) -> Result:
    """One test: the draft's critique and revision, and the judge's verdicts on it, at the same time."""
    compared = [name for name in ("better", "worse") if getattr(placed.test, name) is not None]
    applies, written, judged = await asyncio.gather(
        _applies(placed, templates, engine),
        _written(placed, templates, engine),
        asyncio.gather(*(_judged(placed, name, templates, engine) for name in compared)),
    )
    return written._replace(outcomes=[*applies, *written.outcomes, *judged])


async def _applies(placed: Placed, templates: Templates, engine: CachedEngine) -> list[Outcome]:
    """Whether the principle applies to the prompt by its question alone: a test's prompt has no tags."""
    where, test = placed.principle.applies_to, placed.test
    if test.applies is None or where is None:
        return []
    alone = placed.principle.model_copy(update={"applies_to": where.model_copy(update={"tags": []})})
    prompt = Prompt(id="", messages=_conversation(test))
    [answer] = await ask_applicability(Constitution(name="", principles=[alone]), prompt, templates, engine)
    p = answer.p if test.applies else 1 - answer.p
    return [_by_probability("applies", p, test.least, answer.non_option_mass)]


async def _written(placed: Placed, templates: Templates, engine: CachedEngine) -> Result:
    """The critique and the revision that a test asks about."""
    principle, test, outcomes = placed.principle, placed.test, list[Outcome]()
    if test.critique is None and test.revision is None:
        return Result(placed, outcomes)
    messages, reviser = _conversation(test), Reviser(templates, engine, SETTINGS, SEED)
    prompt = Prompt(id=fingerprint(messages), messages=messages)
    critique, revision = await reviser.critique(prompt, test.draft, principle), None
    if test.critique is not None:
        problem = await check_critique(principle, test.prompt, test.draft, critique.text, templates, engine)
        p = problem.p if test.critique == "finds" else 1 - problem.p
        outcomes.append(_by_probability("critique", p, test.least, problem.non_option_mass))
    if test.revision is not None:
        revision = await reviser.revise(prompt, test.draft, critique.text, principle)
        turns = reviser.revision_turns(prompt, test.draft, critique.text, principle)
        flags = revision_flags(turns, test.draft, critique.text, revision)
        if test.critique == "finds nothing":  # then the draft is best left alone
            flags = [flag for flag in flags if flag != "unchanged"]
        reasons = [*(FILTERS[flag] for flag in flags), *missed(test.revision, revision.text)]
        outcomes.append(Outcome("revision", not reasons, "; ".join(reasons)))
    return Result(placed, outcomes, critique, revision)


async def _judged(placed: Placed, expects: str, templates: Templates, engine: CachedEngine) -> Outcome:
    """The judge's verdict on the draft and another answer, the one that is to win first."""
    draft, other = placed.test.draft, getattr(placed.test, expects)
    answers = (other, draft) if expects == "better" else (draft, other)
    verdicts = await Judge(templates, engine).compare(_conversation(placed.test), answers, [placed.principle])
    [verdict] = verdicts[0, 1]
    return _by_probability(expects, verdict.p, placed.test.least, verdict.non_option_mass, verdict)


def _conversation(test: PrincipleTest) -> Messages:
    return [Message(role="user", content=test.prompt)]


def _by_probability(
    expects: str, p: float, least: float, non_option_mass: float, verdict: Verdict | None = None
) -> Outcome:
    passed = win(p) == 1 and p >= least
    reason = "" if passed else f"p = {p:.3f}, expected {f'at least {least:g}' if least > 0.5 else 'more than 0.5'}"
    return Outcome(expects, passed, reason, p, non_option_mass, verdict)


def missed(expected: Phrases, text: str) -> list[str]:
    """Which phrases a text misses or should not hold, a reason each."""
    plain = _plain(text)
    reasons = [f"“{phrase}” is not in it" for phrase in expected.contains if _plain(phrase) not in plain]
    return reasons + [f"“{phrase}” is in it" for phrase in expected.lacks if _plain(phrase) in plain]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.translate(SAME).casefold())
