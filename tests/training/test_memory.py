"""Computed memory against the tensors that trainings of the tiny model allocate; benchmarks/memory.py has a real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Demonstration, Message, Preference, Prompt
from cai.inference.chat_template import load_tokenizer
from cai.runs.training_estimates import online_rewards, rewards_in
from cai.training.memory import FLOAT, RewardMemory, estimate, reward_of_stage
from cai.training.model_shape import ModelShape, shape_in, shape_of
from cai.training.settings import Online
from cai.training.stage import STAGES, StageSpec
from cai.training.tokens import split_turn
from cai.training.worker import train

VOCABULARY = 259  # of the tiny model
PPO = {
    "per_device_train_batch_size": 8,
    "rollouts": 8,
    "max_tokens": 64,
    "updates": 2,
    "num_ppo_epochs": 1,
    "gradient_accumulation_steps": 1,
}
ASKED = [Message(role="user", content="x")]


def allocated(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` has at a time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def rows(settings: Any, model: Path) -> list[Any]:
    """Examples of four batches, one text of exactly the settings' length and one half as long in turns."""
    prompt, [answer] = split_turn(load_tokenizer(model), ASKED, "x")
    longest = settings.max_length - len(prompt) - len(answer) + 1  # a letter is a token
    each = range(4 * settings.per_device_train_batch_size)
    if isinstance(settings, Online):
        size = settings.max_length - settings.max_tokens - len(prompt) + 1
        return [
            Prompt(id=str(i), messages=[Message(role="user", content="x" * (size // (1 + i % 2)))]) for i in range(8)
        ]
    texts = "x" * longest, "x" * (longest // 2)
    if settings.stage == "sft":
        return [Demonstration(prompt_id=str(i), messages=ASKED, completion=texts[i % 2]) for i in each]
    pair = {"messages": ASKED, "chosen": texts[0], "rejected": texts[1], "p": 1.0, "source": "human"}
    return [Preference.model_validate({"prompt_id": str(i), **pair}) for i in each]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    settings = STAGES["reward"].model_validate({"stage": "reward", "holdout": 0})
    write_rows(folder / "data.jsonl", rows(settings, tiny_model)[:4])
    (folder / "out").mkdir()
    train(StageSpec(settings, folder / "data.jsonl", tiny_model, folder / "out"), lambda event: None)
    return folder / "out/model"


@pytest.fixture
def ratio(
    tmp_path: Path, tiny_model: Path, reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., float]:
    """Estimate ÷ the tensors of a training, of which the weights are on disk and mapped into memory."""
    from trl.trainer import utils

    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", VOCABULARY)  # else most of a tile is never touched

    def of(stage: str, **values: Any) -> float:
        settings: Any = STAGES[stage].model_validate({"stage": stage, "save_steps": 1000, "max_length": 256, **values})
        write_rows(tmp_path / "data.jsonl", rows(settings, tiny_model))
        (tmp_path / "out").mkdir()
        reward = reward_model if isinstance(settings, Online) else None
        spec = StageSpec(settings, tmp_path / "data.jsonl", tiny_model, tmp_path / "out", reward=reward)
        shape = shape_in("tiny", tiny_model)
        tensors = allocated(lambda: train(spec, lambda event: None)) + shape.parameters * FLOAT
        return estimate(settings, shape).peak / tensors

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("sft", {"per_device_train_batch_size": 8}),
        ("sft", {"per_device_train_batch_size": 8, "gradient_checkpointing": True}),
        ("sft", {"per_device_train_batch_size": 4, "attn_implementation": "eager"}),
        ("dpo", {"per_device_train_batch_size": 4}),
        ("reward", {"per_device_train_batch_size": 4, "lora_r": None}),
        ("ppo", PPO),
        ("ppo", PPO | {"lora_r": None, "value": "separate"}),
    ],
)
def test_the_peak_of_a_training_is_computed(ratio: Callable[..., float], stage: str, more: dict[str, Any]) -> None:
    assert 0.95 < ratio(stage, **more) < 1.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("sft", {"per_device_train_batch_size": 8, "lora_r": None}),
        ("kto", {"per_device_train_batch_size": 8}),
        ("orpo", {"per_device_train_batch_size": 4}),
        ("rloo", {"per_device_train_batch_size": 8, "max_tokens": 64, "lora_r": None}),
        ("online_dpo", {"per_device_train_batch_size": 4, "max_tokens": 64}),
        ("ppo", PPO | {"value": "separate", "entropy_coef": 0.1}),
    ],
)
def test_the_peak_of_other_stages_is_computed(ratio: Callable[..., float], stage: str, more: dict[str, Any]) -> None:
    assert 0.95 < ratio(stage, **more) < 1.05


LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}  # fmt: skip
SHAPE = shape_of("large", LARGE)


def parts(stage: str, gpus: int = 1, **values: Any) -> dict[str, int]:
    """The bytes of each part at its largest."""
    settings = STAGES[stage].model_validate({"stage": stage, **values})
    return {part.name: max(part.at.values()) for part in estimate(settings, SHAPE, gpus).parts}


def test_full_training_holds_sixteen_bytes_a_weight() -> None:
    full = parts("sft", lora_r=None)
    assert full["weights"] == full["gradients"] == 4 * SHAPE.parameters
    assert full["optimizer"] == 8 * SHAPE.parameters
    assert parts("sft", lora_r=None, trl={"optim": "adamw_8bit"})["optimizer"] == 2 * SHAPE.parameters
    with pytest.raises(CaiError, match="states of galore_adamw are not known"):
        parts("sft", trl={"optim": "galore_adamw"})


def test_a_lora_is_trained_over_weights_in_bfloat16() -> None:
    lora = parts("sft", lora_r=8)
    width = sum(layer.inputs + layer.outputs for layer in SHAPE.linear)
    assert lora["weights"] == 2 * SHAPE.parameters
    assert lora["LoRA"] == lora["gradients"] == 4 * 32 * 8 * width
    assert parts("sft", lora_target_modules=["q_proj"])["LoRA"] == 4 * 32 * 16 * (4096 + 4096)

    with pytest.raises(CaiError, match="lora_target_modules: c_attn: not among q_proj, k_proj, "):
        parts("sft", lora_target_modules=["c_attn"])

    layers = 32 * SHAPE.layer_parameters
    nf4 = parts("sft", quantization="4bit")["weights"] - 2 * (SHAPE.parameters - layers)
    assert nf4 / layers == pytest.approx(0.518, rel=0.01)  # as bitsandbytes 0.50 holds SmolLM2-135M's layers
    assert parts("sft", quantization="8bit")["weights"] == layers + 2 * (SHAPE.parameters - layers)


def test_fsdp_shards_what_stands_and_gathers_two_layers() -> None:
    whole, shard = parts("grpo", 8, lora_r=None), parts("grpo", 8, fsdp=True, lora_r=None)
    for name in ("weights", "reference", "optimizer", "gradients", "reward model"):
        assert shard[name] == whole[name] // 8
    assert whole["DDP"] == whole["gradients"] and "DDP" not in shard
    assert shard["gathered"] == 2 * (2 * SHAPE.layer_parameters + 2 * SHAPE.embedding)


def test_attention_that_keeps_its_scores_takes_the_square_of_the_length() -> None:
    def activations(shape: ModelShape, **more: Any) -> int:
        settings = STAGES["sft"].model_validate({"stage": "sft", "per_device_train_batch_size": 1, **more})
        return next(max(p.at.values()) for p in estimate(settings, shape).parts if p.name == "activations")

    softcapped = shape_of("gemma", LARGE | {"attn_logit_softcapping": 50.0})  # which cai computes by eager attention
    scores = 32 * 32 * 1024**2 * 4
    assert activations(softcapped) - activations(SHAPE) > 0.9 * scores
    assert activations(softcapped) == activations(SHAPE, attn_implementation="eager")


def test_the_models_beside_the_policy_are_those_that_a_stage_loads() -> None:
    assert {"reference", "value model"} < parts("ppo", lora_r=None, value="separate").keys()
    assert not {"reference", "value model"} & parts("ppo", value="separate").keys()
    assert parts("ppo", value="separate")["LoRA"] == 2 * parts("ppo")["LoRA"]
    assert parts("ppo")["reward model"] == parts("ppo")["LoRA"]  # on the policy's weights
    assert parts("rloo")["reward model"] == 4 * SHAPE.parameters + parts("rloo")["LoRA"]
    assert "reference" not in parts("dpo", lora_r=None)  # whose log-probabilities are computed before
    assert "reference" not in parts("grpo", lora_r=None, beta=0)
    sampling = 32 * 1024 * 2 * SHAPE.keys * 32 * 2  # of 32 rollouts, in bfloat16
    assert parts("ppo")["keys, values"] == sampling
    assert parts("ppo", use_vllm=True)["vLLM"] == 2 * SHAPE.parameters + sampling


def test_answers_that_ppo_learns_have_logits_of_their_own_length() -> None:
    alone, beside = parts("ppo"), parts("ppo", ptx="answers.jsonl")
    assert beside["at work"] == 3 * 4 * 2 * 1024 * 128256 > alone["at work"]


def test_the_reward_model_of_a_folder_is_read_from_its_headers(reward_model: Path, tiny_model: Path) -> None:
    shape, ppo, rloo = shape_in("tiny", tiny_model), *(STAGES[s].model_validate({"stage": s}) for s in ("ppo", "rloo"))
    lora = rewards_in([reward_model], ppo, shape)
    assert lora == reward_of_stage(STAGES["reward"](stage="reward"), ppo, shape)._replace(trained=lora.trained)
    assert lora.trained == 4 * (16 * 2 * sum(a + b for _, a, b in shape.linear) + shape.hidden)  # with the head
    assert rewards_in([reward_model], rloo, shape).trained == lora.trained + 4 * shape.parameters
    other = rewards_in([tiny_model], rloo, shape)  # as a classifier of others
    assert other.others == (tiny_model / "model.safetensors").stat().st_size and not other.trained


def test_every_reward_model_of_a_sum_is_counted_beside_the_judge(reward_model: Path, tiny_model: Path) -> None:
    shape, trained = shape_in("tiny", tiny_model), STAGES["reward"](stage="reward", members=2)

    def held(reward: Any, *earlier: Any) -> RewardMemory | None:
        rloo = STAGES["rloo"].model_validate({"stage": "rloo", "reward": reward})
        return online_rewards(rloo, shape, earlier)

    named = rewards_in([reward_model], STAGES["rloo"](stage="rloo"), shape)
    last = reward_of_stage(trained, STAGES["rloo"](stage="rloo"), shape)
    assert held("judge") == RewardMemory(0)
    assert held([{"model": str(reward_model)}, {"judge": True}]) == named
    both = held(
        [{"model": str(reward_model)}, {"model": "last"}, {"judge": True}], STAGES["reward"](stage="reward"), trained
    )
    assert both == RewardMemory(named.trained + last.trained, 0, f"{named.note}; {last.note}")
    assert (assumed := held(None)) is not None and assumed.note.startswith("assumed: ")
    assert online_rewards(trained, shape) is None
