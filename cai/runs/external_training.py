"""Exporting an online stage of a run to verl or OpenRLHF, which train models too large for cai's own trainers.

The folder has the prompts, `train.sh` with the stage's settings under the trainer's names, the policy's tokenizer with
the chat template in force, and a reward function for the run's reward model (reward_function.py).
"""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from cai import __version__
from cai.config.characters import visible
from cai.config.errors import CaiError, RequestRefused
from cai.data.files import table_writer
from cai.data.jsonl import write_rows, write_text
from cai.data.records import Message, Prompt, Skipped
from cai.inference.chat import ChatTokenizer, answer_format
from cai.inference.models import loading_options, resolve_model
from cai.runs.external_settings import (
    NAMED,
    NO_COUNTERPART,
    REWARDED,
    Size,
    Stage,
    openrlhf_settings,
    stage_size,
    verl_settings,
)
from cai.runs.find import run_config
from cai.runs.folder import RunFolder
from cai.runs.run_file import RunConfig, load_run_file
from cai.stats.formatting import counted
from cai.training.reward_folder import find_base, find_run_reward, is_trained_here
from cai.training.setting_parts import JUDGE, LAST, parts_of
from cai.training.settings import PPOConfig
from cai.training.stage import MODEL
from cai.training.tokens import end_of_turn, prompt_ids, stage_tokenizer, stop_tokens

TRAINERS = {"verl": "verl 0.9", "openrlhf": "OpenRLHF 0.11"}
STAGES = "ppo, grpo or rloo"
SKIPPED = "skipped.jsonl"
REWARD_FUNCTION = "reward_function.py"  # which is copied as it is, and imports nothing of cai


class Exported(NamedTuple):
    """An online stage of a run, with what it starts from and is rewarded by."""

    run: RunFolder
    name: str
    """The stage's, such as 3-ppo."""
    settings: Stage
    seed: int
    policy: Path
    reward: Path
    tokenizer: Any
    """The policy's."""


class TokenizedPrompt(NamedTuple):
    """A prompt with its text by the chat template, and its token ids."""

    row: Prompt
    text: str
    ids: list[int]


class VerlReward(BaseModel):
    """`reward_model` of verl's rows."""

    style: str = "model"
    ground_truth: str = ""


class VerlExtra(BaseModel):
    """`extra_info` of verl's rows, which the reward function gets."""

    index: int
    prompt_id: str
    prompt_ids: list[int]


class VerlRow(BaseModel):
    """A prompt as verl reads it."""

    data_source: str
    prompt: list[Message]
    ability: str = "chat"
    reward_model: VerlReward = VerlReward()
    extra_info: VerlExtra


class OpenRLHFRow(BaseModel):
    """A prompt as OpenRLHF reads it: already rendered. `label` is what the reward function gets, as JSON."""

    prompt: str
    label: str


def find_stage(run: RunFolder) -> Exported:
    """The last online stage of a run, whose models before it are trained; it need not be itself.

    Raises: CaiError for a run without one, or whose reward is no reward model trained here.
    """
    config = run_config(run)
    stages = [(place, each) for place, each in enumerate(config.train) if isinstance(each, Stage)]
    if not stages:
        listed = ", ".join(settings.stage for settings in config.train) or "no stage"
        raise CaiError(f"{run.path}: expected a {STAGES} stage in its `train:`, found {listed}")
    place, settings = stages[-1]
    before = [(f"{number}-{each.stage}", each.stage) for number, each in enumerate(config.train[:place], start=1)]
    policies = [name for name, stage in before if stage != "reward"]
    policy = _trained(run, policies[-1]) if policies else resolve_model(config.model)
    tokenizer = stage_tokenizer(policy, None if policies else config.engine.chat)
    rewards = [name for name, stage in before if stage == "reward"]
    reward = _reward_model(run, config, place, rewards)
    from cai.training.reward_model import check_vocabulary

    check_vocabulary(reward, tokenizer, policy)
    return Exported(run, f"{place + 1}-{settings.stage}", settings, config.seed, policy, reward, tokenizer)


def _trained(run: RunFolder, stage: str) -> Path:
    folder = run.train / stage / MODEL
    if not folder.exists():
        raise CaiError(
            f"{folder}: expected the model of this stage, found nothing; train the stages before with `cai run`"
        )
    return folder


def _reward_model(run: RunFolder, config: RunConfig, place: int, rewards: Sequence[str]) -> Path:
    """The folder of the reward model of a stage."""
    settings = config.train[place]
    assert isinstance(settings, Stage)
    field = f"train[{place}].reward"
    where = f"{run.run_yaml}: {field}: expected a reward model that cai trained"
    if isinstance(settings.reward, list):
        raise CaiError(f"{where}, found a list of {len(parts_of(settings.reward))} sources; export one model")
    if settings.reward == JUDGE:
        raise CaiError(f"{where}, found {JUDGE}: external trainers cannot ask it; train a reward model on its labels")
    if settings.reward in (None, LAST):
        return _trained(run, rewards[-1])
    named = load_run_file(run.run_yaml).train[place]  # with the paths that hold now
    assert isinstance(named, Stage)
    folder = find_run_reward(field, str(named.reward), run.run_yaml)
    if not is_trained_here(folder):
        raise CaiError(
            f"{where}, found the classifier {folder}; the trainers load one themselves: verl by "
            "reward.reward_model.model_path, OpenRLHF by --reward.model_name_or_path"
        )
    return folder


def usable_prompts(stage: Exported, rows: Sequence[Prompt]) -> tuple[list[TokenizedPrompt], list[Skipped]]:
    """The prompts that leave room for an answer and that a trainer reads as cai does, and the others with a reason."""
    room = stage.settings.max_length - stage.settings.max_tokens
    kept, skipped = [], []
    for row in rows:
        try:
            ids = prompt_ids(stage.tokenizer, row.messages)
        except RequestRefused as refusal:
            skipped.append(Skipped.refused(row.id, stage.name, refusal))
            continue
        text = stage.tokenizer.apply_chat_template(row.messages, add_generation_prompt=True, tokenize=False)
        reason = ""
        if len(ids) > room:
            reason = f"{len(ids)} tokens leave no room for max_tokens in max_length"
        elif list(stage.tokenizer.encode(text, add_special_tokens=False)) != ids:
            control = ChatTokenizer.of(stage.tokenizer).control_in(" ".join(m["content"] for m in row.messages))
            reason = f"the trainer would read {control!r} in it as a control token"
        if reason:
            skipped.append(Skipped(prompt_id=row.id, stage=stage.name, reason=reason))
        else:
            kept.append(TokenizedPrompt(row, text, ids))
    return kept, skipped


class Written(NamedTuple):
    """What an export wrote: the stage, how many prompts to train on and held out, and the skipped ones."""

    stage: str
    prompts: int
    held_out: int
    skipped: list[Skipped]


def export_training(run: RunFolder, trainer: str, out: Path) -> Written:
    """Write the last online stage of a run as a new folder for a trainer of TRAINERS.

    Raises: CaiError for a folder that exists, as `find_stage`, and for too few prompts.
    """
    if out.exists():
        raise CaiError(f"{out}: already exists; choose another name or delete it first")
    stage, apart = find_stage(run), set(run.manifest()["held_out"])
    prompts = run.prompts()
    training, skipped = usable_prompts(stage, [prompt for prompt in prompts if prompt.id not in apart])
    held_out, more = usable_prompts(stage, [prompt for prompt in prompts if prompt.id in apart])
    size = stage_size(stage.settings, len(training))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(f".{os.getpid()}.part", f".{out.name}-", out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        _write_rows(folder, trainer, run.name, {"prompts": training, "held_out": held_out})
        if skipped + more:
            write_rows(folder / SKIPPED, skipped + more)
        stage.tokenizer.save_pretrained(folder / "tokenizer")
        shutil.copyfile(Path(__file__).with_name(REWARD_FUNCTION), folder / REWARD_FUNCTION)
        write_text(folder / "reward_function.json", json.dumps(reward_settings(stage), indent=1) + "\n")
        write_text(folder / "train.sh", script(stage, trainer, size, bool(held_out)))
        folder.rename(out)
    return Written(stage.name, len(training), len(held_out), skipped + more)


def _write_rows(folder: Path, trainer: str, run: str, splits: dict[str, list[TokenizedPrompt]]) -> None:
    ending, row = (".parquet", VerlRow) if trainer == "verl" else (".jsonl", OpenRLHFRow)
    for name, prompts in splits.items():
        if not prompts:
            continue
        with table_writer(folder / f"{name}{ending}", row) as write:
            for index, (prompt, text, ids) in enumerate(prompts):
                if trainer == "verl":
                    extra = VerlExtra(index=index, prompt_id=prompt.id, prompt_ids=ids)
                    write(VerlRow(data_source=f"cai/{run}", prompt=prompt.messages, extra_info=extra))
                else:
                    label = json.dumps({"prompt_id": prompt.id, "prompt_ids": ids})
                    write(OpenRLHFRow(prompt=text, label=label))


def reward_settings(stage: Exported) -> dict[str, Any]:
    """What reward_function.py reads. Raises: CaiError where the reward model's base is gone, or another."""
    from transformers import AutoConfig, GenerationConfig

    from cai.training.reward_model import read_about

    about = read_about(stage.reward)
    base = find_base(stage.reward, about["base"]).resolve() if about["base"] else None
    declared = GenerationConfig.from_model_config(AutoConfig.from_pretrained(stage.policy, trust_remote_code=False))
    if (stage.policy / "generation_config.json").exists():
        declared = GenerationConfig.from_pretrained(stage.policy)
    return {
        "reward_model": str(stage.reward.resolve()),
        "base": str(base) if base else None,
        "members": about["members"],
        "attn_implementation": loading_options(base or stage.reward / about["members"][0]).get("attn_implementation"),
        "lead": answer_format(stage.tokenizer).lead,
        "end": end_of_turn(stage.tokenizer),
        "ends": sorted(stop_tokens(stage.tokenizer, declared)),
        "max_tokens": stage.settings.max_tokens,
        **{name: getattr(stage.settings, name, None) for name in REWARDED},
        "server": None,
    }


def script(stage: Exported, trainer: str, size: Size, held_out: bool) -> str:
    """The text of train.sh."""
    translate = verl_settings if trainer == "verl" else openrlhf_settings
    settings = translate(stage.settings, stage.seed, size)
    fixed = _verl_files(stage, held_out) if trainer == "verl" else _openrlhf_files(stage)
    known = {setting.name for setting in settings} | set(NAMED)
    rest = {name: value for name, value in stage.settings.model_dump(mode="json").items() if name not in known}
    lost = [f"#   {name}: {json.dumps(rest[name])}{_reason(name)}" for name in rest]
    lines = [f"  {each}" for each in fixed]
    for setting in settings:
        quoted = [" ".join(map(shlex.quote, argument.split(" "))) for argument in setting.arguments]
        lines += [f"  {argument}  # {setting.name}" for argument in quoted]
    module, length = "verl.trainer.main_ppo", counted(size.updates, "updates")
    if trainer == "openrlhf":
        module, length = "openrlhf.cli.train_ppo_ray", f"Passes over the prompts: {size.passes}, for {length}"
    return SCRIPT.format(
        stage=stage.name,
        run=visible(stage.run.name),
        trainer=TRAINERS[trainer],
        version=__version__,
        length=length,
        model=shlex.quote(str(stage.policy.resolve())),
        lost="\n".join(lost),
        arguments="\n".join(lines),
        module=module,
    )


def _reason(name: str) -> str:
    return f" ({NO_COUNTERPART[name]})" if name in NO_COUNTERPART else ""


SCRIPT = """#!/usr/bin/env bash
# {stage} of the run {run} for {trainer}, written by cai {version} from the trainer's documentation and not run.
#
# {length}. The comment behind an argument is cai's setting. Adapt the sizes below to your machines. Where models are
# elsewhere, adapt MODEL too, and `reward_model` and `base` in reward_function.json. Arguments of train.sh are added.
#
# Each process that calls the reward function loads the reward model; those of verl have no GPU. One process can hold it
# for all, on a GPU apart: CUDA_VISIBLE_DEVICES=0 python3 reward_function.py 127.0.0.1:8300
# with "server": "http://127.0.0.1:8300" in reward_function.json.
#
# Settings of cai without a counterpart:
{lost}
set -euo pipefail
HERE=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
MODEL={model}
NODES=1
GPUS=8  # of a node
TENSOR_PARALLEL=8  # GPUs of a vLLM engine

arguments=(
{arguments}
)
exec python3 -m {module} "${{arguments[@]}}" "$@"
"""


def _verl_files(stage: Exported, held_out: bool) -> list[str]:
    """Overrides that do not come from a setting."""
    models = ["actor_rollout_ref.model", *(["critic.model"] if isinstance(stage.settings, PPOConfig) else [])]
    return [
        *(f"\"{model}.path='$MODEL'\"" for model in models),
        *(f"\"{model}.tokenizer_path='$HERE/tokenizer'\"" for model in models),
        "\"data.train_files='$HERE/prompts.parquet'\"",
        f"\"data.val_files='$HERE/{'held_out' if held_out else 'prompts'}.parquet'\"",
        "data.truncation=error",
        "\"reward.custom_reward_function.path='$HERE/reward_function.py'\"",
        "reward.custom_reward_function.name=compute_score",
        "reward.num_workers=1  # each loads the reward model, unless a server has it",
        "actor_rollout_ref.rollout.name=vllm",
        '"actor_rollout_ref.rollout.tensor_model_parallel_size=$TENSOR_PARALLEL"',
        '"trainer.nnodes=$NODES"',
        '"trainer.n_gpus_per_node=$GPUS"',
        "trainer.project_name=cai",
        f"trainer.experiment_name={stage.name}",
        "\"trainer.default_local_dir='$HERE/checkpoints'\"",
        "'trainer.logger=[console]'",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
    ]


def _openrlhf_files(stage: Exported) -> list[str]:
    """Options that do not come from a setting."""
    ppo = isinstance(stage.settings, PPOConfig)
    return [
        '--actor.model_name_or_path "$MODEL"',
        *(['--critic.model_name_or_path "$MODEL"'] if ppo else []),
        '--reward.remote_url "$HERE/reward_function.py"',
        '--data.prompt_dataset "$HERE/prompts.jsonl"',
        "--data.input_key prompt  # rendered already, so without --data.apply_chat_template",
        "--data.label_key label",
        *(f'--{part}.num_nodes "$NODES"' for part in ("actor", "ref", *(["critic"] if ppo else []))),
        *(f'--{part}.num_gpus_per_node "$GPUS"' for part in ("actor", "ref", *(["critic"] if ppo else []))),
        '--vllm.num_engines "$((NODES * GPUS / TENSOR_PARALLEL))"',
        '--vllm.tensor_parallel_size "$TENSOR_PARALLEL"',
        "--vllm.gpu_memory_utilization 0.5",
        "--train.colocate_all",
        "--vllm.enable_sleep",
        "--ds.enable_sleep",
        "--ds.zero_stage 3",
        "--ds.param_dtype bf16",
        '--ckpt.output_dir "$HERE/model"',
        '--ckpt.path "$HERE/checkpoints"',
    ]
