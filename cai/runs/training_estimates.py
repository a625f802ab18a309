"""How much memory the training stages of a run take, with the reward models of online ones, and how long they may.

The time is updates × seconds an update, as earlier trainings of the stage and model measured it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cai.config.errors import CaiError
from cai.data.manifest import read_json
from cai.data.records import Preference, Revision
from cai.inference.models import BASE, REWARD_JSON, model_fingerprint
from cai.runs.folder import RunFolder, all_runs, all_trainings, each_row_of, stage_settings
from cai.runs.metrics import stage_folders
from cai.runs.plan import Plan
from cai.training.checks import launched_gpus
from cai.training.memory import FLOAT, RewardMemory, estimate, reward_of_stage, rewarding
from cai.training.model_shape import ModelShape, shape_in, tensor_shapes
from cai.training.reward_folder import is_trained_here
from cai.training.setting_parts import LAST, models_of
from cai.training.settings import (
    DatasetConfig,
    GRPOConfig,
    Online,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    RLOOConfig,
    SFTConfig,
    TrainConfig,
)
from cai.training.stage import STAGES, TIMING

PAIR = 2  # answers to a prompt of online DPO
SPREAD = 1.5  # by which factor training takes more or less than measured: lengths of answers and other work differ


class TrainingTime(NamedTuple):
    """A stage to train: its updates, and the seconds of each and of all else; None where none was measured."""

    stage: str  # with its position, such as 1-dpo
    updates: int  # at most: which pairs pass the filters is not known before
    update_seconds: float | None = None
    other_seconds: float = 0.0  # loading and saving
    measured: int = 0  # trainings that the seconds are means of

    def time_range(self) -> tuple[float, float] | None:
        """The least and the most seconds."""
        if self.update_seconds is None:
            return None
        seconds = self.updates * self.update_seconds + self.other_seconds
        return seconds / SPREAD, seconds * SPREAD


class Measured(NamedTuple):
    """What one training measured: seconds per example of an update, and besides the updates."""

    stage: str
    example_seconds: float
    other_seconds: float


def sum_of_ranges(ranges: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The least and the most seconds of all together; None where one is not known."""
    known = [one for one in ranges if one is not None]
    return (sum(low for low, _ in known), sum(high for _, high in known)) if len(known) == len(ranges) else None


def training_times(plan: Plan, untrained: Sequence[str], data: RunFolder) -> list[TrainingTime]:
    """The stages of a plan that are named in `untrained`, such as `1-dpo#2`.

    Args: `data` is the folder of the rows that they will learn from, or of placeholders for them.
    """
    measured = list(_all_measured(plan.runs, model_fingerprint(plan.model)))
    return [_time(name, plan, data, measured) for name in untrained]


def _time(name: str, plan: Plan, data: RunFolder, measured: Sequence[Measured]) -> TrainingTime:
    position, _, stage = name.partition("#")[0].partition("-")
    settings = plan.train[int(position) - 1]
    updates = _updates(settings, plan, data)
    known = [one for one in measured if one.stage == stage]
    if not known:
        return TrainingTime(name, updates)
    each = sum(one.example_seconds for one in known) / len(known) * _examples_at_once(settings)
    return TrainingTime(name, updates, each, sum(one.other_seconds for one in known) / len(known), len(known))


def _examples_at_once(settings: TrainConfig) -> int:
    """How many examples an update is of, each of about the same work."""
    if isinstance(settings, PPOConfig):
        return settings.rollouts
    return settings.per_device_train_batch_size * settings.gradient_accumulation_steps


def _updates(settings: TrainConfig, plan: Plan, data: RunFolder) -> int:
    if isinstance(settings, PPOConfig):
        return settings.updates
    assert isinstance(settings, DatasetConfig)
    updates = math.ceil(_examples(settings, plan, data) / _examples_at_once(settings) * settings.num_train_epochs)
    return updates * (settings.members if isinstance(settings, RewardConfig) else 1)


def _examples(settings: TrainConfig, plan: Plan, data: RunFolder) -> float:
    if isinstance(settings, PreferenceConfig):
        weights = settings.data.by_source
        learned = [row.prompt_id for row in each_row_of(data.preferences_jsonl, Preference) if weights[row.source]]
        if isinstance(settings, RewardConfig):  # whose examples are prompts, with all of their pairs
            return len(set(learned)) * (1 - settings.holdout)
        return len(learned)
    if isinstance(settings, SFTConfig):
        revised = [row.prompt_id for row in each_row_of(data.revisions_jsonl, Revision)]
        return len(revised) if settings.rounds == "all" else len(set(revised))
    answers = settings.num_generations if isinstance(settings, RLOOConfig | GRPOConfig) else 1
    return answers * len(plan.training)


def answers_sampled(settings: Online, prompts: int) -> int:
    """How many answers an online stage samples to so many prompts, at most."""
    if isinstance(settings, PPOConfig):
        return settings.updates * settings.rollouts
    each = settings.num_generations if isinstance(settings, RLOOConfig | GRPOConfig) else PAIR
    return math.ceil(each * prompts * settings.num_train_epochs)


def _all_measured(runs: Path, model: str) -> Iterator[Measured]:
    """What the trainings in a folder of runs measured that started from a model, or from a policy trained from it."""
    for run in all_runs(runs):
        try:
            stages = [stage for _, stage in stage_folders(run)] if run.manifest().get("model") == model else []
        except CaiError:
            continue
        yield from _measured(stages)
    yield from _measured(
        [path for path in all_trainings(runs) if read_json(path / "manifest.json").get("model") == model]
    )


def _measured(stages: Sequence[Path]) -> Iterator[Measured]:
    for folder in stages:
        try:
            timing, written = read_json(folder / TIMING), stage_settings(folder)
            stage = str(written["stage"])
            settings = STAGES[stage].model_validate(written)
            at_once = _examples_at_once(settings)
            yield Measured(stage, float(timing["update_seconds"]) / at_once, float(timing["other_seconds"]))
        except (CaiError, LookupError, TypeError, ValueError):
            continue  # not finished, of one update, or of another version


def training_memory(plan: Plan, stages: Sequence[str]) -> dict[str, int]:
    """Bytes at the peak of one process of each stage, by name, such as `1-dpo#2`.

    Stages of which it cannot be computed are left out: the model is no dense decoder, or the optimizer is not known.
    """
    if not isinstance(plan.model, Path):
        return {}
    gpus, peaks = launched_gpus(plan.config.launcher), dict[str, int]()
    for name in stages:
        number = int(name.partition("-")[0])
        try:
            shape = shape_in(str(plan.model), plan.model)
            settings, earlier = plan.train[number - 1], plan.train[: number - 1]
            peaks[name] = estimate(settings, shape, gpus, online_rewards(settings, shape, earlier)).peak
        except CaiError:
            continue
    return peaks


def online_rewards(
    settings: TrainConfig,
    shape: ModelShape,
    earlier: Sequence[TrainConfig] = (),
    find: Callable[[str], Path] = Path,
) -> RewardMemory | None:
    """Of all reward models of an online stage, None for another stage; the judge is loaded by another process.

    Args: the stages `earlier` in the run, whose last reward model is `last`: without one, a LoRA trained from the same
    model is assumed; `find` returns the folder of a reward model by its name.
    """
    if not isinstance(settings, Online):
        return None
    names = models_of(settings.reward)
    held = rewards_in([find(name) for name in names if name != LAST], settings, shape)
    if LAST not in names:
        return held
    trained = [stage for stage in earlier if isinstance(stage, RewardConfig)]
    last = reward_of_stage(trained[-1] if trained else RewardConfig(stage="reward"), settings, shape)
    notes = (held.note, last.note if trained else f"assumed: {last.note}")
    return RewardMemory(held.trained + last.trained, held.others + last.others, "; ".join(filter(None, notes)))


def rewards_in(folders: Sequence[Path], settings: TrainConfig, shape: ModelShape) -> RewardMemory:
    """What the reward models in `folders` hold in an online stage, by the headers of their weights."""
    held = [_reward_in(folder, settings, shape) for folder in folders]
    notes = "; ".join(dict.fromkeys(reward.note for reward in held))
    return RewardMemory(sum(r.trained for r in held), sum(r.others for r in held), notes)


def _reward_in(folder: Path, settings: TrainConfig, shape: ModelShape) -> RewardMemory:
    if not is_trained_here(folder):
        return RewardMemory(0, sum(path.stat().st_size for path in folder.glob("*.safetensors")), "a model of others")
    about = read_json(folder / REWARD_JSON)
    files = [path for name in about["members"] for path in (folder / name).glob("*.safetensors")]
    members = FLOAT * sum(math.prod(sizes) for path in files for sizes in tensor_shapes(path).values())
    if not about["base"]:
        return RewardMemory(members, 0, "a model of its own, float32")
    base = shape_in(str(folder), folder / BASE) if (folder / BASE).is_dir() else shape
    return rewarding(settings, base, members, shared=base._replace(name=shape.name) == shape)
