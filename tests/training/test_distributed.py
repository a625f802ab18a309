"""Two processes on the CPU do what one does."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Demonstration, Prompt
from cai.training import distributed
from cai.training.ppo import trainer
from cai.training.settings import KTOConfig, PPOConfig, RewardConfig, TrainConfig
from cai.training.stage import JudgedAnswer, StageSpec, follow, worker_python
from tests.conftest import prompt, train_here
from tests.training.test_reward import planted
from tests.training.test_settings import dpo

STAGES = Path(__file__).with_name("several_stages.py")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def specifications(folder: Path, model: Path) -> list[StageSpec[TrainConfig]]:
    """A reward, a DPO and a PPO stage, to be trained in one process in batches of four."""
    pairs, prompts = planted(folder / "pairs.jsonl", 12), folder / "prompts.jsonl"
    write_rows(prompts, [Prompt(id=f"p{i}", messages=prompt(f"p{i}", "why " * i + "?").messages) for i in range(1, 6)])
    two_epochs: dict[str, Any] = {"per_device_train_batch_size": 4, "lora_r": 2, "num_train_epochs": 2}
    ensemble = RewardConfig(stage="reward", lora_r=2, members=2, holdout=0)
    scorer = train_here(StageSpec(ensemble, pairs, model, folder / "scorer"))
    asked = [(f"p{i}", prompt(f"p{i}").messages, "good " * i + "answer") for i in range(7)]
    answers = [Demonstration(prompt_id=name, messages=messages, completion=text) for name, messages, text in asked]
    write_rows(folder / "answers.jsonl", answers)
    ppo = PPOConfig(
        stage="ppo", ptx=str(folder / "answers.jsonl"), updates=3, rollouts=6, per_device_train_batch_size=4, max_tokens=6, lora_r=2, learning_rate=1e-3,
        value="separate", target_kl=1.0,
    )  # fmt: skip
    rated = ppo.model_copy(update={"reward": "judge", "rollouts": 5, "ptx": None})
    return [
        StageSpec(RewardConfig(stage="reward", holdout=0, **two_epochs), pairs, model, folder / "one/reward"),
        StageSpec(dpo(**two_epochs), pairs, model, folder / "one/dpo"),
        StageSpec(ppo, prompts, model, folder / "one/ppo", reward=scorer),
        StageSpec(rated, prompts, model, folder / "one/rated"),
    ]


def rating(question: dict[str, Any]) -> dict[str, Any]:
    """A judge that likes long answers."""
    if "prompts" in question:
        return {"refused": {}}
    texts = [text for _, text in question["answers"]]
    judged = [JudgedAnswer(len(text) / 9, {"long": len(text)}, 0.25)._asdict() for text in texts]
    return {"judged": judged}


@pytest.mark.slow
def test_two_processes_give_the_curves_of_one(tmp_path: Path, tiny_model: Path) -> None:
    stage_files = []
    for spec in specifications(tmp_path, tiny_model):
        train_here(spec, ask=rating)
        settings = spec.settings.model_copy(update={"per_device_train_batch_size": 2})
        shared = replace(spec, settings=settings, folder=tmp_path / "two" / spec.folder.name)
        shared.folder.mkdir(parents=True)
        stage_files.append(shared.folder / "stage.json")
        shared.write(stage_files[-1])
    kto = KTOConfig(stage="kto", per_device_train_batch_size=2, lora_r=2)  # whose KL term depends on the batches
    spec = StageSpec(kto, tmp_path / "pairs.jsonl", tiny_model, tmp_path / "two/kto")
    spec.folder.mkdir()
    spec.write(spec.folder / "stage.json")
    stage_files.append(spec.folder / "stage.json")
    command = [*worker_python("torchrun --nproc_per_node 2"), str(STAGES), *map(str, stage_files)]
    steps = []
    follow(command, tmp_path / "train.log", lambda event: steps.append(event.get("step")), rating)
    assert steps.count(3) == 5  # the first process alone reports, once for each stage

    assert (tmp_path / "two/kto/model").is_dir()
    for stage in ("reward", "dpo"):
        assert (tmp_path / "two" / stage / "model").is_dir()
        one, two = (
            [line["loss"] for line in lines(tmp_path / name / stage) if "loss" in line] for name in ("one", "two")
        )
        assert len(one) == 6
        assert two == pytest.approx(one, abs=1e-4)
    for stage in ("ppo", "rated"):
        assert (tmp_path / "two" / stage / "model").is_dir()
        for a, b in zip(lines(tmp_path / "one" / stage), lines(tmp_path / "two" / stage), strict=True):
            for key in a:
                if not key.startswith("seconds") and a[key] is not None:
                    assert b[key] == pytest.approx(a[key], abs=1e-4, rel=1e-3), key
    assert lines(tmp_path / "one/ppo")[2]["loss/ptx"] < lines(tmp_path / "one/ppo")[0]["loss/ptx"]
    assert lines(tmp_path / "two/rated")[0].keys() >= {"judge/rating", "judge/non_option_mass", "judge/refused"}


def test_vllm_does_not_sample_for_several_processes(tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = PPOConfig(stage="ppo", use_vllm=True)
    with pytest.raises(
        CaiError, match="ppo: use_vllm samples in one process, and the launcher started 2: set use_vllm"
    ):
        trainer.train(
            StageSpec(config, tmp_path / "p.jsonl", tiny_model, tmp_path, reward=tmp_path), lambda event: None
        )


@pytest.mark.parametrize(
    ("chosen", "gpus"), [("0,1,2", 3), ("GPU-a, GPU-b", 2), ("3", 1), ("", 0), ("-1", 0), (None, 4)]
)
def test_a_process_without_a_launcher_uses_one_gpu(
    chosen: str | None, gpus: int, tmp_path: Path, monkeypatch: Any
) -> None:
    for number in range(4):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    monkeypatch.setattr("cai.training.distributed.DRIVER", tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen or "")
    if chosen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    seen = distributed.visible_gpus()
    assert len(seen) == gpus
    started = worker_python("auto")[1:]
    assert started == (["--standalone", "--nproc_per_node", str(gpus)] if gpus > 1 else [])
    said = distributed.use_one_gpu()
    if gpus < 2:
        assert said is None and os.environ.get("CUDA_VISIBLE_DEVICES") == chosen
    else:
        assert said == f"one of {gpus} GPUs is used; launcher: auto trains with a process on each"
        assert distributed.visible_gpus() == seen[:1]


def test_a_process_of_a_launcher_keeps_its_gpus(monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert distributed.use_one_gpu() is None
    assert distributed.visible_gpus() == ["0", "1"]
