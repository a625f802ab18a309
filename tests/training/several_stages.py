"""Trains several stages in one worker, which starts once for all of them: `several_stages.py STAGE.json STAGE.json …`.

`STAGE.json@2` trains once more, from the checkpoint of update 2; the model trained first becomes `first`.
"""

import os
import shutil
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

from cai.training import distributed, worker
from cai.training.stage import Ask, Report, StageSpec


def train_all(report: Report, ask: Ask) -> None:
    for argument in sys.argv[1:]:
        name, _, update = argument.partition("@")
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        if update:
            distributed.from_first(lambda folder=Path(name).parent, last=int(update): go_back(folder, last))
        worker.train(StageSpec.read(Path(name)), report, ask)


def go_back(folder: Path, update: int) -> None:
    (folder / "model").rename(folder / "first")
    for checkpoint in folder.glob("checkpoints/*-*"):
        if int(checkpoint.name.rpartition("-")[2]) > update:
            shutil.rmtree(checkpoint)


if __name__ == "__main__":
    sys.exit(worker.serve(train_all, Path(sys.argv[1]).parent))
