"""PPO's rollouts by vLLM: it answers as the policy of this moment would."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cai.inference.chat_template import load_tokenizer
from cai.training.ppo.sampling import VllmSampler, padded
from cai.training.tokens import end_of_turn, prompt_ids
from tests.training.ppo.test_sampling import changed_actor

pytestmark = pytest.mark.real


def test_vllm_samples_from_the_updated_weights(sampler: VllmSampler, real_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(real_model)
    prompt, ends = prompt_ids(tokenizer, [{"role": "user", "content": "Name three colours."}]), {end_of_turn(tokenizer)}
    start = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    actor = changed_actor(real_model, temperature=0.7)

    def greedy(model: Any) -> list[int]:
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=list(ends))
        found: list[int] = ids[0, len(prompt) :].tolist()
        return found

    [before] = sampler.generate(start.named_parameters(), [prompt], [0], 24, 0.0, ends)
    [after] = sampler.generate(actor.weights(), [prompt], [0], 24, 0.0, ends)
    sampled = [sampler.generate(actor.weights(), [prompt] * 3, [1, 2, 1], 24, 0.7, ends) for _ in range(2)]
    with torch.no_grad():
        own = actor.evaluate(padded([(prompt, sample.tokens) for sample in sampled[0]], "cpu"), with_entropy=False)
    assert before.tokens == greedy(start)
    assert after.tokens == greedy(actor.merged())
    assert before.tokens != after.tokens
    assert sampled[0] == sampled[1]
    assert sampled[0][0] == sampled[0][2] != sampled[0][1]
    for sample, logps in zip(sampled[0], own.logps, strict=True):  # what vLLM drew them with, at this temperature
        torch.testing.assert_close(torch.tensor(sample.logps), logps[: len(sample.tokens)], atol=1e-3, rtol=0)
