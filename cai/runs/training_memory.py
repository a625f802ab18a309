"""How much memory the training stages of a run take, as `cai train --estimate` computes it."""

from collections.abc import Sequence
from pathlib import Path

from cai.config.errors import CaiError
from cai.runs.plan import Plan
from cai.training.launch import launched_gpus
from cai.training.memory import RewardMemory, estimate, reward_of_stage, rewards_in
from cai.training.model_shape import ModelShape, shape_in
from cai.training.reward_parts import LAST, models_of
from cai.training.settings import Online, RewardConfig, TrainConfig, judged


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
            peaks[name] = estimate(settings, shape, gpus, reward=_reward(settings, earlier, shape)).peak
        except CaiError:
            continue
    return peaks


def _reward(settings: TrainConfig, earlier: Sequence[TrainConfig], shape: ModelShape) -> RewardMemory | None:
    """Of an online stage's rewards: the models that it names, and that of the last reward stage before it."""
    if not isinstance(settings, Online):
        return None
    if judged(settings):
        return RewardMemory(0)
    names = models_of(settings.reward)
    held = rewards_in([Path(name) for name in names if name != LAST], settings, shape)
    trained = [stage for stage in earlier if isinstance(stage, RewardConfig)]
    if LAST not in names or not trained:
        return held
    last = reward_of_stage(trained[-1], settings, shape)
    return RewardMemory(held.trained + last.trained, held.others)
