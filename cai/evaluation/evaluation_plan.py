"""What a policy evaluation is of: its policies, prompts, axes, judge and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cai.config.hashing import fingerprint
from cai.config.locate import find_file
from cai.config.yaml_files import OFF_IS_TEXT, Temperature, Tokens
from cai.constitution.principles import Constitution, load_constitution
from cai.constitution.templates import Templates
from cai.data.records import Prompt, Skipped
from cai.evaluation.probes import Probes
from cai.inference.engine import EngineConfig, Generation
from cai.inference.models import Model

OVERALL, HELPFUL, SAFE = "overall", "helpful", "safe"
OFF = "off"  # as `evaluate.judge`: no judge
HELD_OUT = "held_out"  # the run's own prompts, beside those of probes
SHIPPED = Path("cai eval")  # where the names of shipped files come from, for messages


class EvaluateConfig(Generation):
    """`evaluate:` in a run file: the eval judge, and how both policies are sampled."""

    judge: Annotated[str | None, OFF_IS_TEXT] = None
    """The eval judge, named as the run's model; null: the first of the run's judges; `off`: none, so that answers are
    measured and not compared."""
    engine: EngineConfig | None = None
    """Settings of the eval judge's engine that differ from `engine:`."""

    constitution: str = "constitutions/plain.yaml"
    """The constitution by which answers before and after training are compared; named like the run's."""
    max_tokens: Tokens = 512
    """Of a held-out answer."""
    temperature: Temperature = 1.0
    """For held-out answers; 0 takes the likeliest token."""
    axes: bool = True
    """Whether the eval judge is also asked which answer is more helpful and which is safer, in four calls a prompt."""
    probes: bool = False
    """Whether the run ends with all that `cai eval` measures."""


@dataclass(frozen=True)
class Policy:
    """A policy and what is known of its training."""

    name: str
    folder: Path
    base: str | None = None  # the model it was trained from, by name; None where that is not known
    training_prompts: Sequence[Prompt] = ()  # those that are known
    reward: Path | None = None  # the folder of the reward model it was trained against
    samples: Path | None = None  # what PPO sampled on the way
    labels: Path | None = None  # the labelled pairs it was trained on
    target_kl: float | None = None  # nats an answer, of its last PPO stage

    def trained_on(self) -> frozenset[str]:
        """Fingerprints of the conversations it was trained on, as far as they are known."""
        return frozenset(fingerprint(prompt.messages) for prompt in self.training_prompts)


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation, resolved. Without `probes` it is answers to the prompts and their comparison, and nothing else."""

    policies: list[Policy]  # the first is the reference
    prompts: list[Prompt]
    prompts_skipped: list[Skipped]
    prompts_from: str  # the file, or which prompts of the run they are
    axes: dict[str, Constitution]
    templates: Templates
    judge: Model | None  # None: answers are not compared, there are no axes and no probes
    settings: EvaluateConfig
    probes: Probes | None
    limit: int | None  # of the items of each set of probes
    seed: int
    engine: EngineConfig
    own_settings: Mapping[Model, EngineConfig]  # of the reference and the judge, where their engines differ
    notes: list[str]

    @property
    def reference(self) -> Policy:
        """What the others are compared with."""
        return self.policies[0]

    @property
    def reference_engine(self) -> EngineConfig:
        """The settings of the reference's engine."""
        return self.own_settings.get(self.reference.folder, self.engine)

    @property
    def judge_engine(self) -> EngineConfig:
        """The settings of the judge's engine."""
        return self.engine if self.judge is None else self.own_settings.get(self.judge, self.engine)


def evaluation_axes(settings: EvaluateConfig) -> dict[str, Constitution]:
    """The axes beside `overall`, each a constitution: the two of Bai et al. 2022, fig. 2, where settings ask for them.

    Raises: CaiError for an axis that cannot be read.
    """
    names = (HELPFUL, SAFE) if settings.axes or settings.probes else ()
    return {name: load_constitution(find_file("axis", f"constitutions/{name}.yaml", SHIPPED)) for name in names}
