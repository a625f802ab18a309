"""A run's summary as its report tells it: what came of it, what is watched, what a reader must not miss."""

from typing import Any, NamedTuple

import yaml

from cai.config.errors import CaiError
from cai.evaluation.judge_report import Figure
from cai.feedback.metrics import RUN_METRICS
from cai.runs.folder import RunFolder
from cai.runs.metrics import summarise, summary_metrics, training_lines
from cai.stats.formatting import counted, number
from cai.stats.win_rate import FEW_PROMPTS, FOLLOWS_POSITION

BOUNDS = {
    "empty": 0.25,
    "unchanged": 0.25,
    "copied_critique": 0.25,
    "draft_truncated": 0.5,  # how long the model would have written is then unknown for most
    "critique_truncated": 0.5,
    "revision_truncated": 0.5,
    "position_bias": FOLLOWS_POSITION,
    "non_option_mass": 0.5,  # more is on something that is no answer than on one
    "eval_position_bias": FOLLOWS_POSITION,
    "eval_non_option_mass": 0.5,
    "before_truncated": 0.5,
    "after_truncated": 0.5,
}
"""From where a rate of a run is marked, by the metric's key."""
TRUST = ("label_p", "position_bias", "non_option_mass", "eval_position_bias", "eval_non_option_mass")
"""Whether to believe the judges, by the metric's key."""


class Monitor(NamedTuple):
    """A figure that is watched; `look` says that it is past its bound."""

    name: str
    value: str
    threshold: str
    warns: bool


class Told(NamedTuple):
    """A summary as the page has it."""

    facts: list[Figure]
    judge: list[Figure]
    monitors: list[Monitor]
    notes: list[str]
    skipped: dict[str, int]  # by reason
    training: dict[str, list[str]]  # lines by stage
    calibration: dict[str, list[dict[str, float]]]  # of reward models on held-out pairs, bins by stage


def told_of(folder: RunFolder, missing: list[str]) -> Told:
    """The summary; counted anew where the run is unfinished or another version wrote it.

    Where the rows cannot be counted either, nothing is told, and `missing` says why.
    """
    try:
        if (written := folder.summary()) is not None:
            return _told(written, finished=True)
    except (CaiError, LookupError, TypeError, AttributeError):
        pass
    try:
        return _told(summarise(folder), finished=folder.summary_json.exists())
    except CaiError as error:
        missing.append(f"Its figures cannot be counted: {error}")
    except KeyError as error:
        missing.append(f"Its figures cannot be counted: {folder.manifest_json} lacks {error}")
    return Told([], [], [], [], {}, {}, {})


def _told(summary: dict[str, Any], finished: bool) -> Told:
    stages = summary["training"]
    reports = {stage: found["held_out"] for stage, found in stages.items() if found["held_out"]}
    return Told(
        facts=_facts(summary),
        judge=_judge_facts(summary),
        monitors=_monitors(summary),
        notes=_notes(summary, finished),
        skipped=summary["skipped"]["reasons"],
        training={stage: training_lines(found) for stage, found in stages.items()},
        calibration={stage: found["reliability"] for stage, found in reports.items()},
    )


def _facts(summary: dict[str, Any]) -> list[Figure]:
    """What the run came to, the widest first."""
    metrics = summary_metrics(summary)
    found = [Figure("prompts", str(summary["prompts"]), f"and {summary['held_out']} held out")]
    if rows := summary["revisions"]["rows"]:
        found.append(Figure("revisions", str(rows), ""))
    if by_source := summary["preferences"]["by_source"]:
        listed = ", ".join(f"{n} by {source}" for source, n in by_source.items())
        found.append(Figure("labelled pairs", str(sum(by_source.values())), listed))
    for key, estimate in metrics.items():
        if key not in BOUNDS and key not in TRUST:
            metric = RUN_METRICS[key]
            of = f"{metric.meaning}; {counted(estimate.n, 'prompts')}"
            found.append(Figure(metric.name, metric.shown(estimate), of))
    skipped = summary["skipped"]
    found.append(
        Figure(
            "skipped",
            str(sum(skipped["reasons"].values()) + skipped["failed"]),
            f"{skipped['failed']} of it failed",
        )
    )
    if calls := summary.get("calls"):
        found.append(
            Figure(
                "calls",
                f"{calls['cache_misses'] + calls['cache_hits']:,}",
                f"{calls['cache_hits']:,} of them cache hits",
            )
        )
    if seconds := summary.get("seconds"):
        found.append(
            Figure(
                "time", _duration(sum(seconds.values())), ", ".join(f"{k} {_duration(s)}" for k, s in seconds.items())
            )
        )
    return found


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _judge_facts(summary: dict[str, Any]) -> list[Figure]:
    """How far the verdicts of judge and eval judge can be trusted."""
    metrics = summary_metrics(summary)
    return [
        Figure(RUN_METRICS[key].name, RUN_METRICS[key].shown(metrics[key]), RUN_METRICS[key].meaning)
        for key in TRUST
        if key in metrics
    ]


def _monitors(summary: dict[str, Any]) -> list[Monitor]:
    """Every rate that tells of trouble, with the bound past which to look."""
    metrics = summary_metrics(summary)
    found = [
        Monitor(
            RUN_METRICS[key].name, RUN_METRICS[key].shown(metrics[key]), number(bound, 2), metrics[key].mean >= bound
        )
        for key, bound in BOUNDS.items()
        if key in metrics
    ]
    failed = summary["skipped"]["failed"]
    found.append(Monitor("requests that failed", str(failed), "none", failed > 0))
    for stage, training in summary["training"].items():
        found += [Monitor(f"training {stage}", warning, "", True) for warning in training["warnings"]]
    return found


def _notes(summary: dict[str, Any], finished: bool) -> list[str]:
    """What a reader must not miss."""
    found = [] if finished else ["The run is unfinished: what is here is what there was when this page was made."]
    past = [f"{m.name} {m.value}" if m.threshold else f"{m.name}: {m.value}" for m in _monitors(summary) if m.warns]
    if past:
        found.append("Look at: " + "; ".join(past) + ".")
    win_rate = summary_metrics(summary).get("win_rate")
    if win_rate and (n := win_rate.n) < FEW_PROMPTS:
        found.append(
            f"Only {counted(n, 'prompts')} {'was' if n == 1 else 'were'} held out: the win rate's interval is wide."
        )
    return found


# What a run was made of: hashes of everything that decided it, and the files themselves.


def made_of(manifest: dict[str, Any]) -> dict[str, str]:
    """What decided the result: names, and hashes of content; what a manifest of another version lacks is left out."""
    config = manifest.get("config") or {}
    constitution, eval_constitution = manifest.get("constitution") or {}, manifest.get("eval_constitution") or {}
    named = {
        "model": (config.get("model"), manifest.get("model")),
        "constitution": (constitution.get("name"), constitution.get("fingerprint")),
        "judge": (None, ", ".join(manifest.get("judge_models") or [])),
        "eval_constitution": (eval_constitution.get("name"), eval_constitution.get("fingerprint")),
        "templates": (config.get("templates"), manifest.get("templates")),
        "prompts": ((config.get("prompts") or {}).get("source"), manifest.get("prompts")),
        "preferences of a file": ((config.get("preferences") or {}).get("source"), manifest.get("preferences")),
        **{name: (None, content) for name, content in (manifest.get("train_files") or {}).items()},
    }
    made = {key: ", ".join(_as_text(*parts)) for key, parts in named.items() if any(parts)}
    versions = ", ".join(f"{package} {version}" for package, version in (manifest.get("versions") or {}).items())
    return {**made, "seed": str(config.get("seed", "")), "versions": versions}


def _as_text(name: str | None, content: str | None) -> list[str]:
    return [*([str(name)] if name else []), *([f"content {content}"] if content else [])]


def configuration_files(folder: RunFolder, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """The whole configuration: what was given, and all settings with their defaults."""
    given = [
        folder.run_yaml,
        folder.constitution_yaml,
        folder.eval_constitution_yaml,
        *sorted(folder.templates.glob("*")),
    ]
    texts = [(str(file.relative_to(folder.path)), file.read_text(encoding="utf-8")) for file in given if file.is_file()]
    return [*texts[:1], ("all settings, with defaults", as_yaml(manifest.get("config"))), *texts[1:]]


def as_yaml(value: Any) -> str:
    """A JSON value as YAML."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))
