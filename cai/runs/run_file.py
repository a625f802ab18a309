"""One YAML file describes one run: the whole of its settings, and the files they name."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from cai.config import yaml_files
from cai.config.yaml_files import Section
from cai.data.records import Probability
from cai.evaluation.policy import EvaluateConfig
from cai.feedback.judge import JudgeConfig
from cai.feedback.revise import ReviseConfig
from cai.inference.engine import EngineConfig
from cai.training.settings import Online, TrainStage


class PromptsConfig(Section):
    """`prompts:`: what the model is asked."""

    source: str
    """A file of prompts, in any form, or a data set of the Hub; found from here or from the run file."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first prompts; null takes all."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of prompts kept from training for evaluation, chosen by the hash of their ids."""


class PreferencesConfig(Section):
    """`preferences:`: labels of people, or any others, that join the run's own."""

    source: str
    """A file of preferences, in any form, or a data set of the Hub."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """What a pair of it weighs in the loss beside the run's own."""


class GateConfig(Section):
    """`judge_gate:`: labelled pairs on which the judge must do well before a run pays for anything else."""

    data: str
    """A file of labelled pairs, in any form, or a data set of the Hub."""
    limit: Annotated[int, Field(ge=1)] | None = 200
    """Take only the first pairs; null takes all."""
    accuracy: Probability | None = None
    """The least share of pairs on which judge and labels agree."""
    ece: Probability | None = None
    """The most by which confidence and outcome may differ (expected calibration error)."""
    position_bias: Probability | None = None
    """The most of the verdicts that may follow the place an answer is shown in."""
    non_option_mass: Probability | None = None
    """The most of the probability that may lie outside the letters."""
    calibrate: bool = False
    """Fit the temperature of the run's labels on half of the pairs."""


class RunConfig(Section):
    """A run file; every field has a default but `model`, `constitution` and `prompts`."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of the run's folder; by default the run file's name."""
    seed: int = 0
    """Random seed; decides samples, principle draws and training."""
    model: str
    """Known name such as smollm2-135m, folder, or Hub id; weights are read from safetensors."""
    constitution: str
    """A YAML file; found from here, beside the run file, or among the shipped ones."""
    templates: str = "prompts/default"
    """Folder of prompt templates; found like the constitution."""
    prompts: PromptsConfig
    """What the model is asked."""
    revise: ReviseConfig = ReviseConfig()
    """How drafts are criticised and revised."""
    judge: JudgeConfig = JudgeConfig()
    """How answers are compared."""
    judge_gate: GateConfig | None = None
    """What the judge must show before anything else is paid for."""
    preferences: PreferencesConfig | None = None
    """Labels of people, or any others, that join the run's own."""
    train: list[TrainStage] = []
    """Stages in order, each on the policy of the one before."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """How often the run goes on from the policy it made."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How the policies before and after training are compared."""
    engine: EngineConfig = EngineConfig()
    """How the model is held in memory."""
    launcher: str = ""
    """Launch command, such as `torchrun --nproc_per_node 2`; does not affect the run's identity."""

    @field_validator("train")
    @classmethod
    def _rewards_come_first(cls, stages: list[TrainStage]) -> list[TrainStage]:
        trained = False
        for number, settings in enumerate(stages):
            if isinstance(settings, Online) and settings.reward is None and not trained:
                raise ValueError(
                    f"train[{number}]: {settings.stage} needs a reward model: put a reward stage before it, or name "
                    "its folder as `reward:`"
                )
            trained = trained or settings.stage == "reward"
        return stages

    @model_validator(mode="after")
    def _gates_ask_both_orders(self) -> "RunConfig":
        if self.judge_gate is not None and not self.judge.swap:
            raise ValueError("judge_gate: it asks both orders, `judge.swap: false` one alone; leave out one of them")
        return self

    @model_validator(mode="after")
    def _iterations_train(self) -> "RunConfig":
        if self.iterations > 1 and all(settings.stage in ("sft", "reward") for settings in self.train):
            raise ValueError("iterations: each needs a stage beside sft and reward that makes a new policy")
        return self


def load_run_file(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run file with `--set` overrides laid over it; raises CaiError naming line and field."""
    source = yaml_files.read_yaml(path)
    yaml_files.expect_kind(source, "run file")
    return yaml_files.validate(yaml_files.apply_overrides(source, overrides or []), RunConfig)
