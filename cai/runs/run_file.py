"""The run file: one YAML file with all settings of a run and the files they name."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cai.config import yaml_files
from cai.config.characters import visible
from cai.config.errors import exists
from cai.config.validation import RUN_NAME
from cai.config.yaml_files import Section
from cai.data.records import Probability, Seed
from cai.evaluation.evaluation_plan import OFF, EvaluateConfig
from cai.feedback.judge import JudgeConfig
from cai.feedback.revise import ReviseConfig
from cai.inference.chat_template import with_template_text
from cai.inference.engine import EngineConfig
from cai.inference.vllm_settings import check_arguments
from cai.training.setting_parts import JUDGE, LAST, models_of
from cai.training.settings import DRAFTS, Online, TrainStage, judged


class PromptsConfig(Section):
    """`prompts:`: the prompts the model answers."""

    source: str
    """File of prompts in any format, or a dataset of the Hub; relative to the working directory or the run file."""
    column: str | None = None
    """Field that holds the prompt: a text, a transcript or a list of turns; null recognises the file's format."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only the first prompts; null uses all."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of prompts held out from training for evaluation, chosen by the hash of their ids."""


class PreferencesConfig(Section):
    """`preferences:`: labelled pairs, of people for example, added to the run's own."""

    source: str
    """File of preferences in any format, or a dataset of the Hub."""


class GateConfig(Section):
    """`judge_gate:`: labelled pairs on which the judge must pass before the run makes any other call."""

    data: str
    """File of labelled pairs in any format, or a dataset of the Hub."""
    limit: Annotated[int, Field(ge=1)] | None = 200
    """Use only the first pairs; null uses all."""
    accuracy: Probability | None = None
    """Minimum share of pairs on which judge and labels agree."""
    ece: Probability | None = None
    """Maximum expected calibration error."""
    position_bias: Probability | None = None
    """Maximum position bias: share of verdicts that flip when the order is swapped."""
    non_option_mass: Probability | None = None
    """Maximum mean probability mass outside the options."""
    calibrate: bool = False
    """Fit the temperature of the run's labels on half of the pairs."""


class IterateConfig(Section):
    """`iterate:`; what later iterations take from earlier ones."""

    labels: Literal["all", "new"] = "all"
    """Labels of a later reward model: of all iterations so far, as in Bai et al. 2022 (arXiv:2204.05862) and Llama 2
    (arXiv:2307.09288), or the new ones alone."""
    kl_anchor: Literal["first", "last"] = "last"
    """Policy from which ppo and dpo take the KL: that with which the iteration starts, or the first iteration's."""


class RunConfig(Section):
    """A run file; every field has a default but `model`, `constitution` and `prompts`."""

    name: Annotated[str, StringConstraints(pattern=RUN_NAME)] | None = None
    """Name of the run's folder; by default the run file's name."""
    seed: Seed = 0
    """Random seed; decides samples, sampled principles and training."""
    model: str
    """Known name such as smollm2-135m, folder, or Hub id; weights are read from safetensors."""
    constitution: str
    """YAML file, relative to the working directory or the run file; or the name of a shipped one, such as plain."""
    templates: str = "prompts/default"
    """Folder of prompt templates; found like the constitution."""
    prompts: PromptsConfig
    """Prompts the model answers."""
    revise: ReviseConfig = ReviseConfig()
    """Critique and revision of drafts."""
    judge: JudgeConfig = JudgeConfig()
    """Comparison of answers by a judge."""
    judge_gate: GateConfig | None = None
    """Requirements on the judge, checked before any other call."""
    preferences: PreferencesConfig | None = None
    """Labelled pairs added to the run's own."""
    train: Annotated[list[TrainStage], Field(json_schema_extra={"type": ["array", "null"]})] = []
    """Training stages in order, each on the policy of the one before; [] or null trains none."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of trainings from the same feedback, each with its own seed and policy, which is evaluated."""
    iterations: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of iterations, each from the policy of the one before."""
    iterate: IterateConfig = IterateConfig()
    """What later iterations take from earlier ones."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation of the trained policy against the base model."""
    engine: EngineConfig = EngineConfig()
    """Inference engine."""
    launcher: str = ""
    """Launch command, such as `torchrun --nproc_per_node 2` or `ray --workers 16 --address auto`, or `auto`: a process
    for each visible GPU. Without it, one process on one GPU. Does not affect the run's identity."""

    @field_validator("train", mode="before")
    @classmethod
    def _null_trains_nothing(cls, stages: Any) -> Any:
        return [] if stages is None else stages

    @field_validator("train")
    @classmethod
    def _rewards_come_first(cls, stages: list[TrainStage]) -> list[TrainStage]:
        trained = False
        for number, settings in enumerate(stages):
            if isinstance(settings, Online) and LAST in models_of(settings.reward) and not trained:
                needs = f"{settings.stage} needs a reward model: add a reward stage before it, or set its `reward:`"
                raise PydanticCustomError("needs_reward", "{needs}", {"needs": needs, "at": (number, "stage")})
            trained = trained or settings.stage == "reward"
        return stages

    @model_validator(mode="after")
    def _engines_have_models(self) -> "RunConfig":
        roles = {
            "revise": (self.revise.model, self.revise.engine),
            "judge": (self.judge.model, self.judge.engine),
            "evaluate": (self.evaluate.judge, self.evaluate.engine),
        }
        for section, (model, engine) in roles.items():
            if engine is not None and model in (None, OFF):
                key = "judge" if section == "evaluate" else "model"
                raise ValueError(
                    f"{section}.engine: needs {section}.{key}; the run's own model has the settings of `engine:`"
                )
        return self

    @model_validator(mode="after")
    def _probes_have_a_judge(self) -> "RunConfig":
        if self.evaluate.judge == OFF and self.evaluate.probes:
            raise ValueError("evaluate.probes: true, and `evaluate.judge: off`: probes are read by a judge; name one")
        return self

    @model_validator(mode="after")
    def _labels_have_verdicts(self) -> "RunConfig":
        if self.revise.rounds and self.revise.label == "judge" and not self.judge.revisions:
            needs = (
                "false, and `revise.label: judge` needs these verdicts; ask for them, or set revise.label to certain "
                "(p = 1, unverified) or off (no pairs)"
            )
            raise PydanticCustomError("needs_verdicts", "{needs}", {"needs": needs, "at": ("judge", "revisions")})
        return self

    @model_validator(mode="after")
    def _gates_ask_both_orders(self) -> "RunConfig":
        if self.judge_gate is not None and not self.judge.swap:
            raise ValueError("judge_gate: needs both orders, and `judge.swap` is false; remove one of them")
        return self

    @model_validator(mode="after")
    def _iterations_train(self) -> "RunConfig":
        if self.iterations > 1 and all(settings.stage in ("sft", "reward") for settings in self.train):
            raise ValueError("iterations: needs a stage that trains on preferences or rewards, such as dpo or ppo")
        other = [s.stage for s in self.train if s.stage not in ("sft", "reward", "ppo", "dpo")]
        if self.iterate.kl_anchor == "first" and other:
            raise ValueError(f"iterate.kl_anchor: first works in ppo and dpo, not in {other[0]}; use last")
        return self

    @model_validator(mode="after")
    def _seeds_train(self) -> "RunConfig":
        if self.seeds == 1:
            return self
        if self.iterations > 1:
            raise ValueError(
                f"seeds: {self.seeds}, and iterations: {self.iterations}: each iteration starts from one policy; set "
                "one of them to 1, or sweep over `seed`"
            )
        if all(settings.stage == "reward" for settings in self.train):
            raise ValueError(f"seeds: {self.seeds}, and `train` trains no policy; add a stage such as dpo")
        return self


def templates_needed(config: RunConfig) -> tuple[str, ...]:
    """The names of the templates that a run reads, but for what its constitutions need."""
    rating = ("rate",) if any(map(judged, config.train)) else ()
    return tuple(dict.fromkeys((*config.revise.templates_needed, *config.judge.templates_needed, *rating)))


def named_eval_judge(config: RunConfig) -> tuple[str | None, EngineConfig | None]:
    """The eval judge's name and own engine settings: those of `evaluate`, or of the first of the run's judges.

    None for the name where the run's model judges.
    """
    if config.evaluate.judge not in (None, OFF):
        return config.evaluate.judge, config.evaluate.engine
    model = config.judge.model
    return model if isinstance(model, str) or model is None else model[0], config.judge.engine


class _EngineSection(Section):
    engine: EngineConfig


def engine_settings(overrides: list[str], base: EngineConfig, command: Path) -> EngineConfig:
    """`base` with the `--set engine.KEY=VALUE` options of a command laid over it.

    Raises: CaiError for other settings and values, and for engine arguments that vLLM does not have.
    """
    source = yaml_files.YamlSource(command, {"engine": base.model_dump(exclude_unset=True)}, {})
    engine = yaml_files.validate(yaml_files.apply_overrides(source, overrides), _EngineSection).engine
    check_arguments(engine, "--set engine")
    if engine.chat_template == base.chat_template:  # a text, of a run's folder that may come from anybody
        return engine
    return with_template_text(engine, "--set engine", command)


def load_run_file(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run file and apply `--set` overrides. Raises: CaiError naming line and field."""
    source = yaml_files.read_kind(path, "run file")
    return yaml_files.validate(yaml_files.apply_overrides(source, overrides or []), RunConfig)


def effective_text(path: Path, overrides: list[str], name: str) -> str:
    """A run file's text with the overrides and the run's name in force, which `cai run` takes for the same run.

    Files that were found in the run file's folder are named from the working directory. The text stays as it is, with
    its comments, where nothing differs.
    """
    source = yaml_files.read_yaml(path)
    data = yaml_files.apply_overrides(source, overrides).data
    data["name"] = name
    sections = [(data, "constitution"), (data, "templates"), (data.get("evaluate"), "constitution")]
    sections += [(data.get("prompts"), "source"), (data.get("preferences"), "source"), (data.get("judge_gate"), "data")]
    sections += [(data.get("engine"), "chat_template")]
    roles = [data.get(name) for name in ("revise", "judge", "evaluate")]
    sections += [(role.get("engine"), "chat_template") for role in roles if role]
    for stage in data.get("train") or []:
        reward = stage.get("reward")
        sections += [
            (stage, "mix"),
            (stage, "ptx"),
            *([(part, "model") for part in reward] if isinstance(reward, list) else [(stage, "reward")]),
        ]
    for section, key in sections:
        file = section.get(key) if section else None
        if file not in (None, DRAFTS, JUDGE, LAST) and not exists(Path(file)) and exists(path.parent / file):
            section[key] = str(path.parent / file)
    origin = " ".join([str(path), *(f"--set {override}" for override in overrides)])
    header = f"# Settings of this run, from {visible(' '.join(origin.split()))}; paths are from the working directory\n"
    unchanged = data == source.data
    return header + (yaml_files.read_text(path) if unchanged else yaml_files.as_yaml(data))
