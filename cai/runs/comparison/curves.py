"""What training logged: score, KL, length and loss of every stage, update by update."""

import math
from collections.abc import Sequence

from cai.errors import CaiError
from cai.runs.comparison.record import Curve
from cai.runs.folder import RunFolder, stage_order
from cai.runs.summary import CURVES
from cai.training.metrics import read_metrics


def by_kind(found: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """The curves that have values, of one kind of stage (such as ppo) and one name together."""
    kinds: dict[tuple[str, str], list[Curve]] = {}
    for curve in found:
        if curve.values:
            kinds.setdefault((curve.stage.partition("-")[2] or curve.stage, curve.name), []).append(curve)
    return kinds


def curves(folder: RunFolder, run: int) -> tuple[list[Curve], list[str]]:
    """The curves of a run, the `run`-th of its comparison, and what could not be read."""
    found, unreadable = [], []
    for path in sorted(folder.train.glob("*/metrics.jsonl"), key=lambda path: stage_order(path.parent)):
        try:
            lines = read_metrics(path)
        except CaiError as error:
            unreadable.append(str(error))
            continue
        for name, logged in CURVES.items():
            points = [
                (line["step"], next(line[key] for key in logged if line.get(key) is not None))
                for line in lines
                if any(line.get(key) is not None for key in logged)
            ]
            fit = [(step, value) for step, value in points if isinstance(value, int | float) and math.isfinite(value)]
            if points:
                found.append(
                    Curve(
                        stage=path.parent.name,
                        name=name,
                        run=run,
                        steps=[step for step, _ in fit],
                        values=[float(value) for _, value in fit],
                        missing=len(points) - len(fit),
                    )
                )
    return found, unreadable
