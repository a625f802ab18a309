"""Trains several stages in one worker, which starts once for all of them: `several_stages.py STAGE.json STAGE.json …`."""

import sys
from pathlib import Path

from cai.training import worker
from cai.training.stage import Ask, Report, StageSpec


def train_all(report: Report, ask: Ask) -> None:
    for path in sys.argv[1:]:
        worker.train(StageSpec.read(Path(path)), report, ask)


if __name__ == "__main__":
    sys.exit(worker.serve(train_all, Path(sys.argv[1]).parent))
