"""Constitutions: principles, their fingerprints, and which example meets which principle."""

import math
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, StringConstraints, field_validator, model_validator

from cai import config
from cai.hashing import fingerprint, uniform

Text = Annotated[str, StringConstraints(strip_whitespace=True)]


class Principle(config.Section):
    """One principle: what to criticise, how to revise, and what to judge by."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    critique: Text
    revision: Text
    judge: Text
    weight: Annotated[float, Field(gt=0)] = 1.0
    tags: list[str] = []
    notes: str = ""

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
        """Of the three texts a model may see; weight, tags and notes do not count."""
        return fingerprint(self.critique, self.revision, self.judge)


class Constitution(config.Section):
    """A named list of principles, as read from `constitutions/*.yaml`."""

    name: str
    description: str = ""
    principles: Annotated[list[Principle], Field(min_length=1)]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> "Constitution":
        seen: dict[str, int] = {}
        for index, principle in enumerate(self.principles):
            if principle.id in seen:
                raise ValueError(
                    f"two principles have the id '{principle.id}' (number {seen[principle.id] + 1} and "
                    f"{index + 1} of the list); every id names one principle"
                )
            seen[principle.id] = index
        return self

    @property
    def fingerprint(self) -> str:
        """Of all that can change a run: ids, weights and texts; the order of principles does not count."""
        return fingerprint(sorted([p.id, p.weight, p.fingerprint] for p in self.principles))


def load(path: Path) -> Constitution:
    """Read a constitution; raises CaiError with file and line."""
    return config.load(path, Constitution)


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
