"""What a stage that is trained alone starts from: its settings by name, its reward model, its data converted."""

from collections import Counter
from pathlib import Path
from typing import Any, get_args

from cai.config.errors import CaiError
from cai.config.validation import closest_names, did_you_mean
from cai.data.files import rows as rows_of
from cai.data.jsonl import parse_row, write_rows
from cai.data.preferences import read_preferences
from cai.data.prompts import read_completions, read_prompts
from cai.data.records import Revision, Skipped
from cai.training.settings import Online, TrainConfig, TrainStage

STAGES: dict[str, type[TrainConfig]] = {
    kind.model_fields["stage"].annotation.__args__[0]: kind for kind in get_args(get_args(TrainStage)[0])
}
"""The settings of each stage, by its name."""


def stage_settings_class(stage: str) -> type[TrainConfig]:
    """The settings of the stage with a name. Raises: CaiError for no stage, naming the nearest."""
    if stage not in STAGES:
        near = closest_names(stage, STAGES)
        hint = did_you_mean(near) if near else f"expected one of {', '.join(STAGES)}"
        raise CaiError(f"unknown stage '{stage}'; {hint}")
    return STAGES[stage]


def reward_model(config: TrainConfig, option: str) -> Path | None:
    """The folder of the reward model that an online stage needs; None for other stages.

    Raises: CaiError naming the `option` that sets it, for none or a folder that holds no reward model.
    """
    if not isinstance(config, Online):
        return None
    if config.reward is None:
        raise CaiError(f"{config.stage} needs a reward model: {option} DIR, as written by `cai train reward`")
    folder = Path(config.reward)
    if not (folder / "reward.json").exists():
        raise CaiError(
            f"{option} {folder}: not a reward model; expected the `model` folder that `cai train reward` writes"
        )
    return folder


def convert_data(settings: TrainConfig, data: Path, target: Path) -> list[Skipped]:
    """Convert a stage's data, in any known format, to a JSONL file of cai's rows; returns the skipped rows.

    Raises: CaiError for data without a usable row, or a row of an unknown format.
    """
    kind = settings.model_dump()["data"]
    if kind == "preferences":
        pairs, skipped = read_preferences(data)
        if not pairs:
            raise CaiError(f"{data}: no usable pair: {_reasons(skipped)}")
        write_rows(target, pairs)
        return skipped
    if kind == "prompts":
        prompts, skipped = read_prompts(data)
        write_rows(target, prompts)
        return skipped
    if "principle_id" in next(rows_of(data), (None, dict[str, Any]()))[1]:  # revisions of a run, already filtered
        write_rows(target, (parse_row(place, value, Revision) for place, value in rows_of(data)))
        return []
    answers, skipped = read_completions(data)
    if not answers:
        raise CaiError(f"{data}: no usable completion: {_reasons(skipped)}")
    write_rows(target, answers)
    return skipped


def _reasons(skipped: list[Skipped]) -> str:
    return ", ".join(f"{n} × {reason}" for reason, n in Counter(row.reason for row in skipped).items())
