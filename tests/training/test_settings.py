import json
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Preference, Revision
from cai.training.settings import DPOConfig, SFTConfig
from cai.training.stage import STAGES, StageSpec, run_stage
from cai.training.trl_stage import last_checkpoint
from tests.conftest import prompt

WEIGHTS = "model/model.safetensors"


def preferences(path: Path, count: int = 8) -> Path:
    write_rows(
        path,
        [
            Preference(
                prompt_id=f"p{i}",
                messages=prompt(f"p{i}", f"question {i}").messages,
                chosen="yes " * (i + 1),
                rejected="no " * (i + 2),
                p=0.5 + i / 20,
                source="judge",
            )
            for i in range(count)
        ],
    )
    return path


def dpo(**settings: Any) -> DPOConfig:
    return DPOConfig.model_validate(
        {"stage": "dpo", "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 2, **settings}
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_dpo_interrupted_and_resumed_is_dpo_undisturbed(tmp_path: Path, tiny_model: Path) -> None:
    data, settings = preferences(tmp_path / "preferences.jsonl"), dpo(num_train_epochs=2)

    def interrupt(event: dict[str, Any]) -> None:
        if event.get("step") == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(StageSpec(settings, data, tiny_model, tmp_path / "interrupted"), interrupt)
    assert last_checkpoint(tmp_path / "interrupted/checkpoints") is not None
    assert not (tmp_path / "interrupted/model").exists()
    for name in ("interrupted", "undisturbed"):
        run_stage(StageSpec(settings, data, tiny_model, tmp_path / name), lambda event: None)
    a, b = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("interrupted", "undisturbed"))
    assert a == b
    steps = [
        [line["step"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("interrupted", "undisturbed")
    ]
    assert steps[0] == steps[1] == list(range(1, 9))

    # A finished stage is not trained again, unless what goes into it changes.
    events: list[dict[str, Any]] = []
    run_stage(StageSpec(settings, data, tiny_model, tmp_path / "undisturbed"), events.append)
    assert events == [{"examples": 8, "too_long": [], "undecided": []}, {"done": "already trained"}]
    run_stage(
        StageSpec(dpo(num_train_epochs=2, lora_r=None), data, tiny_model, tmp_path / "undisturbed"), events.append
    )
    assert (tmp_path / "undisturbed" / WEIGHTS).read_bytes() != b


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_sft_learns_the_revisions_that_pass_the_filters_and_skips_the_others(tmp_path: Path, tiny_model: Path) -> None:
    def row(i: int, flags: list[str]) -> Revision:
        messages = prompt(f"p{i}").messages
        common: dict[str, Any] = {"principle_id": "x", "principle_hash": "h", "model": "m", "templates": "t", "seed": 0}
        texts = {"draft": "a", "before": "a", "critique": None, "revision": "exactly this answer"}
        return Revision(
            prompt_id=f"p{i}", messages=messages, tags=[], round=1, truncated=[], flags=flags, **texts, **common
        )

    data = tmp_path / "revisions.jsonl"
    write_rows(data, [row(i, ["unchanged"] if i % 4 == 0 else []) for i in range(8)])
    settings = SFTConfig.model_validate(
        {
            "stage": "sft",
            "num_train_epochs": 30,
            "per_device_train_batch_size": 2,
            "learning_rate": 2e-2,
            "lora_r": None,
        }
    )
    events: list[dict[str, Any]] = []
    policy = run_stage(StageSpec(settings, data, tiny_model, tmp_path / "sft"), events.append)
    assert events[1] == {"examples": 6, "too_long": []}
    losses = [line["loss"] for line in metrics(tmp_path / "sft") if "loss" in line]
    assert losses[-1] < losses[0] / 2

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    ids = tokenizer.apply_chat_template(
        prompt().messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = AutoModelForCausalLM.from_pretrained(policy).generate(**ids, max_new_tokens=19, do_sample=False)
    assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :]) == "exactly this answer"


@pytest.mark.slow
@pytest.mark.usefixtures("no_worker")
def test_prompts_too_long_for_an_answer_are_listed_and_no_prompt_left_is_an_error(
    tmp_path: Path, tiny_model: Path
) -> None:
    data = preferences(tmp_path / "preferences.jsonl", 3)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[1]["messages"][0]["content"] = "long " * 60
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    events: list[dict[str, Any]] = []
    run_stage(StageSpec(dpo(max_length=100), data, tiny_model, tmp_path / "dpo"), events.append)
    assert events[1] == {"examples": 2, "too_long": ["p1"], "undecided": []}
    again: list[dict[str, Any]] = []
    run_stage(StageSpec(dpo(max_length=100), data, tiny_model, tmp_path / "dpo"), again.append)
    assert again == [events[1], {"done": "already trained"}]
    with pytest.raises(CaiError, match="no prompt is shorter than max_length, 8 tokens"):
        run_stage(StageSpec(dpo(max_length=8), data, tiny_model, tmp_path / "short"), events.append)


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"half'), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-14").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_trains_all_weights_has_a_rate_of_its_own(stage: str) -> None:
    kind = STAGES[stage]
    lora, full = (kind.model_validate({"stage": stage, "lora_r": lora_r}) for lora_r in (16, None))
    assert lora.learning_rate == (1e-4 if stage in ("sft", "reward", "dpo", "kto", "orpo") else 5e-5)
    assert full.learning_rate == (1e-5 if stage in ("sft", "reward") else 1e-6)
    assert kind.model_validate(full.model_dump()).learning_rate == full.learning_rate  # as a stage.json is read again
    assert lora.rate_warning() is full.rate_warning() is None
    assert kind.model_validate({"stage": stage, "lora_r": None, "learning_rate": 5e-6}).rate_warning() is None


def test_a_rate_far_from_the_usual_one_is_warned_of() -> None:
    full = DPOConfig(stage="dpo", lora_r=None, learning_rate=1e-4)
    assert (
        full.rate_warning() == "learning_rate 0.0001 is above the usual one for all weights, 1e-06, by a factor of 100"
    )
    lora = DPOConfig(stage="dpo", learning_rate=5e-6)
    assert lora.rate_warning() == "learning_rate 5e-06 is below the usual one for a LoRA, 0.0001, by a factor of 20"
