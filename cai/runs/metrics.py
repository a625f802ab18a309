"""The figures of one run, computed from its rows."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cai.data.manifest import read_json
from cai.data.records import Comparison, Preference, Revision, Skipped
from cai.feedback.filters import FILTERS
from cai.runs.folder import RunFolder, stage_order, stage_settings
from cai.stats.formatting import counted
from cai.stats.intervals import Estimate, bootstrap_mean, share
from cai.stats.win_rate import win
from cai.training.metrics import read_metrics, runaway


def summarise(folder: RunFolder) -> dict[str, Any]:
    """Counts, rates in [0, 1] and means of a run; a part the run does not have is None."""
    prompts, manifest = folder.prompts(), folder.manifest()
    return {
        "prompts": len(prompts) - len(manifest["held_out"]),
        "held_out": len(manifest["held_out"]),
        "revisions": _revisions(folder.revisions()),
        "preferences": _preferences(folder.preferences()),
        "skipped": _skipped(folder.skipped()),
        "training": _training(folder),
        "evaluation": _evaluation(folder.evaluation()),
    }


def words(text: str) -> int:
    """How many words a text has, split at white space."""
    return len(text.split())


def _revisions(rows: Sequence[Revision]) -> dict[str, Any] | None:
    if not rows:
        return None
    rounds = max(row.round for row in rows)
    last = [row for row in rows if row.round == rounds]
    return {
        "rows": len(rows),
        "flags": {flag: _mean(flag in row.flags for row in rows) for flag in FILTERS},
        "truncated": {text: _mean(text in row.truncated for row in rows) for text in ("draft", "critique", "revision")},
        "words": {"draft": _mean(words(r.draft) for r in last), "revision": _mean(words(r.revision) for r in last)},
        "principles": dict(Counter(row.principle_id for row in rows).most_common()),
    }


def _preferences(rows: Sequence[Preference]) -> dict[str, Any] | None:
    if not rows:
        return None
    verdicts = [v for row in rows for v in row.verdicts]
    judged = [row for row in rows if row.source == "judge"]
    return {
        "by_source": dict(Counter(row.source for row in rows)),
        "judged": {
            "mean_p": _mean(row.p for row in judged),
            # The same position wins in both orders: the verdict follows the place, not the answer.
            "position_bias": _mean(v.position_bias for v in verdicts if v.position_bias is not None),
            "non_option_mass": _mean(v.non_option_mass for v in verdicts),
        }
        if judged
        else None,
    }


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


def _evaluation(rows: Sequence[Comparison]) -> dict[str, Any] | None:
    if not rows:
        return None
    verdicts = [v for row in rows for v in row.verdicts]
    return {
        "win_rate": share([win(row.p) for row in rows])._asdict(),
        "mean_p": bootstrap_mean([row.p for row in rows])._asdict(),
        "words": {"before": _mean(words(r.before) for r in rows), "after": _mean(words(r.after) for r in rows)},
        "truncated": {which: _mean(which in row.truncated for row in rows) for which in ("before", "after")},
        "position_bias": _mean(v.position_bias for v in verdicts if v.position_bias is not None),
        "non_option_mass": _mean(v.non_option_mass for v in verdicts),
    }


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
