"""A run's summary as its page shows it: metrics, warnings, training results, and what determines the results."""

from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.config.yaml_files import as_yaml, read_text
from cai.feedback.metrics import RUN_METRICS
from cai.feedback.pairs import LABEL_MASS, LABEL_MASS_MEANING, label_mass_text
from cai.runs.folder import RunFolder
from cai.runs.metrics import (
    other_warnings,
    policy_rows,
    summarise,
    summary_metrics,
    training_lines,
    training_warnings,
)
from cai.runs.trust import Line, run_trust
from cai.stats.formatting import counted, duration, number

JUDGE_METRICS = (
    "label_p", "position_bias", "non_option_mass", "tie_mass", "abstained",
    "eval_position_bias", "eval_non_option_mass",
)  # fmt: skip
"""Keys of the metrics of judge and eval judge."""
CHANGES = (
    ("draft_words", "revision_words", "words, draft → revision"),
    ("before_words", "after_words", "words, before → after training"),
)
HEADLINES = ("revision_better", "win_rate", "label_p")
"""Keys of the metrics that say what happened, of which the first screen shows the first known ones."""
MOST_HEADLINES = 4


class Card(NamedTuple):
    """A value with its name and meaning."""

    name: str
    value: str
    meaning: str


class Warned(NamedTuple):
    """A metric with the value from which it warns, and whether it does."""

    name: str
    value: str
    threshold: str
    warns: bool


class SummaryContents(NamedTuple):
    """A run's summary as its page shows it."""

    headlines: list[Card]  # what happened, in MOST_HEADLINES values at most
    trust: list[Line]  # what limits the results
    metrics: list[Card]
    judge: list[Card]
    monitors: list[Warned]
    notes: list[str]
    skipped: dict[str, int]  # by reason
    training: dict[str, list[str]]  # lines by stage
    calibration: dict[str, list[dict[str, float]]]  # of reward models on held-out pairs, bins by stage
    policies: list[list[str]]  # of several trainings, a table with its head


def read_summary(folder: RunFolder, missing: list[str]) -> SummaryContents:
    """The summary; computed from the rows if the run is unfinished or another version wrote the summary.

    If the rows cannot be read either, it is empty, and the error goes to `missing`.
    """
    try:
        if (summary := folder.summary()) is not None:
            return _contents(summary, finished=True)
    except (CaiError, LookupError, TypeError, AttributeError):
        pass
    try:
        return _contents(summarise(folder), finished=folder.summary_json.exists())
    except CaiError as error:
        missing.append(f"The metrics cannot be computed: {error}")
    except KeyError as error:
        missing.append(f"The metrics cannot be computed: {folder.manifest_json} lacks {error}")
    return SummaryContents([], [], [], [], [], [], {}, {}, {}, [])


def _contents(summary: dict[str, Any], finished: bool) -> SummaryContents:
    stages = summary["training"]
    reports = {stage: results["held_out"] for stage, results in stages.items() if results["held_out"]}
    monitors = _monitors(summary)
    return SummaryContents(
        headlines=_headlines(summary),
        trust=run_trust(summary),
        metrics=_metrics(summary),
        judge=_judge_metrics(summary),
        monitors=monitors,
        notes=_notes(summary, finished),
        skipped=summary["skipped"]["reasons"],
        training={stage: training_lines(results) for stage, results in stages.items()},
        calibration={stage: report["reliability"] for stage, report in reports.items()},
        policies=policy_rows(summary),
    )


def _headlines(summary: dict[str, Any]) -> list[Card]:
    known, cards = summary_metrics(summary), []
    for first, last, name in CHANGES:
        if first in known and last in known:
            shown = " → ".join(RUN_METRICS[key].text(known[key].mean) for key in (first, last))
            cards.append(Card(name, shown, f"means over {counted(known[last].n, 'prompts')}"))
    for key in HEADLINES:
        if key in known:
            metric = RUN_METRICS[key]
            meaning = f"{metric.meaning}; {counted(known[key].n, 'prompts')}"
            cards.append(Card(metric.name, metric.shown(known[key]), meaning))
    return cards[:MOST_HEADLINES]


def _metrics(summary: dict[str, Any]) -> list[Card]:
    """What the run produced and took, and its metrics other than the judges' and those that warn."""
    cards = [Card("prompts", f"{summary['prompts']:,}", f"and {summary['held_out']:,} held out")]
    if rows := summary["revisions"]["rows"]:
        cards.append(Card("revisions", f"{rows:,}", ""))
    if by_source := summary["preferences"]["by_source"]:
        sources = ", ".join(f"{n:,} by {source}" for source, n in by_source.items())
        cards.append(Card("labelled pairs", f"{sum(by_source.values()):,}", sources))
    if shares := summary["preferences"]["label_mass"]:
        cards.append(Card(LABEL_MASS, label_mass_text(shares), LABEL_MASS_MEANING))
    for key, estimate in summary_metrics(summary).items():
        metric = RUN_METRICS[key]
        if metric.warn_from is None and key not in JUDGE_METRICS:
            meaning = f"{metric.meaning}; {counted(estimate.n, 'prompts')}"
            cards.append(Card(metric.name, metric.shown(estimate), meaning))
    skipped = summary["skipped"]
    total, failed = sum(skipped["reasons"].values()) + skipped["failed"], skipped["failed"]
    cards.append(Card("skipped", f"{total:,}", counted(failed, "failed requests")))
    if calls := summary.get("calls"):
        total = f"{calls['cache_hits'] + calls['cache_misses']:,}"
        cards.append(Card("model calls", total, counted(calls["cache_hits"], "cache hits")))
    if cost := summary.get("in_all"):
        parts = ", ".join(f"{part} {duration(taken)}" for part, taken in cost["seconds"].items())
        cards.append(Card("time", duration(sum(cost["seconds"].values())), parts))
        paid = f"{counted(cost['tokens'], 'tokens')} written, in {counted(cost['sessions'], 'sessions')}"
        cards.append(Card("new calls", f"{cost['cache_misses']:,}", paid))
    return cards


def _judge_metrics(summary: dict[str, Any]) -> list[Card]:
    estimates = summary_metrics(summary)
    metrics = [RUN_METRICS[key] for key in JUDGE_METRICS if key in estimates]
    return [Card(metric.name, metric.shown(estimates[metric.key]), metric.meaning) for metric in metrics]


def _monitors(summary: dict[str, Any]) -> list[Warned]:
    """Every metric that may warn, failed requests, and the warnings of training."""
    estimates = summary_metrics(summary)
    monitors = []
    for key, estimate in estimates.items():
        metric = RUN_METRICS[key]
        if metric.warn_from is not None:
            threshold, warns = number(metric.warn_from, 2), metric.warns(estimate.mean)
            monitors.append(Warned(metric.name, metric.shown(estimate), threshold, warns))
    failed = summary["skipped"]["failed"]
    monitors.append(Warned("failed requests", f"{failed:,}", "1", failed > 0))
    for stage, results in summary["training"].items():
        monitors += [Warned(f"training {stage}", warning, "", True) for warning in training_warnings(results)]
    return monitors


def _notes(summary: dict[str, Any], finished: bool) -> list[str]:
    """The warnings of the summary, one note each."""
    unfinished = [] if finished else ["The run is unfinished: this page shows what was written when the page was made"]
    return unfinished + other_warnings(summary)


def provenance(manifest: dict[str, Any]) -> dict[str, str]:
    """Everything that determines the results: names, and fingerprints of content; without what the manifest lacks."""
    config = manifest.get("config") or {}
    constitution, eval_constitution = manifest.get("constitution") or {}, manifest.get("eval_constitution") or {}
    sources = {
        "model": (config.get("model"), manifest.get("model")),
        "constitution": (constitution.get("name"), constitution.get("fingerprint")),
        "judge": (None, ", ".join(manifest.get("judge_models") or [])),
        "eval constitution": (eval_constitution.get("name"), eval_constitution.get("fingerprint")),
        "templates": (config.get("templates"), manifest.get("templates")),
        "prompts": ((config.get("prompts") or {}).get("source"), manifest.get("prompts")),
        "preferences file": ((config.get("preferences") or {}).get("source"), manifest.get("preferences")),
        **{name: (None, content) for name, content in (manifest.get("train_files") or {}).items()},
    }
    texts = {key: ", ".join(_as_text(*source)) for key, source in sources.items() if any(source)}
    versions = ", ".join(f"{package} {version}" for package, version in (manifest.get("versions") or {}).items())
    return {**texts, "seed": str(config.get("seed", "")), "versions": versions}


def _as_text(name: str | None, content: str | None) -> list[str]:
    return [*([str(name)] if name else []), *([f"fingerprint {content}"] if content else [])]


def configuration_files(folder: RunFolder, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and text of each: the files that the run was started with, and all settings with their defaults."""
    inputs = [
        folder.run_yaml,
        folder.constitution_yaml,
        folder.eval_constitution_yaml,
        *sorted(folder.templates.glob("*")),
    ]
    home = folder.path.resolve()  # a received folder may hold links to files that its reader would not show
    shown = [file for file in inputs if file.is_file() and file.resolve().is_relative_to(home)]
    texts = [(str(file.relative_to(folder.path)), read_text(file)) for file in shown]
    return [*texts[:1], ("all settings with defaults", as_yaml(manifest.get("config"))), *texts[1:]]
