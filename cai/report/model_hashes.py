"""One model has one hash on a page: that of its content, whatever engine, build and settings answered with it."""

from typing import TypeVar

from pydantic import BaseModel

from cai.config.errors import CaiError
from cai.runs.folder import RunFolder

FIELDS = ("model", "judge", "before_model", "after_model")  # of rows, which have the engine's fingerprint there
RowT = TypeVar("RowT", bound=BaseModel)


def models_of(folder: RunFolder) -> dict[str, str]:
    """The fingerprint of each engine's model, as the run's summary and evaluations have them; {} of older ones."""
    models: dict[str, str] = {}
    try:
        models |= (folder.summary() or {}).get("engines", {})
        for training in folder.trainings():
            report = folder.policy_report(training.number)
            models |= report.engines if report else {}
    except CaiError:
        pass  # whoever reads the file for its content reports it
    return models


def by_model(row: RowT, models: dict[str, str]) -> RowT:
    """The row with fingerprints of models in place of those of engines, in its verdicts too."""
    changed: dict[str, object] = {
        name: models[engine] for name in FIELDS if (engine := getattr(row, name, None)) in models
    }
    verdicts = [by_model(verdict, models) for verdict in getattr(row, "verdicts", [])]
    if any(verdict.judge for verdict in verdicts):
        changed["verdicts"] = verdicts
    return row.model_copy(update=changed) if changed else row
