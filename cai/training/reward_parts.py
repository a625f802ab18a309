"""What `reward` of an online stage may be: a reward model, the judge, or a weighted sum of several sources."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from cai.config.yaml_files import Section

JUDGE = "judge"  # the value of `reward` that is no folder
LAST = "last"  # the value of `model` in a sum that is no folder
SOURCES = ("model", "length_penalty", "pattern")  # beside the judge; a part has one of them


def _compiles(pattern: str) -> str:
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


class RewardPart(Section):
    """A source of a reward that is a sum: a model, the judge, a penalty of length or a rule."""

    model: str | None = None
    """Reward model, as `reward` alone would name it; `last`: the run's last."""
    judge: bool = False
    """The run's judge rates each answer."""
    length_penalty: Annotated[float, Field(gt=0)] | None = None
    """Subtracted for each token of the answer."""
    pattern: Annotated[str, AfterValidator(_compiles)] | None = None
    """Regular expression: 1 for an answer in which it is found, else 0."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Factor of this source's score, above 0; of a pattern below 0 as well, which then is a penalty."""

    @property
    def kind(self) -> str:
        """The name of the source's setting."""
        return "judge" if self.judge else next(name for name in SOURCES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if self.judge + sum(getattr(self, name) is not None for name in SOURCES) != 1:
            raise ValueError(
                "expected one source, as in {model: FOLDER}, {judge: true}, {length_penalty: 0.01} or {pattern: REGEX}"
            )
        if self.weight == 0 or (self.weight < 0 and self.pattern is None):
            expected = "a number above 0" if self.pattern is None else "a number other than 0"
            raise ValueError(f"weight: expected {expected}, found {self.weight:g}")
        return self


def _sensible(parts: list[RewardPart]) -> list[RewardPart]:
    if not parts:
        raise ValueError("names no source; leave it out to take the run's last reward model")
    for name in ("judge", "length_penalty"):
        if sum(bool(getattr(part, name)) for part in parts) > 1:
            raise ValueError(f"{name}: named twice; give one of them the sum of their weights")
    if all(part.length_penalty is not None for part in parts):
        raise ValueError("a penalty of length alone rewards empty answers; add a model or the judge")
    return parts


Reward = str | Annotated[list[RewardPart], AfterValidator(_sensible)] | None
"""A folder or Hub id, `judge`, a list of sources, or None for the run's last reward model."""


def parts_of(reward: Reward) -> list[RewardPart]:
    """The sources of a reward, one where it is no list."""
    if isinstance(reward, list):
        return reward
    return [RewardPart(judge=True) if reward == JUDGE else RewardPart(model=reward or LAST)]


def models_of(reward: Reward) -> list[str]:
    """The reward models that a reward names."""
    return [part.model for part in parts_of(reward) if part.model is not None]
