"""One YAML file describes one run: the whole of its settings, and the files they name."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from cai import config
from cai.config import Section
from cai.errors import CaiError, similar
from cai.evaluation.win_rate import EvaluateConfig
from cai.feedback.judge import JudgeConfig
from cai.feedback.revise import ReviseConfig
from cai.formats.hub import is_hub_id, local_file
from cai.records import Probability
from cai.training.stages import Online, TrainStage


class PromptsConfig(Section):
    """`prompts:`: what the model is asked."""

    source: str
    """A file of prompts, in any form, or a data set of the Hub; found from here or from the run file."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first prompts; null takes all."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of prompts kept from training for evaluation, chosen by the hash of their ids."""


class EngineConfig(Section):
    """`engine:`: how the model is held in memory."""

    max_in_flight: Annotated[int, Field(ge=1)] = 32
    """Examples alive at once; no part of the lock."""
    context: Annotated[int, Field(ge=64)] | None = None
    """Tokens that a request and its answer may have; null: the model's, at most 8192."""


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
    same_position: Probability | None = None
    """The most of the verdicts that may follow the place an answer is shown in."""
    outside: Probability | None = None
    """The most of the probability that may lie outside the letters."""
    calibrate: bool = False
    """Fit the temperature of the run's labels on half of the pairs."""


class RunConfig(Section):
    """A run file; every field has a default but `model`, `constitution` and `prompts`."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """The run's folder below `runs/`; by default the run file's name."""
    seed: int = 0
    """Decides samples, principles and training."""
    model: str
    """A known name such as smollm2-135m, a folder with safetensors, or a Hub id."""
    constitution: str
    """A YAML file; found from here, beside the run file, or among the shipped ones."""
    templates: str = "prompts/default"
    """A folder of Jinja templates, found the same way."""
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
    """A command that starts each stage, such as `torchrun --nproc_per_node 2`; no part of the lock."""

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


def load(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run file with `--set` overrides laid over it; raises CaiError naming line and field."""
    source = config.read_yaml(path)
    config.expect_kind(source, "run file")
    return config.validate(config.apply_overrides(source, overrides or []), RunConfig)


def find(field: str, name: str, run_file: Path) -> Path:
    """The file or folder a run file names: from here, from the run file's folder, or as shipped with cai.

    Raises: CaiError listing where it was looked for.
    """
    places = [Path(name), run_file.parent / name]
    for place in (*places, shipped(name)):
        if place.exists():
            return place
    tried = ", ".join(dict.fromkeys(map(str, places)))
    looked = f"looked for {tried}, and among the shipped files"
    raise CaiError(f"{run_file}: {field}: '{name}' not found ({looked}){near(name, run_file)}")


def shipped(name: str) -> Path:
    """Where a file or folder is that comes with cai: in the package, or beside it in a checkout."""
    package = Path(str(files("cai")))
    inside = package / "shipped" / name
    return inside if inside.exists() else package.parent / name


def near(name: str, run_file: Path) -> str:
    """The file that a mistyped name is likely to mean, as the end of a message; empty where there is none."""
    package, wanted = Path(str(files("cai"))), Path(name)
    for root in (Path(), run_file.parent, package / "shipped", package.parent):
        for folder in (wanted.parent, Path("constitutions")):
            found = similar(root / folder / wanted.name) if (root, folder) != (package.parent, Path()) else None
            if found and folder / found.name != wanted:
                return f"; did you mean '{folder / found.name}'?"
    return ""


def find_data(field: str, name: str, run_file: Path) -> Path:
    """The same for a file of data, which may also be a data set of the Hub (cai/formats/hub.py), downloaded here."""
    try:
        return find(field, name, run_file)
    except CaiError:
        if not is_hub_id(name):
            raise
    try:
        return local_file(name)
    except CaiError as error:
        raise CaiError(f"{run_file}: {field}: {error}") from error
