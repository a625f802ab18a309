"""Metrics of a training: metrics.jsonl, trackers such as TensorBoard, and signs that the reward model is exploited.

Overoptimization of a proxy shows against KL (Gao et al. 2023, arXiv:2210.10760), and first in length (Singhal et al.
2024, arXiv:2310.03716). The bounds of `runaway` are cai's own: they mean "read the samples", and are no proof.
"""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from cai.config.errors import CaiError, reading
from cai.data.jsonl import write_text
from cai.training.setting_parts import JUDGE

Tracker = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "cai"
"""Name of the project in the trackers."""
WINDOW = 5  # updates averaged at the start and at the end
RUNAWAY_KL = 30.0  # nats an answer, where no target is set
TARGETS = 2.0  # times the target KL
OFF_TARGET = 0.5  # of the target KL
LENGTH_FACTOR = 1.5  # longer, or shorter, than at the start
PENALTY_FACTOR = 5.0  # times the judge's spread; at 25 RLOO's reward did not rise (docs/run-file.md)


def add_metrics(path: Path, line: dict[str, Any]) -> None:
    """Append one line to a metrics file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, each with its `step`; [] where there is none.

    An incomplete last line is skipped: it is being written, or the disk was full. Values may be nan or infinite.
    Raises: CaiError naming any other line that is not a JSON object.
    """
    if not path.exists():
        return []
    with reading(path):
        written = path.read_text(encoding="utf-8")
    entries, lines = [], written.splitlines()
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
        entries.append({**line, "step": int(step) if isinstance(step, int | float) and math.isfinite(step) else number})
    return entries


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines of updates after `step`, which a resumed training repeats."""
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def check_installed(names: Sequence[Tracker]) -> list[Tracker]:
    """The names, each once; raises ValueError for one whose package is not installed, before any model runs."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"the package of {name} is not installed: pip install {name}")
    return list(dict.fromkeys(names))


def not_finite(name: str, step: int) -> CaiError:
    """The error for a training whose loss or gradient is no longer finite."""
    return CaiError(
        f"{name} is no finite number at update {step}: training stopped, and the last checkpoint before it is kept; "
        "a lower learning_rate usually helps"
    )


class Trackers:
    """accelerate's trackers, open until `finish`; TensorBoard's files lie beside the metrics, in `tensorboard/`."""

    def __init__(self, names: Sequence[Tracker], metrics: Path, start: int) -> None:
        """`start` is the update that a resumed training continues from: TensorBoard's later events are purged."""
        self._open: list[Any] = []
        if not names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # decides which process logs
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
        """One line of metrics; values that are not numbers stay in the file alone."""
        numbers = {key: value for key, value in line.items() if key != "step" and isinstance(value, int | float)}
        for tracker in self._open:
            tracker.log(numbers, step=line["step"])

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self._open:
            tracker.finish()


def _run_name(metrics: Path) -> str:
    """`RUN/STAGE` of a run's stage, else the folder's name; members of an ensemble and trainings have their number."""
    folder = metrics.parent.resolve()
    home, parts, number = folder.parent.parent, [folder.name], ""
    if folder.parent.name == "train":
        if home.parent.name == "seeds":
            home, number = home.parent.parent, f"#{home.name}"
        parts = [home.name, folder.name]
    return "/".join(parts) + number + metrics.stem.removeprefix("metrics")


def training_signs(history: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """What the metrics of a finished training warn of, given the settings of its stage."""
    signs = [large_penalty(history, settings)]
    if settings.get("stage") == "ppo":
        target = settings.get("target_kl")
        signs = [*runaway(history, target).values(), missed_target(history, target), *signs]
    return [sign for sign in signs if sign]


def truncated_share(line: Mapping[str, Any]) -> float | None:
    """The share of an update's sampled answers that were truncated, as trl's trainers or our PPO log it."""
    ended = line.get("response/eos_rate")
    return 1 - ended if isinstance(ended, int | float) else line.get("completions/clipped_ratio")


def large_penalty(history: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> str | None:
    """A warning where truncation costs far more than the judge's ratings differ; or None."""
    penalty, spreads = settings.get("missing_eos_penalty") or 0.0, [line.get("judge/reward_std") for line in history]
    known = [spread for spread in spreads if spread is not None]
    if settings.get("reward") != JUDGE or not known or all(truncated_share(line) == 0 for line in history):
        return None
    spread = fmean(known)
    if penalty <= PENALTY_FACTOR * spread:
        return None
    return (
        f"missing_eos_penalty is {penalty:g}, and the standard deviation of the judge's reward {spread:.2g} "
        "(judge/reward_std): training learns to end answers early, and little of the ratings; lower the penalty, or "
        "set it to 0"
    )


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


def missed_target(history: Sequence[dict[str, Any]], target_kl: float | None) -> str | None:
    """A warning where the last updates, on average, end farther than OFF_TARGET from the target KL; or None."""
    last = [line["objective/kl"] for line in history[-WINDOW:]]
    if target_kl is None or not last:
        return None
    kl = sum(last) / len(last)
    if abs(kl - target_kl) <= OFF_TARGET * target_kl:
        return None
    return (
        f"the KL ends at {kl:.1f} nats an answer, target_kl is {target_kl:g}: more updates, a kl_coef nearer to the "
        f"last ({history[-1]['kl_coef']:.3g}) or a smaller kl_horizon would reach it"
    )
