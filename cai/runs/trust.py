"""Can I trust this: what limits the results of a run, a training or an evaluation, in at most five lines each.

A line is a name and a text. What cannot be known says why.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.data.records import Skipped
from cai.evaluation.evaluation_plan import OVERALL
from cai.evaluation.policy_report import PolicyReport, doubted_checks
from cai.feedback.metrics import EVAL_POSITION_BIAS, JUDGE_POSITION_BIAS, RUN_METRICS, WIN_RATE
from cai.runs.folder import stage_counts, stage_settings
from cai.runs.metrics import TRUNCATED_TEXTS, stage_results, summary_metrics, training_warnings
from cai.stats.formatting import counted, number, percent
from cai.stats.win_rate import FEW_PROMPTS, FOLLOWS_POSITION
from cai.training.settings import PPOConfig
from cai.training.stage import STAGES

Line = tuple[str, str]
FEW_EXAMPLES = 10  # of a training, below which a run says how many there were
LITTLE = f"from {FOLLOWS_POSITION:g} on, labels and win rates say little"


def run_trust(summary: dict[str, Any]) -> list[Line]:
    """Of a run, from its summary: prompts, position bias, ties, principles that were not sampled, truncated texts."""
    return [
        ("n", "; ".join(_sizes(summary))),
        ("position bias", _position_bias(summary)),
        ("ties", _ties(summary)),
        ("principles", _principles(summary["principles"])),
        ("truncated", _truncated(summary)),
    ]


def _sizes(summary: dict[str, Any]) -> list[str]:
    sizes = [f"{counted(summary['prompts'], 'prompts')}, {summary['held_out']:,} held out"]
    win_rate = summary_metrics(summary).get(WIN_RATE.key)
    if win_rate is not None and win_rate.n < FEW_PROMPTS:
        sizes.append("the interval of the win rate is wide")
    for stage, training in summary["training"].items():
        examples = training.get("examples")  # summaries of earlier versions have none
        few = [f"learned from {counted(examples, 'examples')}"] if examples and examples < FEW_EXAMPLES else []
        sizes += [f"{stage}: {text}" for text in [*few, *_unknown_accuracy(training)]]
    return sizes


def _unknown_accuracy(training: dict[str, Any]) -> list[str]:
    held_out = training["held_out"]
    if not held_out or held_out["accuracy"] is not None:
        return []
    return [f"{counted(held_out['pairs'], 'held-out pairs')}, too few for an accuracy"]


def _position_bias(summary: dict[str, Any]) -> str:
    metrics = summary_metrics(summary)
    by_judge = {"judge": metrics.get(JUDGE_POSITION_BIAS.key), "eval judge": metrics.get(EVAL_POSITION_BIAS.key)}
    known = {judge: metric for judge, metric in by_judge.items() if metric is not None}
    if not known:
        return "not measured: no verdict in both orders is on a sampled pair or an answer after training"
    text = ", ".join(f"{number(metric.mean)} of the {judge}'s verdicts" for judge, metric in known.items())
    return text + (f"; {LITTLE}" if max(metric.mean for metric in known.values()) >= FOLLOWS_POSITION else "")


def _ties(summary: dict[str, Any]) -> str:
    evaluated, judged = summary["evaluation"], summary["preferences"]["by_source"].get("judge", 0)
    parts = [f"{summary['preferences']['undecided']:,} of {judged:,} labels of the judge"] if judged else []
    if evaluated["compared"]:
        equal = f" ({evaluated['equal']:,} with equal answers)" if evaluated["equal"] else ""
        parts.append(f"{evaluated['ties']:,} of {counted(evaluated['compared'], 'held-out answers')}{equal}")
    return ", ".join(parts) or "nothing was compared"


def _principles(principles: dict[str, Any]) -> str:
    never, count = principles["never_sampled"], principles["count"]
    if not never:
        return f"all {count:,} were sampled"
    return f"{len(never):,} of {count:,} never sampled: {', '.join(never)}"


def _truncated(summary: dict[str, Any]) -> str:
    metrics = summary_metrics(summary)
    known = [(RUN_METRICS[key], what, metrics[key].mean) for key, what in TRUNCATED_TEXTS.items() if key in metrics]
    some = [(metric, f"{percent(mean)} of the {what}", mean) for metric, what, mean in known if mean]
    if not some:
        return "none of the texts" if known else "no text was written"
    remedies = dict.fromkeys(metric.remedy for metric, _, mean in some if metric.warns(mean))
    return "; ".join([", ".join(text for _, text, _ in some), *remedies])


def training_trust(stage: Path, skipped: Sequence[Skipped]) -> list[Line]:
    """Of `cai train`, from its folder and the rows it skipped: rows, what is held out, skips, warnings."""
    settings, results, counts = stage_settings(stage), stage_results(stage), stage_counts(stage)
    kind = settings.get("stage", "")
    lines = [("n", _learned_from(settings, counts))] if counts else []
    if kind == "reward":
        share, pairs = settings.get("holdout", 0), counts.get("examples", 0)
        why = f"holdout: {share:g}" + (f" of {counted(pairs, 'pairs')} is none" if share and pairs else "")
        nothing = f"no pair ({why}), so its accuracy is unknown"
        lines += [
            ("held out", text) for text in _unknown_accuracy(results) or ([] if results["held_out"] else [nothing])
        ]
    else:
        reward = "the score is the reward model's, which training optimizes; " if results["score"] else ""
        lines.append(("quality", f"{reward}whether answers are better, only an evaluation says"))
    if skipped:
        reasons = Counter(row.reason for row in skipped)
        lines.append(("skipped", ", ".join(f"{count:,} × {reason}" for reason, count in reasons.items())))
    if warnings := training_warnings(results):
        lines.append(("warnings", "; ".join(warnings)))
    return lines


def _learned_from(settings: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """The rows of a file, or the prompts of which an online stage learned from its own answers."""
    examples, kind = counts["examples"], STAGES.get(settings.get("stage", ""))
    if kind is PPOConfig:
        answers = settings["updates"] * settings["rollouts"]  # PPO goes through all prompts, again and again
        part = f"{answers:,} of " if answers < examples else ""
        return f"{counted(answers, 'sampled answers')} to {part}{counted(examples, 'prompts')} learned from"
    if kind is not None and kind.learns_from == "prompts":
        return f"sampled answers to {counted(examples, 'prompts')} learned from"
    held_out = f", {counts['held_out']:,} more held out" if counts.get("held_out") else ""
    return f"{counted(examples, 'examples')} learned from{held_out}"


def evaluation_trust(report: PolicyReport) -> list[Line]:
    """Of an evaluation: prompts, position bias, ties, truncated answers, and what is known of the judge."""
    few = ": expect wide intervals" if report.prompts < FEW_PROMPTS else ""
    lines = [("n", f"{counted(report.prompts, 'prompts')}{few}")]
    rows = [row for row in report.comparisons if row.tag is None]
    overall = [row for row in rows if row.axis == OVERALL and row.ties is not None]
    rates = [row.position_bias for row in rows if row.position_bias is not None]
    if rates:
        low, high = min(rates), max(rates)
        text = number(low) if low == high else f"{number(low)} to {number(high)}, by axis and policy"
        lines.append(("position bias", text + (f"; {LITTLE}" if high >= FOLLOWS_POSITION else "")))
    else:
        lines.append(("position bias", "not measured: no two answers differ, so the judge was asked nothing"))
    if overall:
        ties, equal, all_of = (sum(getattr(row, key) for row in overall) for key in ("ties", "identical", "prompts"))
        lines.append(
            (
                "ties",
                f"{ties:,} of {counted(all_of, 'comparisons')}" + (f" ({equal:,} of equal answers)" if equal else ""),
            )
        )
    if report.truncated:
        some = [f"{percent(share)} of {name}'s answers" for name, share in report.truncated.items() if share]
        lines.append(("truncated", ", ".join(some) or "none of the answers"))
    own = [policy.name for policy in report.policies if policy.model == report.manifest.get("judge")]
    judge = [f"is the model of '{own[0]}' and may prefer its own answers"] if own else []
    if doubted := doubted_checks(report):
        judge.append(f"is not above chance on control answers ({doubted}), so those rates are not shown")
    return [*lines, *([("judge", "; ".join(judge))] if judge else [])]
