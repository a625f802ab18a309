"""How much memory the reward models of an online stage take: those in folders, and one that is yet to be trained."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from cai.data.manifest import read_json
from cai.inference.models import BASE, REWARD_JSON
from cai.training.memory import FLOAT, RewardMemory, reward_of_stage, rewarding
from cai.training.model_shape import ModelShape, shape_in, tensor_shapes
from cai.training.reward_folder import is_trained_here
from cai.training.setting_parts import LAST, models_of
from cai.training.settings import Online, RewardConfig, TrainConfig


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
