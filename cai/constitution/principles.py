"""Constitutions: the records, which example draws which principle, and the YAML that is written for further editing."""

import difflib
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cai.config import yaml_files
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint, uniforms
from cai.config.validation import ID

Text = Annotated[str, StringConstraints(strip_whitespace=True), Field(json_schema_extra={"pattern": r"\S"})]
Quoted = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), Field(json_schema_extra={"pattern": r"\S"})
]
TextField = Literal["critique", "revision", "judge"]
TEXTS: tuple[TextField, ...] = ("critique", "revision", "judge")
"""The fields of a principle that a model sees."""


class Phrases(yaml_files.Section):
    """Phrases that a text must contain or must not contain, ignoring case and line breaks."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["contains"]}, {"required": ["lacks"]}]},
    )

    contains: list[Quoted] = []
    """Phrases that must all occur, also inside a word."""
    lacks: list[Quoted] = []
    """Phrases that must not occur, not even inside a word."""

    @model_validator(mode="after")
    def _some(self) -> "Phrases":
        if not self.contains and not self.lacks:
            raise ValueError("no phrases; list some under contains or lacks")
        return self


class AppliesTo(yaml_files.Section):
    """Which prompts a principle applies to: those with one of the tags, and to which the answer is Yes."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["tags"]}, {"required": ["question"]}]},
    )

    tags: list[Quoted] = []
    """Tags of prompts, of which a prompt needs one; none: prompts of any tags."""
    question: Quoted | None = None
    """Asked about the prompt, which ends with the user's message; the model's answer is Yes or No."""

    @model_validator(mode="after")
    def _some(self) -> "AppliesTo":
        if not self.tags and self.question is None:
            raise ValueError("no condition; give tags or a question")
        return self

    def __str__(self) -> str:
        """In a few words, as lists and comparisons show it."""
        tags = [f"tags {', '.join(self.tags)}"] if self.tags else []
        return "; ".join([*tags, *([self.question] if self.question else [])])


EXPECTATIONS = ("applies", "critique", "revision", "better", "worse")
"""The fields of a test that state an expectation."""


class PrincipleTest(yaml_files.Section):
    """A draft and the expected critique, revision or verdict under the principle; run by `cai constitution test`."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [field]} for field in EXPECTATIONS]},
    )

    prompt: Quoted
    """The user's prompt."""
    draft: Quoted
    """An answer to the prompt."""
    applies: bool | None = None
    """Whether the principle must apply to the prompt, by its question."""
    critique: Literal["finds", "finds nothing"] | None = None
    """Whether the critique of the draft must find a problem."""
    revision: Phrases | None = None
    """Phrases that the revision of the draft must and must not contain."""
    better: Quoted | None = None
    """An answer that the judge must prefer to the draft."""
    worse: Quoted | None = None
    """An answer that the judge must rank below the draft."""
    least: Annotated[float, Field(ge=0.5, le=1)] = 0.5
    """Minimum probability for all but the revision to pass; exactly one half never passes."""

    @model_validator(mode="after")
    def _expects_something(self) -> "PrincipleTest":
        if all(getattr(self, field) is None for field in EXPECTATIONS):
            raise ValueError(f"no expectation; give one or more of {', '.join(EXPECTATIONS)}")
        if self.draft in (self.better, self.worse):
            raise ValueError("better or worse equals the draft; write another answer")
        return self


class Principle(yaml_files.Section):
    """One principle: what to criticise, how to revise, and how to judge."""

    id: Annotated[str, StringConstraints(pattern=ID)]
    """Lower-case letters, digits, - and _; decides which examples draw the principle, so a new id means new draws."""
    critique: Text
    """Asks the model for a critique of its last answer: what to look for."""
    revision: Text
    """Asks the model to rewrite its answer: what the new answer must do."""
    judge: Text
    """The question by which a judge chooses the better of two answers."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often the principle is sampled, relative to the others."""
    applies_to: AppliesTo | None = None
    """The prompts that it is sampled for; null: all."""
    tags: list[str] = []
    """For people; models do not see them."""
    notes: str = ""
    """For people; models do not see them."""
    tests: list[PrincipleTest] = []
    """Drafts and expectations for `cai constitution test`; runs ignore them."""

    @field_validator("critique", "revision", "judge")
    @classmethod
    def _not_empty(cls, text: str, info: object) -> str:
        expected = {
            "critique": "write what to look for in an answer",
            "revision": "write how to rewrite the answer",
            "judge": "write the question that chooses between two answers",
        }
        if not text:
            field = getattr(info, "field_name", "critique")
            raise ValueError(f"'{field}' is empty; {expected[field]}")
        return text

    @model_validator(mode="after")
    def _questions_exist(self) -> "Principle":
        for number, test in enumerate(self.tests):
            if test.applies is not None and (self.applies_to is None or self.applies_to.question is None):
                message = "the principle has no question to test; give it applies_to.question"
                at = ("tests", number, "applies")
                raise PydanticCustomError("no_question", "{message}", {"message": message, "at": at})
        return self

    @property
    def fingerprint(self) -> str:
        """Hash of the three texts that criticise, revise and judge; all else is excluded."""
        return _fingerprint(self.critique, self.revision, self.judge)


_fingerprint = lru_cache(maxsize=1024)(fingerprint)  # of every row and verdict


class Constitution(yaml_files.Section):
    """A named list of principles, as read from `constitutions/*.yaml`."""

    name: str
    """Name of the constitution in lists and comparisons."""
    description: str = ""
    """For people; models do not see it."""
    principles: Annotated[list[Principle], Field(min_length=1)]
    """In any order, which has no effect."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> "Constitution":
        seen: dict[str, int] = {}
        for index, principle in enumerate(self.principles):
            if principle.id in seen:
                numbers = f"principles number {seen[principle.id] + 1} and {index + 1}"
                raise PydanticCustomError(
                    "same_id",
                    "{message}",
                    {
                        "message": f"duplicate id '{principle.id}' ({numbers}); ids must be unique",
                        "at": ("principles", index, "id"),
                    },
                )
            seen[principle.id] = index
        return self

    def with_principles(self, principles: list[Principle]) -> "Constitution":
        """The same with other principles, maybe none."""
        return self.model_copy(update={"principles": principles})

    @property
    def fingerprint(self) -> str:
        """Hash of all that can change a run: ids, weights, texts and where they apply, in any order."""
        return fingerprint(sorted([p.id, p.weight, p.fingerprint, *_where(p)] for p in self.principles))


def _where(principle: Principle) -> list[dict[str, object]]:
    """What a principle's applies_to adds to hashes and manifests; nothing where there is none."""
    return [] if principle.applies_to is None else [principle.applies_to.model_dump()]


def manifest_of(constitution: Constitution) -> dict[str, object]:
    """A constitution as manifests have it: each principle's hash of texts, its weight and where it applies, by id."""
    keys = ("text", "weight", "applies_to")
    return {p.id: dict(zip(keys, [p.fingerprint, p.weight, *_where(p)], strict=False)) for p in constitution.principles}


def load_constitution(path: Path) -> Constitution:
    """Read a constitution; raises CaiError with file and line."""
    try:
        return yaml_files.validate(yaml_files.read_kind(path, "constitution"), Constitution)
    except CaiError as error:
        hint = "\n`cai constitution import` converts external constitutions to YAML" if path.suffix == ".json" else ""
        raise CaiError(f"{error}{hint}") from error


def find_principle(principles: Sequence[Principle], id: str, where: str) -> Principle:
    """The principle with an id; raises CaiError naming the nearest id when `where` has no such principle."""
    ids = [p.id for p in principles]
    if id not in ids:
        near = difflib.get_close_matches(id, ids, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known ids: {', '.join(ids)}"
        raise CaiError(f"--principle {id}: not in {where}; {hint}")
    return principles[ids.index(id)]


APPLIES_FROM = 0.5
"""P(Yes) from which a question says that a principle applies."""


def questions(constitution: Constitution, tags: Sequence[str] | None = None) -> list[str]:
    """The distinct questions that decide which principles apply, in order; of prompts with these tags, or of any."""
    asked = (
        p.applies_to.question
        for p in constitution.principles
        if p.applies_to is not None and (tags is None or _has_tag(p.applies_to, tags))
    )
    return list(dict.fromkeys(question for question in asked if question is not None))


def applying(constitution: Constitution, tags: Sequence[str], answers: Mapping[str, float]) -> Constitution:
    """The constitution with the principles that apply to a prompt, which may be none; itself where all of them do.

    `answers` holds P(Yes), in [0, 1], by question: all of `questions` for these tags. Draws are made among what is
    left, so that a prompt's draw moves only where the principle drawn before or after starts or stops to apply.
    """
    left = [
        p
        for p in constitution.principles
        if p.applies_to is None
        or (
            _has_tag(p.applies_to, tags)
            and (p.applies_to.question is None or answers[p.applies_to.question] >= APPLIES_FROM)
        )
    ]
    return constitution if len(left) == len(constitution.principles) else constitution.with_principles(left)


def _has_tag(where: AppliesTo, tags: Sequence[str]) -> bool:
    return not where.tags or not set(where.tags).isdisjoint(tags)


def assign(constitution: Constitution, seed: int, prompt_id: str, occasion: str, count: int = 1) -> list[Principle]:
    """The principles an example draws on an occasion (`round 1`, `judge`), by weighted rendezvous hashing.

    Every principle p draws -ln(u_p) / weight_p with u_p = hash(seed, prompt id, occasion, p's id); the lowest
    `count` win, so p comes first with probability weight_p / sum of weights, and a principle that is added or
    removed moves only its own share (Thaler & Ravishankar 1998; weights as Schindelhauer & Schomaker 2005).
    Returns min(count, number of principles) principles, first choice first.
    """

    principles = constitution.principles
    drawn = uniforms((seed, prompt_id, occasion), (principle.id for principle in principles))
    arrivals = [(-math.log(u) / p.weight, p.id, p) for u, p in zip(drawn, principles, strict=True)]
    return [principle for _, _, principle in sorted(arrivals)[:count]]  # ids are unique: principles are not compared


def shares(constitution: Constitution) -> dict[str, float]:
    """P(a principle is sampled first) by id, in (0, 1], summing to 1, for a prompt that all principles apply to."""
    total = sum(p.weight for p in constitution.principles)
    return {p.id: p.weight / total for p in constitution.principles}


WIDTH = 100  # columns of folded text, indentation not counted, as in the shipped constitutions
NO_BREAK_SPACES = "\xa0\u202f"  # ordinary in French
STARTER = """\
# A constitution. Check it with `cai constitution lint`, try it with `cai try`, and name it in a run file as
# `constitution:`. For completion and checks in an editor, write the schema beside it,
#     cai schema constitution --out constitution.schema.json
# and make this the first line:  yaml-language-server: $schema=constitution.schema.json  (behind a #).
name: {name}
description: >-
  One sentence about answers that follow these principles.
principles:
  # A principle asks for one thing, in three texts about that thing. Describe what the answer does ("gives the source
  # of every number") rather than a trait ("is honest"), and what to do rather than what not to do.
  - id: concrete-example   # decides which prompts draw it: reword the texts freely, but keep the id
    # What to look for in the model's last answer.
    critique: >-
      Point out every general statement in the answer that comes without an example. Quote it, and name an example
      that would make it clear.
    # What the new answer must do.
    revision: >-
      Rewrite the answer so that every general statement comes with a short, concrete example from daily life.
    # Which of two answers is better? Both orders are judged, so the question must not name a position.
    judge: >-
      Which answer makes its general statements clearer, with a short, concrete example for each?
    # Optional: how often it is sampled relative to the others (default 1), the prompts it is sampled for (default all:
    # `applies_to: {question: Does the message ask for an explanation?}`), and notes for people.
    weight: 1
    tags: [clarity]
    notes: >-
      A placeholder: replace it with a principle of your own.
    # Optional: what the three texts must do on an example. `cai constitution test` asks a model and checks it.
    tests:
      - prompt: Why should I compare prices?
        draft: Comparing prices is sensible, because small differences add up.
        critique: finds              # the critique of this draft finds a problem; `finds nothing` where it must not
        revision:
          lacks: [sensible]          # the revision must not contain this; `contains` lists what it must
        better: >-
          Comparing prices pays: milk that is 20 cents cheaper saves a family with a litre a day 73 euros a year.

  # Add principles below in the same form. Ids must be unique; their order has no effect.
"""


def starter(name: str) -> str:
    """A commented constitution file with one principle to start from."""
    return STARTER.replace("{name}", scalar(name))


def constitution_yaml(constitution: Constitution, comments: list[str] | None = None) -> str:
    """A constitution as a YAML file that loads as an equal one; `comments` become its first lines."""
    lines = ["# " + "".join(c if _is_plain(c) else " " for c in comment) for comment in comments or []]
    lines.append(f"name: {scalar(constitution.name)}")
    if constitution.description:
        lines += _text("description", constitution.description, "")
    lines.append("principles:")
    for principle in constitution.principles:
        lines += [*_principle(principle), ""]
    return "\n".join(lines[:-1]) + "\n"


def _principle(principle: Principle) -> list[str]:
    lines = [f"  - id: {scalar(principle.id)}"]
    for field in TEXTS:
        lines += _text(field, getattr(principle, field), "    ")
    if principle.applies_to is not None:
        lines += _applies_to(principle.applies_to)
    if principle.tags:
        lines.append(f"    tags: [{', '.join(map(scalar, principle.tags))}]")
    if principle.weight != 1:
        whole = principle.weight.is_integer() and principle.weight < 1e6
        lines.append(f"    weight: {scalar(int(principle.weight) if whole else principle.weight)}")
    if principle.notes:
        lines += _text("notes", principle.notes, "    ")
    if principle.tests:
        lines.append("    tests:")
        for test in principle.tests:
            first, *others = _test(test, "        ")
            lines += [f"      - {first.strip()}", *others]
    return lines


def _applies_to(where: AppliesTo) -> list[str]:
    lines = ["    applies_to:"]
    if where.tags:
        lines.append(f"      tags: [{', '.join(map(scalar, where.tags))}]")
    return lines + (_text("question", where.question, "      ") if where.question is not None else [])


def _test(test: PrincipleTest, indent: str) -> list[str]:
    lines = []
    for field, value in test.model_dump(exclude_defaults=True).items():
        if field == "revision":
            lines.append(f"{indent}revision:")
            lines += [f"{indent}  {key}: [{', '.join(map(scalar, phrases))}]" for key, phrases in value.items()]
        else:
            long = isinstance(value, str) and len(value) > WIDTH - len(indent)
            lines += _text(field, value, indent) if long else [f"{indent}{field}: {scalar(value)}"]
    return lines


def _text(key: str, text: str, indent: str) -> list[str]:
    """A key and its text: folded for one paragraph, literal for several lines, else quoted."""
    lines = text.split("\n")
    if not all(_is_plain(line) and line == line.strip(" ") for line in lines) or not (lines[0] and lines[-1]):
        return [f"{indent}{key}: {scalar(text)}"]
    if len(lines) > 1:
        return [f"{indent}{key}: |-", *(f"{indent}  {line}" if line else "" for line in lines)]
    if not all(word.strip() for word in text.split(" ")):  # two spaces, or a word of no-break spaces
        return [f"{indent}{key}: {scalar(text)}"]
    folded = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}{key}: >-", *(f"{indent}  {line}" for line in folded)]


def _is_plain(text: str) -> bool:
    """Whether a block scalar can hold a line unchanged, with all of it visible."""
    return all(c.isprintable() or c in NO_BREAK_SPACES for c in text)


def scalar(value: str | float) -> str:
    """A value on one line, quoted where YAML would misread it, with invisible characters escaped."""
    if isinstance(value, str) and not _is_plain(value):
        seen = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if _is_plain(c) else f"\\U{ord(c):08x}" for c in seen) + '"'
    # within a list, so that commas and brackets are quoted too
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]
