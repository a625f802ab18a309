"""The settings of every stage of `train:`, light to import: the trainers beside them bring torch and trl."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cai.config.yaml_files import Section
from cai.training.metrics import Tracker, check_installed


class TrainConfig(Section):
    """What every entry of `train:` in a run file has."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """The highest; it climbs over the first tenth of the updates and falls to a tenth of it."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Examples in a batch, of each process."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches for each update."""
    lora_rank: Annotated[int, Field(ge=1)] | None = 16
    """Of a LoRA on every linear layer; null trains all weights."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens of prompt and answer; longer ones are cut at the end."""
    save_every: Annotated[int, Field(ge=1)] = 20
    """Updates between checkpoints."""
    report_to: Annotated[list[Tracker], AfterValidator(check_installed)] = []
    """Where metrics go beside metrics.jsonl; decides no result."""


class SFTConfig(TrainConfig):
    """`stage: sft` of `train:`; trains on the revisions that hygiene finds fit, or on a file of completions."""

    stage: Literal["sft"]
    data: Literal["revisions"] = "revisions"
    """What the stage learns from."""
    rounds: Literal["all", "last"] = "all"
    """The revisions of all rounds, as the paper has it, or each prompt's last alone."""
    mix: str | None = None
    """A file of helpful answers (`cai/data/prompts.py`), which keep the model helpful as in the paper."""
    mix_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of all examples drawn from it by the seed; where it holds too few, all are used and it is told."""


class RewardConfig(TrainConfig):
    """`stage: reward` of `train:`; the result scores answers, it is no policy."""

    stage: Literal["reward"]
    data: Literal["preferences"] = "preferences"
    """What the stage learns from."""
    members: Annotated[int, Field(ge=1, le=16)] = 1
    """Of an ensemble, each trained on its own bootstrap of the prompts."""
    center: Annotated[float, Field(ge=0)] = 0.01
    """Pulls rewards to zero mean (Eisenstein et al. 2023, arXiv:2312.09244 §3)."""
    length_control: Annotated[float, Field(ge=0)] = 0.0
    """Weighs the R² of reward on length in the loss."""
    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of prompts kept from training to report on."""

    @model_validator(mode="after")
    def _ensemble_needs_lora(self) -> "RewardConfig":
        if self.members > 1 and self.lora_rank is None:
            raise ValueError("an ensemble shares one copy of the weights: members above 1 need a lora_rank")
        return self


class PPOConfig(TrainConfig):
    """`stage: ppo` of `train:`."""

    stage: Literal["ppo"]
    data: Literal["prompts"] = "prompts"
    """What the stage learns from."""
    reward: str | None = None
    """Folder of the reward model; null takes the run's last."""
    updates: Annotated[int, Field(ge=1)] = 50
    """Each samples answers and makes passes over them."""
    rollouts: Annotated[int, Field(ge=2)] = 32
    """Answers sampled for an update."""
    epochs: Annotated[int, Field(ge=1)] = 2
    """Whole passes over the answers of an update."""
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Answers read at once, which bounds the memory: a step's loss is the mean over all its tokens."""
    accumulate: Annotated[int, Field(ge=1)] = 4
    """Batches for each step."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """The same for all updates."""
    save_every: Annotated[int, Field(ge=1)] = 5
    """Updates between checkpoints."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Of an answer."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """At which answers are sampled, and their probabilities taken."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """What a token pays for each nat of KL to the starting policy; the first one, with target_kl."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """Nats an answer, to which kl_coef is adapted; 6 in Ziegler et al. 2019 §2.2."""
    kl_stop: Annotated[float, Field(gt=0)] | None = 0.1
    """Nats a token: a step that moves the policy farther ends the passes over these answers."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Off the score of an answer that runs into max_tokens."""
    uncertainty: Annotated[float, Field(ge=0)] = 0.0
    """How many standard deviations of an ensemble its mean is lowered by."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of rewards by token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Of generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """Of the ratio of new to old probabilities (Schulman et al. 2017, arXiv:1707.06347)."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from its old one in the loss."""
    value_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value function's loss."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy in the loss."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longer gradients are scaled down to it."""
    value: Literal["shared", "separate"] = "shared"
    """The value function reads the policy's own hidden states, or those of an adapter or model of its own."""
    sampler: Literal["own", "vllm"] = "own"
    """`vllm` answers by an engine in the same process, which holds a second copy of the weights."""
    sample_every: Annotated[int, Field(ge=1)] = 5
    """Updates between the answers written to samples.jsonl."""


Loss = Literal[
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
SOFT: tuple[Loss, ...] = ("sigmoid", "ipo", "robust")  # the losses in which labels are soft and pairs are weighed
SMOOTHED: tuple[Loss, ...] = ("robust", "exo_pair", "aot", "aot_unpaired")  # trl's others ignore label_smoothing


class DPOConfig(TrainConfig):
    """`stage: dpo` of `train:`.

    The losses that train on hard labels leave out pairs with p = 0.5, reported as `undecided`, and refuse pairs of
    different weight.
    """

    stage: Literal["dpo"]
    data: Literal["preferences"] = "preferences"
    """What the stage learns from."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference, as in the paper."""
    loss: Loss = "sigmoid"
    """Any of trl's; sigmoid, ipo and robust take soft labels and weights, the others train on the likelier answer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong, beyond what p says; exo_pair needs some."""

    @model_validator(mode="after")
    def _smoothing_has_an_effect(self) -> Self:
        if self.label_smoothing > 0 and self.loss not in SMOOTHED:
            raise ValueError(f"label_smoothing: the loss {self.loss} ignores it; only {', '.join(SMOOTHED)} use it")
        if self.label_smoothing == 0 and self.loss == "exo_pair":
            raise ValueError("label_smoothing: the loss exo_pair needs it above 0, such as 0.001")
        return self


class KTOConfig(TrainConfig):
    """`stage: kto` of `train:`: the likelier answer of a pair as a desirable one, the other as undesirable.

    Pairs with p = 0.5 are left out and reported as `undecided`; pairs of different weight are an error.
    """

    stage: Literal["kto"]
    data: Literal["preferences"] = "preferences"
    """What the stage learns from."""
    batch_size: Annotated[int, Field(ge=2)] = 4
    """Examples; at least 2, as the paper's KL term is estimated from the answers of the other prompts in it."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference, as in the paper."""


class ORPOConfig(TrainConfig):
    """`stage: orpo` of `train:`, on hard labels: the likelier answer of a pair is the chosen one.

    Pairs with p = 0.5 are left out and reported as `undecided`; pairs of different weight are an error. As in the
    authors' code, the likelihood is that of the prompt and the chosen answer together.
    """

    stage: Literal["orpo"]
    data: Literal["preferences"] = "preferences"
    """What the stage learns from."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Weighs the odds ratio beside the likelihood of the chosen text (the paper's λ)."""


class _OnlineConfig(TrainConfig):
    data: Literal["prompts"] = "prompts"
    """What the stage learns from."""
    reward: str | None = None
    """Folder of the reward model; null takes the run's last."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Answers in a batch, of each process; for online_dpo prompts."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """The highest; it climbs over the first tenth of the updates and falls to a tenth of it."""
    save_every: Annotated[int, Field(ge=1)] = 5
    """Updates between checkpoints."""
    max_tokens: Annotated[int, Field(ge=1)] = 128
    """Of an answer."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """At which answers are sampled."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Off the score of an answer that runs into max_tokens."""
    uncertainty: Annotated[float, Field(ge=0)] = 0.0
    """How many standard deviations of an ensemble its mean is lowered by."""


class _GroupConfig(_OnlineConfig):
    generations: Annotated[int, Field(ge=2)] = 4
    """Answers to a prompt, which are compared with each other."""
    beta: Annotated[float, Field(ge=0)] = 0.05
    """Weighs the KL to the starting policy: of an answer in its reward (rloo), of each token in the loss (grpo)."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        answers = self.batch_size * self.accumulate
        if answers % self.generations:
            raise ValueError(
                f"batch_size × accumulate: an update on {answers} answers cannot hold all {self.generations} of each "
                "prompt; make it a multiple of generations"
            )
        return self


class RLOOConfig(_GroupConfig):
    """`stage: rloo` of `train:`; an update is one step on `batch_size` × `accumulate` answers."""

    stage: Literal["rloo"]


class GRPOConfig(_GroupConfig):
    """`stage: grpo` of `train:`; as `rloo`, but rewards are divided by the standard deviation of a prompt's answers.

    A `beta` of 0, trl's default, would let go of the starting policy.
    """

    stage: Literal["grpo"]


class OnlineDPOConfig(_OnlineConfig):
    """`stage: online_dpo` of `train:`; an update is one step of DPO on two answers to each of its prompts."""

    stage: Literal["online_dpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the starting policy."""


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
