"""Two processes on the CPU do what one does, with whole copies of the weights and with shards of them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cai.data.jsonl import read_rows, write_rows
from cai.data.records import Demonstration, Preference, Prompt
from cai.training import distributed
from cai.training.settings import KTOConfig, ORPOConfig, PPOConfig, RewardConfig, RLOOConfig, SFTConfig, TrainConfig
from cai.training.stage import JudgedAnswer, StageSpec, follow, worker_python
from tests.conftest import prompt, train_here
from tests.training.test_reward import planted
from tests.training.test_settings import dpo

STAGES = Path(__file__).with_name("several_stages.py")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def specifications(folder: Path, model: Path) -> list[StageSpec[TrainConfig]]:
    """Stages to be trained in one process in batches of four."""
    pairs, prompts = planted(folder / "pairs.jsonl", 12), folder / "prompts.jsonl"
    write_rows(prompts, [Prompt(id=f"p{i}", messages=prompt(f"p{i}", "why " * i + "?").messages) for i in range(1, 6)])
    answers = [pair.model_dump(include={"prompt_id", "messages"}) for pair in read_rows(pairs, Preference)]
    write_rows(folder / "answers.jsonl", [Demonstration(**row, completion="yes yes") for row in answers])
    two_epochs: dict[str, Any] = {"per_device_train_batch_size": 4, "lora_r": 2, "num_train_epochs": 2}
    ensemble = RewardConfig(stage="reward", lora_r=2, members=2, holdout=0)
    scorer = train_here(StageSpec(ensemble, pairs, model, folder / "scorer"))
    ppo = PPOConfig(
        stage="ppo", updates=3, rollouts=6, per_device_train_batch_size=4, max_tokens=6, lora_r=2, learning_rate=1e-3,
        value="separate", target_kl=1.0, save_steps=1,
    )  # fmt: skip
    rated = ppo.model_copy(update={"reward": "judge", "rollouts": 5})
    # Answers of one to six tokens in batches of one or two: processes have more or fewer of both.
    full = PPOConfig(
        stage="ppo", updates=3, rollouts=5, per_device_train_batch_size=2, max_tokens=6, lora_r=None,
        learning_rate=1e-3, gradient_accumulation_steps=2, ptx=str(folder / "answers.jsonl"), save_steps=1,
    )  # fmt: skip
    rloo = RLOOConfig(
        stage="rloo", num_generations=2, per_device_train_batch_size=4, lora_r=2, max_tokens=6, save_steps=1
    )
    return [
        StageSpec(SFTConfig(stage="sft", mix=None, **two_epochs), folder / "answers.jsonl", model, folder / "one/sft"),
        StageSpec(RewardConfig(stage="reward", holdout=0, **two_epochs), pairs, model, folder / "one/reward"),
        StageSpec(dpo(**two_epochs | {"lora_r": 1}), pairs, model, folder / "one/dpo"),  # the second has no row of it
        StageSpec(dpo(**two_epochs | {"lora_r": None}), pairs, model, folder / "one/dpo-full"),
        StageSpec(ORPOConfig(stage="orpo", **two_epochs), pairs, model, folder / "one/orpo"),
        StageSpec(ppo, prompts, model, folder / "one/ppo", reward=scorer),
        StageSpec(rated, prompts, model, folder / "one/rated"),
        StageSpec(full, prompts, ending_early(model, folder / "ends"), folder / "one/ppo-full", reward=scorer),
        StageSpec(KTOConfig(stage="kto", **two_epochs, dtype="bfloat16"), pairs, model, folder / "one/kto"),
        StageSpec(rloo, prompts, ending_early(model, folder / "ends"), folder / "one/rloo", reward=scorer),
    ]


def ending_early(model: Path, folder: Path) -> Path:
    """The model with one in five tokens ending an answer."""
    if not folder.exists():
        shutil.copytree(model, folder)
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "eos_token_id": [settings["eos_token_id"], *range(3, 53)]}))
    return folder


def rating(question: dict[str, Any]) -> dict[str, Any]:
    """A judge that likes long answers."""
    if "prompts" in question:
        return {"refused": {}}
    texts = [text for _, text in question["answers"]]
    judged = [JudgedAnswer(len(text) / 9, {"long": len(text)}, 0.25)._asdict() for text in texts]
    return {"judged": judged}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folders `one`, `ddp` and `fsdp`, with the stages as one process and two train them."""
    folder, arguments = tmp_path_factory.mktemp("several"), list[str]()
    for spec in specifications(folder, tiny_model):
        train_here(spec, ask=rating)
        half = {"per_device_train_batch_size": spec.settings.per_device_train_batch_size // 2}
        for fsdp in (False, True):
            settings = spec.settings.model_copy(update={**half, "fsdp": fsdp})
            shared = replace(spec, settings=settings, folder=folder / ("fsdp" if fsdp else "ddp") / spec.folder.name)
            shared.folder.mkdir(parents=True)
            shared.write(shared.folder / "stage.json")
            if fsdp or spec.folder.name in DDP:
                arguments.append(str(shared.folder / "stage.json"))
    arguments += [f"{folder / 'fsdp' / stage}/stage.json@{update}" for stage, update in RESUMED.items()]
    command = [*worker_python("torchrun --nproc_per_node 2"), str(STAGES), *arguments]
    events: list[dict[str, Any]] = []
    follow(command, folder / "train.log", events.append, rating)
    steps = [event["step"] for event in events if "step" in event]
    assert steps.count(1) == len(arguments) - len(RESUMED)  # the first process alone reports, once for each stage
    return folder


DDP = ("reward", "dpo", "orpo", "ppo", "rated", "kto", "rloo")
RESUMED = {"dpo": 4, "ppo-full": 1}
ALIKE = ("sft", "dpo", "dpo-full", "orpo", "reward", "ppo", "rated", "ppo-full")
"""The stages whose updates are the same for any number of processes."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "stage"), [("ddp", s) for s in ALIKE if s in DDP] + [("fsdp", s) for s in ALIKE if s != "rated"]
)
def test_two_processes_give_the_curves_of_one(way: str, stage: str, trained: Path) -> None:
    one, two = lines(trained / "one" / stage), lines(trained / way / stage)
    own = ("accuracy", "margin", "mean_reward", "logits/chosen", "logits/rejected")  # of a process's rows and padding
    for a, b in zip(one, two, strict=True):
        for key in a:
            if not key.startswith("seconds") and key not in own and a[key] is not None:
                assert b[key] == pytest.approx(a[key], abs=1e-4, rel=1e-3), key
    if stage == "rated":
        assert two[0].keys() >= {"judge/rating", "judge/non_option_mass", "judge/refused"}
    if stage == "ppo-full":
        assert 1 < two[0]["response/length"] < 6


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["kto", "rloo"])
def test_sharded_stages_give_the_curves_of_whole_copies(stage: str, trained: Path) -> None:
    """KTO's KL term depends on the batches, and rloo's samples on the process; kto is in bfloat16."""
    whole, sharded = lines(trained / "ddp" / stage), lines(trained / "fsdp" / stage)
    for a, b in zip(whole, sharded, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*ALIKE[:-2], "ppo-full", "kto", "rloo"])
def test_a_sharded_stage_saves_what_one_process_saves(stage: str, trained: Path) -> None:
    one, two = (trained / way / stage / "model" for way in ("one", "fsdp"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file()) == files
    for file in files:
        if file.suffix == ".safetensors":
            a, b = load_file(one / file), load_file(two / file)
            assert {k: (t.shape, t.dtype) for k, t in a.items()} == {k: (t.shape, t.dtype) for k, t in b.items()}
            if stage in ALIKE:
                assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)
        elif file.name in ("config.json", "generation_config.json"):
            assert (two / file).read_text() == (one / file).read_text()
    if stage != "reward":
        model = AutoModelForCausalLM.from_pretrained(two)
        assert model(torch.tensor([[5, 6]])).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("stage", RESUMED)
def test_a_sharded_stage_resumes_to_the_same_bits(stage: str, trained: Path) -> None:
    if stage == "dpo":  # PPO's are whole
        shards = trained / "fsdp/dpo/checkpoints/checkpoint-6/pytorch_model_fsdp_0"
        assert {path.name for path in shards.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    first, again = (load_file(trained / "fsdp" / stage / name / "model.safetensors") for name in ("first", "model"))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_sharded_ppo_resumes_in_one_process(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "fsdp/ppo", tmp_path / "ppo")
    shutil.rmtree(tmp_path / "ppo/model")
    spec = StageSpec.read(tmp_path / "ppo/stage.json")
    events: list[dict[str, Any]] = []
    settings = spec.settings.model_copy(update={"fsdp": False, "per_device_train_batch_size": 4})
    train_here(replace(spec, settings=settings, folder=tmp_path / "ppo"), events.append)
    warning = "update-000002 was written by 2 processes with fsdp: true, and the launcher started 1 process"
    assert any(warning in event.get("warning", "") for event in events)
    for a, b in zip(lines(trained / "one/ppo"), lines(tmp_path / "ppo"), strict=True):
        assert b["loss/policy"] == pytest.approx(a["loss/policy"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "rloo"])
def test_one_process_goes_on_where_two_stopped(stage: str, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "ddp" / stage, tmp_path / stage))
    shutil.rmtree(folder / "model")
    shutil.rmtree(max(folder.glob("checkpoints/checkpoint-*")))
    spec, events = replace(StageSpec.read(folder / "stage.json"), folder=folder), list[dict[str, Any]]()
    train_here(spec, events.append)
    assert "and not 1, so that an update has the same rows" in next(e["warning"] for e in events if "warning" in e)
    before, after = lines(trained / "ddp" / stage), lines(folder)
    assert [line["step"] for line in after] == [line["step"] for line in before]
    if stage == "dpo":  # rloo's samples are each process's own
        for a, b in zip(before, after, strict=True):
            assert (b["loss"], b["grad_norm"]) == pytest.approx((a["loss"], a["grad_norm"]), abs=1e-4)
        first, again = (load_file(of / "model/model.safetensors") for of in (trained / "ddp/dpo", folder))
        assert all(torch.allclose(first[name], again[name], atol=1e-4) for name in first)


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
