"""Sections that settings of several stages hold: the reward of online stages, QLoRA, and the weights of preferences.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314) trains a LoRA over weights in 4 or 8 bits, by bitsandbytes. It is merged
into the weights as they were before quantization, so that the saved policy is a plain model. Light to import: no torch.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cai.config.yaml_files import Section
from cai.data.records import Source

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


QUANTIZATION_PACKAGE = "bitsandbytes"
Bits = Literal["4bit", "8bit"]


def quantized(bits: Bits, dtype: Any, device: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantize a model on `device` as it is loaded.

    4bit: NF4 with quantized constants, computing in `dtype` (QLoRA §3); 8bit: LLM.int8() (Dettmers et al. 2022,
    arXiv:2208.07339), which quantizes activations too.
    """
    from transformers import BitsAndBytesConfig

    if device == "cpu":
        _keep_gradients()
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if bits == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _keep_gradients() -> None:
    """On a CPU with AVX-512 for bfloat16, bitsandbytes 0.50 repacks 4-bit weights in the first pass without gradients,
    and later passes through them have none, without an error: let it not find these instructions.
    """
    from bitsandbytes.nn import modules

    modules.has_avx512bf16 = lambda: False


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
