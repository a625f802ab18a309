"""A run's summary: counts of its rows, its metrics, and what its training came to."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cai.data.manifest import read_json
from cai.data.records import Comparison, Preference, Revision, Skipped
from cai.feedback.metrics import (
    EVALUATION_METRICS,
    LABEL_METRICS,
    REVISION_METRICS,
    REVISION_PAIR_METRICS,
    RUN_METRICS,
    PromptMeans,
)
from cai.runs.folder import RunFolder, stage_order, stage_settings
from cai.stats.formatting import counted
from cai.stats.intervals import Estimate
from cai.training.metrics import read_metrics, runaway


def summarise(folder: RunFolder) -> dict[str, Any]:
    """The content of summary.json: counts of rows, `metrics` by the keys of RUN_METRICS, and training by stage.

    A metric has `mean`, `low` and `high` (its 95 % interval, or null) and `n` prompts; it is null where no row says
    anything about it.
    """
    prompts, manifest = folder.prompts(), folder.manifest()
    revisions, preferences = folder.revisions(), folder.preferences()
    estimates = run_estimates(revisions, preferences, folder.evaluation())
    return {
        "prompts": len(prompts) - len(manifest["held_out"]),
        "held_out": len(manifest["held_out"]),
        "revisions": {
            "rows": len(revisions),
            "principles": dict(Counter(row.principle_id for row in revisions).most_common()),
        },
        "preferences": {"by_source": dict(Counter(row.source for row in preferences))},
        "metrics": {key: estimate and estimate._asdict() for key, estimate in estimates.items()},
        "skipped": _skipped(folder.skipped()),
        "training": _training(folder),
    }


def run_estimates(
    revisions: Iterable[Revision], preferences: Sequence[Preference], evaluation: Iterable[Comparison]
) -> dict[str, Estimate | None]:
    """Every metric of a run by key, aggregated as cai/feedback/metrics.py says."""
    judged = (row for row in preferences if row.source == "judge")
    revision_pairs = (row for row in preferences if row.source == "revision")
    return {
        **PromptMeans(REVISION_METRICS).add_all(revisions).estimates(),
        **PromptMeans(LABEL_METRICS).add_all(judged).estimates(),
        **PromptMeans(REVISION_PAIR_METRICS).add_all(revision_pairs).estimates(),
        **PromptMeans(EVALUATION_METRICS).add_all(evaluation).estimates(),
    }


def summary_metrics(summary: dict[str, Any]) -> dict[str, Estimate]:
    """The metrics that a summary has a value of, by key, in the order of RUN_METRICS.

    Raises: KeyError or TypeError for a summary that another version wrote.
    """
    written = summary["metrics"]
    return {key: Estimate(**written[key]) for key in RUN_METRICS if written[key] is not None}


def _skipped(rows: Sequence[Skipped]) -> dict[str, Any]:
    reasons = Counter(row.reason for row in rows if not row.failed)
    return {"reasons": dict(reasons.most_common()), "failed": sum(row.failed for row in rows)}


def _training(folder: RunFolder) -> dict[str, Any]:
    stages = {}
    for path in sorted(folder.train.glob("*/metrics.jsonl"), key=lambda path: stage_order(path.parent)):
        lines = read_metrics(path)
        updates = [line for line in lines if any(name in line for name in CURVES["loss"])]
        report = path.parent / "report.json"
        settings = stage_settings(path.parent)
        stages[path.parent.name] = {
            "updates": len(updates),
            **{name: _change(updates, logged) for name, logged in CURVES.items()},
            "held_out": read_json(report) if report.exists() else None,
            "warnings": list(runaway(lines, settings.get("target_kl")).values())
            if settings.get("stage") == "ppo"
            else [],
        }
    return stages


# What is told of each curve, and what trl's trainers and our PPO call it.
CURVES = {
    "score": ("objective/scores", "reward"),
    "kl": ("objective/kl", "kl"),
    "length": ("response/length", "completions/mean_length"),
    "loss": ("loss", "loss/policy"),
}


def _change(lines: Sequence[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any] | None:
    """Means over the first and the last third: single batches are too noisy to show where a curve went.

    Values that are no finite number are left out and counted.
    """
    values = [line[name] for line in lines for name in names if line.get(name) is not None]
    finite = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    third = max(1, len(finite) // 3)
    means = {"first_third": _mean(finite[:third]), "last_third": _mean(finite[-third:])}
    return {**means, "not_finite": len(values) - len(finite)} if values else None


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def training_lines(training: dict[str, Any]) -> list[str]:
    """What one stage's training came to."""
    if not training["updates"]:
        return []
    lines = []
    for name, spoken in {"score": "mean score", "kl": "KL", "length": "tokens an answer", "loss": "mean loss"}.items():
        if (change := training[name]) is not None:
            first, last = (_shown(change[part]) for part in ("first_third", "last_third"))
            lost = change.get("not_finite", 0)
            told = f"; {lost} of them no finite number, left out" if lost else ""
            lines.append(f"{spoken} {first} in the first third, {last} in the last{told}")
    lines[0] = f"{counted(training['updates'], 'updates')}, {lines[0]}"
    lines += reward_lines(training["held_out"]) if training["held_out"] else []
    return lines + [f"warning: {warning}" for warning in training["warnings"]]


def reward_lines(report: dict[str, Any]) -> list[str]:
    """The figures of a reward model's report.json as a person reads them."""
    accuracy = Estimate(**report["accuracy"]) if report["accuracy"] else "–"
    lines = [
        f"on {report['pairs']} held-out pairs: accuracy {accuracy}, calibration error {report['ece']:.3f}",
        f"correlation of reward with length {_shown(report['length_correlation'])}; "
        f"the labels prefer the longer answer in {_shown(report['longer_preferred'])}",
    ]
    if report["ensemble_agreement"] is not None:
        lines.append(f"two members agree on the winner in {_shown(report['ensemble_agreement'])} of the pairs")
    return lines
