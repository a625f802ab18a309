"""Running a training stage from outside: start its worker, follow its progress, and skip what is already done."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.data.jsonl import write_text
from cai.inference.models import folder_fingerprint
from cai.training.common import Report
from cai.training.settings import TrainConfig


def run_stage(
    settings: TrainConfig,
    data: Path,
    model: Path,
    folder: Path,
    seed: int,
    report: Report,
    reward: Path | None = None,
    launcher: str = "",
    replace: bool = True,
    keep_data: bool = False,
) -> Path:
    """Train one stage into `folder` and return the folder of the policy or reward model, `folder/model`.

    A stage that is finished, with the same settings, data, models and seed, is not trained again; one that was
    interrupted goes on from its last checkpoint; one whose inputs changed starts afresh, if `replace`. `launcher`
    starts the worker in place of Python: `torchrun --nproc_per_node 2`, `accelerate launch --config_file FILE`. With
    `keep_data` the stage learns from a copy of the data that stays in its folder, `rows.jsonl`.
    Raises: CaiError when the worker fails, whose log is `folder/train.log`, or the folder holds something else.
    """
    spec: dict[str, Any] = {"settings": settings.model_dump(), "seed": seed}
    identity = _identity(settings, data, model, seed, reward)
    stage_file, data_file, result = folder / "stage.json", folder / "data.json", folder / "model"
    known = _known(folder)
    if known.get("identity") != identity:
        if not known and folder.exists() and any(folder.iterdir()):
            raise CaiError(f"{folder} is not empty and holds no training stage; choose another folder")
        if known and not replace:
            raise CaiError(
                f"{folder} holds a stage trained with other settings, data or models; write over it with "
                "--replace, or choose another --out"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    elif result.is_dir():
        report(json.loads(data_file.read_text(encoding="utf-8")))
        report({"done": "already trained"})
        return result
    if keep_data:
        beside = folder / "rows.jsonl.part"
        shutil.copyfile(data, beside)
        data = beside.replace(folder / "rows.jsonl")
    spec |= {"identity": identity, "data": str(data), "model": str(model), "folder": str(folder)}
    spec["reward"] = str(reward) if reward else None
    write_text(stage_file, json.dumps(spec, indent=2))

    def remember(event: dict[str, Any]) -> None:
        if "examples" in event:  # what was used and what not must be known when the stage is not trained again
            write_text(data_file, json.dumps(event))
        report(event)

    follow([*_start(launcher), "-m", "cai.training.worker", str(stage_file)], folder / "train.log", remember)
    for spent in ("checkpoints", "dataset"):  # large, and of no use once the policy is saved
        shutil.rmtree(folder / spent, ignore_errors=True)
    return result


def is_trained(
    settings: TrainConfig, data: Path, model: Path, folder: Path, seed: int, reward: Path | None = None
) -> bool:
    """Whether `run_stage` would find the stage finished."""
    return (
        _known(folder).get("identity") == _identity(settings, data, model, seed, reward) and (folder / "model").is_dir()
    )


def _identity(settings: TrainConfig, data: Path, model: Path, seed: int, reward: Path | None) -> str:
    """Of everything that decides a stage's result."""
    contents = [folder_fingerprint(model), data.read_text(encoding="utf-8")]
    if reward is not None:
        contents.append(folder_fingerprint(reward))
    if (mix := getattr(settings, "mix", None)) is not None:
        contents.append(Path(mix).read_text(encoding="utf-8"))
    decided = settings.model_dump(exclude={"reward", "mix", "report_to"})  # files by content, not by name
    return fingerprint(decided, seed, contents)


def _known(folder: Path) -> dict[str, Any]:
    """What a folder's stage was made from; empty where there is none."""
    path = folder / "stage.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known


def _start(launcher: str) -> list[str]:
    if not launcher.strip():
        return [sys.executable]
    first, *others = shlex.split(launcher)
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(first, path=beside_python)
    if program is None:
        raise CaiError(f"launcher: '{first}' not found; expected a command such as torchrun --nproc_per_node 2")
    return [program, *others]


def follow(command: list[str], log: Path, report: Report) -> None:
    """Run a worker process to its end, its events through `report` and what it prints into `log`.

    Raises: CaiError when it fails.
    """
    with log.open("a", encoding="utf-8") as errors:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        fault = ""
        try:
            assert worker.stdout is not None
            for line in worker.stdout:
                event = json.loads(line)
                fault = event.get("error", fault)
                report(event)
            status = worker.wait()
        except BaseException:
            worker.terminate()
            worker.wait()
            raise
    if fault:
        raise CaiError(fault)
    if status != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise CaiError(f"training stopped with status {status}; {log} ends: {last[0] if last else '(nothing)'}")
