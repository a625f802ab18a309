"""Probes: requests that measure over-refusal, harmful compliance and sycophancy of a policy.

They are editable YAML files in `probes/`, which hold everything that policies and judges are asked. Texts with
`{{ … }}` are Jinja in the sandbox of `cai/constitution/sandbox.py`, and checked when a file is read.
"""

import asyncio
import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from cai.config.errors import CaiError
from cai.config.hashing import uniform
from cai.config.locate import find_file
from cai.config.validation import ID
from cai.config.yaml_files import AnySection, Section, load_yaml
from cai.constitution.sandbox import Template
from cai.constitution.template_limits import TemplateFault
from cai.data.records import Message, Prompt
from cai.evaluation.injection import INJECTION, Injection
from cai.evaluation.monitors import Phrases
from cai.feedback.judge import choose_letter
from cai.inference.engine import Engine
from cai.stats.logistic import sigmoid

SHIPPED = Path("cai eval")  # where the names of shipped files come from, for messages
Id = Annotated[str, StringConstraints(pattern=ID)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _sees(*names: str) -> AfterValidator:
    """A text that may name these variables and no others."""

    def check(text: str) -> str:
        try:
            Template(text, names).render(dict.fromkeys(names, "a text"))
        except TemplateFault as fault:
            raise ValueError(fault.message) from None
        return text

    return AfterValidator(check)


def rendered(text: str, **values: str) -> str:
    """A checked text with its variables filled in. Raises: CaiError where it does too much with these values."""
    try:
        return _compiled(text, tuple(values)).render(values)
    except TemplateFault as fault:
        raise CaiError(f"the probe text {text[:60]!r}: {fault.message}") from fault


@cache
def _compiled(text: str, names: tuple[str, ...]) -> Template:
    """The template of a text; compiling takes longer than a cached answer, and one text is rendered many times."""
    return Template(text, names)


class Item(Section):
    """Something with an id."""

    id: Id


class Twins(Item):
    """A request for harm, and one that sounds alike and is harmless."""

    harmful: Text
    harmless: Text


class Question(Item):
    """A question with two options."""

    question: Text
    options: Annotated[tuple[Text, Text], Field(description="two different texts")]

    @field_validator("options")
    @classmethod
    def _differ(cls, options: tuple[str, str]) -> tuple[str, str]:
        if options[0] == options[1]:
            raise ValueError("the two options are the same")
        return options


class Transformation(Item):
    """A way to put a request."""

    text: Annotated[Text, _sees("request", "task")]


class Request(Item):
    """A request for everyday harm; `task` is the same as "how to …"."""

    request: Text
    task: Text


class Example(Section):
    """A control answer: whether the first option holds is known."""

    request: Text
    answer: Text
    holds: bool


class JudgeQuestion(Question):
    """What a judge is asked about an answer."""

    examples: Annotated[list[Example], Field(min_length=2)]

    @field_validator("examples")
    @classmethod
    def _of_both_kinds(cls, examples: list[Example]) -> list[Example]:
        if len({example.holds for example in examples}) < 2:
            raise ValueError("examples of both kinds are needed, of `holds: true` and of `holds: false`")
        return examples


class _Probes(Section):
    @field_validator("pairs", "opinions", "facts", "transformations", "requests", "questions", check_fields=False)
    @classmethod
    def _ids_are_unique(cls, items: Sequence[Item], info: ValidationInfo) -> Sequence[Item]:
        seen: set[str] = set()
        for index, item in enumerate(items):
            if item.id in seen:
                message = f"two entries of {info.field_name} have this id; every id names one"
                raise PydanticCustomError("same_id", "{message}", {"message": message, "at": (index, "id")})
            seen.add(item.id)
        return items


class OverRefusal(_Probes):
    """`probes/over_refusal.yaml`."""

    pairs: Annotated[list[Twins], Field(min_length=1)]


class Sycophancy(_Probes):
    """`probes/sycophancy.yaml`; the first option of a fact is right."""

    statements: Annotated[list[Annotated[Text, _sees("option")]], Field(min_length=1)]
    ask: Annotated[Text, _sees("statement", "question", "first", "second")]
    answer: Text
    opinions: list[Question]
    facts: list[Question]


class RedTeam(_Probes):
    """`probes/red_team.yaml`."""

    plain: Annotated[Text, _sees("request", "task")]
    transformations: Annotated[list[Transformation], Field(min_length=1)]
    requests: Annotated[list[Request], Field(min_length=1)]

    @field_validator("transformations")
    @classmethod
    def _none_is_plain(cls, items: list[Transformation]) -> list[Transformation]:
        if any(item.id == PLAIN for item in items):
            raise ValueError(f"'{PLAIN}' is the name of the request as it stands; choose another id")
        return items


class Questions(_Probes):
    """`probes/questions.yaml`."""

    ask: Annotated[Text, _sees("request", "answer", "question", "first", "second")]
    answer: Text
    questions: list[JudgeQuestion]

    @field_validator("questions")
    @classmethod
    def _all_are_there(cls, questions: list[JudgeQuestion]) -> list[JudgeQuestion]:
        present = {question.id for question in questions}
        if missing := [name for name in ASKED if name not in present]:
            raise ValueError(f"the question '{missing[0]}' is missing; a judge is asked {', '.join(ASKED)}")
        return questions


OVER_REFUSAL, SYCOPHANCY, RED_TEAM = "over_refusal", "sycophancy", "red_team"
PROBE_SETS = (OVER_REFUSAL, SYCOPHANCY, RED_TEAM, INJECTION)
CONTROL = "control"  # the judge itself, on answers whose right verdict is known
PLAIN = "plain"
ASKED = ("refuses", "evades", "complies")


class Probe(NamedTuple):
    """A request to a policy: of which item and in which variant, and what a judge reads in place of it, if not it."""

    item: str
    variant: str
    prompt: Prompt
    meant: str


def over_refusal_probes(probes: OverRefusal, limit: int | None = None) -> list[Probe]:
    """Both twins of every pair."""
    return [
        _probe(OVER_REFUSAL, twins.id, variant, text, text)
        for twins in probes.pairs[:limit]
        for variant, text in (("harmful", twins.harmful), ("harmless", twins.harmless))
    ]


def red_team_probes(probes: RedTeam, limit: int | None = None) -> list[Probe]:
    """Every request plainly, then in each transformation; a judge reads the plain request."""
    ways = [(PLAIN, probes.plain), *((way.id, way.text) for way in probes.transformations)]
    return [
        _probe(RED_TEAM, r.id, way, rendered(text, request=r.request, task=r.task), r.request)
        for r in probes.requests[:limit]
        for way, text in ways
    ]


def _probe(name: str, item: str, variant: str, text: str, meant: str) -> Probe:
    messages = [Message(role="user", content=text)]
    return Probe(item, variant, Prompt(id=f"{item}/{variant}", messages=messages, tags=[name, variant]), meant)


class View(NamedTuple):
    """A question to a policy whose user has taken the side of the option with this number, or of none."""

    kind: str  # opinions, facts
    question: Question
    side: int
    statement: str


def views(probes: Sycophancy, limit: int | None = None) -> list[View]:
    """Each question once for each side its user may take, in the same words."""
    return [
        View(kind, question, side, rendered(_statement(probes, question), option=question.options[side]))
        for kind, questions in (("opinions", probes.opinions), ("facts", probes.facts))
        for question in questions[:limit]
        for side in (0, 1)
    ]


def _statement(probes: Sycophancy, question: Question) -> str:
    """The words in which an item's user takes a side: drawn by its id, so that other items may come and go."""
    return probes.statements[int(uniform("statement", question.id) * len(probes.statements))]


class Probes(NamedTuple):
    """The files in `probes/`; a set that is not selected is None."""

    phrases: Phrases
    questions: Questions
    over_refusal: OverRefusal | None
    sycophancy: Sycophancy | None
    red_team: RedTeam | None
    injection: Injection | None


def read_probes(wanted: str) -> Probes:
    """The probes by name: `all`, `none`, or a comma-separated list; local files before shipped ones."""
    names = {"all": list(PROBE_SETS), "none": []}.get(wanted, [name.strip() for name in wanted.split(",")])
    for name in names:
        if name not in PROBE_SETS:
            near = difflib.get_close_matches(name, PROBE_SETS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected all, none, or some of {', '.join(PROBE_SETS)}"
            raise CaiError(f"--probes {wanted}: unknown set '{name}'; {hint}")

    return Probes(
        phrases=_load("phrases", Phrases),
        questions=_load("questions", Questions),
        over_refusal=_load(OVER_REFUSAL, OverRefusal) if OVER_REFUSAL in names else None,
        sycophancy=_load(SYCOPHANCY, Sycophancy) if SYCOPHANCY in names else None,
        red_team=_load(RED_TEAM, RedTeam) if RED_TEAM in names else None,
        injection=read_injection() if INJECTION in names else None,
    )


def read_injection() -> Injection:
    """The attacks on a judge: the local file before the shipped one."""
    return _load(INJECTION, Injection)


def _load(name: str, model: type[AnySection]) -> AnySection:
    return load_yaml(find_file("probes", f"probes/{name}.yaml", SHIPPED), model)


LETTERS = ("A", "B")


class TwoOrders(NamedTuple):
    """P(the first option) with it shown first, and shown second; and the mean probability of neither letter."""

    forward: float
    reverse: float
    non_option_mass: float


async def ask(template: str, begin: str, question: Question, engine: Engine, **values: str) -> TwoOrders:
    """Put a question with its options in both orders; the model's next token after `begin` is its choice."""

    async def shown(first: str, second: str) -> tuple[float, float]:
        text = rendered(template, question=question.question, first=first, second=second, **values)
        messages = [Message(role="user", content=text), Message(role="assistant", content=begin)]
        (a, b), non_option_mass = await choose_letter(messages, LETTERS, engine)
        return sigmoid(a - b), non_option_mass

    one, other = question.options
    (forward, non_option_mass), (reversed_, other_mass) = await asyncio.gather(shown(one, other), shown(other, one))
    return TwoOrders(forward, 1.0 - reversed_, (non_option_mass + other_mass) / 2)


async def ask_about(questions: Questions, id: str, request: str, answer: str, engine: Engine) -> TwoOrders:
    """One of the questions about an answer to a request."""
    question = next(question for question in questions.questions if question.id == id)
    return await ask(questions.ask, questions.answer, question, engine, request=request, answer=answer)


async def ask_view(probes: Sycophancy, view: View, engine: Engine) -> TwoOrders:
    """A question of the policy whose user has taken a side."""
    return await ask(probes.ask, probes.answer, view.question, engine, statement=view.statement)
