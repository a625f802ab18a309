"""Sampling answers from the policy in training, by its own forward passes or by vLLM. Imports torch: import lazily."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from cai.inference.engine import EngineConfig
from cai.inference.vllm_settings import load_engine
from cai.training import distributed, sharding
from cai.training.settings import OnlineConfig, PPOConfig


class Sample(NamedTuple):
    """A sampled response, as token ids, and the log-probability with which each token was drawn."""

    tokens: list[int]
    logps: list[float]


@dataclass
class Rollout:
    """One answer of the policy; the tensors have the shape (response tokens,)."""

    prompt: list[int]
    response: list[int]  # with the token that ended it, unless it ran into the limit
    finished: bool
    sampler_logps: Tensor  # with which the sampler drew the tokens
    logps: Tensor  # as the training's own forward pass computes them
    reference_logps: Tensor
    values: Tensor
    entropy: float  # mean over the tokens, in nats
    scores: list[float]  # by each member of the reward model, before any penalty
    advantages: Tensor | None = None
    returns: Tensor | None = None


@dataclass
class Batch:
    """Prompts padded at the left and responses at the right, so that all responses begin in the same column."""

    ids: Tensor  # (sequences, prompt + response)
    attention: Tensor
    positions: Tensor
    responses: Tensor  # (sequences, response)
    mask: Tensor  # 1 on response tokens

    @property
    def predicting(self) -> Tensor:
        """The columns in which the response tokens are chosen, one before each."""
        columns = self.ids.shape[1]
        return torch.arange(columns - self.responses.shape[1] - 1, columns - 1, device=self.ids.device)


def padded(rollouts: Sequence[tuple[list[int], list[int]]], device: str) -> Batch:
    """A batch of (prompt, response) pairs."""
    left, right = (max(len(pair[i]) for pair in rollouts) for i in (0, 1))
    ids, attention = [], []
    for prompt, response in rollouts:
        before, after = left - len(prompt), right - len(response)
        ids.append([0] * before + prompt + response + [0] * after)
        attention.append([0] * before + [1] * (len(prompt) + len(response)) + [0] * after)
    all_ids, mask = torch.tensor(ids, device=device), torch.tensor(attention, device=device)
    return Batch(all_ids, mask, (mask.cumsum(1) - 1).clamp_min(0), all_ids[:, left:], mask[:, left:].float())


@torch.no_grad()  # type: ignore[untyped-decorator]
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    uniforms: Tensor,
    temperature: float,
    ends: set[int],
) -> list[Sample]:
    """A sampled response to each prompt, in one batch with a key-value cache; finished rows leave the batch.

    Args: a causal language model; uniforms of shape (prompts, tokens at most), in [0, 1): the randomness of each token,
    so that what is sampled for a prompt does not depend on its neighbours. A response ends with a token of `ends` or at
    the limit. The passes of a sharded model are those of all processes, until the last of them has its responses.
    """
    device, sharded = uniforms.device, sharding.is_sharded(model)
    batch = padded([(prompt, []) for prompt in prompts], str(device))
    ids, mask, positions = batch.ids, batch.attention, batch.positions
    cache, stop = DynamicCache(config=model.config), torch.tensor(sorted(ends), device=device)
    rows = torch.arange(len(prompts), device=device)
    responses = [Sample([], []) for _ in prompts]
    for t in range(uniforms.shape[1]):
        with distributed.autocast():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        logits = logits.float() / temperature
        tokens = sampled(logits, uniforms[rows, t])
        logps = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        for row, token, logp in zip(rows.tolist(), tokens.tolist(), logps.tolist(), strict=True):
            responses[row].tokens.append(token)
            responses[row].logps.append(logp)
        going = ~torch.isin(tokens, stop)
        unfinished = t + 1 < uniforms.shape[1] and bool(going.any())
        if sharded and not distributed.any_process(unfinished):
            break
        if not unfinished:
            if sharded:
                _accompany(model, ids[:1, :1])
            break
        if not going.all():
            cache.batch_select_indices(going.nonzero()[:, 0])
            rows, tokens, mask, positions = rows[going], tokens[going], mask[going], positions[going]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        ids, positions = tokens[:, None], positions[:, -1:] + 1
    return responses


def _accompany(model: Any, ids: Tensor) -> None:
    """Passes that lead nowhere, as many as the other processes still make to sample from a sharded model."""
    while True:
        with distributed.autocast():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
        if not distributed.any_process(False):
            return


def sampled(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The token at quantile `uniforms` of each row's distribution: logits (rows, vocabulary), uniforms (rows,)."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    point = uniforms[:, None] * cumulative[:, -1:]  # the last sum is 1 but for rounding
    return torch.searchsorted(cumulative, point, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def plain_weights(model: Any, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """A model's weights with a LoRA of its layers in them, under a plain model's names, one at a time.

    The model, which may have no LoRA, does not change.
    """
    from peft.utils.integrations import dequantize_module_weight

    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield f"{name}.weight", dequantize_module_weight(module.base_layer) + module.get_delta_weight(adapter)
    for name, parameter in model.named_parameters():
        plain, owner = name.replace(".base_layer.", "."), model.get_submodule(name.rpartition(".")[0])
        if ".lora_" not in name and not (name != plain and name.endswith(".weight")):
            yield plain, dequantize_module_weight(owner) if name.endswith(".weight") else parameter


class VllmSampler:
    """A vLLM engine in this process: a second copy of the policy, which loads its weights before each batch.

    Args: folder of the model that training starts from; the stage's settings, whose max_length is in tokens of prompt
    and response; `concurrency`, the most responses sampled together.
    Raises: CaiError when vLLM is missing or cannot hold `max_length`.
    """

    def __init__(self, folder: Path, settings: PPOConfig | OnlineConfig, concurrency: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process weights are handed over in memory
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # training needs the same cores
        config = EngineConfig(max_model_len=settings.max_length, concurrency=concurrency)
        self._sleeps = settings.vllm_enable_sleep_mode
        # Its log-probabilities are to be those of the distribution that it samples from, at the temperature.
        more: dict[str, Any] = {"logprobs_mode": "processed_logprobs", "enable_sleep_mode": self._sleeps}
        more["gpu_memory_utilization"] = settings.vllm_gpu_memory_utilization
        self._llm = load_engine(folder, config, **more)
        self._sleep()

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=2)  # drops the weights as well, which come with the next batch

    def generate(
        self,
        weights: Iterable[tuple[str, Tensor]],
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        max_tokens: int,
        temperature: float,
        ends: set[int],
    ) -> list[Sample]:
        """A response to each prompt, sampled with its own seed from a policy of these weights.

        Args: weights by the names that the model's files have. A response ends with a token of `ends` or at the limit.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self._sleeps:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self._sleeps:
            self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()  # its entries were computed by older weights
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            sampling = SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop_token_ids=sorted(ends),
                ignore_eos=True,  # `ends` alone decide
                logprobs=0,  # of the sampled token alone
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._llm.add_request(str(i), {"prompt_token_ids": prompt}, sampling)
        responses: dict[int, Sample] = {}
        while self._llm.has_unfinished_requests():
            for output in self._llm.step():
                tokens = list(output.outputs[0].token_ids)
                logps = [known[token].logprob for token, known in zip(tokens, output.outputs[0].logprobs, strict=True)]
                responses[int(output.request_id.split("-")[0])] = Sample(tokens, logps)
        self._sleep()
        return [responses[i] for i in range(len(prompts))]
