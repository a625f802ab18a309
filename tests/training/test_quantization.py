"""A LoRA over quantized weights learns nearly what one over whole weights does, and is saved on the whole ones."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cai.data.jsonl import write_rows
from cai.training import trl_stage
from cai.training.ppo.actor import Actor
from cai.training.ppo.sampling import padded
from cai.training.reward_model import RewardModel
from cai.training.stage import StageSpec
from tests.conftest import prompt, train_here
from tests.training.ppo.test_sampling import changed_actor
from tests.training.ppo.test_trainer import PROMPTS, settings
from tests.training.test_checks import of
from tests.training.test_dtype import data
from tests.training.test_reward import config as reward_config
from tests.training.test_reward import planted

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'cai-rlaif[quantization]'")

BATCH = [([1, 70, 71], [80, 81, 82, 2]), ([1, 100], [90, 2])]


def dequantized(actor: Actor) -> Any:
    """A plain model of the actor's weights as they are computed with."""
    model = AutoModelForCausalLM.from_pretrained(actor._start[0], dtype=torch.float32)
    model.load_state_dict(dict(copy.deepcopy(list(actor.weights()))), strict=False)
    return model


@pytest.mark.numeric
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_what_vllm_gets_is_the_policy_that_is_trained(bits: str, tiny_model: Path) -> None:
    actor = changed_actor(tiny_model, lora_r=4, quantization=bits)
    plain, batch = dequantized(actor), padded(BATCH, "cpu")
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    names = {name for name, _ in actor.weights()}
    assert names == {name for name, _ in whole.named_parameters()}
    with torch.no_grad():
        logps = actor.evaluate(batch, with_entropy=False).logps[0]
        own = plain(torch.tensor([BATCH[0][0] + BATCH[0][1]])).logits[0, 2:-1].log_softmax(-1)
    # 4 bits are turned to float32 before they multiply; LLM.int8() rounds what they are multiplied with to 8 bits too
    tolerance = 1e-4 if bits == "4bit" else 0.05
    torch.testing.assert_close(logps, own[range(4), BATCH[0][1]], atol=tolerance, rtol=0)


@pytest.mark.numeric
def test_the_gradient_is_that_of_the_dequantized_weights_also_after_a_pass_without_one(tiny_model: Path) -> None:
    from peft import get_peft_model

    def gradients(model: Any, peft: Any) -> dict[str, torch.Tensor]:
        with torch.no_grad():  # as PPO samples before it learns
            model(torch.tensor([PROMPTS[0]]))
        ids = torch.tensor([BATCH[0][0] + BATCH[0][1]])
        peft(input_ids=ids, labels=ids).loss.backward()
        return {n.replace(".policy.", "."): p.grad for n, p in peft.named_parameters() if ".policy." in n}

    torch.manual_seed(0)
    actor = Actor(tiny_model, settings(lora_r=4, quantization="4bit"))
    plain = dequantized(actor)
    whole = get_peft_model(plain, copy.deepcopy(actor.peft.peft_config["policy"]), adapter_name="policy")
    with torch.no_grad():
        for (name, ours), (_, theirs) in zip(*(m.named_parameters() for m in (actor.peft, whole)), strict=True):
            if ".lora_" in name:
                theirs.copy_(ours.add_(0.01))
    ours, theirs = gradients(actor.model, actor.peft), gradients(plain, whole.eval())
    assert ours.keys() == theirs.keys()
    assert max(gradient.abs().max().item() for gradient in ours.values()) > 0.01
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto", "orpo"])
def test_a_stage_trains_over_quantized_weights_and_saves_the_whole_ones(
    name: str, bits: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kinds = trl_stage.train, list[set[str]]()

    def watching(trainer: Any, *arguments: Any) -> Any:
        trained = plain(trainer, *arguments)
        kinds.append({type(p).__name__ for p in trained.parameters()})
        assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
        return trained

    monkeypatch.setattr(trl_stage, "train", watching)
    losses = {}
    for quantization in (None, bits):
        config = of(name, quantization=quantization, max_length=100, lora_r=4, learning_rate=1e-2, num_train_epochs=2)
        folder = tmp_path / str(quantization)
        folder.mkdir()
        train_here(StageSpec(config, data(name, folder), tiny_model, folder / "stage"))
        rows = map(json.loads, (folder / "stage/metrics.jsonl").read_text().splitlines())
        losses[quantization] = [row["loss"] for row in rows if "loss" in row]
    assert {"4bit": "Params4bit", "8bit": "Int8Params"}[bits] in kinds[1] - kinds[0]
    assert losses[bits] == pytest.approx(losses[None], abs=0.1)
    assert losses[bits] != losses[None]
    if name == "reward":
        assert RewardModel(tmp_path / bits / "stage/model").scores([[1, 70, 2]]).isfinite().all()
    else:
        assert_low_rank_change(tmp_path / bits / "stage/model", tiny_model)


def assert_low_rank_change(policy: Path, start: Path) -> None:
    """The policy is a plain model that differs from the one that it started from by a LoRA of rank 4."""
    assert "quantization_config" not in json.loads((policy / "config.json").read_text())
    after, before = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (policy, start))
    assert after.keys() == before.keys()
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        change = torch.linalg.svdvals((after[name] - before[name]).double())
        assert change[0] > 1e-5 and change[4] < 1e-5 * change[0] + 1e-6
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "rloo", "online_dpo"])
def test_a_stage_that_samples_trains_over_quantized_weights(name: str, tmp_path: Path, tiny_model: Path) -> None:
    pairs = planted(tmp_path / "pairs.jsonl", 8)
    reward = train_here(StageSpec(reward_config(holdout=0.0, lora_r=4), pairs, tiny_model, tmp_path / "reward"))
    write_rows(tmp_path / "prompts.jsonl", [prompt(f"p{i}", f"question {i}") for i in range(4)])
    size = {"updates": 2, "rollouts": 4} if name == "ppo" else {"per_device_train_batch_size": 4}
    config = of(name, quantization="4bit", lora_r=4, max_tokens=4, learning_rate=1e-3, **size)
    spec = StageSpec(config, tmp_path / "prompts.jsonl", tiny_model, tmp_path / "out", reward=reward)
    assert_low_rank_change(train_here(spec), tiny_model)
    if name == "ppo":
        line = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[0])
        assert line["sampling/sampling_logp_difference/max"] < 1e-4
        assert line["val/ratio"] == pytest.approx(1, abs=1e-4)
