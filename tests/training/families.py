"""Tiny models of many families with random weights, and how far PPO's probabilities are from each model's own.

Weights are large and soft-caps low, so that leaving out a cap, a scale or a sliding window shows; prompts are longer
than the window. The table of docs/models.md is printed by

    python -m tests.training.families
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cai.training.ppo.actor import Actor
from cai.training.ppo.sampling import generate, padded
from cai.training.settings import PPOConfig

VOCABULARY, WINDOW, TEMPERATURE = 259, 8, 0.7
PROMPTS = [[1, 70, 71, 72], [1, *range(80, 100)], [1, 90, 91, 92, 93, 94, 95, 96]]
ENDS = set(range(100, 140))  # so that answers have different lengths
ALIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}
GEMMA: dict[str, Any] = {
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {**GEMMA, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 1.0},
    "gemma3_text": GEMMA,
    "gemma4_text": {
        **GEMMA,
        "final_logit_softcapping": 4.0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 2,
        "num_global_key_value_heads": 1,
        "global_head_dim": 16,
    },
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625, "sliding_window": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "smollm3": {},
    "olmo2": {},
}
"""By transformers' model type, what its config has beside ALIKE."""


def save_tiny(family: str, folder: Path) -> Path:
    """Write a tiny random model of a family."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **ALIKE, **FAMILIES[family]))
    model.save_pretrained(folder)
    return folder


def plain(folder: Path) -> Any:
    """The model as transformers computes it without any kernel that could leave a part out."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def log_probabilities(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Of a response's tokens under a model, one conversation without padding: shape (tokens,)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1)[range(len(response)), response]


class Sampled(NamedTuple):
    """Responses, and the sampler's own log-probabilities of their tokens."""

    responses: list[list[int]]
    logps: list[Tensor]


def sample(actor: Actor, tokens: int = 12) -> Sampled:
    """Responses of the policy to PROMPTS, with the log-probabilities with which their tokens were drawn."""
    uniforms = torch.rand(len(PROMPTS), tokens, generator=torch.Generator().manual_seed(5))
    samples = generate(actor.model, PROMPTS, uniforms, TEMPERATURE, ENDS)
    return Sampled([sample.tokens for sample in samples], [torch.tensor(sample.logps) for sample in samples])


def moved_actor(folder: Path, lora_r: int | None) -> Actor:
    """PPO's policy after a large step."""
    torch.manual_seed(0)
    settings = {"stage": "ppo", "lora_r": lora_r, "temperature": TEMPERATURE, "value": "shared"}
    actor = Actor(folder, PPOConfig.model_validate(settings))
    torch.nn.init.normal_(actor.value_head.weight)
    with torch.no_grad():
        for name, parameter in actor.trainable().items():
            if "lora_B" in name or lora_r is None:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return actor


def differences(folder: Path, lora_r: int | None = 4) -> dict[str, float]:
    """Largest |Δ log-probability| of a token, in nats, between the model itself and parts of PPO.

    `policy` and `reference` in a padded batch, and `sampler` with its cache; `value` is the difference of values.
    """
    actor = moved_actor(folder, lora_r)
    responses, sampled = sample(actor)
    batch = padded(list(zip(PROMPTS, responses, strict=True)), "cpu")
    with torch.no_grad():
        outputs, reference = actor.evaluate(batch, with_entropy=True), actor.reference_logps(batch)
    head, policy, start = actor.value_head, actor.merged(), plain(folder)
    most = dict.fromkeys(("policy", "reference", "sampler", "value"), 0.0)
    for i, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        own, n = log_probabilities(policy, prompt, response), len(response)
        with torch.no_grad():
            hidden = policy(input_ids=torch.tensor([prompt + response]), output_hidden_states=True).hidden_states[-1]
            values = head(hidden)[0, len(prompt) - 1 : -1, 0]
        pairs = {
            "policy": (outputs.logps[i, :n], own),
            "reference": (reference[i, :n], log_probabilities(start, prompt, response)),
            "sampler": (sampled[i], own),
            "value": (outputs.values[i, :n], values),
        }
        for name, (a, b) in pairs.items():
            most[name] = max(most[name], (a - b).abs().max().item())
    return most


def main() -> None:
    """Print the table."""
    print("| family | policy | reference | sampler |\n|---|---|---|---|")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            most = differences(save_tiny(family, Path(folder)))
        print(f"| {family} | " + " | ".join(f"{most[name]:.0e}" for name in ("policy", "reference", "sampler")) + " |")


if __name__ == "__main__":
    main()
