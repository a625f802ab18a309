"""`cai train`, and `--estimate`: the memory that a stage takes, by parts."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from cai.cli.console import Grid, command, echo_json, ending, heading, line, result_console, resumable, show
from cai.cli.options import DEFAULT_RUNS, DEFAULT_SEED, ModelName, Replace, Seed, Settings, default, setting
from cai.config.characters import Terminal
from cai.config.errors import CaiError
from cai.config.locate import local_file
from cai.config.yaml_files import YamlSource, apply_overrides, validate
from cai.data.jsonl import write_rows
from cai.data.records import Skipped
from cai.inference.chat_template import ChatSettings, with_template_text
from cai.inference.models import resolve_model
from cai.inference.reporter import Reporter
from cai.runs.metrics import stage_results, training_lines
from cai.runs.pipeline import train_stage
from cai.runs.run_file import RunConfig
from cai.runs.training_estimates import online_rewards
from cai.runs.trust import training_trust
from cai.training.checks import check_launcher, check_sharding, check_stage, launched_gpus
from cai.training.memory import Estimate, estimate
from cai.training.model_shape import ModelShape, read_shape
from cai.training.reward_folder import find_reward_model
from cai.training.settings import Online, PPOConfig, TrainConfig
from cai.training.stage import StageSpec, convert_data, reward_models, stage_settings_class, worker_python

Reward = Annotated[str | None, setting(PPOConfig, "reward", "--reward", "DIR")]
Launcher = Annotated[str, setting(RunConfig, "launcher", "--launcher", "COMMAND")]
CHAT = "engine."  # begins the --set of a chat template's settings
COMMAND = Path("cai train")  # where options come from, for messages
DEFAULT_LAUNCHER: str = default(RunConfig, "launcher")


def _known_stage(name: str) -> str:
    """Raises: CaiError for a stage that there is not."""
    stage_settings_class(name)
    return name


def train(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help="sft, reward, ppo, dpo, kto, orpo, rloo, grpo or online_dpo.",
            callback=_known_stage,  # before options that are missing are errors
        ),
    ],
    model: ModelName,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="File or Hub id: preferences, completions or prompts. Required unless --estimate is given.",
        ),
    ] = None,
    reward: Reward = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for model and metrics.", show_default="runs/STAGE-DATA"),
    ] = None,
    settings: Settings = None,
    seed: Seed = DEFAULT_SEED,
    launcher: Launcher = DEFAULT_LAUNCHER,
    replace: Replace = False,
    memory: Annotated[
        bool, typer.Option("--estimate", help="Show the memory it takes, by parts; run nothing.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=0, help="With --estimate: GPUs to train on, 0 for none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --estimate: print JSON.")] = False,
) -> None:
    """Train one stage on a data file, or resume it.

    The stage decides the data: preferences for reward, dpo, kto and orpo; completions for sft; prompts for ppo, rloo,
    grpo and online_dpo. docs/run-file.md lists the settings for --set, such as learning_rate=1e-5, or
    engine.chat_template=chatml for a base model. After an interrupt, the same command resumes from the last checkpoint.
    --estimate shows the memory that it takes (docs/training-scale.md), from the model's config.json alone.
    """
    if memory:
        config = _settings(stage, reward, [override for override in settings or [] if not override.startswith(CHAT)])
        print_estimate(stage, config, model, launched_gpus(launcher) if gpus is None else gpus, as_json)
        return
    if gpus is not None or as_json:
        raise CaiError(f"{'--json' if gpus is None else '--gpus'} applies to --estimate only; add --estimate")
    if data is None:
        raise CaiError("--data FILE: is missing; only --estimate works without it")
    out = folder or DEFAULT_RUNS / f"{stage}-{data.name.split('.')[0].replace(':', '-')}"
    console = Terminal()
    if out.exists() and not out.is_dir():
        raise CaiError(f"--out {out}: is a file; expected a folder")
    config = _settings(stage, reward, [override for override in settings or [] if not override.startswith(CHAT)])
    chat = _chat([override for override in settings or [] if override.startswith(CHAT)])
    worker_python(launcher)  # an error in it shows now
    check_launcher(config, launcher, stage)
    if warning := config.rate_warning():
        line(console, f"  {stage}: warning: {warning}")
    start = resolve_model(model)
    check_stage(config, start, stage)
    rewards = reward_models(config, "--reward")
    spec = StageSpec(
        settings=config,
        data=local_file(str(data)),
        model=start,
        folder=out,
        seed=seed,
        reward=rewards[0] if rewards else None,
        other_rewards=rewards[1:],
        chat=chat,
        launcher=launcher,
    )
    _run(stage, spec, replace, console, model)


def _run(stage: str, spec: StageSpec[Any], replace: bool, console: Terminal, model: str) -> None:
    """Train on the rows of the file that `spec.data` names, and print what came of it."""
    with tempfile.TemporaryDirectory(prefix="cai-train-") as aside:
        rows = Path(aside) / "rows.jsonl"
        skipped = convert_data(spec.settings, spec.data, rows)
        reporter = Reporter(console)
        with resumable(console, reporter):
            result, more = train_stage(stage, dataclasses.replace(spec, data=rows), reporter, replace, keep_data=True)
    skipped += more
    if skipped:
        write_rows(spec.folder / "skipped.jsonl", skipped)
    output = result_console()
    for part in _ending(stage, spec, result, skipped, model):
        show(output, part)


def _ending(
    stage: str, spec: StageSpec[Any], result: Path, skipped: Sequence[Skipped], model: str
) -> Iterator[RenderableType | Grid]:
    """What training came to, what limits it, and the command that goes on from it."""
    folder = spec.folder
    yield heading(f"{folder}: {stage}")
    grid = Grid(["", ""], left=2, last_left=True)
    for place, text in enumerate(training_lines(stage_results(folder))):
        grid.add("" if place else "training", text)
    grid.add("reward model" if stage == "reward" else "policy", str(result))
    yield grid
    if stage == "reward":
        more = ["--data", "PROMPTS", "--model", model]
        commands = [(command("train", "ppo", "--reward", result, *more), "a policy that it scores higher")]
    else:
        commands = [(command("eval", folder), "win rate against the base model, probes")]
    yield from ending(training_trust(folder, skipped), commands)


def _chat(overrides: list[str]) -> ChatSettings | None:
    source = YamlSource(COMMAND, {}, {})
    overrides = [override.removeprefix(CHAT) for override in overrides]
    settings = validate(apply_overrides(source, overrides), ChatSettings)
    return with_template_text(settings, "engine", COMMAND).chat


def _settings(stage: str, reward: str | None, overrides: list[str]) -> TrainConfig:
    kind = stage_settings_class(stage)
    if reward and not issubclass(kind, Online):
        raise CaiError(f"--reward {reward}: {stage} takes no reward model; ppo, rloo, grpo and online_dpo do")
    for override in overrides:
        if prefix := re.match(r"train\.\d+\.", override):
            raise CaiError(
                f"--set {override}: `cai train` trains one stage; omit the prefix: --set {override[prefix.end() :]}"
            )
    named = {"reward": reward} if reward else {}
    source = apply_overrides(YamlSource(COMMAND, {"stage": stage, **named}, {}), overrides)
    return validate(source, kind)


GIB, MIB = 2**30, 2**20
COLUMNS = 80
MANY = 2  # GPUs, from which weights can be sharded


def print_estimate(stage: str, settings: TrainConfig, model: str, gpus: int, as_json: bool) -> None:
    """Print what the stage takes on `gpus` GPUs, 0 for the CPU."""
    shape = read_shape(model)
    if settings.fsdp and gpus < MANY:
        raise CaiError(f"{stage}.fsdp: the estimate shards over several GPUs, found {gpus}; add --gpus N, such as 8")
    check_sharding(settings, stage)
    reward = online_rewards(settings, shape, find=lambda name: find_reward_model("--reward", name))
    memory = estimate(settings, shape, gpus, reward)
    if as_json:
        echo_json(json.dumps(as_object(stage, shape, gpus, memory), indent=1))
        return
    console = result_console()
    console.width = min(console.width, COLUMNS)
    for part in estimate_parts(stage, shape, gpus, memory):
        show(console, part)


def place_text(gpus: int) -> str:
    """Where the processes of a stage run."""
    return {0: "on the CPU", 1: "on a GPU"}.get(gpus, f"on each of {gpus} GPUs")


def size_text(size: int) -> str:
    """A peak with its unit: `3.21 GiB`."""
    unit, name = unit_of(size)
    return f"{memory_text(size, unit)} {name}"


def unit_of(peak: int) -> tuple[int, str]:
    """The unit that sizes up to a peak are shown in, in bytes, and its name."""
    return (GIB, "GiB") if peak >= GIB else (MIB, "MiB")


def memory_text(size: int, unit: int) -> str:
    """Bytes in a unit: `0.51`."""
    return f"{size / unit:,.2f}" if size < 100 * unit else f"{size / unit:,.0f}"


def estimate_parts(stage: str, shape: ModelShape, gpus: int, memory: Estimate) -> Iterator[RenderableType | Grid]:
    """The table of parts and moments, and what it leaves out."""
    unit, name = unit_of(memory.peak)
    yield heading(f"{stage} of {shape.name} {place_text(gpus)}: {size_text(memory.peak)} at its peak")
    grid = Grid([name, *memory.moments, ""], last_left=True)
    for part in memory.parts:
        sizes = (part.at[moment] for moment in memory.moments)
        grid.add(part.name, *(memory_text(size, unit) if size else "" for size in sizes), part.note)
    grid.add("in all", *(memory_text(memory.total(moment), unit) for moment in memory.moments))
    yield grid
    python = "Python takes 0.6 GiB more, and freed memory that glibc keeps takes up to 60 % more."
    more = "CUDA takes 0.5 to 1 GiB more." if gpus else python
    yield Text(f"Computed from the settings, not run. {more}", style="dim")


def as_object(stage: str, shape: ModelShape, gpus: int, memory: Estimate) -> dict[str, object]:
    """The same for `--json`, in bytes."""
    return {
        "stage": stage,
        "model": shape.name,
        "parameters": shape.parameters,
        "gpus": gpus,
        "peak": memory.peak,
        "moments": {moment: memory.total(moment) for moment in memory.moments},
        "parts": [{"name": part.name, "note": part.note, **part.at} for part in memory.parts],
    }
