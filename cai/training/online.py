"""Online training against a reward without a value function, by trl: RLOO (Ahmadian et al. 2024,
arXiv:2402.14740), GRPO (Shao et al. 2024, arXiv:2402.03300) and online DPO (Guo et al. 2024, arXiv:2402.04792).

The policy answers each prompt several times. RLOO and GRPO learn from how an answer's reward differs from that of the
others to the same prompt; online DPO makes a pair of two answers, the one with the higher reward being the chosen one.

    cai train rloo --data prompts.jsonl --model smollm2-135m --reward FOLDER
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.data.jsonl import read_rows
from cai.data.records import Messages, Prompt
from cai.training import distributed, trl_stage
from cai.training.launch import check_rows
from cai.training.reward_source import Loading, RewardSource, SampledAnswer, by_conversation, reward_source
from cai.training.settings import GRPOConfig, OnlineConfig, OnlineDPOConfig, RLOOConfig
from cai.training.stage import Ask, Report, StageSpec, nobody
from cai.training.tokens import PromptIds, prompt_ids, prompts_that_fit, stage_tokenizer, stop_tokens

OnlineStage = RLOOConfig | GRPOConfig | OnlineDPOConfig
Reward = Callable[..., list[float]]


class _Start(NamedTuple):
    tokenizer: Any
    policy: Any
    prompts: Any  # a Dataset with the column `prompt`
    reward: Reward
    metrics: Callable[[], dict[str, float]]  # of the reward


def train(spec: StageSpec[OnlineStage], report: Report, ask: Ask = nobody) -> None:
    """Train on a file of Prompt rows; writes `model/`, checkpoints and metrics.jsonl.

    Raises: CaiError when the prompts do not fill one update, or the reward model reads another vocabulary.
    """
    settings, start = spec.settings, _prepare(spec, report, ask)
    trainer, arguments = _trainer(spec)
    if not isinstance(settings, OnlineDPOConfig):  # trl drops what does not fill an update, and would train on nothing
        needed = arguments.generation_batch_size // settings.num_generations
        if len(start.prompts) < needed:
            raise CaiError(f"nothing to train on: an update takes {needed} prompts, and there are {len(start.prompts)}")
    trl_stage.train_and_save(
        trainer(
            model=start.policy,
            reward_funcs=start.reward,
            args=arguments,
            train_dataset=start.prompts,
            processing_class=start.tokenizer,
            peft_config=trl_stage.lora_config(settings),
        ),
        start.tokenizer,
        spec,
        report,
        start.metrics,
    )


def _prepare(spec: StageSpec[OnlineStage], report: Report, ask: Ask) -> _Start:
    import datasets
    from transformers import AutoModelForCausalLM

    settings, tokenizer = spec.settings, stage_tokenizer(spec.model, spec.chat)
    source, rows = reward_source(spec, tokenizer, ask), read_rows(spec.data, Prompt)
    limit = settings.max_length - settings.max_tokens
    fitting, unfit = prompts_that_fit(tokenizer, rows, limit, source.unrewarded(rows))
    check_rows(settings.stage, len(fitting))
    report({"examples": len(fitting), **unfit.event()})
    policy = AutoModelForCausalLM.from_pretrained(spec.model, **trl_stage.model_options(settings, spec.model))
    ends = stop_tokens(tokenizer, policy.generation_config)
    policy.generation_config.eos_token_id = sorted(ends)  # where trl stops sampling
    source.load(Loading(ends, distributed.device(), fsdp=settings.fsdp))
    return _Start(
        tokenizer,
        policy,
        datasets.Dataset.from_list([{"prompt": prompt.row.messages} for prompt in fitting]),
        reward_function(settings, source, fitting, ends),
        source.metrics,
    )


def reward_function(
    settings: OnlineConfig, source: RewardSource, prompts: Sequence[PromptIds], ends: set[int]
) -> Reward:
    """A reward for trl's trainers: the source's score of the token ids that the policy sampled to one of `prompts`.

    Tokens after the first of `ends` are padding. An answer without one gets its end here, and the penalty.
    """
    import torch

    from cai.training.reward_model import combined

    prompt_of = by_conversation(prompts)

    def reward(prompts: list[Messages], completion_ids: list[list[int]], **_: Any) -> list[float]:
        answers = [_up_to_end(ids, ends) for ids in completion_ids]
        sampled = [SampledAnswer(prompt_of(p), a) for p, a in zip(prompts, answers, strict=True)]
        scores = combined(source.scores(sampled), settings.uncertainty)
        scores -= settings.missing_eos_penalty * torch.tensor([a[-1] not in ends for a in answers])
        result: list[float] = scores.tolist()
        return result

    return reward


def _up_to_end(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids, 1) if token in ends), len(ids))
    return ids[:stop]


def keep_vllm_out_of_trl() -> None:
    """Let trl's online trainers, which sample with transformers here, not import vLLM, which takes long.

    Call it before they are imported.
    """
    from trl import import_utils

    import_utils.is_vllm_available = lambda min_version=None: False


def _trainer(spec: StageSpec[OnlineStage]) -> tuple[Any, Any]:
    """trl's trainer class for the stage, and its arguments."""
    keep_vllm_out_of_trl()
    settings = spec.settings
    arguments = trl_stage.trl_arguments(settings, spec.model, spec.folder, spec.seed)
    del arguments["model_init_kwargs"], arguments["max_length"]  # these trainers take the loaded policy
    arguments |= {"temperature": settings.temperature, "beta": settings.beta}
    if isinstance(settings, OnlineDPOConfig):
        from trl.experimental.online_dpo import OnlineDPOConfig as TrlOnlineDPOConfig

        arguments["gradient_checkpointing"] = False  # with it trl samples, and the saved policy too, without a cache
        arguments |= {"max_length": settings.max_length, "max_new_tokens": settings.max_tokens}
        return _online_dpo_reading_text(), trl_stage.trl_config(TrlOnlineDPOConfig, settings, arguments)
    import trl

    arguments |= {"num_generations": settings.num_generations, "max_completion_length": settings.max_tokens}
    if isinstance(settings, RLOOConfig):
        return _reading_text(trl.RLOOTrainer), trl_stage.trl_config(trl.RLOOConfig, settings, arguments)
    return _reading_text(trl.GRPOTrainer), trl_stage.trl_config(trl.GRPOConfig, settings, arguments)


def _reading_text(trainer: Any) -> Any:
    """trl's RLOOTrainer or GRPOTrainer that tokenizes prompts by `prompt_ids`."""

    class Trainer(trainer):  # type: ignore[misc]
        def _tokenize_prompts(self, prompts: list[Messages]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [prompt_ids(self.processing_class, messages) for messages in prompts], None, {}

    return Trainer


def _online_dpo_reading_text() -> Any:
    """trl's OnlineDPOTrainer that tokenizes prompts by `prompt_ids`; trl's own renders them and calls its tokenizer."""
    from trl.experimental.online_dpo import OnlineDPOTrainer

    class Trainer(OnlineDPOTrainer):  # type: ignore[misc]
        processing_class: Any

        def _generate(self, model: Any, prompts: list[Messages], images: None = None) -> Any:
            tokenizer = self.processing_class
            self.processing_class = _Tokenized(tokenizer, [prompt_ids(tokenizer, messages) for messages in prompts])
            try:
                return super()._generate(model, [""] * len(prompts), images)
            finally:
                self.processing_class = tokenizer

    return Trainer


class _Tokenized(NamedTuple):
    """Stands in for a tokenizer where prompts are token ids already."""

    tokenizer: Any
    prompts: list[list[int]]

    def __call__(self, **settings: Any) -> Any:
        """As the tokenizer's: a batch of tensors, padded at the left."""
        return self.tokenizer.pad({"input_ids": self.prompts}, padding_side="left", return_tensors="pt")
