"""How much memory the training stages of a run take, as `cai train --estimate` computes it."""

from collections.abc import Sequence
from pathlib import Path

from cai.config.errors import CaiError
from cai.runs.plan import Plan
from cai.training.checks import launched_gpus
from cai.training.memory import estimate
from cai.training.model_shape import shape_in
from cai.training.reward_memory import online_rewards


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
