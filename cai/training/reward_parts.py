"""What `reward` of an online stage may be: a reward model, the judge, or a weighted sum of several sources."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from cai.config.yaml_files import Section

JUDGE = "judge"  # the value of `reward` that is no folder
LAST = "last"  # the value of `model` in a sum that is no folder


class RewardPart(Section):
    """A source of a reward that is a sum: a model, the judge or a penalty of length."""

    model: str | None = None
    """Reward model, as `reward` alone would name it; `last`: the run's last."""
    judge: bool = False
    """The run's judge rates each answer."""
    length_penalty: Annotated[float, Field(gt=0)] | None = None
    """Subtracted for each token of the answer."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this source's score."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        named = [self.model is not None, self.judge, self.length_penalty is not None]
        if sum(named) != 1:
            raise ValueError("expected one source, as in {model: FOLDER}, {judge: true} or {length_penalty: 0.01}")
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
