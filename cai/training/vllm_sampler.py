"""PPO's rollouts sampled by a vLLM engine in this process. Imports torch: import this lazily."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cai.engines.vllm import load_engine
from cai.training import processes

GPU_SHARE = 0.3  # of the GPU's memory for the engine: training needs the rest


class VllmSampler:
    """A second copy of the policy, which takes over its weights before each batch.

    Args: folder of the model that training starts from; max_length in tokens of prompt and response; `most_at_once`,
    how many responses may be sampled together.
    Raises: CaiError when vLLM is missing or cannot hold `max_length`.
    """

    def __init__(self, folder: Path, max_length: int, most_at_once: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process weights are handed over in memory
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # training needs the same cores
        more: dict[str, Any] = {"gpu_memory_utilization": GPU_SHARE}
        if processes.count() > 1:
            more["distributed_executor_backend"] = "external_launcher"  # torchrun's processes, not vLLM's own
        self._llm = load_engine(folder, max_length, most_at_once, **more)

    def generate(
        self,
        weights: Iterable[tuple[str, Tensor]],
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        max_tokens: int,
        temperature: float,
        ends: set[int],
    ) -> list[list[int]]:
        """A response to each prompt, sampled with its own seed from a policy of these weights.

        Args: weights by the names that the model's files have. A response ends with a token of `ends` or at the limit.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.reset_prefix_cache()  # what it holds was computed by older weights
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            sampling = SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop_token_ids=sorted(ends),
                ignore_eos=True,  # `ends` alone decide
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._llm.add_request(str(i), {"prompt_token_ids": prompt}, sampling)
        found: dict[int, list[int]] = {}
        while self._llm.has_unfinished_requests():
            for output in self._llm.step():
                found[int(output.request_id.split("-")[0])] = list(output.outputs[0].token_ids)
        return [found[i] for i in range(len(prompts))]
