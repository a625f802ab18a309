"""The settings of every stage of `train:`, under trl's and transformers' names. Light to import: no torch, no trl."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from cai.config.yaml_files import MOST_REPEATS, MOST_TOKENS, PositiveTemperature, Repeats, Section, Tokens
from cai.training.setting_parts import SMOOTHED, SOFT, Bits, LossType, Reward, SourceWeights, parts_of
from cai.training.tracking import Tracker, check_installed

DRAFTS = "drafts"  # the value of `mix` that is no file
FAR_OFF = 10.0  # times the default


class TrainConfig(Section):
    """What every entry of `train:` in a run file has."""

    learns_from: ClassVar[Literal["revisions", "preferences", "prompts"]]
    """The rows that the stage reads."""
    full_learning_rate: ClassVar[float] = 1e-6
    """What learning_rate is by default where all weights are trained: trl's for DPO, KTO, ORPO, GRPO and RLOO. Full
    fine-tuning takes about a tenth of a LoRA's rate (Schulman et al. 2025, "LoRA Without Regret"), and preference
    stages less than SFT (Rafailov et al. 2023, arXiv:2305.18290 appendix B: 1e-6)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Peak; it warms up over the first tenth of the updates and decays to a tenth of it. The default is that of a LoRA;
    without one it is 1e-5 in sft and reward, and 1e-6 in other stages."""
    per_device_train_batch_size: Repeats = 4
    """Examples in a batch, of each process."""
    gradient_accumulation_steps: Repeats = 1
    """Batches for each update."""
    lora_r: Annotated[int, Field(ge=1)] | None = 16
    """Rank of a LoRA; null trains all weights."""
    lora_alpha: Annotated[int, Field(ge=1)] | None = None
    """The LoRA's scale is lora_alpha / lora_r; null is twice the rank, as is usual since Hu et al. 2021
    (arXiv:2106.09685)."""
    lora_target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """The layers that get a LoRA, by the ends of their names, such as [q_proj, v_proj]; or every linear one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights below a LoRA, which stay as they are; auto is bfloat16 on a GPU, else float32. What is trained is
    float32, and a policy is saved in the type of the weights that its LoRA was added to."""
    save_dtype: Literal["float32", "bfloat16"] | None = None
    """Of the saved policy; null is the type of the weights that a LoRA was added to, and float32 without one."""
    quantization: Bits | None = None
    """Hold the weights below a LoRA in 4 or 8 bits while it trains, by bitsandbytes (QLoRA, Dettmers et al. 2023,
    arXiv:2305.14314); the saved policy is not quantized."""
    gradient_checkpointing: bool | None = None
    """Compute activations again in the backward pass, which takes less memory and one more forward pass (Chen et al.
    2016, arXiv:1604.06174); null does so on a GPU."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        None
    )
    """Attention of transformers; null is its choice for the model and device."""
    max_length: Annotated[int, Field(ge=8, le=MOST_TOKENS)] = 1024
    """Tokens of prompt and answer; longer ones are truncated at the end."""
    save_steps: Annotated[int, Field(ge=1)] = 20
    """Updates between checkpoints."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state over the launcher's processes by FSDP2, in place of a whole copy in
    each; does not affect the run's identity."""
    report_to: Annotated[list[Tracker], AfterValidator(check_installed)] = []
    """Trackers that get the metrics beside metrics.jsonl; does not affect the result."""

    @property
    def files(self) -> dict[str, str]:
        """The files of answers that it names, by setting."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _rate_of_all_weights(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("lora_r", 0) is None:
            return {"learning_rate": cls.full_learning_rate, **data}
        return data

    @model_validator(mode="after")
    def _settings_of_a_lora(self) -> Self:
        if self.lora_r is None:
            for name in sorted({"lora_alpha", "lora_dropout", "lora_target_modules"} & self.model_fields_set):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: there is no LoRA, because lora_r is null")
            if self.dtype == "bfloat16":
                raise ValueError("dtype: all weights are trained, because lora_r is null, and that is in float32")
            if self.quantization is not None:
                raise ValueError("quantization: needs a LoRA; all weights are trained, because lora_r is null")
        return self

    @property
    def usual_learning_rate(self) -> float:
        """The default of this stage, with or without a LoRA."""
        lora: float = type(self).model_fields["learning_rate"].default
        return self.full_learning_rate if self.lora_r is None else lora

    def rate_warning(self) -> str | None:
        """What is to be said of a learning rate that is FAR_OFF times the usual one, or a fraction of it; or None."""
        factor = self.learning_rate / self.usual_learning_rate
        if 1 / FAR_OFF < factor < FAR_OFF:
            return None
        kind = "all weights" if self.lora_r is None else "a LoRA"
        return (
            f"learning_rate {self.learning_rate:g} is {'above' if factor > 1 else 'below'} the usual one for {kind}, "
            f"{self.usual_learning_rate:g}, by a factor of {max(factor, 1 / factor):.0f}"
        )


class DatasetConfig(TrainConfig):
    """Settings of the stages that pass over a dataset, which trl trains."""

    num_train_epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """Passes over the data."""
    trl: dict[str, JsonValue] = {}
    """Other arguments of trl's config of the stage, such as {optim: adamw_8bit, packing: true}."""


Truncated = Literal["skip", "open"]


class AnswersConfig(DatasetConfig):
    """Settings of the stages that learn from answers in a file."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a LoRA's inputs that are dropped in training."""
    truncated: Truncated = "skip"
    """Answers that ran into their limit: skip their rows, or learn them without the token that would end them."""


class PreferenceConfig(AnswersConfig):
    """Settings of the stages that learn from preferences."""

    learns_from = "preferences"
    data: SourceWeights = SourceWeights()
    """Weight of a pair in the loss by its source, relative to others; 0 leaves the source out."""


class SFTConfig(AnswersConfig):
    """`stage: sft` of `train:`; trains on the revisions that pass the filters, or on a file of completions."""

    learns_from = "revisions"
    full_learning_rate = 1e-5  # trl's default is 2e-5, Tülu 3's 5e-6 at 8B (Lambert et al. 2024, arXiv:2411.15124)
    stage: Literal["sft"]
    rounds: Literal["all", "last"] = "all"
    """The revisions of all rounds, as the paper has it, or each prompt's last alone."""
    mix: str | None = DRAFTS
    """Helpful answers that keep the model helpful, as in the paper: `drafts` are the model's own to the prompts with a
    tag of `mix_tags`, in place of their revisions; or a file of answers (`cai/data/prompts.py`); null mixes none."""
    mix_tags: list[str] = ["ordinary", "helpful"]
    """Tags of the ordinary prompts whose drafts are mixed in."""
    mix_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of all examples drawn from it by the seed; if it holds too few, all are used and the share is reported."""

    @property
    def mix_file(self) -> str | None:
        """The file of helpful answers, if there is one."""
        return None if self.mix == DRAFTS else self.mix

    @property
    def files(self) -> dict[str, str]:
        """The file of `mix`, if there is one."""
        return {} if self.mix_file is None else {"mix": self.mix_file}


class RewardConfig(PreferenceConfig):
    """`stage: reward` of `train:`; the result is a reward model, not a policy."""

    full_learning_rate = 1e-5  # 9e-6 in Ouyang et al. 2022 (arXiv:2203.02155 appendix C)
    stage: Literal["reward"]
    members: Annotated[int, Field(ge=1, le=16)] = 1
    """Reward models in the ensemble, each trained on its own bootstrap of the prompts."""
    center_rewards_coefficient: Annotated[float, Field(ge=0)] = 0.01
    """Pulls rewards to zero mean (Eisenstein et al. 2023, arXiv:2312.09244 §3)."""
    length_control: Annotated[float, Field(ge=0)] = 0.0
    """Weight in the loss of the R² of reward on length."""
    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of prompts kept from training to report on."""

    @model_validator(mode="after")
    def _is_no_policy(self) -> "RewardConfig":
        if self.save_dtype is not None:
            raise ValueError("save_dtype: is of policies; a reward model's LoRA and head are saved in float32")
        return self

    @model_validator(mode="after")
    def _ensemble_needs_lora(self) -> "RewardConfig":
        if self.members > 1 and self.lora_r is None:
            raise ValueError("an ensemble shares one copy of the weights: members above 1 need a lora_r")
        return self


class SamplingConfig(Section):
    """Settings of the stages that sample answers to prompts, and score them."""

    reward: Reward = None
    """Folder of the reward model, or folder or Hub id of a sequence classifier with one label; null takes the run's
    last; `judge`: the run's judge rates each answer by the constitution; a list sums up several, each with a weight."""
    uncertainty: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviations of an ensemble's scores subtracted from their mean."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Subtracted from the score of an answer that is truncated at max_tokens."""
    max_tokens: Tokens = 128
    """Most tokens of an answer."""
    temperature: PositiveTemperature = 1.0
    """Sampling temperature, at which the probabilities of the loss are taken too."""
    use_vllm: bool = False
    """Sample with a vLLM engine in the same process, which holds a second copy of the weights."""
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of a GPU's memory for that engine."""
    vllm_enable_sleep_mode: bool = False
    """Give that memory back while the policy learns, which moves weights to and fro in each update. On a GPU."""

    @model_validator(mode="after")
    def _an_engine_is_there(self) -> Self:
        for name in ("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"):
            if not self.use_vllm and getattr(self, name) != SamplingConfig.model_fields[name].default:
                raise ValueError(f"{name}: is of the engine that samples; set use_vllm: true")
        return self


class PPOConfig(TrainConfig, SamplingConfig):
    """`stage: ppo` of `train:`."""

    learns_from = "prompts"
    stage: Literal["ppo"]
    updates: Repeats = 50
    """Updates in all; each samples answers and makes passes over them."""
    rollouts: Annotated[int, Field(ge=2, le=MOST_REPEATS)] = 32
    """Answers sampled for an update."""
    num_ppo_epochs: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Passes over the answers of an update."""
    per_device_train_batch_size: Repeats = 2
    """Answers in a forward pass, which bounds the memory: a step's loss is the mean over all its tokens."""
    gradient_accumulation_steps: Repeats = 4
    """Batches for each step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    """Constant over all updates; without a LoRA by default 1e-6."""
    save_steps: Annotated[int, Field(ge=1)] = 5
    """Updates between checkpoints."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Penalty on a token for each nat of KL to the starting policy; with target_kl its first value."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """Nats per answer that kl_coef adapts to; 6 in Ziegler et al. 2019 §2.2."""
    kl_horizon: Annotated[float, Field(gt=0)] = 100.0
    """Answers over which kl_coef adapts: an update far from target_kl changes it by 20 % × rollouts / kl_horizon, and
    20 % at most. With 32 rollouts it doubles in 11 updates; Ziegler et al. 2019, with K_β = 0.1, take 35."""
    kl_stop: Annotated[float, Field(gt=0)] | None = 0.1
    """Nats per token: a step that moves the policy farther ends the passes over these answers."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount factor of rewards, per token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)."""
    cliprange: Annotated[float, Field(gt=0)] = 0.2
    """Clip range of the ratio of new to old probabilities (Schulman et al. 2017, arXiv:1707.06347)."""
    cliprange_value: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from its old one in the loss."""
    vf_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value function's loss."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy in the loss."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient clipping: longer gradients are scaled down to this norm."""
    ptx: str | None = None
    """File of answers (`cai/data/prompts.py`) that the policy learns beside the reward, as in SFT: PPO-ptx (Ouyang et
    al. 2022, arXiv:2203.02155 §3.5). Each step draws as many as it has rollouts."""
    ptx_coef: Annotated[float, Field(gt=0)] = 1.0
    """Weight of their loss, the mean over their tokens in nats. The default is cai's own; Ouyang et al. have 27.8, but
    do not say of which mean."""
    value: Literal["shared", "separate"] = "shared"
    """The value function reads the policy's own hidden states, or those of an adapter or model of its own."""
    value_init: Literal["policy", "reward"] = "policy"
    """A separate value function starts as the policy with a head of 0, or as the (first) reward model (Ouyang et al.
    2022, arXiv:2203.02155 §3.5)."""
    whiten_rewards: bool = False
    """Divide the rewards of an update by their standard deviation over its tokens, as trl does."""
    score_clip: Annotated[float, Field(gt=0)] | None = None
    """Most that the score of an answer counts, up or down."""
    vllm_importance_sampling_clip_max: Annotated[float, Field(gt=0)] | None = None
    """Weigh the policy's loss on a token by the trainer's probability over vLLM's, cut off here, as trl does by its
    `token_truncate`; 2 in Yao et al. 2025 (fengyao.notion.site/off-policy-rl). Null only reports how they differ."""
    sample_steps: Annotated[int, Field(ge=1)] = 5
    """Updates between samples of answers in samples.jsonl."""

    @property
    def files(self) -> dict[str, str]:
        """The file of `ptx`, if there is one."""
        return {} if self.ptx is None else {"ptx": self.ptx}

    @model_validator(mode="after")
    def _a_coefficient_weighs_something(self) -> Self:
        if self.ptx is None and self.ptx_coef != type(self).model_fields["ptx_coef"].default:
            raise ValueError("ptx_coef: weighs the loss on the answers of `ptx`, which names no file")
        return self

    @model_validator(mode="after")
    def _one_adapter_is_recomputed(self) -> Self:
        if self.gradient_checkpointing and self.value == "separate" and self.lora_r is not None:
            raise ValueError("gradient_checkpointing: with a LoRA it needs `value: shared`")
        return self

    @model_validator(mode="after")
    def _one_sampler_differs(self) -> Self:
        if self.vllm_importance_sampling_clip_max is not None and not self.use_vllm:
            raise ValueError("vllm_importance_sampling_clip_max: corrects for vLLM's samples; set use_vllm: true")
        return self

    @model_validator(mode="after")
    def _a_value_function_of_its_own_is_a_reward_model(self) -> Self:
        if self.value_init == "reward" and self.value == "shared":
            raise ValueError("value_init: `reward` needs `value: separate`; a shared one is the policy itself")
        return self


class DPOConfig(PreferenceConfig):
    """`stage: dpo` of `train:`.

    The losses that train on hard labels skip pairs with p = 0.5, reported as `undecided`, and refuse pairs of different
    weight.
    """

    stage: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference, as in the paper."""
    loss_type: LossType = "sigmoid"
    """Any of trl's; sigmoid, ipo and robust take soft labels and weights, the others train on the likelier answer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong, beyond what p says; exo_pair needs some."""

    @model_validator(mode="after")
    def _smoothing_has_an_effect(self) -> Self:
        if self.label_smoothing > 0 and self.loss_type not in SMOOTHED:
            raise ValueError(
                f"label_smoothing: the loss {self.loss_type} ignores it; only {', '.join(SMOOTHED)} use it"
            )
        if self.label_smoothing == 0 and self.loss_type == "exo_pair":
            raise ValueError("label_smoothing: the loss exo_pair needs it above 0, such as 0.001")
        return self


class KTOConfig(PreferenceConfig):
    """`stage: kto` of `train:`: the likelier answer of a pair as a desirable one, the other as undesirable.

    Pairs with p = 0.5 are skipped and reported as `undecided`; pairs of different weight are an error.
    """

    stage: Literal["kto"]
    per_device_train_batch_size: Annotated[int, Field(ge=2, le=MOST_REPEATS)] = 4
    """Examples in a batch, of each process; at least 2: answers to its other prompts give the KL term's estimate."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference, as in the paper."""


class ORPOConfig(PreferenceConfig):
    """`stage: orpo` of `train:`, on hard labels: the likelier answer of a pair is the chosen one.

    Pairs with p = 0.5 are skipped and reported as `undecided`; pairs of different weight are an error. As in the
    authors' code, the likelihood is that of the prompt and the chosen answer together.
    """

    stage: Literal["orpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Weighs the odds ratio beside the likelihood of the chosen text (the paper's λ)."""


class OnlineConfig(DatasetConfig, SamplingConfig):
    """Settings of the stages that sample answers and score them by a reward model, trained by trl."""

    learns_from = "prompts"
    per_device_train_batch_size: Repeats = 8
    """Answers in a batch, of each process; for online_dpo prompts."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5
    """Peak; it warms up over the first tenth of the updates and decays to a tenth of it. Without a LoRA 1e-6."""
    save_steps: Annotated[int, Field(ge=1)] = 5
    """Updates between checkpoints."""


class _GroupConfig(OnlineConfig):
    num_generations: Annotated[int, Field(ge=2, le=MOST_REPEATS)] = 4
    """Answers to a prompt, compared with each other."""
    beta: Annotated[float, Field(ge=0)] = 0.05
    """KL coefficient to the starting policy: of an answer in its reward (rloo), of each token in the loss (grpo)."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        answers = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if answers % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size × gradient_accumulation_steps: an update on {answers} answers cannot "
                f"hold all {self.num_generations} of each prompt; make it a multiple of num_generations"
            )
        return self


class RLOOConfig(_GroupConfig):
    """`stage: rloo` of `train:`; an update is one step on
    `per_device_train_batch_size` × `gradient_accumulation_steps` answers."""

    stage: Literal["rloo"]


class GRPOConfig(_GroupConfig):
    """`stage: grpo` of `train:`; as `rloo`, but rewards are divided by the standard deviation of a prompt's answers.

    A `beta` of 0, trl's default, would leave the policy free of the starting policy.
    """

    stage: Literal["grpo"]


class OnlineDPOConfig(OnlineConfig):
    """`stage: online_dpo` of `train:`; an update is one step of DPO on two answers to each of its prompts."""

    stage: Literal["online_dpo"]
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the starting policy."""

    @model_validator(mode="after")
    def _samples_with_a_cache(self) -> Self:
        if self.gradient_checkpointing:
            raise ValueError("gradient_checkpointing: trl's online_dpo would sample without a cache of keys and values")
        return self


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
"""The stages that sample answers to prompts and score them by a reward model or the judge."""


def judged(settings: TrainConfig) -> bool:
    """Whether a stage's answers are rewarded by the run's judge."""
    return isinstance(settings, Online) and any(part.judge for part in parts_of(settings.reward))


def weighs_pairs(settings: TrainConfig) -> bool:
    """Whether a stage's loss takes soft labels and the weight of a pair."""
    return isinstance(settings, RewardConfig) or (isinstance(settings, DPOConfig) and settings.loss_type in SOFT)
