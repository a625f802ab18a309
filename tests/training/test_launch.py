"""The processes of a stage suit its settings, rows and checkpoints, or that is said before a model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.runs.plan import make_plan
from cai.training import worker
from cai.training.launch import check_launcher, check_rows, fit_to_processes, launched_gpus
from cai.training.settings import PPOConfig, TrainConfig
from cai.training.stage import StageSpec, stage_settings_class
from tests.conftest import train_here, write_workspace
from tests.training.policies import write_pairs


def of(name: str, **settings: Any) -> TrainConfig:
    return stage_settings_class(name).model_validate({"stage": name, **settings})


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
    for stage in ("ppo", "rloo"):
        spec = StageSpec(of(stage, use_vllm=True), pairs, tiny_model, tmp_path)
        with pytest.raises(
            CaiError, match=f"{stage}: use_vllm samples in one process, and the launcher started 9: set"
        ):
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
