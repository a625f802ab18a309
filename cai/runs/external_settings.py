"""The settings of an online stage under the names of verl 0.9.1 and OpenRLHF 0.11.0.

The names are those of verl's configuration and of OpenRLHF's command line; neither was run.
"""

import math
from typing import NamedTuple

from cai.config.errors import CaiError
from cai.training.settings import GRPOConfig, PPOConfig, RLOOConfig

Stage = PPOConfig | GRPOConfig | RLOOConfig
REWARDED = ("uncertainty", "missing_eos_penalty", "score_clip")  # settings that the reward function applies
NAMED = ("stage", "reward", *REWARDED)  # settings that are in the folder, but are none of the trainer's
NO_COUNTERPART = {
    "target_kl": "nats per answer; the trainer adapts to nats per token, so kl_coef stays as it is",
    "kl_horizon": "as target_kl",
    "vf_coef": "the value function is a model of its own, with its own optimizer",
    "value": "the value function is a model of its own",
    "use_vllm": "answers are always sampled by vLLM",
    "fsdp": "weights are always sharded",
}
"""Why a setting of cai's has none there, where its name does not say; shown with its value."""


class Setting(NamedTuple):
    """A setting of cai's stage, and the arguments that it becomes."""

    name: str
    arguments: list[str]


class Size(NamedTuple):
    """How much a stage trains, in what the trainers count."""

    prompts: int
    """Of an update."""
    answers: int
    """To a prompt."""
    step: int
    """Answers of an optimizer step."""
    updates: int
    passes: int
    """Over the prompts, in whole ones."""


def stage_size(settings: Stage, prompts: int) -> Size:
    """The sizes of a stage with so many prompts. Raises: CaiError for fewer than an update has."""
    step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    if isinstance(settings, PPOConfig):
        each, answers, updates, setting = settings.rollouts, 1, settings.updates, "rollouts"
        step = min(step, each)
    else:
        each, answers = step // settings.num_generations, settings.num_generations
        setting = "per_device_train_batch_size × gradient_accumulation_steps / num_generations"
        updates = max(1, math.ceil(settings.num_train_epochs * prompts / each))
    if prompts < each:
        raise CaiError(f"{settings.stage}: an update has {each} prompts ({setting}), and only {prompts} are usable")
    return Size(each, answers, step, updates, math.ceil(updates * each / prompts))


def verl_settings(s: Stage, seed: int, size: Size) -> list[Setting]:
    """The settings of a stage as overrides of verl's configuration."""
    actor, critic = "actor_rollout_ref.actor", "critic"
    rollout, model = "actor_rollout_ref.rollout", "actor_rollout_ref.model"
    ppo = isinstance(s, PPOConfig)
    both = [actor, critic] if ppo else [actor]
    models = [model, f"{critic}.model"] if ppo else [model]
    micro = s.per_device_train_batch_size
    layers = s.lora_target_modules if isinstance(s.lora_target_modules, str) else f"[{','.join(s.lora_target_modules)}]"
    lora = [f"{each}.lora_rank={s.lora_r or 0}" for each in models]
    if s.lora_r:
        lora.append(f"{rollout}.load_format=safetensors")  # which vLLM needs for a LoRA, by verl's documentation
    alpha = [f"{each}.lora_alpha={s.lora_alpha or 2 * s.lora_r}" for each in models] if s.lora_r else []
    settings = [
        Setting("max_length", [f"data.max_prompt_length={s.max_length - s.max_tokens}"]),
        Setting("max_tokens", [f"data.max_response_length={s.max_tokens}"]),
        Setting("temperature", [f"{rollout}.temperature={s.temperature}"]),
        Setting("seed", [f"data.seed={seed}", f"{rollout}.seed={seed}"]),
        Setting("learning_rate", [f"{each}.optim.lr={s.learning_rate}" for each in both]),
        Setting("no weight decay", [f"{each}.optim.weight_decay=0.0" for each in both]),
        Setting(
            "per_device_train_batch_size",
            [f"{each}.ppo_micro_batch_size_per_gpu={micro}" for each in both]
            + [f"{each}.log_prob_micro_batch_size_per_gpu={micro}" for each in (rollout, "actor_rollout_ref.ref")],
        ),
        Setting("gradient_accumulation_steps", [f"{actor}.ppo_mini_batch_size={size.step // size.answers}"]),
        Setting("lora_r", lora),
        Setting("lora_alpha", alpha),
        Setting("lora_target_modules", [f"{each}.target_modules={layers}" for each in models] if s.lora_r else []),
        Setting(
            "gradient_checkpointing",
            [f"{each}.enable_gradient_checkpointing={s.gradient_checkpointing is not False}" for each in models],
        ),
        Setting("save_steps", [f"trainer.save_freq={s.save_steps}"]),
    ]
    total = [f"trainer.total_training_steps={size.updates}", f"trainer.total_epochs={size.passes}"]
    sampled = [f"data.train_batch_size={size.prompts}", f"{rollout}.n={size.answers}"]
    return settings + (_verl_ppo(s, total, sampled) if isinstance(s, PPOConfig) else _verl_group(s, total, sampled))


def _verl_ppo(s: PPOConfig, total: list[str], sampled: list[str]) -> list[Setting]:
    actor, correction, clip = (
        "actor_rollout_ref.actor",
        "algorithm.rollout_correction",
        s.vllm_importance_sampling_clip_max,
    )
    return [
        Setting("stage", ["algorithm.adv_estimator=gae"]),
        Setting("updates", total),
        Setting("rollouts", sampled),
        Setting("num_ppo_epochs", [f"{actor}.ppo_epochs={s.num_ppo_epochs}"]),
        Setting(
            "kl_coef",
            [
                "algorithm.use_kl_in_reward=True",
                "algorithm.kl_ctrl.type=fixed",
                f"algorithm.kl_ctrl.kl_coef={s.kl_coef}",
            ],
        ),
        Setting("gamma", [f"algorithm.gamma={s.gamma}"]),
        Setting("lam", [f"algorithm.lam={s.lam}"]),
        Setting("cliprange", [f"{actor}.clip_ratio{side}={s.cliprange}" for side in ("", "_low", "_high")]),
        Setting("cliprange_value", [f"critic.cliprange_value={s.cliprange_value}"]),
        Setting("entropy_coef", [f"{actor}.entropy_coeff={s.entropy_coef}"]),
        Setting("max_grad_norm", [f"{each}.optim.clip_grad={s.max_grad_norm}" for each in (actor, "critic")]),
        Setting(
            "vllm_importance_sampling_clip_max",
            [f"{correction}.rollout_is=token", f"{correction}.rollout_is_threshold={clip}"] if clip else [],
        ),
    ]


def _verl_group(s: GRPOConfig | RLOOConfig, total: list[str], sampled: list[str]) -> list[Setting]:
    actor, optim = "actor_rollout_ref.actor", "actor_rollout_ref.actor.optim"
    if isinstance(s, GRPOConfig):
        kl = [f"{actor}.use_kl_loss=True", f"{actor}.kl_loss_coef={s.beta}", f"{actor}.kl_loss_type=low_var_kl"]
    else:
        kl = ["algorithm.use_kl_in_reward=True", "algorithm.kl_ctrl.type=fixed", f"algorithm.kl_ctrl.kl_coef={s.beta}"]
    schedule = ["lr_scheduler_type=cosine", "lr_warmup_steps_ratio=0.1", "min_lr_ratio=0.1"]
    return [
        Setting("stage", [f"algorithm.adv_estimator={s.stage}"]),
        Setting("num_train_epochs", total),
        Setting("num_generations", sampled),
        Setting("beta", kl),
        Setting("schedule of the learning rate", [f"{optim}.{each}" for each in schedule]),
    ]


def openrlhf_settings(s: Stage, seed: int, size: Size) -> list[Setting]:
    """The settings of a stage as options of OpenRLHF's command line."""
    both = ["actor", "critic"] if isinstance(s, PPOConfig) else ["actor"]
    layers = [] if isinstance(s.lora_target_modules, str) else s.lora_target_modules  # by default all-linear
    settings = [
        Setting("max_length", [f"--data.max_len {s.max_length}"]),
        Setting("max_tokens", [f"--rollout.max_new_tokens {s.max_tokens}"]),
        Setting("temperature", [f"--rollout.temperature {s.temperature}"]),
        Setting("seed", [f"--train.seed {seed}"]),
        Setting("learning_rate", [f"--{each}.adam.lr {s.learning_rate}" for each in both]),
        Setting("betas of AdamW", [f"--{each}.adam.betas 0.9 0.999" for each in both]),
        Setting(
            "per_device_train_batch_size",
            [f"--{part}.micro_batch_size {s.per_device_train_batch_size}" for part in ("train", "rollout")],
        ),
        Setting("gradient_accumulation_steps", [f"--train.batch_size {size.step}"]),
        Setting("lora_r", [f"--ds.lora.rank {s.lora_r or 0}"]),
        Setting("lora_alpha", [f"--ds.lora.alpha {s.lora_alpha or 2 * s.lora_r}"] if s.lora_r else []),
        Setting("lora_target_modules", [f"--ds.lora.target_modules {' '.join(layers)}"] if layers else []),
        Setting(
            "gradient_checkpointing",
            [] if s.gradient_checkpointing is False else ["--actor.gradient_checkpointing_enable"],
        ),
        Setting("save_steps", [f"--ckpt.save_steps {s.save_steps}", "--ckpt.save_hf"]),
        *([Setting("quantization", ["--ds.load_in_4bit"])] if s.quantization == "4bit" else []),
        *(
            [Setting("attn_implementation", [f"--ds.attn_implementation {s.attn_implementation}"])]
            if s.attn_implementation
            else []
        ),
        Setting("scores unclipped here", ["--reward.clip_range -1000000 1000000"]),  # by default 10, which is theirs
    ]
    sampled = [f"--rollout.batch_size {size.prompts}", f"--rollout.n_samples_per_prompt {size.answers}"]
    total = [f"--train.num_episodes {size.passes}"]
    if isinstance(s, PPOConfig):
        return settings + _openrlhf_ppo(s, total, sampled)
    schedule = ["lr_scheduler cosine_with_min_lr", "lr_warmup_ratio 0.1", "min_lr_ratio 0.1"]
    grpo = isinstance(s, GRPOConfig)
    in_loss = ["--algo.kl.use_loss", "--algo.kl.estimator k3"] if grpo else []
    return [
        *settings,
        Setting("stage", [f"--algo.advantage.estimator {'group_norm' if grpo else 'rloo'}"]),
        Setting("num_train_epochs", total),
        Setting("num_generations", sampled),
        Setting("beta", [f"--algo.kl.init_coef {s.beta}", *in_loss]),
        Setting("schedule of the learning rate", [f"--actor.{each}" for each in schedule]),
    ]


def _openrlhf_ppo(s: PPOConfig, total: list[str], sampled: list[str]) -> list[Setting]:
    clip = s.vllm_importance_sampling_clip_max
    constant = ["lr_scheduler constant", "lr_warmup_ratio 0.0"]
    return [
        Setting("stage", ["--algo.advantage.estimator gae"]),
        Setting("updates", total),
        Setting("rollouts", sampled),
        Setting("num_ppo_epochs", [f"--train.max_epochs {s.num_ppo_epochs}"]),
        Setting("constant learning rate", [f"--{each}.{part}" for each in ("actor", "critic") for part in constant]),
        Setting("kl_coef", [f"--algo.kl.init_coef {s.kl_coef}", "--algo.kl.estimator k1"]),
        Setting("gamma", [f"--algo.advantage.gamma {s.gamma}"]),
        Setting("lam", [f"--algo.advantage.lambd {s.lam}"]),
        Setting("cliprange", [f"--actor.eps_clip {s.cliprange}"]),
        Setting("cliprange_value", [f"--critic.value_clip {s.cliprange_value}"]),
        Setting("entropy_coef", [f"--actor.entropy_coef {s.entropy_coef}"]),
        Setting("max_grad_norm", [f"--{each}.max_norm {s.max_grad_norm}" for each in ("actor", "critic")]),
        Setting(
            "vllm_importance_sampling_clip_max",
            ["--algo.advantage.is_correction_enable", f"--algo.advantage.is_correction_threshold 0 {clip}"]
            if clip
            else [],
        ),
    ]
