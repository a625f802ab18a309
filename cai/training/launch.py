"""Running a training stage from outside: start its worker, follow its progress, and skip what is already done."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.formats.jsonl import write_text
from cai.hashing import fingerprint
from cai.models import folder_fingerprint
from cai.training.common import Report, TrainConfig


def run_stage(settings: TrainConfig, data: Path, model: Path, folder: Path, seed: int, report: Report) -> Path:
    """Train one stage into `folder` and return the policy's folder, `folder/model`.

    A stage that is finished, with the same settings, data, model and seed, is not trained again; one that was
    interrupted goes on from its last checkpoint; one whose inputs changed starts afresh.
    Raises: CaiError when the worker fails; its log is `folder/train.log`.
    """
    spec: dict[str, Any] = {"settings": settings.model_dump(), "seed": seed}
    identity = fingerprint(spec, folder_fingerprint(model), data.read_text(encoding="utf-8"))
    stage_file, data_file, result = folder / "stage.json", folder / "data.json", folder / "model"
    known = json.loads(stage_file.read_text(encoding="utf-8")) if stage_file.exists() else {}
    if known.get("identity") != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    elif result.is_dir():
        report(json.loads(data_file.read_text(encoding="utf-8")))
        report({"done": "already trained"})
        return result
    spec |= {"identity": identity, "data": str(data), "model": str(model), "folder": str(folder)}
    write_text(stage_file, json.dumps(spec, indent=2))

    def keep_data(event: dict[str, Any]) -> None:
        if "examples" in event:  # what was used and what not must be known when the stage is not trained again
            write_text(data_file, json.dumps(event))
        report(event)

    _follow(stage_file, folder / "train.log", keep_data)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # large, and of no use once the policy is saved
    return result


def _follow(stage_file: Path, log: Path, report: Report) -> None:
    with log.open("a", encoding="utf-8") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "cai.training.worker", str(stage_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
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
