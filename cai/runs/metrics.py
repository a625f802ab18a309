"""A run's summary: counts of its rows, its metrics, and what its training came to."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cai.constitution.principles import APPLIES_FROM
from cai.data.filters import SharedClosers
from cai.data.manifest import read_json
from cai.data.records import Applicability, BeforeAfter, Preference, Prompt, Revision, Skipped
from cai.evaluation.policy_report import each_before_after
from cai.feedback.metrics import (
    AFTER_BETTER,
    AFTER_WORDS,
    EVAL_POSITION_BIAS,
    EVALUATION_METRICS,
    JUDGE_POSITION_BIAS,
    LABEL_METRICS,
    MANY_TRUNCATED,
    REVISION_METRICS,
    REVISION_PAIR_METRICS,
    RUN_METRICS,
    WIN_RATE,
    Metric,
    PromptMeans,
)
from cai.feedback.pairs import (
    CONTRADICT,
    LabelMass,
    PrinciplePair,
    PrincipleVerdicts,
    contradicting,
    principle_notes,
)
from cai.inference.chat import control_counts, control_warnings, spells_control
from cai.inference.endpoints import work_warnings
from cai.inference.models import SERVER_SCHEMES
from cai.runs.folder import RunFolder, each_row_of, stage_counts, stage_settings
from cai.stats.formatting import counted, estimate, number, percent
from cai.stats.intervals import Estimate
from cai.stats.trainings import between_paired_policies, shared_prompts
from cai.stats.win_rate import win
from cai.training.tracking import read_metrics, training_signs, truncated_share


def summarise(folder: RunFolder) -> dict[str, Any]:
    """The content of summary.json: counts of rows, `metrics` by the keys of RUN_METRICS, and training by stage.

    A metric has `mean`, `low` and `high` (its 95 % interval, or null) and `n` prompts; it is null where no row says
    anything about it. Of a run with several trainings, the metrics of trained policies are means over these, and
    `trainings` has each one's `number`, `seed`, `policy` (a folder in the run's) and `metrics`.
    """
    manifest = folder.manifest()
    principles: Counter[str] = Counter()
    judging = set[str]()  # principles with a verdict of the run's judge
    labels, closers = LabelMass(), SharedClosers()
    spelling = undecided = 0  # of the judged pairs
    verdicts, revision_pairs = PrincipleVerdicts(), 0

    def revisions() -> Iterator[Revision]:
        for row in each_row_of(folder.revisions_jsonl, Revision):
            principles[row.principle_id] += 1
            if not row.flags:
                closers.add(row.revision)
            yield row

    def preferences() -> Iterator[Preference]:
        nonlocal spelling, revision_pairs, undecided
        for row in each_row_of(folder.preferences_jsonl, Preference):
            labels.add(row)
            if not row.from_file:
                judging.update(verdict.principle_id for verdict in row.all_verdicts)
                spelling += row.source != "human" and spells_control(row)
                undecided += row.source == "judge" and win(row.p) == 0.5
                revision_pairs += row.source == "revision"
                verdicts.add_row(row)
            yield row

    policies = policy_means(folder)
    estimates = run_estimates(revisions(), preferences(), policies)  # one pass, a row in memory at a time
    return {
        "prompts": sum(1 for _ in each_row_of(folder.prompts_jsonl, Prompt)) - len(manifest["held_out"]),
        "held_out": len(manifest["held_out"]),
        "revisions": {
            "rows": principles.total(),
            "principles": dict(principles.most_common()),
            "shared_closers": closers.shares(),
            "no_pairs": principles.total() > 0 and not revision_pairs and _makes_pairs(manifest["config"]),
        },
        "principles": {
            "questions": _questions(each_row_of(folder.applicability_jsonl, Applicability)),
            "count": len(manifest["constitution"]["principles"]),
            "never_sampled": sorted(manifest["constitution"]["principles"].keys() - principles.keys() - judging),
            "contradicting": [pair.model_dump() for pair in contradicting(verdicts.pairs())],
        },
        "preferences": {"by_source": dict(labels.pairs), "label_mass": labels.shares(), "undecided": undecided},
        "evaluation": _ties(folder),
        "metrics": {key: value and value._asdict() for key, value in estimates.items()},
        **_control_tokens(manifest, spelling),
        "skipped": _skipped(each_row_of(folder.skipped_jsonl, Skipped)),
        "training": _training(folder),
        **_trainings(folder, manifest["config"].get("seed", 0), policies),
    }


def _ties(folder: RunFolder) -> dict[str, int]:
    """How many answers to held-out prompts were compared, of all policies, how many tie, and how many are equal."""
    counts = {"compared": 0, "ties": 0, "equal": 0}
    for row in (row for path in folder.evaluations() for row in each_before_after(path)):
        if row.p is None:
            continue
        counts["compared"] += 1
        counts["ties"] += win(row.p) == 0.5
        counts["equal"] += row.before == row.after
    return counts


def _makes_pairs(config: dict[str, Any]) -> bool:
    return (config.get("revise") or {}).get("label") != "off"


Policies = Sequence[PromptMeans[BeforeAfter]]
"""EVALUATION_METRICS of each training's policy, by prompt; of one that is not evaluated yet, without prompts."""


def policy_means(folder: RunFolder) -> Policies:
    """The metrics of the policies of a run's trainings, in their order."""
    return [PromptMeans(EVALUATION_METRICS).add_all(each_before_after(path)) for path in folder.evaluations()]


def run_estimates(
    revisions: Iterable[Revision], preferences: Iterable[Preference], policies: Policies
) -> dict[str, Estimate | None]:
    """Every metric of a run by key, aggregated as cai/feedback/metrics.py says.

    The interval of several policies' mean is for other trainings as well as other prompts (cai/stats/trainings.py).
    """
    means = _means(revisions, preferences)
    estimates = {key: estimate for group in means for key, estimate in group.estimates().items()}
    return estimates | {metric.key: _over_policies(metric, policies) for metric in EVALUATION_METRICS}


def values_by_prompt(
    revisions: Iterable[Revision], preferences: Iterable[Preference], policies: Policies
) -> dict[str, dict[str, float]]:
    """Every metric of a run by key, then by prompt: the mean over the prompt's rows, and over policies."""
    means = _means(revisions, preferences)
    values = {key: values for group in means for key, values in group.all_by_prompt().items()}
    return values | {metric.key: _mean_by_prompt(metric, policies) for metric in EVALUATION_METRICS}


def _mean_by_prompt(metric: Metric[BeforeAfter], policies: Policies) -> dict[str, float]:
    by_policy = _by_policy(metric, policies)
    shared = set(shared_prompts(by_policy))
    return {i: fmean(values[i] for values in by_policy) for i in (by_policy or [{}])[0] if i in shared}


def _by_policy(metric: Metric[BeforeAfter], policies: Policies) -> list[dict[str, float]]:
    """The values of the policies that have any; a policy without change counts beside others with one."""
    if not any(policy.defined(metric) for policy in policies):
        return []
    return [values for policy in policies if (values := policy.by_prompt(metric))]


def _over_policies(metric: Metric[BeforeAfter], policies: Policies) -> Estimate | None:
    by_policy = _by_policy(metric, policies)
    if not shared_prompts(by_policy):
        return None
    if len(by_policy) == 1:
        return metric.estimate(list(by_policy[0].values()))
    effect = between_paired_policies(by_policy)
    if metric.interval is None or effect.low is None or effect.high is None:
        return Estimate(effect.mean, None, None, effect.n)
    low, high = (max(effect.low, 0.0), min(effect.high, 1.0)) if metric.unit == "share" else (effect.low, effect.high)
    return Estimate(effect.mean, low, high, effect.n)


def _means(revisions: Iterable[Revision], preferences: Iterable[Preference]) -> list[PromptMeans[Any]]:
    """The metrics of a run's feedback in the order of RUN_METRICS, by the kind of row; rows pass by once."""
    labels, revision_pairs = PromptMeans(LABEL_METRICS), PromptMeans(REVISION_PAIR_METRICS)
    of_source = {"judge": labels, "revision": revision_pairs}
    of_revisions = PromptMeans(REVISION_METRICS).add_all(revisions)
    for row in preferences:
        if row.source in of_source and not row.from_file:
            of_source[row.source].add(row)
    return [of_revisions, labels, revision_pairs]


def summary_metrics(summary: dict[str, Any]) -> dict[str, Estimate]:
    """The metrics that a summary has a value of, by key, in the order of RUN_METRICS.

    Raises: KeyError or TypeError for a summary that a much older version wrote.
    """
    written = summary["metrics"]
    return {key: Estimate(**written[key]) for key in RUN_METRICS if written.get(key) is not None}


def _questions(rows: Iterable[Applicability]) -> dict[str, dict[str, int]]:
    """Of each question under `applies_to`, how many prompts it was asked about, and how many it says Yes to."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        of_question = counts.setdefault(row.question, {"prompts": 0, "yes": 0})
        of_question["prompts"] += 1
        of_question["yes"] += row.p >= APPLIES_FROM
    return counts


def _control_tokens(manifest: dict[str, Any], pairs: int) -> dict[str, int | None]:
    """See `control_counts`, of so many judged pairs that spell any."""
    named = (manifest["config"].get("judge") or {}).get("model")
    names = named or manifest["config"].get("model") or []
    served = any(name.startswith(SERVER_SCHEMES) for name in ([names] if isinstance(names, str) else names))
    served = served or ("judge" if named else "model") in (manifest.get("where") or {})
    return control_counts(pairs, (manifest["config"].get("engine") or {}).get("control_tokens", "text"), served)


def _skipped(rows: Iterable[Skipped]) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    failed = 0
    for row in rows:
        failed += row.failed
        reasons[row.reason] += not row.failed
    return {"reasons": dict((+reasons).most_common()), "failed": failed}


def _trainings(folder: RunFolder, seed: int, policies: Policies) -> dict[str, Any]:
    """What the trainings of a run with several differ in; nothing of a run with one."""
    trainings = folder.trainings()
    if len(trainings) == 1:
        return {}
    rows = []
    for training, means in zip(trainings, policies, strict=True):
        policy = training.policy()
        metrics = means.estimates()
        rows.append(
            {
                "number": training.number,
                "seed": training.seed(seed),
                "policy": str(policy.relative_to(folder.path)) if policy else None,
                "metrics": {key: value and value._asdict() for key, value in metrics.items()},
            }
        )
    return {"trainings": rows}


POLICY_COLUMNS = (WIN_RATE, AFTER_BETTER, AFTER_WORDS)


def policy_rows(summary: dict[str, Any]) -> list[list[str]]:
    """The trainings of a summary as a table, with a head: each policy, then their mean and standard deviation.

    Returns: [] for a run with one training.
    """
    trainings = summary.get("trainings", [])
    if not trainings:
        return []
    columns = [m for m in POLICY_COLUMNS if any(training["metrics"][m.key] for training in trainings)]
    rows = [["training", "seed", *(metric.name for metric in columns), "policy"]]
    means: dict[str, list[float]] = {metric.key: [] for metric in columns}
    for training in trainings:
        values = [training["metrics"][metric.key] for metric in columns]
        for metric, value in zip(columns, values, strict=True):
            means[metric.key] += [value["mean"]] if value else []
        texts = (metric.text(value and value["mean"]) for metric, value in zip(columns, values, strict=True))
        rows.append([f"#{training['number']}", str(training["seed"]), *texts, training["policy"] or "–"])
    spread: dict[str, Callable[[list[float]], float | None]] = {
        "mean": _mean,
        "standard deviation": lambda values: stdev(values) if len(values) > 1 else None,
    }
    for name, of in spread.items():
        rows.append([name, "", *(metric.text(of(means[metric.key])) for metric in columns), ""])
    return rows


def stage_folders(folder: RunFolder) -> list[tuple[str, Path]]:
    """Every stage of every training, with its name: `1-dpo`, and `1-dpo#2` of the second training."""
    return [(training.label(stage.name), stage) for training in folder.trainings() for stage in training.stages()]


def _training(folder: RunFolder) -> dict[str, Any]:
    return {label: stage_results(stage) for label, stage in stage_folders(folder) if (stage / METRICS).exists()}


METRICS, REWARD_REPORT = "metrics.jsonl", "report.json"  # in the folder of a stage


def stage_results(stage: Path) -> dict[str, Any]:
    """What the training in a stage's folder came to, as a summary has it."""
    lines = read_metrics(stage / METRICS)
    updates = [line for line in lines if any(name in line for name in CURVES["loss"])]
    report = stage / REWARD_REPORT
    return {
        "updates": len(updates),
        **{name: _change(updates, logged) for name, logged in CURVES.items()},
        "truncated": _change([{"truncated": truncated_share(line)} for line in updates], ("truncated",)),
        "held_out": read_json(report) if report.exists() else None,
        "examples": stage_counts(stage).get("examples"),
        "warnings": training_signs(lines, stage_settings(stage)),
    }


CURVES = {  # by what a summary calls them: the names that trl's trainers and our PPO log
    "score": ("objective/scores", "reward"),
    "kl": ("objective/kl", "kl"),
    "length": ("response/length", "completions/mean_length"),
    "loss": ("loss", "loss/policy"),
}


def _change(lines: Sequence[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any] | None:
    """Means over the first and the last third: single batches are too noisy to show where a curve went.

    Values that are no finite number are skipped and counted.
    """
    values = [line[name] for line in lines for name in names if line.get(name) is not None]
    finite = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    third = max(1, len(finite) // 3)
    means = {"first_third": _mean(finite[:third]), "last_third": _mean(finite[-third:])}
    return {**means, "not_finite": len(values) - len(finite)} if values else None


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


THIRDS = 6  # updates from which the means of their first and last third are of several each
BELOW_ZERO = " (an estimate from few samples may be below 0; the KL itself is not)"
CURVE_NAMES = {"score": "mean score", "kl": "KL", "length": "tokens per answer", "loss": "mean loss"}


def training_lines(training: dict[str, Any]) -> list[str]:
    """One stage's training, a line each: updates, each logged curve, a reward model's report; see training_warnings.

    Of fewer updates than THIRDS each curve has its first and last value, and of one its only one.
    """
    count = training["updates"]
    if not count:
        return []
    changes = {name: training[curve] for curve, name in CURVE_NAMES.items() if training[curve] is not None}
    if count >= THIRDS:
        updates = f"{counted(count, 'updates')}; means of their first → last third:"
    else:
        updates = "1 update:" if count == 1 else f"{count} updates, the first → the last:"
        changes = {name.removeprefix("mean "): change for name, change in changes.items()}
    lines = []
    for name, change in changes.items():
        first, last = number(change["first_third"]), number(change["last_third"])
        lines.append(f"{name} {last}" if count == 1 else f"{name} {first} → {last}")
        if name == CURVE_NAMES["kl"] and "-" in first + last:  # as printed: nobody asks about -0.00001
            lines[-1] += BELOW_ZERO
    if truncated := training.get("truncated"):  # older summaries do not have it
        first, last = percent(truncated["first_third"]), percent(truncated["last_third"])
        remedy = "; raise max_tokens" if (truncated["last_third"] or 0) >= MANY_TRUNCATED else ""
        lines.append(f"truncated answers {'' if count == 1 else f'{first} → '}{last}{remedy}")
    return [updates, *lines, *(reward_lines(training["held_out"]) if training["held_out"] else [])]


def training_warnings(training: dict[str, Any]) -> list[str]:
    """What one stage's training warned of, and curves with values that are not finite."""
    changes = {name: training[curve] for curve, name in CURVE_NAMES.items() if training[curve] is not None}
    skipped = {name: change["not_finite"] for name, change in changes.items() if change.get("not_finite")}
    return [
        *training["warnings"],
        *(
            f"{name} is not finite in {counted(count, 'updates')}, which its means skip"
            for name, count in skipped.items()
        ),
    ]


def reward_lines(report: dict[str, Any]) -> list[str]:
    """A reward model's report.json, a line each."""
    accuracy, ece = (Estimate(**report[key]) if report[key] else None for key in ("accuracy", "ece"))
    pairs = counted(report["pairs"], "held-out pairs")
    lines = [
        f"accuracy {estimate(accuracy)} on {pairs}"
        if accuracy
        else f"accuracy not measured: {pairs}, of too few prompts"
    ]
    if ece is not None:
        lines.append(f"calibration error {estimate(ece)}")
    shares = {
        "length correlation of the reward": "length_correlation",
        "the labels prefer the longer answer in": "longer_preferred",
        "members agree on the winner in": "ensemble_agreement",
    }
    return lines + [f"{name} {number(report[key])}" for name, key in shares.items() if report[key] is not None]


def _high_metrics(summary: dict[str, Any]) -> list[str]:
    """The metrics that warn, but for those of TRUST_METRICS."""
    high = [(RUN_METRICS[key], value.mean) for key, value in summary_metrics(summary).items()]
    return [
        f"{metric.name} {metric.text(mean)} (warns from {metric.warn_from:g})"
        + (f": {metric.remedy}" if metric.remedy else "")
        for metric, mean in high
        if metric.warns(mean) and metric.key not in TRUST_METRICS
    ]


TRUNCATED_TEXTS = {
    "draft_truncated": "drafts",
    "critique_truncated": "critiques",
    "revision_truncated": "revisions",
    "before_truncated": "answers before training",
    "after_truncated": "answers after training",
}
"""Metrics of truncated texts, and what these are."""
TRUST_METRICS = (JUDGE_POSITION_BIAS.key, EVAL_POSITION_BIAS.key, *TRUNCATED_TEXTS)
"""Metrics that `run_trust` (cai/runs/trust.py) reports, whether they warn or not."""


def other_warnings(summary: dict[str, Any]) -> list[str]:
    """The warnings of a summary about what `run_trust` does not report."""
    skipped = summary["skipped"]
    warnings = [*_high_metrics(summary), *_of_principles(summary)]
    if summary["revisions"].get("no_pairs"):
        warnings.append("no revision makes a pair: all are skipped; the reasons are below, and in skipped.jsonl")
    warnings += [
        f"{percent(share)} of the revisions that pass the filters end with “{closer}”"
        for closer, share in summary["revisions"]["shared_closers"].items()
    ]
    warnings += control_warnings(summary)
    warnings += work_warnings(summary.get("work", []))
    warnings += [f"skipped: {count:,} × {reason}" for reason, count in skipped["reasons"].items()]
    if skipped["failed"]:
        warnings.append(f"{counted(skipped['failed'], 'requests')} failed; skipped.jsonl says why")
    for stage, training in summary["training"].items():
        warnings += [f"{stage}: {warning}" for warning in training_warnings(training)]
    return warnings


def _of_principles(summary: dict[str, Any]) -> list[str]:
    """Principles that work against each other, and questions under `applies_to` to which every answer is No."""
    principles = summary.get("principles", {})
    pairs = [PrinciplePair.model_validate(pair) for pair in principles.get("contradicting", [])]
    unmet = [question for question, counts in principles.get("questions", {}).items() if not counts["yes"]]
    return [
        *principle_notes(CONTRADICT, pairs),
        *(f"applies_to: the model answers No about every prompt: “{question}”" for question in unmet),
    ]
