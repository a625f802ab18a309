"""`cai train --estimate`: the memory that a stage takes, by parts."""

import json
from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from cai.cli.console import Grid, echo_json, heading, result_console, show
from cai.config.errors import CaiError
from cai.training.checks import check_sharding
from cai.training.memory import Estimate, estimate
from cai.training.model_shape import ModelShape, read_shape
from cai.training.reward_folder import find_reward_model
from cai.training.reward_memory import online_rewards
from cai.training.settings import TrainConfig

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
