"""Online training against a reward without a value function, by trl: RLOO (Ahmadian et al. 2024,
arXiv:2402.14740), GRPO (Shao et al. 2024, arXiv:2402.03300) and online DPO (Guo et al. 2024, arXiv:2402.04792).

The policy answers each prompt several times. RLOO and GRPO learn from how an answer's reward differs from that of the
others to the same prompt; online DPO makes a pair of two answers, the one with the higher reward being the chosen one.

    cai train rloo --data prompts.jsonl --model smollm2-135m --reward FOLDER
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.config.hashing import derive_seed
from cai.data.jsonl import read_rows
from cai.data.records import Messages, Prompt
from cai.training import distributed, trl_stage
from cai.training.checks import check_rows
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
    ends: set[int]  # the tokens that end an answer
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
    made = trainer(
        model=start.policy,
        reward_funcs=start.reward,
        args=arguments,
        train_dataset=start.prompts,
        processing_class=start.tokenizer,
        peft_config=trl_stage.lora_config(settings),
    )
    if settings.use_vllm:
        made.use_vllm, made.vllm_generation, made._last_loaded_step = True, _VllmGeneration(spec, made, start.ends), -1
    trl_stage.train_and_save(made, start.tokenizer, spec, report, start.metrics)


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
        ends,
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
    """Let trl's online trainers not import vLLM, which takes long; call it before they are imported."""
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


class _VllmGeneration:
    """Samples with the vLLM engine that PPO samples with; stands in for trl's VLLMGeneration.

    Each answer has a seed of its own, so that an update samples the same after an interruption.
    """

    def __init__(self, spec: StageSpec[OnlineStage], trainer: Any, ends: set[int]) -> None:
        from cai.training.ppo.sampling import VllmSampler

        answers = 2 if isinstance(spec.settings, OnlineDPOConfig) else 1  # of online DPO a batch is one of prompts
        at_once = answers * spec.settings.per_device_train_batch_size * spec.settings.gradient_accumulation_steps
        self._sampler = VllmSampler(spec.model, spec.settings, at_once)
        self._trainer, self._seed = trainer, spec.seed
        self._limits = spec.settings.max_tokens, spec.settings.temperature, ends
        self._drawn = 0, 0  # the update, and its answers so far

    def sync_weights(self) -> None:
        """Nothing: each batch comes with its weights."""

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple[Any, ...]:
        """As trl's: prompts, answers, and of each of their tokens a list of its log-probability and one of its id."""
        from cai.training.ppo.sampling import plain_weights

        update = self._trainer.state.global_step
        drawn = self._drawn[1] if self._drawn[0] == update else 0
        places = range(drawn, drawn + len(prompts))
        self._drawn = update, places.stop
        seeds = [derive_seed(self._seed, "answer", update, place) % 2**63 for place in places]
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        samples = self._sampler.generate(plain_weights(plain, "default"), prompts, seeds, *self._limits)
        answers = [sample.tokens for sample in samples]
        logps = [[[logp] for logp in sample.logps] for sample in samples]
        return prompts, answers, logps, [[[token] for token in answer] for answer in answers]


def _reading_text(trainer: Any) -> Any:
    """trl's RLOOTrainer or GRPOTrainer that tokenizes prompts by `prompt_ids`, in an order of each epoch's own.

    trl goes on with one generator from epoch to epoch, so that it would resume a later one in the first one's order.
    """
    from torch.utils.data import Sampler

    class ByEpoch(Sampler):  # type: ignore[misc]
        def __init__(self, sampler: Any, trainer: Any) -> None:
            self._sampler, self._trainer = sampler, trainer

        def __iter__(self) -> Iterator[int]:
            self._sampler.generator.manual_seed(self._sampler.seed + int(self._trainer.state.epoch or 0))
            return iter(self._sampler)

        def __len__(self) -> int:
            return len(self._sampler)

    class Trainer(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return ByEpoch(super()._get_train_sampler(dataset), self)

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
            if self.use_vllm:
                return self._generated_by_vllm([prompt_ids(tokenizer, messages) for messages in prompts] * 2)
            self.processing_class = _Tokenized(tokenizer, [prompt_ids(tokenizer, messages) for messages in prompts])
            try:
                return super()._generate(model, [""] * len(prompts), images)
            finally:
                self.processing_class = tokenizer

        def _generated_by_vllm(self, prompts: list[list[int]]) -> Any:
            import torch
            from trl.trainer.utils import pad

            _, answers, *_ = self.vllm_generation.generate(prompts)
            padded = []
            for rows, side in ((prompts, "left"), (answers, "right")):
                tensors = [torch.tensor(row, device=self.accelerator.device) for row in rows]
                padded.append(pad(tensors, self.processing_class.pad_token_id, side))
                padded.append(pad([torch.ones_like(tensor) for tensor in tensors], 0, side))
            return *padded, None

    return Trainer


class _Tokenized(NamedTuple):
    """Stands in for a tokenizer where prompts are token ids already."""

    tokenizer: Any
    prompts: list[list[int]]

    def __call__(self, **settings: Any) -> Any:
        """As the tokenizer's: a batch of tensors, padded at the left."""
        return self.tokenizer.pad({"input_ids": self.prompts}, padding_side="left", return_tensors="pt")
