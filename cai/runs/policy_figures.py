"""From the rows of an evaluation to its report, and to the notes that a reader should not miss."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cai.data.records import Answer, Scored
from cai.evaluation.monitors import declines, text_monitors
from cai.evaluation.overoptimization import over_optimisation, stretches
from cai.evaluation.policy_report import (
    Against,
    Checked,
    Divergence,
    Monitor,
    PolicyReport,
    PolicySummary,
    ProbeRate,
    Reward,
    Stretch,
)
from cai.evaluation.probe_metrics import (
    checked,
    compliance_monitor,
    group_rate,
    knows_facts,
    over_refusal_monitor,
    over_refusal_rates,
    phrase_rate,
    red_team_rates,
    sycophancy_monitor,
    sycophancy_rates,
    told,
)
from cai.evaluation.probes import ASKED, OVER_REFUSAL, RED_TEAM, over_refusal_probes
from cai.evaluation.scores import CHANCE, divergence, divergence_monitor, reward, reward_monitors
from cai.evaluation.win_rates import all_against, outcomes, rate, standings, tags_of, telling_tags
from cai.inference.models import folder_fingerprint, model_fingerprint
from cai.runs.contest import HELD_OUT, PolicyEvaluation
from cai.runs.evaluating import HELPFUL, OVERALL, SAFE, EvaluationPlan
from cai.stats.formatting import counted
from cai.stats.win_rate import FEW_PROMPTS, FOLLOWS_POSITION
from cai.training.metrics import RUNAWAY_KL, TARGETS


def policy_report(
    contest: PolicyEvaluation,
    scored: Sequence[Scored],
    missing: Mapping[str, str],
    made_from: dict[str, Any],
    cost: dict[str, float],
) -> PolicyReport:
    """All figures; what could not be measured says why."""
    e = contest.evaluating
    names, ids = [c.name for c in e.contenders], [prompt.id for prompt in e.prompts]
    tags = tags_of(e.prompts)
    shown = telling_tags(tags, len(e.prompts))
    texts = {(a.policy, a.prompt_id): a.text for a in contest.answers if a.prompts == HELD_OUT}
    against = all_against(contest.judgements, texts, shown)
    rated = {axis: rate(outcomes(contest.judgements, axis), names, ids, axis) for axis in e.axes}
    truth = {q.id: {str(n): ex.holds for n, ex in enumerate(q.examples)} for q in e.probes.questions.questions}
    checks = {question: checked(contest.replies, question, truth[question]) for question in ASKED}
    divergences = [
        divergence(name, [r for r in scored if r.of == "answers" and r.policy == name], missing.get("kl", ""))
        for name in names[1:]
    ]
    scores = {(row.policy, row.prompt_id): row for row in scored if row.of == "answers"}
    eval_judge = {
        (r.policy, r.prompt_id): r.p for r in contest.judgements if r.axis == OVERALL and r.against == names[0]
    }
    rewards = [
        reward(name, names[0], ids, scores, {i: eval_judge[name, i] for i in ids if (name, i) in eval_judge},
               missing.get("reward", ""))
        for name in names
    ]  # fmt: skip
    course = stretches(contest.samples)
    report = PolicyReport(
        made_from=made_from,
        policies=[
            PolicySummary(name=c.name, folder=str(c.folder), model=folder_fingerprint(c.folder), trained_from=c.base)
            for c in e.contenders
        ],
        prompts=len(ids),
        tags=tags,
        against=against,
        ratings=[rating for axis in e.axes for rating in rated[axis].ratings],
        standings=standings(names, rated[HELPFUL], rated[SAFE]),
        probes=[r for name in names for r in _probe_rates(contest, name, shown)],
        checks=list(checks.values()),
        monitors=_monitors(contest, checks, divergences, rewards, scored, course),
        divergences=divergences,
        rewards=rewards,
        course=course,
        notes=[],
        cost=cost,
    )
    return report.model_copy(update={"notes": [*e.notes, *notes(report, contest)]})


def _declined(contest: PolicyEvaluation, policy: str, prompts: str) -> dict[tuple[str, str], bool]:
    """Which answers hold a phrase of refusal, by item and variant."""
    phrases = contest.evaluating.probes.phrases
    return {
        _key(answer): declines(answer.text, phrases)
        for answer in contest.answers
        if (answer.policy, answer.prompts) == (policy, prompts)
    }


def _key(answer: Answer) -> tuple[str, str]:
    """Item and variant of the prompt: those of probes are joined by a slash, and prompts held out have no variant."""
    item, slash, variant = answer.prompt_id.rpartition("/")
    return (item, variant) if slash and answer.prompts != HELD_OUT else (answer.prompt_id, "")


def _probe_rates(contest: PolicyEvaluation, name: str, tags: Sequence[str]) -> list[ProbeRate]:
    e, replies, rates = contest.evaluating, contest.replies, list[ProbeRate]()
    for tag in (None, *tags):
        keys = [(p.id, "") for p in e.prompts if tag is None or tag in p.tags]
        for what in ("refuses", "evades"):
            said = told(replies, name, HELD_OUT, what)
            rates.append(group_rate(name, HELD_OUT, tag or "all", what, keys, said))
        rates.append(phrase_rate(name, HELD_OUT, tag or "all", keys, _declined(contest, name, HELD_OUT)))
    if (twins := e.probes.over_refusal) is not None:
        items = list(dict.fromkeys(probe.item for probe in over_refusal_probes(twins, e.limit)))
        rates += over_refusal_rates(name, items, replies, _declined(contest, name, OVER_REFUSAL))
    if (attacks := e.probes.red_team) is not None:
        requests, ways = [r.id for r in attacks.requests[: e.limit]], [way.id for way in attacks.transformations]
        rates += red_team_rates(name, requests, ways, replies, _declined(contest, name, RED_TEAM))
    if (sides := e.probes.sycophancy) is not None:
        kinds = {"opinions": sides.opinions, "facts": sides.facts}
        rates += sycophancy_rates(name, {kind: [q.id for q in kinds[kind][: e.limit]] for kind in kinds}, replies)
    return rates


def _monitors(
    contest: PolicyEvaluation,
    checks: Mapping[str, Checked],
    divergences: Sequence[Divergence],
    rewards: Sequence[Reward],
    scored: Sequence[Scored],
    course: Sequence[Stretch],
) -> list[Monitor]:
    """Every monitor of every policy but the reference; those of the training only of the policy it made."""
    e = contest.evaluating
    names, ids = [c.name for c in e.contenders], [prompt.id for prompt in e.prompts]
    held_out = {(a.policy, a.prompt_id): a for a in contest.answers if a.prompts == HELD_OUT}
    declined = {name: _declined(contest, name, OVER_REFUSAL) for name in names}
    scores = {(row.policy, row.prompt_id): row for row in scored if row.of == "answers"}
    chosen, rejected = ([r for r in scored if r.of == "pairs" and r.policy == side] for side in ("chosen", "rejected"))
    pairs = [(a, b) for a, b in zip(chosen, rejected, strict=True) if a.rewards and b.rewards]
    found: list[Monitor] = []
    for name, distance in zip(names[1:], divergences, strict=True):
        seen = [
            (held_out[name, i], held_out[names[0], i])
            for i in ids
            if (name, i) in held_out and (names[0], i) in held_out
        ]
        found += text_monitors(name, seen, e.probes.phrases)
        found.append(sycophancy_monitor(name, names[0], contest.replies))
        found.append(over_refusal_monitor(name, names[0], contest.replies, declined, checks["refuses"]))
        found.append(compliance_monitor(name, names[0], contest.replies, checks["complies"]))
        found.append(divergence_monitor(distance, _kl_bound(e)))
        [own] = [r for r in rewards if r.policy == name]
        found += reward_monitors(name, names[0], ids, scores, pairs, own, _known_accuracy(e))
    missing = "" if e.contenders[1].ppo is not None else "the policy was not made by PPO, which alone keeps samples"
    return [*found, over_optimisation(names[1], course, missing)]


def _kl_bound(e: EvaluationPlan) -> float:
    """As the warning of PPO: twice its target, or 30 nats where it has none."""
    config = e.contenders[1].config
    targets = [settings.target_kl for settings in config.train if settings.stage == "ppo"] if config else []
    target = next((target for target in reversed(targets) if target is not None), None)
    return TARGETS * target if target is not None else RUNAWAY_KL


def _known_accuracy(e: EvaluationPlan) -> float | None:
    """Of the reward model, on pairs held out of its training; None where its report is gone or has none."""
    folder = e.contenders[1].reward
    try:
        report = json.loads((folder.parent / "report.json").read_text(encoding="utf-8")) if folder else {}
        return float(report["accuracy"]["mean"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def notes(report: PolicyReport, contest: PolicyEvaluation) -> list[str]:
    """What a reader of the figures should not miss, in words."""
    found = []
    if report.prompts < FEW_PROMPTS:
        found.append(f"only {counted(report.prompts, 'prompts')}: expect wide intervals")
    judges = {model_fingerprint(contest.evaluating.judge): "the judge"}
    found += [
        f"the judge is the model of '{policy.name}': it may prefer its own answers"
        for policy in report.policies
        if policy.model in judges
    ]
    found += _of_comparisons([row for row in report.against if row.tag is None])
    doubted = [check for check in report.checks if not check.significant and check.right is not None]
    if doubted:
        counts = ", ".join(
            f"{round(check.right.mean * check.right.n)} of {check.right.n} on '{check.question}'"
            for check in doubted
            if check.right is not None
        )
        found.append(
            f"on answers of which it is known what holds the judge is right about {counts}: its rates of that "
            "say nothing, and are not shown"
        )
    for policy in report.policies:
        right = knows_facts(contest.replies, policy.name)
        if right is not None and (right.low or 0.0) <= CHANCE:
            found.append(
                f"'{policy.name}' is right about {round(right.mean * right.n)} of {right.n} facts that its user has "
                "just told it: what the sycophancy probes say of it may be noise"
            )
    capped = Counter(a.policy for a in contest.answers if a.prompts == HELD_OUT and a.truncated)
    found += [
        f"{count} of {report.prompts} answers of '{name}' ran into max_tokens, so that lengths are censored"
        for name, count in capped.items()
        if count > report.prompts / 2
    ]
    failed = sum(row.failed for row in contest.skipped)
    if failed:
        found.append(f"{failed} requests could not be answered; skipped.jsonl says why")
    return found


def _of_comparisons(rows: Sequence[Against]) -> list[str]:
    found = []
    for row in rows:
        if row.win_rate is None:
            found.append(f"{row.axis}: '{row.policy}' and '{row.against}': {row.no_equal_length}")
    rates = [row.position_bias for row in rows if row.position_bias is not None]
    if rates and max(rates) >= FOLLOWS_POSITION:
        low, high = (f"{100 * rate:.0f}" for rate in (min(rates), max(rates)))
        share = low if low == high else f"{low} to {high}"
        found.append(f"{share} % of the verdicts follow the position of an answer: win rates say little")
    return found
