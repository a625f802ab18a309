"""Constitutions: principles, their fingerprints, and which example meets which principle."""

import difflib
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cai.config import yaml_files
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint, uniform

Text = Annotated[str, StringConstraints(strip_whitespace=True), Field(json_schema_extra={"pattern": r"\S"})]
Quoted = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), Field(json_schema_extra={"pattern": r"\S"})
]
TextField = Literal["critique", "revision", "judge"]
TEXTS: tuple[TextField, ...] = ("critique", "revision", "judge")
"""The fields of a principle that a model may see."""


class Phrases(yaml_files.Section):
    """What a text must hold and what it must not; letter case and line ends do not count."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["contains"]}, {"required": ["lacks"]}]},
    )

    contains: list[Quoted] = []
    """Every one of these must stand in it, within a word too."""
    lacks: list[Quoted] = []
    """None of these may stand in it, not even within a word."""

    @model_validator(mode="after")
    def _some(self) -> "Phrases":
        if not self.contains and not self.lacks:
            raise ValueError("nothing is expected; list phrases under contains, or lacks")
        return self


EXPECTATIONS = ("critique", "revision", "better", "worse")
"""The fields of a test that say what must hold."""


class PrincipleTest(yaml_files.Section):
    """One draft, and what must come of it under the principle; `cai constitution test` asks a model."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [field]} for field in EXPECTATIONS]},
    )

    prompt: Quoted
    """What the user asks."""
    draft: Quoted
    """An answer to it."""
    critique: Literal["finds", "finds nothing"] | None = None
    """Whether the critique of the draft must point out a problem."""
    revision: Phrases | None = None
    """What the revision of the draft must hold and lack."""
    better: Quoted | None = None
    """An answer that the judge must prefer to the draft."""
    worse: Quoted | None = None
    """An answer to which the judge must prefer the draft."""
    least: Annotated[float, Field(ge=0.5, le=1)] = 0.5
    """The least probability at which the critique and the judge pass; one half alone never passes."""

    @model_validator(mode="after")
    def _expects_something(self) -> "PrincipleTest":
        if all(getattr(self, field) is None for field in EXPECTATIONS):
            raise ValueError(f"nothing is expected; give one or more of {', '.join(EXPECTATIONS)}")
        if self.draft in (self.better, self.worse):
            raise ValueError("the draft is compared with itself; write another answer")
        return self


class Principle(yaml_files.Section):
    """One principle: what to criticise, how to revise, and what to judge by."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Small letters, digits, - and _; decides which examples meet the principle, so renaming it draws them anew."""
    critique: Text
    """The turn that asks the model for a critique of its last answer: what to look for."""
    revision: Text
    """The turn that asks the model to rewrite its answer: what the new answer is to do."""
    judge: Text
    """The question about two answers by which a judge chooses the better one."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often the principle is drawn, beside the weights of the others."""
    tags: list[str] = []
    """For people; no model sees them."""
    notes: str = ""
    """For people; no model sees them."""
    tests: list[PrincipleTest] = []
    """What must come of drafts; `cai constitution test` tries it, and runs never see it."""

    @field_validator("critique", "revision", "judge")
    @classmethod
    def _not_empty(cls, text: str, info: object) -> str:
        expected = {
            "critique": "write what to look for in an answer",
            "revision": "write how the answer is to be rewritten",
            "judge": "write the question that chooses between two answers",
        }
        if not text:
            field = getattr(info, "field_name", "critique")
            raise ValueError(f"'{field}' is empty; {expected[field]}")
        return text

    @property
    def fingerprint(self) -> str:
        """Of the three texts a model may see; weight, tags, notes and tests do not count."""
        return fingerprint(self.critique, self.revision, self.judge)


class Constitution(yaml_files.Section):
    """A named list of principles, as read from `constitutions/*.yaml`."""

    name: str
    """What lists and comparisons call the constitution."""
    description: str = ""
    """For people; no model sees it."""
    principles: Annotated[list[Principle], Field(min_length=1)]
    """In any order: it decides nothing."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> "Constitution":
        seen: dict[str, int] = {}
        for index, principle in enumerate(self.principles):
            if principle.id in seen:
                message = (
                    f"two principles have the id '{principle.id}' (number {seen[principle.id] + 1} and "
                    f"{index + 1} of the list); every id names one principle"
                )
                raise PydanticCustomError("same_id", "{told}", {"told": message, "at": ("principles", index, "id")})
            seen[principle.id] = index
        return self

    @property
    def fingerprint(self) -> str:
        """Of all that can change a run: ids, weights and texts; the order of principles does not count."""
        return fingerprint(sorted([p.id, p.weight, p.fingerprint] for p in self.principles))


def load_constitution(path: Path) -> Constitution:
    """Read a constitution; raises CaiError with file and line."""
    try:
        source = yaml_files.read_yaml(path)
        yaml_files.expect_kind(source, "constitution")
        return yaml_files.validate(source, Constitution)
    except CaiError as error:
        hint = "\n`cai constitution import` turns constitutions of others into ours" if path.suffix == ".json" else ""
        raise CaiError(f"{error}{hint}") from error


def find_principle(principles: Sequence[Principle], id: str, where: str) -> Principle:
    """The principle with an id; raises CaiError that names the nearest one when there is none in `where`."""
    ids = [p.id for p in principles]
    if id not in ids:
        near = difflib.get_close_matches(id, ids, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known ids: {', '.join(ids)}"
        raise CaiError(f"--principle {id}: not in {where}; {hint}")
    return principles[ids.index(id)]


def assign(constitution: Constitution, seed: int, prompt_id: str, occasion: str, count: int = 1) -> list[Principle]:
    """The principles an example meets on an occasion (`round 1`, `judge`), by weighted rendezvous hashing.

    Every principle p draws -ln(u_p) / weight_p with u_p = hash(seed, prompt id, occasion, p's id); the lowest
    `count` win, so p comes first with probability weight_p / sum of weights, and a principle that is added or
    removed moves only its own share (Thaler & Ravishankar 1998; weights as Schindelhauer & Schomaker 2005).
    Returns min(count, number of principles) principles, first choice first.
    """

    def arrival(principle: Principle) -> tuple[float, str]:
        u = uniform(seed, prompt_id, occasion, principle.id)
        return -math.log(u) / principle.weight, principle.id

    return sorted(constitution.principles, key=arrival)[:count]


def shares(constitution: Constitution) -> dict[str, float]:
    """P(a principle is the first drawn), by id; in (0, 1], with sum 1."""
    total = sum(p.weight for p in constitution.principles)
    return {p.id: p.weight / total for p in constitution.principles}


class Difference(NamedTuple):
    """What editing a constitution did, as principle ids in alphabetical order."""

    added: list[str]
    removed: list[str]
    reworded: list[str]
    reweighted: list[str]


def diff(a: Constitution, b: Constitution) -> Difference:
    """From constitution `a` to `b`, principle by principle, matched by id."""
    before, after = ({p.id: p for p in c.principles} for c in (a, b))
    shared = sorted(before.keys() & after.keys())
    return Difference(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        reworded=[i for i in shared if before[i].fingerprint != after[i].fingerprint],
        reweighted=[i for i in shared if before[i].weight != after[i].weight],
    )


class Moved(NamedTuple):
    """Shares of draws, in [0, 1], whose calls to a model an edit changes: of rounds of revision, and of the judge."""

    revisions: float
    judge: float


def moved(a: Constitution, b: Constitution) -> Moved:
    """What a run of `b` asks that the same run of `a` had not asked, as shares of its single draws.

    A draw stays where it was with probability sum over principles i of 1 / sum over j of max(w_j / w_i, w'_j / w'_i):
    the arrival times of `assign` are the same exponentials in both, so i comes first in both when every other one
    arrives later by the larger of the two ratios of weights; 0 stands for the weight of a principle that is not there.
    A draw that stays asks anew where a text it uses was reworded: critique or revision, or the judge's.
    """
    before, after = ({p.id: p for p in c.principles} for c in (a, b))
    ids = sorted(before.keys() | after.keys())

    def weight(principles: dict[str, Principle], i: str) -> float:
        return principles[i].weight if i in principles else 0.0

    stays = {
        i: 1 / sum(max(weight(before, j) / before[i].weight, weight(after, j) / after[i].weight) for j in ids)
        for i in sorted(before.keys() & after.keys())
    }

    def asked_anew(*fields: TextField) -> float:
        same = (i for i in stays if all(getattr(before[i], f) == getattr(after[i], f) for f in fields))
        share = 1 - sum(stays[i] for i in same)
        return share if share > 1e-9 else 0.0  # rounding

    return Moved(asked_anew("critique", "revision"), asked_anew("judge"))


Change = tuple[Literal["same", "removed", "added"], str]


def word_changes(before: str, after: str) -> list[Change]:
    """From one text to another, word by word.

    The same and removed pieces join to `before`, the same and added ones to `after`; a removed piece stands before
    the added one that takes its place.
    """
    a, b = (re.findall(r"\S+|\s+", text) for text in (before, after))
    changes: list[Change] = []
    removed = added = ""
    for what, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = "".join(a[a1:a2]), "".join(b[b1:b2])
        if what == "equal" and (old.strip() or not (removed or added)):
            changes += _replaced(removed, added)
            changes.append(("same", old))
            removed = added = ""
        else:  # a space that two changed words share belongs to both
            removed, added = removed + old, added + new
    return changes + _replaced(removed, added)


def _replaced(removed: str, added: str) -> list[Change]:
    changes: list[Change] = [("removed", removed), ("added", added)]
    return [change for change in changes if change[1]]


# Writing a constitution as the YAML a person goes on editing: folded texts, no key that says nothing.


WIDTH = 100  # columns of folded text, indentation not counted, as in the shipped constitutions
NO_BREAK_SPACES = "\xa0\u202f"  # ordinary in French
STARTER = """\
# The principles of a run. Look at this file with `cai constitution show`, check it with `cai constitution lint`, and
# name it in a run file as `constitution:`. For completion and checks in an editor, write the schema beside it,
#     cai schema constitution --out constitution.schema.json
# and make this the first line:  yaml-language-server: $schema=constitution.schema.json  (behind a #).
name: {name}
description: >-
  One sentence on what answers by these principles are like.
principles:
  # Each principle is one thing to ask of an answer, in three texts about that same thing. Say what the answer does
  # ("gives the source of every number") rather than what it is like ("is honest"), and what to do rather than what
  # not to do.
  - id: concrete-example   # decides which prompts meet it: reword the texts freely, but keep the id
    # What to look for; the model is shown its own last answer.
    critique: >-
      Point out every general statement in the answer that comes without an example. Quote it, and name an example
      that would make it clear.
    # What the new answer is to do.
    revision: >-
      Rewrite the answer so that every general statement comes with a short, concrete example from daily life.
    # A question about two answers: which one is better? Each is shown first once, so that it names no position.
    judge: >-
      Which answer makes its general statements clearer, with a short, concrete example for each?
    # Optional: how often it is drawn, beside the others (1 when left out), and what only people read.
    weight: 1
    tags: [clarity]
    notes: >-
      A placeholder: replace it with a principle of your own.

  # Add principles below, set like the first one. Every id is there once; their order decides nothing.
"""


def starter(name: str) -> str:
    """The text of a commented constitution of one principle to start from."""
    return STARTER.replace("{name}", _scalar(name))


def constitution_yaml(constitution: Constitution, comments: list[str] | None = None) -> str:
    """The text of a constitution's file, which loads as an equal one; `comments` are its first lines."""
    lines = ["# " + "".join(c if _is_plain(c) else " " for c in comment) for comment in comments or []]
    lines.append(f"name: {_scalar(constitution.name)}")
    if constitution.description:
        lines += _text("description", constitution.description, "")
    lines.append("principles:")
    for principle in constitution.principles:
        lines += [*_principle(principle), ""]
    return "\n".join(lines[:-1]) + "\n"


def _principle(principle: Principle) -> list[str]:
    lines = [f"  - id: {_scalar(principle.id)}"]
    for field in TEXTS:
        lines += _text(field, getattr(principle, field), "    ")
    if principle.tags:
        lines.append(f"    tags: [{', '.join(map(_scalar, principle.tags))}]")
    if principle.weight != 1:
        whole = principle.weight.is_integer() and principle.weight < 1e6
        lines.append(f"    weight: {_scalar(int(principle.weight) if whole else principle.weight)}")
    if principle.notes:
        lines += _text("notes", principle.notes, "    ")
    if principle.tests:
        lines.append("    tests:")
        for test in principle.tests:
            first, *others = _test(test, "        ")
            lines += [f"      - {first.strip()}", *others]
    return lines


def _test(test: PrincipleTest, indent: str) -> list[str]:
    lines = []
    for field, value in test.model_dump(exclude_defaults=True).items():
        if field == "revision":
            lines.append(f"{indent}revision:")
            lines += [f"{indent}  {key}: [{', '.join(map(_scalar, phrases))}]" for key, phrases in value.items()]
        else:
            long = isinstance(value, str) and len(value) > WIDTH - len(indent)
            lines += _text(field, value, indent) if long else [f"{indent}{field}: {_scalar(value)}"]
    return lines


def _text(key: str, text: str, indent: str) -> list[str]:
    """A key and its text: folded where it is one paragraph, literal where its lines matter, else in quotes."""
    lines = text.split("\n")
    if not all(_is_plain(line) and line == line.strip(" ") for line in lines) or not (lines[0] and lines[-1]):
        return [f"{indent}{key}: {_scalar(text)}"]
    if len(lines) > 1:
        return [f"{indent}{key}: |-", *(f"{indent}  {line}" if line else "" for line in lines)]
    if not all(word.strip() for word in text.split(" ")):  # two spaces, or a word of no-break spaces
        return [f"{indent}{key}: {_scalar(text)}"]
    folded = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}{key}: >-", *(f"{indent}  {line}" for line in folded)]


def _is_plain(text: str) -> bool:
    """Whether a block scalar can hold a line as it is, and a reader sees all of it."""
    return all(c.isprintable() or c in NO_BREAK_SPACES for c in text)


def _scalar(value: str | float) -> str:
    """A value on one line, in quotes where YAML would read it as something else, escaped where it cannot be seen."""
    if isinstance(value, str) and not _is_plain(value):
        seen = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if _is_plain(c) else f"\\U{ord(c):08x}" for c in seen) + '"'
    # within a list, so that commas and brackets are quoted too
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]
