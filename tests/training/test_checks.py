"""What can be seen to fail before a stage trains: arguments of trl, layers, packages, and its processes."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.runs.plan import make_plan
from cai.training import worker
from cai.training.checks import check_launcher, check_rows, check_stage, fit_to_processes, launched_gpus
from cai.training.settings import PPOConfig, SFTConfig, TrainConfig
from cai.training.stage import StageSpec, stage_settings_class
from tests.conftest import train_here, write_workspace
from tests.training.policies import write_pairs
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


@pytest.mark.parametrize(
    ("settings", "launcher", "message"),
    [
        ({}, "", r"^here\.fsdp: shards over the processes of a launcher, and there is one process; set launcher"),
        ({}, "auto", r"^here\.fsdp: shards over the processes of a launcher, and there is one process"),
        ({"use_vllm": True}, "torchrun", r"^here\.use_vllm: samples in one process, and fsdp shards over several"),
        ({"quantization": "4bit"}, "torchrun", r"^here\.quantization: quantized weights are not sharded; set fsdp"),
    ],
)
def test_fsdp_where_it_cannot_be_is_an_error_before_a_worker_starts(
    settings: dict[str, Any], launcher: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = of("ppo", fsdp=True, lora_r=4).model_copy(update=settings)
    with pytest.raises(CaiError, match=message):
        check_launcher(config, launcher, "here")
    check_launcher(config.model_copy(update={"fsdp": False}), launcher, "here")
    check_launcher(of("ppo", fsdp=True), "torchrun --nproc_per_node 2", "here")


def test_a_run_names_the_stage_whose_fsdp_lacks_a_launcher(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="train: [{stage: sft}, {stage: dpo, fsdp: true}]")
    with pytest.raises(CaiError, match=r"run\.yaml: train\[1\]\.fsdp: shards over the processes of a launcher"):
        make_plan(run_file, [], None, tmp_path / "runs")


def test_a_launcher_that_starts_one_process_shards_nothing(tmp_path: Path) -> None:
    with pytest.raises(CaiError, match=r"^sft\.fsdp: shards over several processes, and the launcher started one"):
        fit_to_processes(StageSpec(of("sft", fsdp=True), tmp_path, tmp_path, tmp_path), print)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ACCELERATE_USE_FSDP",
            "true",
            "^dpo: accelerate's configuration asks for FSDP; set fsdp: true .*--set fsdp=true",
        ),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "^dpo: accelerate's configuration asks for ZeRO stage 3"),
    ],
)
def test_sharding_by_accelerates_configuration_is_refused(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StageSpec(of("dpo"), tmp_path, tmp_path, tmp_path)
    fit_to_processes(spec, print)
    monkeypatch.setenv(name, value)
    with pytest.raises(CaiError, match=message):
        fit_to_processes(spec, print)


def test_more_processes_than_rows_are_named(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rows("sft", 1)
    monkeypatch.setenv("WORLD_SIZE", "9")
    monkeypatch.setattr("cai.training.distributed.join", lambda: None)
    pairs = write_pairs(tmp_path / "pairs.jsonl")  # eight of them fit, and have a better answer
    with pytest.raises(CaiError, match="orpo: 8 rows to train on, for 9 processes; start"):
        train_here(StageSpec(of("orpo", max_length=100), pairs, tiny_model, tmp_path / "orpo"))
    for name in ("ppo", "rloo"):
        spec = StageSpec(of(name, use_vllm=True), pairs, tiny_model, tmp_path)
        with pytest.raises(CaiError, match=f"{name}: use_vllm samples in one process, and the launcher started 9: set"):
            fit_to_processes(spec, print)
    with pytest.raises(CaiError, match="ppo: 8 rollouts an update, for 9 processes; start"):
        fit_to_processes(StageSpec(of("ppo", rollouts=8), pairs, tiny_model, tmp_path), print)


def interrupted(folder: Path, checkpoint: str, **launch: Any) -> Path:
    """A stage's folder with a checkpoint, by processes as in `launch`."""
    state = folder / "checkpoints" / checkpoint / ("state.json" if "update" in checkpoint else "trainer_state.json")
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    if launch:
        (folder / "processes.json").write_text(json.dumps(launch))
    return folder


@pytest.mark.parametrize(
    ("before", "fsdp", "message"),
    [
        (
            {"processes": 3, "fsdp": True},
            True,
            "checkpoint-20 was written by 3 processes with fsdp: true, and the launcher started 2 processes with "
            "fsdp: true: an update has 3 batches, which so many cannot share; start 3, or remove .*checkpoints to train",
        ),
        ({"processes": 3, "fsdp": False}, False, "an update has 3 batches, which so many cannot share; start 1 or 3,"),
        ({"processes": 2, "fsdp": False}, True, "written by 2 processes with fsdp: false, .*: its files are others;"),
        ({"processes": 2, "fsdp": True}, True, None),
        ({}, False, None),  # by an earlier version
    ],
)
def test_a_checkpoint_of_other_processes_is_named_before_training(
    before: dict[str, Any], fsdp: bool, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = interrupted(tmp_path, "checkpoint-20", **before)
    spec = StageSpec(of("dpo", fsdp=fsdp), tmp_path, tmp_path, folder)
    if message is None:
        fit_to_processes(spec, print)
        return
    with pytest.raises(CaiError, match=message):
        fit_to_processes(spec, print)


@pytest.mark.parametrize(("before", "steps", "expected"), [(4, 1, 2), (4, 3, 6), (1, 4, 2)])
def test_an_update_of_other_processes_has_the_same_rows(
    before: int, steps: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = interrupted(tmp_path, "checkpoint-20", processes=before, fsdp=False)
    spec, events = StageSpec(of("dpo", gradient_accumulation_steps=steps), tmp_path, tmp_path, folder), []
    for _ in range(2):  # interrupted again: the settings count for the processes that the stage began with
        assert fit_to_processes(spec, events.append).settings.gradient_accumulation_steps == expected
    assert f"gradient_accumulation_steps is {expected}, and not {steps}, so that" in events[-1]["warning"]


def test_ppo_goes_on_with_other_processes_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = interrupted(tmp_path, "update-000005", processes=4, fsdp=False)
    spec, events = StageSpec(PPOConfig(stage="ppo"), tmp_path, tmp_path, folder), list[dict[str, Any]]()
    fit_to_processes(spec, events.append)
    fit_to_processes(spec, events.append)  # interrupted again: by then its checkpoints are of two processes
    [event] = events
    assert "update-000005 was written by 4 processes with fsdp: false" in event["warning"]


@pytest.mark.parametrize(
    ("launcher", "gpus"),
    [
        ("", 1), ("auto", 4), ("torchrun --standalone --nproc_per_node 2", 2), ("torchrun --nproc-per-node=3 x", 3),
        ("torchrun --nproc_per_node gpu", 4), ("accelerate launch --num_processes 2", 2), ("accelerate launch", 1),
        ("torchrun --nproc_per_node 8", 4),
    ],
)  # fmt: skip
def test_the_gpus_of_a_launcher_are_read_from_its_command(
    launcher: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert launched_gpus(launcher) == gpus
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launched_gpus(launcher) == 0


def test_other_processes_leave_an_error_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(worker.time, "sleep", waited.append)
    monkeypatch.setattr(worker.os, "dup2", lambda *files: None)

    def work(report: Any, ask: Any) -> None:
        raise CaiError("too few rows")

    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert worker.serve(work, tmp_path) == 2
    assert waited == [worker.LAST_WORD]
