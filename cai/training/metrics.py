"""metrics.jsonl: what a training logs, a line an update, added while it trains."""

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from cai.config.errors import CaiError, reading
from cai.data.jsonl import write_text


def add_metrics(path: Path, line: dict[str, Any]) -> None:
    """Append one line to a metrics file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, each with its `step`; [] where there is none.

    A last line that is cut short is left out: it is being written, or the disk was full.
    Values may be no finite number.
    Raises: CaiError naming the line for any other that is no JSON object.
    """
    if not path.exists():
        return []
    with reading(path):
        written = path.read_text(encoding="utf-8")
    found, lines = [], written.splitlines()
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == len(lines) and not written.endswith("\n"):
                break
            raise CaiError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(line, dict):
            raise CaiError(f"{path}:{number}: expected a JSON object, found {text[:60]}")
        step = line.get("step")
        found.append({**line, "step": int(step) if isinstance(step, int | float) and math.isfinite(step) else number})
    return found


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines of updates after `step`, which will be made again."""
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


# Where metrics go beside metrics.jsonl, through accelerate's trackers; nowhere unless `report_to` says so.


Tracker = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "cai"


def check_installed(names: Sequence[Tracker]) -> list[Tracker]:
    """The names, each once; raises ValueError for one whose package is not there, before anything is paid for."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"the package of {name} is not installed: pip install {name}")
    return list(dict.fromkeys(names))


class Trackers:
    """Open until `finish`; TensorBoard's files lie beside the metrics, in `tensorboard/`."""

    def __init__(self, names: Sequence[Tracker], metrics: Path, start: int) -> None:
        """`start` is the update that a resumed training goes on from: what TensorBoard has of later ones is dropped."""
        self._open: list[Any] = []
        if not names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # which decides whose process speaks
        for name in names:
            if name == "tensorboard":
                settings: dict[str, Any] = {
                    "run_name": metrics.stem.replace("metrics", "tensorboard"),
                    "logging_dir": metrics.parent,
                    "purge_step": start + 1,
                }
            else:
                settings = {"run_name": PROJECT, "name": _run_name(metrics)}  # accelerate calls the project a run
            tracker = LOGGER_TYPE_TO_CLASS[name](**settings)
            tracker.start()
            self._open.append(tracker)

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics; what is no number stays in the file alone."""
        numbers = {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}
        for tracker in self._open:
            tracker.log(numbers, step=line["step"])

    def finish(self) -> None:
        """Send what waits, and close."""
        for tracker in self._open:
            tracker.finish()


def _run_name(metrics: Path) -> str:
    """`RUN/STAGE` of a run's stage, else the folder's name; members of an ensemble have their number."""
    folder = metrics.parent.resolve()
    parts = [folder.parent.parent.name, folder.name] if folder.parent.name == "train" else [folder.name]
    return "/".join(parts) + metrics.stem.removeprefix("metrics")


# Signs that a policy exploits its reward model: the proxy climbs while KL or length runs away.
#
# Over-optimisation of a proxy shows against KL (Gao et al. 2023, arXiv:2210.10760), and first of all in length (Singhal
# et al. 2024, arXiv:2310.03716). The bounds below are ours: they mean "look at the samples", not "it is proven".


WINDOW = 5  # updates averaged at the start and at the end
RUNAWAY_KL = 30.0  # nats an answer, where no target is set
TARGETS = 2.0  # times the target KL
LENGTH_FACTOR = 1.5  # longer, or shorter, than at the start


def runaway(history: Sequence[dict[str, Any]], target_kl: float | None) -> dict[str, str]:
    """Warnings by kind, `kl` and `length`, from the metrics of all updates so far; none before two windows are full."""
    if len(history) < 2 * WINDOW:
        return {}

    def change(name: str) -> tuple[float, float]:
        first, last = history[:WINDOW], history[-WINDOW:]
        return sum(line[name] for line in first) / WINDOW, sum(line[name] for line in last) / WINDOW

    score_before, score = change("objective/scores")
    if score <= score_before:
        return {}
    warnings = {}
    rise = f"the reward model's score climbed from {score_before:.2f} to {score:.2f} while"
    advice = "it may be exploited: read samples.jsonl"
    step, (_, kl) = history[-1]["step"], change("objective/kl")
    bound = TARGETS * target_kl if target_kl is not None else RUNAWAY_KL
    if kl > bound:
        warnings["kl"] = f"update {step}: {rise} the KL reached {kl:.1f} nats an answer (bound {bound:.0f}); {advice}"
    before, length = change("response/length")
    if not before / LENGTH_FACTOR <= length <= before * LENGTH_FACTOR:
        warnings["length"] = f"update {step}: {rise} answers went from {before:.0f} to {length:.0f} tokens; {advice}"
    return warnings
