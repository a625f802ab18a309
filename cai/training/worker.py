"""One training stage in a process of its own: `python -m cai.training.worker STAGE.json`.

The parent reads one JSON object a line from standard output (progress, and `error` for what the user can fix); output
of libraries goes to standard error. What the worker asks its parent is an event too, and a line on standard input the
reply. When the parent dies, standard input ends and the worker exits. Under torchrun or accelerate launch every process
runs this, and the first alone writes events and asks.
"""

import json
import os
import select
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.training import distributed
from cai.training.checks import fit_to_processes
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
)
from cai.training.stage import Ask, Report, StageSpec, nobody

NEARLY_FULL = 2**18  # bytes
LAST_WORD = 10.0  # seconds in which the first process reports an error of all, before a launcher ends it for another's


def main() -> int:
    """Run the stage that a stage.json describes; returns the exit status."""
    spec = StageSpec.read(Path(sys.argv[1]))
    alone = distributed.use_one_gpu()

    def work(report: Report, ask: Ask) -> None:
        if alone:
            report({"warning": alone})
        train(spec, report, ask)

    return serve(work, spec.folder)


def serve(work: Callable[[Report, Ask], None], folder: Path) -> int:
    """Run `work`, its events and questions on standard output; returns the exit status. `folder` is where it writes."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print must not stand between the events

    def report(event: dict[str, Any]) -> None:
        if distributed.is_first_process():
            events.write(json.dumps(event) + "\n")

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        events.write(json.dumps({"ask": question}) + "\n")
        with os.fdopen(os.dup(0), encoding="utf-8") as replies:  # the parent writes nothing that is not asked for
            line = replies.readline()
        if not line:  # the parent died
            os._exit(1)
        reply: dict[str, Any] = json.loads(line)
        return reply

    if not sys.stdin.isatty():
        threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work(report, ask)
        distributed.leave()
    except Exception as error:
        text = _user_message(error, folder)
        if text is not None:
            report({"error": text})
            if not distributed.is_first_process():
                time.sleep(LAST_WORD)
        traceback.print_exc()  # into the log
        return 1 if text is None else 2
    return 0


def _user_message(error: Exception, folder: Path) -> str | None:
    """The message for an error that the user can fix; None for a defect of cai or of a library."""
    if isinstance(error, CaiError):
        return str(error)
    if "No space left" in str(error) or shutil.disk_usage(folder).free < NEARLY_FULL:  # torch does not say why it fails
        return f"{folder}: the disk is full; make room and run it again, it goes on from its last whole checkpoint"
    return f"{error.filename or folder}: {error}" if isinstance(error, OSError) else None


def train(spec: StageSpec[Any], report: Report, ask: Ask = nobody) -> None:
    """Train one stage in this process; imports what this stage needs: PPO does without trl, which takes seconds."""
    spec = fit_to_processes(spec, report)
    distributed.join()  # before accelerate opens a group, whose time-out would be short
    match spec.settings:
        case SFTConfig():
            from cai.training import sft

            sft.train(spec, report)
        case RewardConfig():
            from cai.training import reward

            reward.train(spec, report)
        case DPOConfig():
            from cai.training import dpo

            dpo.train(spec, report)
        case KTOConfig():
            from cai.training import kto

            kto.train(spec, report)
        case ORPOConfig():
            from cai.training import orpo

            orpo.train(spec, report)
        case PPOConfig():
            from cai.training.ppo import trainer

            trainer.train(spec, report, ask)
        case RLOOConfig() | GRPOConfig() | OnlineDPOConfig():
            from cai.training import online

            online.train(spec, report, ask)


def _die_with_parent() -> None:
    ends = select.poll()
    ends.register(0, 0)  # its end alone, which all processes of a launcher see: the replies are the first one's to read
    ends.poll()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
