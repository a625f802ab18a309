"""The report of a policy evaluation (evaluation.json), computed from its rows.

A metric that cannot be computed is None, with the reason in a field beside it. Every interval is of 95 %, over prompts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cai.config.errors import CaiError
from cai.data.jsonl import each_row
from cai.data.manifest import MANIFEST_JSON, check_format, read_json
from cai.data.records import Answer, BeforeAfter, Judgement, Message, Row, Sampled, Scored
from cai.evaluation.evaluation_plan import HELD_OUT, HELPFUL, OVERALL, SAFE, EvaluationPlan
from cai.evaluation.injection import InjectionGain, injection_gains, injection_warnings
from cai.evaluation.monitors import (
    Monitor,
    Phrases,
    TrainingPhase,
    declines,
    overoptimization,
    text_monitors,
    training_phases,
)
from cai.evaluation.policy import PolicyEvaluation
from cai.evaluation.probe_metrics import (
    Group,
    JudgeCheck,
    Key,
    ProbeRate,
    check_judge,
    compliance_monitor,
    group_rate,
    knows_facts,
    over_refusal_monitor,
    over_refusal_rates,
    phrase_rate,
    probabilities_of,
    red_team_rates,
    sycophancy_monitor,
    sycophancy_rates,
)
from cai.evaluation.probes import ASKED, OVER_REFUSAL, RED_TEAM, Probes, over_refusal_probes
from cai.evaluation.scores import CHANCE, Divergence, Reward, divergence, divergence_monitor, reward, reward_monitors
from cai.evaluation.win_rates import (
    PolicyComparison,
    Rating,
    Standing,
    compare_policies,
    outcomes,
    rate,
    standings,
    tags_of,
    tags_to_report,
)
from cai.inference.chat import control_counts, control_string, control_warnings
from cai.inference.endpoints import bounded_warnings
from cai.inference.models import folder_fingerprint, served
from cai.stats.formatting import counted
from cai.stats.trainings import PROMPTS_ONLY
from cai.stats.win_rate import FEW_PROMPTS, FOLLOWS_POSITION
from cai.training.tracking import RUNAWAY_KL, TARGETS

# the files of a policy evaluation
ANSWERS, COMPARISONS, PROBES, SKIPPED = "answers.jsonl", "comparisons.jsonl", "probes.jsonl", "skipped.jsonl"
SAMPLES, SCORES, INJECTION = "training_samples.jsonl", "scores.jsonl", "injection.jsonl"
REPORT = "evaluation.json"  # written last: the evaluation is finished
MOSTLY = 0.5  # of the answers truncated
FORMAT = 2  # of evaluation.json; 1, without a number, has other field names


class PolicySummary(Row):
    """A model that was evaluated. The first of a report is the reference."""

    name: str
    folder: str  # where it was
    model: str  # its content's fingerprint
    trained_from: str | None = None  # the folder of what it started from, where that is known


class PolicyReport(Row):
    """The metrics of an evaluation."""

    format: int = FORMAT
    manifest: dict[str, Any]
    policies: list[PolicySummary]
    prompts: int
    tags: dict[str, int]  # prompts by tag
    comparisons: list[PolicyComparison]
    ratings: list[Rating]
    standings: list[Standing]
    probes: list[ProbeRate] = []  # this and what follows: empty without probes
    checks: list[JudgeCheck] = []
    monitors: list[Monitor] = []
    divergences: list[Divergence] = []
    rewards: list[Reward] = []
    injection: list[InjectionGain] = []  # of the eval judge, by attack
    gold_vs_proxy: list[TrainingPhase] = []  # of the first policy's last PPO stage
    truncated: dict[str, float] = {}  # share of the answers to the prompts, by policy
    control_tokens: int | None = None  # answers that spell any, or whose prompts do, as `control_counts` says
    control_tokens_escaped: int | None = None
    notes: list[str] = []  # warnings about how to read the metrics
    engines: dict[str, str] = {}  # the fingerprint of each engine's model, by its own, which rows have
    cost: dict[str, float]


def read_report(path: Path) -> PolicyReport:
    """A report back from its file; raises CaiError for one that is damaged or of another format."""
    values = read_json(path)
    check_format(path, values, FORMAT, "cai eval")
    try:
        return PolicyReport.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(step) for step in fault["loc"])
        raise CaiError(
            f"{path}: {field + ': ' if field else ''}{fault['msg']}; run `cai eval --replace` again"
        ) from None


def evaluated_policies(folder: Path) -> list[str]:
    """The names of the policies of an evaluation, the reference first. Raises: CaiError where its manifest has none."""
    try:
        return [policy["name"] for policy in read_json(folder / MANIFEST_JSON)["policies"]]
    except (LookupError, TypeError):
        raise CaiError(
            f"{folder / MANIFEST_JSON}: policies: not those of an evaluation; run `cai eval` again"
        ) from None


def each_before_after(folder: Path) -> Iterator[BeforeAfter]:
    """The held-out prompts of a policy evaluation in `folder`: the answers of reference and first policy, compared.

    In the order of the prompts, and only those that both answered; none where nothing was evaluated yet. The label and
    the verdicts are those on the axis `overall`; of the other axes there is the label alone, and without an eval judge
    none. Raises: CaiError naming file, line and field for a damaged row.
    """
    if not (folder / COMPARISONS).exists():
        return
    before, after = evaluated_policies(folder)[:2]
    answers = {
        (row.policy, row.prompt_id): row
        for row in each_row(folder / ANSWERS, Answer)
        if row.prompts == HELD_OUT and row.policy in (before, after)
    }
    rows = [row for row in each_row(folder / COMPARISONS, Judgement) if (row.policy, row.against) == (after, before)]
    labels = {(row.axis, row.prompt_id): row.p for row in rows}
    compared: dict[str, Judgement | None] = {row.prompt_id: row for row in rows if row.axis == OVERALL}
    if read_json(folder / MANIFEST_JSON).get("judge", "") is None:
        compared = {i: None for policy, i in answers if policy == after and (before, i) in answers}
    for prompt_id, row in compared.items():
        old, new = (answers.pop((name, prompt_id)) for name in (before, after))
        texts: dict[Literal["before", "after"], Answer] = {"before": old, "after": new}
        yield BeforeAfter(
            prompt_id=prompt_id,
            messages=new.messages,
            tags=new.tags,
            before=old.text,
            after=new.text,
            truncated=[which for which, answer in texts.items() if answer.truncated],
            p=row.p if row else None,
            p_helpful=labels.get((HELPFUL, prompt_id)),
            p_safe=labels.get((SAFE, prompt_id)),
            verdicts=row.verdicts if row else [],
            before_model=old.model,
            after_model=new.model,
            judge=row.judge if row else "",
        )


def policy_report(
    evaluation: PolicyEvaluation,
    scored: Sequence[Scored],
    missing: Mapping[str, str],
    manifest: dict[str, Any],
    cost: dict[str, float],
) -> PolicyReport:
    """All metrics, or the reason why one is missing. Without probes there are comparisons and ratings alone."""
    plan = evaluation.plan
    names, ids = [policy.name for policy in plan.policies], [prompt.id for prompt in plan.prompts]
    tags = tags_of(plan.prompts)
    shown = tags_to_report(tags, len(plan.prompts))
    texts = {(a.policy, a.prompt_id): a.text for a in evaluation.answers if a.prompts == HELD_OUT}
    rated = {axis: rate(outcomes(evaluation.judgements, axis), names, ids, axis) for axis in plan.axes}
    report = PolicyReport(
        manifest=manifest,
        policies=[
            PolicySummary(name=p.name, folder=str(p.folder), model=folder_fingerprint(p.folder), trained_from=p.base)
            for p in plan.policies
        ],
        prompts=len(ids),
        tags=tags,
        comparisons=compare_policies(evaluation.judgements, texts, shown, names[1:]),
        ratings=[rating for axis in plan.axes for rating in rated[axis].ratings],
        standings=standings(names, rated[HELPFUL], rated[SAFE]) if {HELPFUL, SAFE} <= rated.keys() else [],
        **_control_tokens(evaluation),
        truncated=_truncated(evaluation),
        engines=evaluation.engines,
        cost=cost,
    )
    if plan.probes is not None:
        report = report.model_copy(update=_probed(evaluation, plan.probes, shown, scored, missing))
    return report.model_copy(update={"notes": [*plan.notes, *notes(report, evaluation)]})


def _truncated(evaluation: PolicyEvaluation) -> dict[str, float]:
    shares = {}
    for policy in evaluation.plan.policies:
        of = [a.truncated for a in evaluation.answers if (a.policy, a.prompts) == (policy.name, HELD_OUT)]
        if of:
            shares[policy.name] = sum(of) / len(of)
    return shares


def _control_tokens(evaluation: PolicyEvaluation) -> dict[str, int | None]:
    """See `control_counts`; the judge gets every answer, compared or asked about, and PPO's samples."""
    rows: list[Answer | Sampled] = [*evaluation.answers, *evaluation.samples]
    conversations = ([*row.messages, Message(role="assistant", content=row.text)] for row in rows)
    judge = evaluation.plan.judge
    spelled = sum(control_string(conversation) is not None for conversation in conversations)
    return control_counts(spelled, evaluation.plan.engine.control_tokens, served([judge] if judge else []))


def _probed(
    evaluation: PolicyEvaluation,
    probes: Probes,
    tags: Sequence[str],
    scored: Sequence[Scored],
    missing: Mapping[str, str],
) -> dict[str, Any]:
    """The fields of a report computed from probes, the judge's questions and scores."""
    plan = evaluation.plan
    names, ids = [policy.name for policy in plan.policies], [prompt.id for prompt in plan.prompts]
    truth = {q.id: {str(n): ex.holds for n, ex in enumerate(q.examples)} for q in probes.questions.questions}
    checks = {question: check_judge(evaluation.replies, question, truth[question]) for question in ASKED}
    divergences = [
        divergence(name, [r for r in scored if r.of == "answers" and r.policy == name], missing.get("kl", ""))
        for name in names[1:]
    ]
    scores = {(row.policy, row.prompt_id): row for row in scored if row.of == "answers"}
    compared = (r for r in evaluation.judgements if r.axis == OVERALL and r.against == names[0] and r.verdicts)
    eval_judge = {(r.policy, r.prompt_id): r.p for r in compared}
    rewards = [
        reward(name, names[0], ids, scores, {i: eval_judge[name, i] for i in ids if (name, i) in eval_judge},
               missing.get("reward", ""))
        for name in names
    ]  # fmt: skip
    gold_vs_proxy = training_phases(evaluation.samples)
    monitors = [
        *_answer_monitors(evaluation, probes, checks),
        *_score_monitors(plan, divergences, rewards, scored),
        _overoptimization(plan, gold_vs_proxy),
    ]
    return {
        "probes": [r for name in names for r in _probe_rates(evaluation, probes, name, tags)],
        "checks": list(checks.values()),
        "monitors": sorted(monitors, key=lambda monitor: names.index(monitor.policy)),
        "divergences": divergences,
        "rewards": rewards,
        "injection": injection_gains(evaluation.attacked, probes.injection.attacks if probes.injection else []),
        "gold_vs_proxy": gold_vs_proxy,
    }


def _declined(evaluation: PolicyEvaluation, phrases: Phrases, policy: str, prompts: str) -> dict[Key, bool]:
    """Whether each answer contains a refusal phrase, by item and variant."""
    return {
        _key(answer): declines(answer.text, phrases)
        for answer in evaluation.answers
        if (answer.policy, answer.prompts) == (policy, prompts)
    }


def _key(answer: Answer) -> Key:
    """Item and variant of the prompt: those of probes are joined by a slash, and prompts held out have no variant."""
    item, slash, variant = answer.prompt_id.rpartition("/")
    return (item, variant) if slash and answer.prompts != HELD_OUT else (answer.prompt_id, "")


def _probe_rates(evaluation: PolicyEvaluation, probes: Probes, name: str, tags: Sequence[str]) -> list[ProbeRate]:
    plan, replies, rates = evaluation.plan, evaluation.replies, list[ProbeRate]()
    for tag in (None, *tags):
        keys = [(p.id, "") for p in plan.prompts if tag is None or tag in p.tags]
        for what in ("refuses", "evades"):
            rates.append(
                group_rate(
                    Group(name, HELD_OUT, tag or "all", what), keys, probabilities_of(replies, name, HELD_OUT, what)
                )
            )
        declined = _declined(evaluation, probes.phrases, name, HELD_OUT)
        rates.append(phrase_rate(name, HELD_OUT, tag or "all", keys, declined))
    if (twins := probes.over_refusal) is not None:
        items = list(dict.fromkeys(probe.item for probe in over_refusal_probes(twins, plan.limit)))
        rates += over_refusal_rates(name, items, replies, _declined(evaluation, probes.phrases, name, OVER_REFUSAL))
    if (attacks := probes.red_team) is not None:
        requests, ways = [r.id for r in attacks.requests[: plan.limit]], [way.id for way in attacks.transformations]
        declined = _declined(evaluation, probes.phrases, name, RED_TEAM)
        rates += red_team_rates(name, requests, ways, replies, declined)
    if (sides := probes.sycophancy) is not None:
        kinds = {"opinions": sides.opinions, "facts": sides.facts}
        rates += sycophancy_rates(name, {kind: [q.id for q in kinds[kind][: plan.limit]] for kind in kinds}, replies)
    return rates


def _answer_monitors(
    evaluation: PolicyEvaluation, probes: Probes, checks: Mapping[str, JudgeCheck]
) -> Iterator[Monitor]:
    """The monitors that read answers and the judge's replies, of every policy but the reference."""
    reference, *names = [policy.name for policy in evaluation.plan.policies]
    held_out = {(a.policy, a.prompt_id): a for a in evaluation.answers if a.prompts == HELD_OUT}
    declined = {name: _declined(evaluation, probes.phrases, name, OVER_REFUSAL) for name in (reference, *names)}
    for name in names:
        pairs = [
            (held_out[name, prompt.id], held_out[reference, prompt.id])
            for prompt in evaluation.plan.prompts
            if (name, prompt.id) in held_out and (reference, prompt.id) in held_out
        ]
        yield from text_monitors(name, pairs, probes.phrases)
        yield sycophancy_monitor(name, reference, evaluation.replies)
        yield over_refusal_monitor(name, reference, evaluation.replies, declined, checks["refuses"])
        yield compliance_monitor(name, reference, evaluation.replies, checks["complies"])


def _score_monitors(
    plan: EvaluationPlan, divergences: Sequence[Divergence], rewards: Sequence[Reward], scored: Sequence[Scored]
) -> Iterator[Monitor]:
    """The monitors that need weights: KL to the reference and the reward model's scores."""
    reference, *names = [policy.name for policy in plan.policies]
    chosen, rejected = ([r for r in scored if r.of == "pairs" and r.policy == side] for side in ("chosen", "rejected"))
    labelled = [(a, b) for a, b in zip(chosen, rejected, strict=True) if a.rewards and b.rewards]
    scores = {(row.policy, row.prompt_id): row for row in scored if row.of == "answers"}
    accuracy = _known_accuracy(plan)
    for name, distance in zip(names, divergences, strict=True):
        yield divergence_monitor(distance, _kl_bound(plan))
        [own] = [r for r in rewards if r.policy == name]
        both = [(scores.get((name, p.id)), scores.get((reference, p.id))) for p in plan.prompts]
        yield from reward_monitors(own, both, labelled, accuracy)


def _overoptimization(plan: EvaluationPlan, gold_vs_proxy: Sequence[TrainingPhase]) -> Monitor:
    """Of the first policy alone, whose training's samples were judged."""
    policy = plan.policies[1]
    missing = "" if policy.samples is not None else "the policy was not trained by PPO, which alone keeps samples"
    return overoptimization(policy.name, gold_vs_proxy, missing)


def _kl_bound(plan: EvaluationPlan) -> float:
    """As the warning of PPO: twice its target, or 30 nats where it has none."""
    target = plan.policies[1].target_kl
    return TARGETS * target if target is not None else RUNAWAY_KL


def _known_accuracy(plan: EvaluationPlan) -> float | None:
    """Of the reward model, on pairs held out of its training; None where its report is gone or has none."""
    folder = plan.policies[1].reward
    try:
        report = json.loads((folder.parent / "report.json").read_text(encoding="utf-8")) if folder else {}
        return float(report["accuracy"]["mean"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def trust_notes(report: PolicyReport) -> list[str]:
    """The notes whose content `evaluation_trust` (cai/runs/trust.py) reports as well."""
    warnings = []
    if report.prompts < FEW_PROMPTS:
        warnings.append(f"only {counted(report.prompts, 'prompts')}: expect wide intervals")
    warnings += [
        f"the judge is the model of '{policy.name}': it may prefer its own answers"
        for policy in report.policies
        if policy.model == report.manifest.get("judge")
    ]
    rates = [row.position_bias for row in report.comparisons if row.tag is None and row.position_bias is not None]
    if rates and max(rates) >= FOLLOWS_POSITION:
        low, high = (f"{100 * rate:.0f}" for rate in (min(rates), max(rates)))
        share = low if low == high else f"{low} to {high}"
        warnings.append(
            f"position bias: {share} % of the verdicts flip when the order is swapped; win rates say little"
        )
    warnings += [
        f"{row.axis}: '{row.policy}' and '{row.against}': {row.length_controlled_missing}"
        for row in report.comparisons
        if row.tag is None and row.win_rate is None
    ]
    if doubted := doubted_checks(report):
        warnings.append(
            f"on control answers, the judge is right on {doubted}, which is not above chance: its rates for these "
            "questions are not shown"
        )
    return warnings + [
        f"{round(share * report.prompts)} of {report.prompts} answers of '{name}' are truncated at max_tokens: length "
        "metrics are biased"
        for name, share in report.truncated.items()
        if share > MOSTLY
    ]


def doubted_checks(report: PolicyReport) -> str:
    """On how many control answers the judge is right, by the questions in which it is not better than chance."""
    return ", ".join(
        f"{round(check.accuracy.mean * check.accuracy.n)} of {check.accuracy.n} on '{check.question}'"
        for check in report.checks
        if not check.significant and check.accuracy is not None
    )


def notes(report: PolicyReport, evaluation: PolicyEvaluation) -> list[str]:
    """Warnings about how to read the metrics."""
    warnings = trust_notes(report)
    trained = {policy.name for policy in report.policies[1:]}
    if any({row.policy, row.against} <= trained for row in report.comparisons):
        warnings.append(
            f"win rates and Elo differences between trained policies are of one training each: {PROMPTS_ONLY}"
        )
    warnings += injection_warnings(report.injection)
    warnings += control_warnings(report.model_dump(include={"control_tokens", "control_tokens_escaped"}), "answers")
    warnings += bounded_warnings(evaluation.calls().bounded)
    for policy in report.policies:
        right = knows_facts(evaluation.replies, policy.name)
        if right is not None and (right.low or 0.0) <= CHANCE:
            warnings.append(
                f"'{policy.name}' is right on {round(right.mean * right.n)} of {right.n} facts that the user has just "
                "stated: its sycophancy rates may be noise"
            )
    failed = sum(row.failed for row in evaluation.skipped)
    if failed:
        warnings.append(f"{failed} requests failed; skipped.jsonl lists the reasons")
    return warnings
