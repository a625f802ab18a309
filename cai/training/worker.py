"""One training stage in a process of its own: `python -m cai.training.worker STAGE.json`.

The parent reads one JSON object a line from standard output (progress, and `error` for what the user can mend);
everything libraries print goes to standard error. When the parent dies, so does the worker: its standard input ends.
Under torchrun or accelerate launch every process runs this, and the first alone speaks.
"""

import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cai.config.errors import CaiError
from cai.training.common import Report, is_first_process
from cai.training.settings import (
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    OnlineDPOConfig,
    ORPOConfig,
    PPOConfig,
    RewardConfig,
    RLOOConfig,
    SFTConfig,
    TrainConfig,
    TrainStage,
)

NEARLY_FULL = 2**18  # bytes


def main() -> int:
    """Run the stage that a stage.json describes; returns the exit status."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

    def work(report: Report) -> None:
        settings = TypeAdapter(TrainStage).validate_python(spec["settings"])
        data, model, folder = (Path(spec[key]) for key in ("data", "model", "folder"))
        train(settings, data, model, folder, spec["seed"], report, Path(spec["reward"]) if spec["reward"] else None)

    return serve(work, Path(spec["folder"]))


def serve(work: Callable[[Report], None], folder: Path) -> int:
    """Do a worker's work and tell its parent of it; returns the exit status. `folder` is where it writes."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # libraries that print must not speak between the events

    def report(event: dict[str, Any]) -> None:
        if is_first_process():
            events.write(json.dumps(event) + "\n")

    if not sys.stdin.isatty():
        threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work(report)
        from cai.training import distributed  # brings torch, which whoever starts a worker does not need

        distributed.leave()
    except Exception as error:
        text = _mendable(error, folder)
        if text is not None:
            report({"error": text})
        traceback.print_exc()  # into the log
        return 1 if text is None else 2
    return 0


def _mendable(error: Exception, folder: Path) -> str | None:
    """What to tell the user of an error that they can mend; None for a fault of ours or of a library."""
    if isinstance(error, CaiError):
        return str(error)
    if "No space left" in str(error) or shutil.disk_usage(folder).free < NEARLY_FULL:  # torch does not say why it fails
        return f"{folder}: the disk is full; make room and run it again, it goes on from its last whole checkpoint"
    return f"{error.filename or folder}: {error}" if isinstance(error, OSError) else None


def train(
    settings: TrainConfig, data: Path, model: Path, folder: Path, seed: int, report: Report, judge: Path | None = None
) -> None:
    """Train one stage in this process; `judge` is the reward model of those that need one."""
    from cai.training import dpo, kto, online, orpo, reward, sft  # they bring torch and trl
    from cai.training.ppo import trainer

    common = (folder, seed, report)
    judge = judge or Path("no reward model")
    match settings:
        case SFTConfig():
            sft.train(settings, data, model, *common)
        case RewardConfig():
            reward.train(settings, data, model, *common)
        case DPOConfig():
            dpo.train(settings, data, model, *common)
        case KTOConfig():
            kto.train(settings, data, model, *common)
        case ORPOConfig():
            orpo.train(settings, data, model, *common)
        case PPOConfig():
            trainer.train(settings, data, model, judge, *common)
        case RLOOConfig() | GRPOConfig() | OnlineDPOConfig():
            online.train(settings, data, model, judge, *common)


def _die_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock would abort the interpreter's own exit
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
