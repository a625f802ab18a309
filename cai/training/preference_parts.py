"""What settings of the stages that learn from preferences hold: the weight of each source, and DPO's losses."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cai.config.yaml_files import Section
from cai.data.records import Source

SourceWeight = Annotated[float, Field(ge=0)]
LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
SOFT: tuple[LossType, ...] = ("sigmoid", "ipo", "robust")  # the losses in which labels are soft and pairs are weighed
SMOOTHED: tuple[LossType, ...] = ("robust", "exo_pair", "aot", "aot_unpaired")  # trl's others ignore label_smoothing


class SourceWeights(Section):
    """`data:` of a stage that learns from preferences: the weight of a pair in the loss, by its `source`."""

    revision: SourceWeight = 1.0
    """Of a revision and its draft."""
    judge: SourceWeight = 1.0
    """Of samples that the judge labelled."""
    human: SourceWeight = 1.0
    """Of labelled pairs from a file."""

    @model_validator(mode="before")
    @classmethod
    def _was_a_file(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(
                "expected the weight of each source, such as {revision: 1.0, judge: 1.0, human: 2.0}; the stage itself "
                "decides which rows it reads"
            )
        return value

    @model_validator(mode="after")
    def _learns_from_some(self) -> Self:
        if not any(self.by_source.values()):
            raise ValueError("leaves out every source; at least one needs a weight above 0")
        return self

    @property
    def by_source(self) -> dict[Source, float]:
        """The weight of each source."""
        return {"revision": self.revision, "judge": self.judge, "human": self.human}
