"""On every family's model, PPO and reward models compute what the model itself does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cai.data.jsonl import write_rows
from cai.inference.models import loading_options
from cai.training.ppo.actor import Actor
from cai.training.ppo.sampling import padded
from cai.training.reward_model import RewardModel, classifier, right_padded
from cai.training.settings import PPOConfig, RewardConfig
from cai.training.stage import StageSpec
from tests.conftest import train_here
from tests.training.families import FAMILIES, PROMPTS, differences, log_probabilities, plain, save_tiny
from tests.training.policies import pair

TOLERANCE = 1e-4  # nats
TURNS = [prompt[:n] for prompt, n in zip(PROMPTS, (4, 12, 8), strict=True)]


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_ppo_computes_the_models_own_probabilities(family: str, tmp_path: Path) -> None:
    most = differences(save_tiny(family, tmp_path))
    assert max(most["policy"], most["reference"], most["sampler"]) < TOLERANCE
    assert most["value"] < TOLERANCE


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_ppo_without_lora_computes_the_models_own_probabilities(family: str, tmp_path: Path) -> None:
    assert max(differences(save_tiny(family, tmp_path), lora_r=None).values()) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "without"),
    [
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma4_text", {"final_logit_softcapping": None}),
        ("granite", {"logits_scaling": 1.0}),
        ("cohere", {"logit_scale": 1.0}),
        ("cohere2", {"logit_scale": 1.0}),
    ],
)
def test_caps_and_scales_of_the_tiny_models_matter(family: str, without: dict[str, Any], tmp_path: Path) -> None:
    model = plain(save_tiny(family, tmp_path))
    prompt = PROMPTS[1]
    whole = log_probabilities(model, prompt[:4], prompt[4:])
    for name, value in without.items():
        setattr(model.config, name, value)
        if hasattr(model, name):
            setattr(model, name, value)
    assert (log_probabilities(model, prompt[:4], prompt[4:]) - whole).abs().max() > 0.5


def test_the_soft_cap_of_attention_scores_is_kept(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, prompt = save_tiny("gemma2", tmp_path), PROMPTS[1]
    fused = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **loading_options(folder))
    own, with_fused, with_ours = (log_probabilities(m, prompt[:4], prompt[4:]) for m in (plain(folder), fused, ours))
    assert (with_fused - own).abs().max() > 0.1
    torch.testing.assert_close(with_ours, own)


def planted(folder: Path, model: Path, tiny_model: Path, lora_r: int | None) -> Path:
    """A reward model trained on two pairs by a model that has the tokenizer of `tiny_model`."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model / name).write_bytes((tiny_model / name).read_bytes())
    write_rows(folder / "pairs.jsonl", [pair(i, "yes yes", "no, not") for i in range(2)])
    config = RewardConfig(stage="reward", holdout=0, lora_r=lora_r, per_device_train_batch_size=2)
    return train_here(StageSpec(config, folder / "pairs.jsonl", model, folder / "stage"))


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gemma4_text", "granite", "cohere2", "phi3"])
def test_a_reward_model_of_a_family_is_trained_and_read_as_its_classifier(
    family: str, tmp_path: Path, tiny_model: Path
) -> None:
    from peft import PeftModel

    model = save_tiny(family, tmp_path / "model")
    folder = planted(tmp_path, model, tiny_model, lora_r=2)
    ids, mask = right_padded(TURNS, 0)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(classifier(folder / "base"), folder / "member-1").eval()
        expected = theirs(input_ids=ids, attention_mask=mask).logits
    assert expected.unique().numel() == len(TURNS)
    actor = Actor(model, PPOConfig(stage="ppo", lora_r=2))
    for reward in (RewardModel(folder), RewardModel(folder, on=actor.peft)):
        torch.testing.assert_close(reward.scores(TURNS), expected, atol=1e-4, rtol=1e-4)


def test_a_reward_model_without_lora_of_a_family_without_a_classifier(tmp_path: Path, tiny_model: Path) -> None:
    folder = planted(tmp_path, save_tiny("granite", tmp_path / "model"), tiny_model, lora_r=None)
    assert RewardModel(folder).scores(TURNS).shape == (len(TURNS), 1)


@pytest.mark.numeric
@pytest.mark.parametrize("lora_r", [2, None])
def test_the_kl_is_taken_from_another_reference_where_one_is_given(lora_r: int | None, tmp_path: Path) -> None:
    model, first = save_tiny("granite", tmp_path / "model"), save_tiny("llama", tmp_path / "first")
    actor = Actor(model, PPOConfig(stage="ppo", lora_r=lora_r), first)
    logps = actor.reference_logps(padded([(PROMPTS[0], PROMPTS[1])], "cpu"))
    with torch.no_grad():
        logits = plain(first)(input_ids=torch.tensor([PROMPTS[0] + PROMPTS[1]])).logits[0, len(PROMPTS[0]) - 1 : -1]
    own = logits.log_softmax(-1)[range(len(PROMPTS[1])), PROMPTS[1]]
    torch.testing.assert_close(logps[0], own, atol=TOLERANCE, rtol=1e-4)
