"""The processes of a stage: that they suit its settings, its rows and its checkpoints. Light to import: no torch."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.data.jsonl import write_text
from cai.stats.formatting import counted
from cai.training.distributed import is_first_process, process_count, visible_gpus
from cai.training.settings import PPOConfig, TrainConfig
from cai.training.stage import AUTO, Report, StageSpec, worker_python

PROCESSES = "processes.json"
"""In a stage's folder: what its checkpoints were written by."""
EXAMPLE = "torchrun --nproc_per_node 2"
PROCESS_COUNT = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]processes|workers)(?:=|\s+)([0-9]{1,6}|gpu|auto)\b")
"""In the command of torchrun, accelerate or ray."""


def check_launcher(settings: TrainConfig, launcher: str, place: str) -> None:
    """Raises: CaiError, which begins with `place`, for `fsdp` where it cannot be, before a worker starts."""
    check_sharding(settings, place)
    if settings.fsdp and len(worker_python(launcher)) == 1:
        raise CaiError(
            f"{place}.fsdp: shards over the processes of a launcher, and there is one process; set launcher, such as "
            f"`{EXAMPLE}`"
        )


def check_sharding(settings: TrainConfig, place: str) -> None:
    """Raises: CaiError, which begins with `place`, for settings that do not go with their `fsdp`."""
    if not settings.fsdp:
        return
    if getattr(settings, "use_vllm", False):
        raise CaiError(f"{place}.use_vllm: samples in one process, and fsdp shards over several; set one to false")
    if settings.quantization is not None:
        raise CaiError(f"{place}.quantization: quantized weights are not sharded; set fsdp: false, or leave it out")


def launched_gpus(launcher: str) -> int:
    """The GPUs of this machine on which a launcher starts processes: one where its command names no number of them."""
    visible = len(visible_gpus())
    if launcher.strip() == AUTO:
        return visible
    named = PROCESS_COUNT.search(launcher)
    return min(visible, 1 if named is None else int(named[1]) if named[1].isdecimal() else visible)


def fit_to_processes(spec: StageSpec[Any], report: Report) -> StageSpec[Any]:
    """The stage as the processes that a launcher started train it, before any of them loads a model.

    trl's trainer counts updates of as many batches as all processes take. On another number of them than wrote the
    checkpoint, each takes more or fewer for an update, so that an update has the same rows. PPO's checkpoints are
    whole, and its updates have as many rollouts with any number. What changes is reported.
    Raises: CaiError naming what was found and what was expected.
    """
    settings, processes = spec.settings, process_count()
    if settings.fsdp and processes == 1:
        raise CaiError(f"{settings.stage}.fsdp: shards over several processes, and the launcher started one")
    _check_accelerate(settings)
    if processes > 1 and getattr(settings, "use_vllm", False):
        raise CaiError(
            f"{settings.stage}: use_vllm samples in one process, and the launcher started {processes}: "
            "set use_vllm: false, or leave out the launcher"
        )
    if isinstance(settings, PPOConfig) and settings.rollouts < processes:
        raise CaiError(
            f"ppo: {counted(settings.rollouts, 'rollouts')} an update, for {processes} processes; start fewer"
        )
    now = {"processes": processes, "fsdp": settings.fsdp}
    path, checkpoints = spec.folder / PROCESSES, _checkpoints(spec.folder)
    before = json.loads(path.read_text(encoding="utf-8")) if checkpoints and path.exists() else now
    if is_first_process() and (not checkpoints or isinstance(settings, PPOConfig)):
        write_text(path, json.dumps(now))  # of the checkpoints to come; trl's keep the updates of the first
    if before == now:
        return spec
    difference = f"{checkpoints[-1]} was written by {_described(before)}, and the launcher started {_described(now)}"
    if isinstance(settings, PPOConfig):
        if before["processes"] != processes:
            report({"warning": f"{difference}: a step takes other rollouts together"})
        return spec
    start_anew = f"or remove {checkpoints[-1].parent} to train from the start"
    if before["fsdp"] != settings.fsdp:
        raise CaiError(f"{difference}: its files are others; start {_described(before)}, {start_anew}")
    batches = before["processes"] * settings.gradient_accumulation_steps
    if batches % processes:
        fitting = [str(number) for number in range(1 + settings.fsdp, batches + 1) if batches % number == 0]
        raise CaiError(
            f"{difference}: an update has {batches} batches, which so many cannot share; start "
            f"{' or '.join(fitting)}, {start_anew}"
        )
    each = {"gradient_accumulation_steps": batches // processes}
    report(
        {
            "warning": f"{difference}: gradient_accumulation_steps is {batches // processes}, and not "
            f"{settings.gradient_accumulation_steps}, so that an update has the same rows"
        }
    )
    return replace(spec, settings=settings.model_copy(update=each))


FSDP = "set fsdp: true (in the stage of a run file; for cai train --set fsdp=true)"


def _check_accelerate(settings: TrainConfig) -> None:
    """What a configuration of `accelerate launch` asks for by environment variables."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not settings.fsdp:
        raise CaiError(
            f"{settings.stage}: accelerate's configuration asks for FSDP; {FSDP}, and take the "  # type: ignore[attr-defined]
            "configuration of FSDP out of accelerate's"
        )
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise CaiError(
            f"{settings.stage}: accelerate's configuration asks for ZeRO stage 3, whose weights cai cannot save; "  # type: ignore[attr-defined]
            f"{FSDP}, which shards the same, and start it by torchrun"
        )


def check_rows(stage: str, rows: int) -> None:
    """Raises: CaiError for more processes than rows: some would train on copies of the others' rows."""
    if rows < process_count():
        raise CaiError(f"{stage}: {counted(rows, 'rows')} to train on, for {process_count()} processes; start fewer")


def _checkpoints(folder: Path) -> list[Path]:
    found = [*folder.glob("checkpoints/*/*state.json"), *folder.glob("members/*/checkpoints/*/*state.json")]
    return sorted({path.parent for path in found if path.parent.suffix != ".part"}, key=lambda path: path.name)


def _described(launch: dict[str, Any]) -> str:
    processes = launch["processes"]
    return f"{processes} process{'es' if processes > 1 else ''} with fsdp: {json.dumps(launch['fsdp'])}"
