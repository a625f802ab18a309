"""All stages a run file's `train:` may name."""

from typing import Annotated

from pydantic import Field

from cai.training.common import TrainConfig
from cai.training.dpo import SOFT, DPOConfig
from cai.training.kto import KTOConfig
from cai.training.online import GRPOConfig, OnlineDPOConfig, RLOOConfig
from cai.training.orpo import ORPOConfig
from cai.training.ppo import PPOConfig
from cai.training.reward import RewardConfig
from cai.training.sft import SFTConfig

TrainStage = Annotated[
    SFTConfig
    | RewardConfig
    | PPOConfig
    | DPOConfig
    | KTOConfig
    | ORPOConfig
    | RLOOConfig
    | GRPOConfig
    | OnlineDPOConfig,
    Field(discriminator="stage"),
]
Online = PPOConfig | RLOOConfig | GRPOConfig | OnlineDPOConfig
"""Those that answer prompts and ask a reward model."""


def weighs_pairs(settings: TrainConfig) -> bool:
    """Whether a stage's loss has a place for soft labels and for the weight of a pair."""
    return isinstance(settings, RewardConfig) or (isinstance(settings, DPOConfig) and settings.loss in SOFT)
