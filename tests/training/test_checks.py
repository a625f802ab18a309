"""What a stage's settings name is there: trl's arguments, layers of the model, packages; said before training."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.runs.plan import make_plan
from cai.training.checks import check_stage
from cai.training.settings import SFTConfig, TrainConfig
from cai.training.stage import StageSpec, stage_settings_class
from tests.conftest import train_here, write_workspace
from tests.training.test_sft import helpful, stage


def of(name: str, **settings: Any) -> TrainConfig:
    return stage_settings_class(name).model_validate({"stage": name, **settings})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimm", r"^here\.trl\.optimm: trl's config of sft has no such argument; did you mean optim"),
        ("learning_rate", r"^here\.trl\.learning_rate: is a setting of its own; write learning_rate beside `trl`"),
        ("output_dir", r"^here\.trl\.output_dir: is set by cai"),
        ("push_to_hub", r"^here\.trl\.push_to_hub: is set by cai"),
        ("model_init_kwargs", r"^here\.trl\.model_init_kwargs: is set by cai"),
        ("trust_remote_code", r"^here\.trl\.trust_remote_code: is set by cai"),
    ],
)
def test_an_argument_of_trl_that_cannot_be_given_is_named(argument: str, message: str) -> None:
    with pytest.raises(CaiError, match=message):
        check_stage(of("sft", trl={argument: 1}), None, "here")


def test_a_sampler_that_sleeps_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = of("grpo", use_vllm=True, vllm_enable_sleep_mode=True)
    monkeypatch.setattr("cai.training.checks.visible_gpus", lambda: ["0"])
    check_stage(settings, None, "here")
    monkeypatch.setattr("cai.training.checks.visible_gpus", list)
    with pytest.raises(CaiError, match=r"^here\.vllm_enable_sleep_mode: needs a GPU, and there is none; leave it out$"):
        check_stage(settings, None, "here")


def test_quantization_without_its_package_or_a_lora_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.training.checks.find_spec", lambda name: None)
    check_stage(of("ppo"), None, "here")
    message = r"^here\.quantization: 4bit needs the package bitsandbytes, .*: pip install 'cai-rlaif\[quantization\]'$"
    with pytest.raises(CaiError, match=message):
        check_stage(of("ppo", quantization="4bit"), None, "here")
    with pytest.raises(ValidationError, match="quantization: needs a LoRA; all weights are trained"):
        of("dpo", quantization="8bit", lora_r=None)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto", "orpo", "rloo", "grpo", "online_dpo"])
def test_every_stage_takes_trls_arguments(name: str) -> None:
    check_stage(of(name, trl={"weight_decay": 0.1}), None, "here")
    with pytest.raises(CaiError, match=f"of {name} has no such argument"):
        check_stage(of(name, trl={"weight_decai": 0.1}), None, "here")


def test_a_value_of_another_type_than_trls_is_named() -> None:
    check_stage(of("sft", trl={"weight_decay": 1, "packing": True, "optim": "adafactor"}), None, "here")
    with pytest.raises(CaiError, match=r"^here\.trl\.weight_decay: .*valid number.*, found 'abc'"):
        check_stage(of("sft", trl={"weight_decay": "abc"}), None, "here")


@pytest.mark.parametrize(
    ("stage", "name", "value", "message"),
    [
        (
            "dpo",
            "optim",
            "adamw_torchh",
            r"expected one of adamw_torch, .*; found 'adamw_torchh'; did you mean 'adamw_torch'",
        ),
        ("dpo", "optim", "lomo", "lomo needs the package lomo_optim, which is not installed; adamw_torch needs none"),
        ("dpo", "optim", "paged_adamw_8bit", "needs the package bitsandbytes"),
        ("sft", "lr_scheduler_type", "cosinus", r"expected one of linear, cosine, .*; did you mean 'cosine'"),
        ("sft", "packing_strategy", "best", "expected one of bfd, bfd_split, wrapped; found 'best'"),
        ("kto", "loss_type", "dpo", "expected one of kto, apo_zero_unpaired; found 'dpo'"),
        ("grpo", "loss_type", "grppo", "did you mean 'grpo'"),
        ("grpo", "scale_rewards", "grup", "did you mean 'group'"),
        ("dpo", "f_divergence_type", "kl", "expected one of reverse_kl, forward_kl"),
    ],
)
def test_a_value_that_trl_would_refuse_in_training_is_named_before_it(
    stage: str, name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.training.checks.find_spec", lambda package: None)
    with pytest.raises(CaiError, match=rf"^here\.trl\.{name}: .*{message}"):
        check_stage(of(stage, trl={name: value}), None, "here")


def test_every_value_that_trl_takes_is_taken() -> None:
    import trl

    for name in ("sft", "reward", "dpo", "kto", "rloo", "grpo"):
        config = getattr(trl, f"{name.upper() if name != 'reward' else 'Reward'}Config")(use_cpu=True)
        for argument in ("optim", "lr_scheduler_type", "loss_type", "scale_rewards", "truncation_mode"):
            if hasattr(config, argument) and argument not in stage_settings_class(name).model_fields:
                value = getattr(config, argument)
                check_stage(of(name, trl={argument: getattr(value, "value", value)}), None, "here")
    check_stage(of("grpo", trl={"scale_rewards": False, "optim": "adafactor"}), None, "here")


@pytest.mark.slow
def test_what_trl_is_given_reaches_it(tmp_path: Path, tiny_model: Path) -> None:
    data = helpful(tmp_path / "helpful.jsonl", 8)

    def losses(name: str, **settings: Any) -> list[float]:
        train_here(StageSpec(stage(num_train_epochs=2, **settings), data, tiny_model, tmp_path / name))
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [row["loss"] for row in rows if "loss" in row]

    usual, more = losses("usual"), losses("more", trl={"max_steps": 7})
    assert (len(usual), len(more)) == (4, 7)
    with pytest.raises(CaiError, match=r"^trl: .*nonsense"):
        losses("wrong", trl={"optim": "nonsense"})


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"lora_alpha": 64}, {"lora_target_modules": ["q_proj"]}, {"lora_dropout": 0.5}])
def test_settings_of_the_lora_change_the_training(settings: Any, tmp_path: Path, tiny_model: Path) -> None:
    data = helpful(tmp_path / "helpful.jsonl", 8)

    def last(name: str, **settings: Any) -> float:
        spec = StageSpec(stage(num_train_epochs=2, learning_rate=1e-2, **settings), data, tiny_model, tmp_path / name)
        train_here(spec)
        return float(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["loss"])

    assert last("usual") == last("twice the rank", lora_alpha=32) != last("changed", **settings)


def test_a_loras_settings_without_a_lora_are_an_error() -> None:
    with pytest.raises(ValidationError, match="lora_alpha: there is no LoRA, because lora_r is null"):
        stage(lora_r=None, lora_alpha=8)
    assert SFTConfig.model_validate(stage(lora_r=None).model_dump()).lora_r is None


def test_a_layer_that_the_model_lacks_is_named_with_those_it_has(tiny_model: Path) -> None:
    check_stage(of("ppo", lora_target_modules=["q_proj", "layers.0.mlp.up_proj"]), tiny_model, "here")
    message = r"^here\.lora_target_modules: .* has no layer q_prj; did you mean q_proj\? it has .*down_proj"
    with pytest.raises(CaiError, match=message):
        check_stage(of("ppo", lora_target_modules=["q_prj"]), tiny_model, "here")


def test_attention_whose_package_is_missing_is_named() -> None:
    with pytest.raises(CaiError, match=r"^here\.attn_implementation: flash_attention_3 needs the package flash_attn"):
        check_stage(of("dpo", attn_implementation="flash_attention_3"), None, "here")


def test_a_run_file_and_cai_train_are_checked_before_anything_is_written(tmp_path: Path, tiny_model: Path) -> None:
    extra = "train: [{stage: dpo, trl: {optimm: adamw}}]"
    run_file = write_workspace(tmp_path, tiny_model, extra=extra)
    result = CliRunner().invoke(app, ["run", str(run_file), "--runs", str(tmp_path / "runs"), "--dry-run"])
    assert "run.yaml: train[0].trl.optimm: trl's config of dpo has no such argument" in str(result.exception)
    words = ["sft", "--data", helpful(tmp_path / "helpful.jsonl", 2), "--model", tiny_model, "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, ["train", *map(str, words), "--set", "lora_target_modules=[nothing]"])
    assert "sft.lora_target_modules: " in str(result.exception)
    assert not (tmp_path / "out").exists()


REWARD, PPO = "{stage: reward, lora_r: 4}", "{stage: ppo, value: separate, value_init: reward, lora_r: 4}"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (f"{REWARD}, {PPO}", None),
        (f"{REWARD}, {PPO.replace('lora_r: 4', 'lora_r: null')}", r"train\[1\]: value_init: of the reward stage and"),
        (f"{REWARD}, {{stage: dpo}}, {PPO}", r"train\[2\]: value_init: `dpo` trains the policy after the reward model"),
    ],
)
def test_a_value_function_fits_the_reward_model_that_it_is_to_start_as(
    stages: str, message: str | None, tmp_path: Path, tiny_model: Path
) -> None:
    run_file = write_workspace(tmp_path, tiny_model, extra=f"train: [{stages}]")
    if message is None:
        make_plan(run_file, [], None, tmp_path / "runs")
        return
    with pytest.raises(CaiError, match=message):
        make_plan(run_file, [], None, tmp_path / "runs")
