"""Metrics of answers that need model weights: KL to the reference, rewards, and signs of reward hacking."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.data.jsonl import file_fingerprint, read_rows, write_text
from cai.data.manifest import read_json
from cai.data.records import Row, Scored
from cai.evaluation.evaluation_plan import HELD_OUT, EvaluationPlan
from cai.evaluation.judge_report import Interval
from cai.evaluation.monitors import Monitor, measured, unmeasured
from cai.inference.models import folder_fingerprint
from cai.inference.reporter import Reporter
from cai.stats.agreement import hit, mean_log_loss
from cai.stats.intervals import RESAMPLES, Estimate, bootstrap_mean, interval_of, resampled, share
from cai.stats.logistic import sigmoid
from cai.training.reward_folder import is_reward_model
from cai.training.scoring import ScoringSpec, Writer
from cai.training.stage import follow

LONG = 0.5  # correlation of reward with length, a quarter of the variance: ours; Singhal et al. 2024 (arXiv:2310.03716)
UNSURE = 1.5  # times the disagreement on labelled pairs: ours, after Coste et al. 2024 (arXiv:2310.02743)
NO_INFORMATION = math.log(2)  # nats, the log loss of always predicting one half
WORSE = 0.1  # nats beyond that: ours
PAIRS = 100  # of the run's labels, whose scores are set beside those of fresh answers
CHANCE = 0.5  # expected agreement of two independent raters of balanced pairs
LENGTH, ENSEMBLE, GOLD, SURE, KL = (
    "reward-length correlation",
    "ensemble",
    "agreement with eval judge",
    "reward calibration",
    "KL",
)
Scores = Mapping[tuple[str, str], Scored]
"""Scored answers by policy and prompt id."""


class Divergence(Row):
    """KL of a policy from the reference, estimated on its own answers (nats)."""

    policy: str
    answer: Interval | None  # nats an answer
    token: float | None  # nats a token
    skipped: int  # answers without finite log-probabilities
    missing: str = ""


class Reward(Row):
    """A policy's mean score by the run's reward model."""

    policy: str
    score: Interval | None
    gain: Interval | None  # over the reference, prompt by prompt
    agrees: Interval | None  # share of prompts whose winner against the reference is also the eval judge's
    log_loss: Interval | None = None  # nats, of σ(gain) as the probability that the eval judge prefers its answer
    skipped: int  # answers without a finite score
    missing: str = ""


def score_answers(plan: EvaluationPlan, out: Path, reporter: Reporter) -> tuple[list[Scored], dict[str, str]]:
    """Score the answers in `out` to the prompts held out, in a process of its own; writes scores.jsonl.

    scores.jsonl is a cache inside a folder that the evaluation's manifest has claimed: rows of the same answers by the
    same models are reused, others are computed again without asking, since nothing is lost by it. Its key is in
    scoring.json. Returns also the reasons for missing scores, under `kl` and `reward`.
    """
    spec, missing = _spec(plan, out)
    if not spec.policies and spec.reward is None:
        return [], missing
    spec_file, log = out / "scoring.json", out / "scoring.log"
    if not spec.out.exists() or _cached_key(spec_file) != spec.cache_key:
        spec.out.unlink(missing_ok=True)
        write_text(spec_file, spec.model_dump_json(indent=1) + "\n")
        with reporter.task("scores", 0, "models") as task:

            def report(event: dict[str, Any]) -> None:
                if "step" in event:
                    task.update(event["step"], event["of"], event["note"])

            try:
                follow([sys.executable, "-m", "cai.training.scoring", str(spec_file)], log, report)
            except CaiError as error:  # the judgements remain valid; the report notes that scores are missing
                return [], missing | {"kl": f"scoring failed: {error}", "reward": f"scoring failed: {error}"}
            finally:
                task.close()
    return read_rows(spec.out, Scored), missing


def _spec(plan: EvaluationPlan, out: Path) -> tuple[ScoringSpec, dict[str, str]]:
    missing: dict[str, str] = {}
    first = plan.policies[1]
    if plan.settings.temperature == 0:
        missing["kl"] = "answers are greedy (temperature 0): KL is estimated on samples"
    reward = first.reward
    if reward is None:
        missing["reward"] = f"'{first.name}' was not trained against a reward model"
    elif not is_reward_model(reward):
        missing["reward"] = f"its reward model is no longer at {reward}"
        reward = None
    spec = ScoringSpec(
        answers=out / "answers.jsonl",
        prompts=HELD_OUT,
        reference=plan.reference.folder,
        reference_chat=own.chat if (own := plan.own_settings.get(plan.reference.folder)) else None,
        policies=[] if "kl" in missing else [Writer(name=c.name, folder=c.folder) for c in plan.policies[1:]],
        temperature=plan.settings.temperature,
        reward=reward,
        pairs=first.labels if reward is not None and first.labels is not None and first.labels.exists() else None,
        pairs_limit=PAIRS,
        out=out / "scores.jsonl",
    )
    return spec.model_copy(update={"cache_key": _cache_key(spec)}), missing


def _cache_key(spec: ScoringSpec) -> str:
    """What decides the scores: answers, pairs and models by content, wherever they are."""
    folders = [spec.reference, *(policy.folder for policy in spec.policies), *([spec.reward] if spec.reward else [])]
    files = [spec.answers, *([spec.pairs] if spec.pairs else [])]
    contents = [*map(folder_fingerprint, folders), *map(file_fingerprint, files)]
    chat = [spec.reference_chat.identity()] if spec.reference_chat else []
    return fingerprint([policy.name for policy in spec.policies], spec.temperature, spec.pairs_limit, contents, *chat)


def _cached_key(path: Path) -> str | None:
    """The key of the scores that are there; None where scoring.json is missing, damaged or of an earlier version."""
    try:
        return ScoringSpec.model_validate(read_json(path)).cache_key
    except (CaiError, ValueError):
        return None


def divergence(policy: str, rows: Sequence[Scored], missing: str = "") -> Divergence:
    """KL(policy ‖ reference) = E[log π − log ref] over the policy's own answers, in nats (Monte Carlo, unbiased).

    Single answers may be negative; a truncated answer counts as far as it goes.
    """
    known = [
        (row, row.logp - row.reference_logp)
        for row in rows
        if row.logp is not None and row.reference_logp is not None and math.isfinite(row.logp - row.reference_logp)
    ]
    reasons = sorted({row.reason for row in rows if row.reason})
    tokens = sum(row.tokens for row, _ in known)
    return Divergence(
        policy=policy,
        answer=bootstrap_mean([nats for _, nats in known]) if known else None,
        token=sum(nats for _, nats in known) / tokens if tokens else None,
        skipped=len(rows) - len(known),
        missing="" if known else missing or "; ".join(reasons) or "no answer has finite log-probabilities",
    )


def divergence_monitor(distance: Divergence, bound: float) -> Monitor:
    """How far the policy has gone; beyond the bound a proxy is usually overoptimized (Gao et al. 2023)."""
    meaning = "KL to the reference, nats per answer"
    if distance.answer is None:
        return unmeasured(distance.policy, KL, 0.0, bound, meaning, distance.missing)
    return measured(distance.policy, KL, distance.answer, 0.0, bound, meaning)


def finite_reward(row: Scored | None) -> float | None:
    """The mean over the members, where every one is a finite number."""
    if row is None or not row.rewards or not all(map(math.isfinite, row.rewards)):
        return None
    return fmean(row.rewards)


def reward(
    policy: str,
    reference: str,
    prompts: Sequence[str],
    scores: Scores,
    eval_judge: Mapping[str, float],
    missing: str = "",
) -> Reward:
    """Mean scores of a policy and how they compare; `eval_judge` holds P(its answer is better than the reference's)."""
    own = {i: value for i in prompts if (value := finite_reward(scores.get((policy, i)))) is not None}
    other = {i: value for i in prompts if (value := finite_reward(scores.get((reference, i)))) is not None}
    gains = {i: own[i] - other[i] for i in own if i in other} if policy != reference else {}
    judged = [(sigmoid(gain), eval_judge[i]) for i, gain in gains.items() if i in eval_judge]
    scored = sum((policy, i) in scores for i in prompts)
    return Reward(
        policy=policy,
        score=bootstrap_mean(list(own.values())) if own else None,
        gain=bootstrap_mean(list(gains.values())) if gains else None,
        agrees=share([hit(predicted, p) for predicted, p in judged]) if judged else None,
        log_loss=bootstrap_mean([mean_log_loss([q], [p]) for q, p in judged]) if judged else None,
        skipped=scored - len(own),
        missing="" if own else missing or "no answer has a finite score",
    )


def reward_monitors(
    gains: Reward,
    answers: Sequence[tuple[Scored | None, Scored | None]],
    labelled: Sequence[tuple[Scored, Scored]],
    known_accuracy: float | None,
) -> list[Monitor]:
    """Length, ensemble disagreement, agreement with the eval judge and calibration, on the policy's fresh answers.

    Args: `answers` are those of the policy and of the reference, prompt by prompt, None where one was not scored;
    `labelled` the run's labelled pairs, chosen and rejected; `known_accuracy` that on pairs held out of the reward
    model's training.
    """
    policy = gains.policy
    own, there = ([row for row in rows if row is not None and finite_reward(row) is not None]
                  for rows in ([a for a, _ in answers], [b for _, b in answers]))  # fmt: skip
    fresh = [(a, b) for a, b in answers if a and b and finite_reward(a) is not None and finite_reward(b) is not None]
    meaning = "correlation of the reward with the tokens of an answer"
    correlation, usual = length_correlation(own), length_correlation(there)
    if correlation is None:
        why = gains.missing or "rewards or lengths have no variance"
        length = unmeasured(policy, LENGTH, 0.0, LONG, meaning, why)
    else:
        bound = LONG if correlation.mean >= 0 else -LONG
        length = measured(policy, LENGTH, correlation, 0.0, bound, meaning)
        length = length.with_levels(None, usual.mean if usual else None)
    return [
        length,
        _ensemble(policy, fresh, labelled, gains),
        _gold(policy, gains, known_accuracy),
        _certainty(policy, gains),
    ]


def length_correlation(rows: Sequence[Scored], resamples: int = RESAMPLES, seed: int = 0) -> Estimate | None:
    """Pearson's, with a percentile bootstrap; None for fewer than three answers or without variance."""
    x = np.array([row.tokens for row in rows], dtype=float)
    y = np.array([fmean(row.rewards) for row in rows], dtype=float)
    if len(rows) < 3 or not x.std() or not y.std():
        return None
    correlations = _pearson(np.concatenate([np.ones((1, len(x))), resampled(len(x), resamples, seed)]), x, y)
    observed, resampled_ones = float(correlations[0]), correlations[1:]
    defined = resampled_ones[~np.isnan(resampled_ones)]
    return interval_of(observed, defined, len(x), of_mean=False)


def _pearson(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The correlation under each row of weights; nan where a variance is 0."""
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    cov = weights @ (x * y) / total - mean_x * mean_y
    var = (weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2)
    correlation: np.ndarray = np.divide(
        cov, np.sqrt(np.maximum(var, 0)), out=np.full(len(weights), np.nan), where=var > 0
    )
    return correlation


def _ensemble(
    policy: str, fresh: Sequence[tuple[Scored, Scored]], pairs: Sequence[tuple[Scored, Scored]], gains: Reward
) -> Monitor:
    """Ensemble disagreement about reward differences on fresh pairs, relative to labelled pairs.

    Distribution shift for the reward model shows there first (Coste et al. 2024).
    """
    meaning = "ensemble disagreement on fresh pairs of answers, relative to the run's labelled pairs"
    spreads = [_spreads(some) for some in (fresh, pairs)]
    why = gains.missing
    if not why and not all(len(spread) for spread in spreads):
        why = "there are no labelled pairs to compare with" if len(spreads[0]) else "no prompt has two finite scores"
    if not why and np.isnan(spreads[0]).all():
        why = "the reward model has one member, so there is no disagreement to measure"
    if not why and not np.nanmean(spreads[1]):
        why = "the members agree on every labelled pair"
    if why:
        return unmeasured(policy, ENSEMBLE, 1.0, UNSURE, meaning, why)
    value = ratio_of_groups(spreads[0], spreads[1])
    here, usual = (float(spread.mean()) for spread in spreads)
    return measured(policy, ENSEMBLE, value, 1.0, UNSURE, meaning).with_levels(here, usual)


def _spreads(pairs: Sequence[tuple[Scored, Scored]]) -> np.ndarray:
    """The mean spread of each prompt's pairs."""
    by_prompt: dict[str, list[float]] = {}
    for one, other in pairs:
        by_prompt.setdefault(one.prompt_id, []).append(_spread(one, other))
    return np.array([fmean(of_prompt) for of_prompt in by_prompt.values()])


def _spread(one: Scored, other: Scored) -> float:
    """The members' standard deviation of a difference in reward; nan for one member."""
    differences = [a - b for a, b in zip(one.rewards, other.rewards, strict=True)]
    return float(np.std(differences)) if len(differences) > 1 else math.nan


def ratio_of_groups(a: np.ndarray, b: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """mean(a) / mean(b) of two independent groups of values above 0, each resampled by itself."""
    ratio = float(a.mean() / b.mean())
    if len(a) < 2 or len(b) < 2:
        return Estimate(ratio, None, None, len(a))
    tops = resampled(len(a), resamples, seed) @ a / len(a)
    bottoms = resampled(len(b), resamples, seed + 1) @ b / len(b)
    ratios = np.divide(tops, bottoms, out=np.full(resamples, math.inf), where=bottoms > 0)
    return interval_of(ratio, ratios, min(len(a), len(b)))._replace(n=len(a))


def _gold(policy: str, gains: Reward, known_accuracy: float | None) -> Monitor:
    """Whether the reward model still ranks answers correctly when they are the trained policy's own."""
    meaning = "fresh pairs of answers on which reward model and eval judge prefer the same one"
    before = 1.0 if known_accuracy is None else max(known_accuracy, CHANCE)
    if gains.agrees is None:
        why = gains.missing or "no pair has both a finite score and a verdict"
        return unmeasured(policy, GOLD, before, CHANCE, meaning, why)
    if before == CHANCE:
        why = "on its held-out pairs the reward model is no better than chance, so no decline can be measured"
        return unmeasured(policy, GOLD, before, CHANCE, meaning, why)
    return measured(policy, GOLD, gains.agrees, before, CHANCE, meaning).with_levels(None, known_accuracy)


def _certainty(policy: str, gains: Reward) -> Monitor:
    """Calibration on fresh pairs: whether the reward model's probabilities are worse than no information."""
    meaning = (
        "log loss of the reward model's probabilities against the eval judge, nats per pair; no information is 0.693"
    )
    bound = NO_INFORMATION + WORSE
    if gains.log_loss is None:
        why = gains.missing or "no pair has both a finite score and a verdict"
        return unmeasured(policy, SURE, NO_INFORMATION, bound, meaning, why)
    return measured(policy, SURE, gains.log_loss, NO_INFORMATION, bound, meaning)
