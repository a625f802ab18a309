"""Constitutions: the records, and which example draws which principle."""

import difflib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

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
