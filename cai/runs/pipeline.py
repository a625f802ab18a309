"""A run from start to end: judge gate, feedback, training, evaluation, summary. Every step resumes by running again."""

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.data.jsonl import file_fingerprint, write_rows, write_text
from cai.data.manifest import Output, exclusive, record_files
from cai.data.records import Skipped
from cai.evaluation.evaluation_plan import EvaluationPlan, Policy
from cai.evaluation.judge_eval import Extras, evaluate_judge
from cai.evaluation.judge_report import JudgeReport
from cai.evaluation.policy import PolicyEvaluation
from cai.evaluation.scores import divergence, score_answers
from cai.feedback.pipeline import FeedbackJob, collect_feedback
from cai.inference.cache import Cache
from cai.inference.models import Model
from cai.inference.reporter import Reporter
from cai.inference.scheduler import EngineWork, OpenEngine, Scheduler, open_model
from cai.runs.evaluate import NothingCompared, evaluate_into, plan_of_run
from cai.runs.evaluation_folder import evaluation_claim, kept_evaluation
from cai.runs.find import find_policy
from cai.runs.folder import CACHE_FILE, RunFolder, Training
from cai.runs.judge_reward import RunJudge
from cai.runs.metrics import METRICS, summarise
from cai.runs.plan import Plan, iteration, start_folder, start_warnings
from cai.runs.progress import cost_in_all, session
from cai.runs.run_file import GateConfig
from cai.stats.formatting import counted
from cai.training.setting_parts import LAST, models_of
from cai.training.settings import DPOConfig, Online, PPOConfig, judged
from cai.training.stage import StageSpec, checkpoint_update, is_trained, run_stage
from cai.training.tracking import WINDOW, large_penalty, read_metrics

DRIFT = "drift.json"
UNJUDGED = "unknown, since no pair was judged"
UNDECIDED = "p is 0.5, and this loss knows only which answer is better"
TRUNCATED = "an answer is truncated; `truncated: open` learns it without its end"


def train_stage(
    name: str, spec: StageSpec[Any], reporter: Reporter, replace: bool = True, keep_data: bool = False
) -> tuple[Path, list[Skipped]]:
    """Train one stage and show its progress; returns its result and the rows it could not use."""
    skipped: list[Skipped] = []
    with reporter.task(name, 0, "updates") as task:

        def report(event: dict[str, Any]) -> None:
            if "step" in event:
                task.update(event["step"], event["of"], event["note"])
                if event["step"] == min(WINDOW, event["of"]):
                    _say_large_penalty(name, spec, reporter)
            reasons = {
                "too_long": f"longer than max_length, {spec.settings.max_length} tokens",
                "undecided": UNDECIDED,
                "truncated": TRUNCATED,
            }
            for key, reason in reasons.items():
                skipped.extend(Skipped(prompt_id=i, stage=name, reason=reason) for i in event.get(key, []))
            for prompt_id, reason in event.get("refused", []):
                skipped.append(Skipped(prompt_id=prompt_id, stage=name, reason=reason))
            skipped.extend(Skipped.model_validate(row) for row in event.get("skipped", []))
            if left_out := event.get("left_out"):
                pairs = ", ".join(f"{counted(count, 'pairs')} by {source}" for source, count in left_out.items())
                reporter.say(f"  {name}: `data` leaves out {pairs}")
            if "truncated" in event:
                reporter.say(f"  {name}: {counted(len(event['truncated']), 'rows')} skipped: {TRUNCATED}")
            if "open" in event:
                reporter.say(
                    f"  {name}: {counted(event['open'], 'rows')} with a truncated answer, learned without its end"
                )
            if "mixed" in event:
                reporter.say(f"  {name}: {event['mixed']} helpful answers mixed in, {event['mix_share']:.0%} of all")
            if "again" in event:
                more = f", and {len(event['again']) - 3} more" if len(event["again"]) > 3 else ""
                reporter.say(f"  {name}: trained again, since these changed: {'; '.join(event['again'][:3])}{more}")
            if "warning" in event:
                reporter.say(f"  {name}: warning: {event['warning']}")
            if "done" in event:
                reporter.say(f"  {name}: {event['done']}")
            if "starts" in event:
                reporter.note(f"{name}: loading the model")

        if spec.judge is not None and not is_trained(spec):
            spec.judge.check()
        reporter.resumption = lambda: resumption(name, spec)
        result = run_stage(spec, report, replace, keep_data)
        reporter.resumption = None
        task.close()
    return result, skipped


def _say_large_penalty(name: str, spec: StageSpec[Any], reporter: Reporter) -> None:
    """Warn after the first updates, when there is time to stop."""
    if text := large_penalty(read_metrics(spec.folder / METRICS), spec.settings.model_dump()):
        reporter.say(f"  {name}: warning: {text}")


def resumption(name: str, spec: StageSpec[Any]) -> str:
    """What an interrupted stage resumes from."""
    members = spec.folder / "members"  # of an ensemble of reward models
    trained = len(list(members.glob("member-*")))
    of_member = f" of member {trained + 1}" if trained else ""
    update = checkpoint_update(members / f"{trained + 1}") if members.is_dir() else checkpoint_update(spec.folder)
    if update or trained:
        return f"Training of {name} resumes from update {update:,}{of_member}"
    return f"Training of {name} starts again: no checkpoint yet (save_steps: {spec.settings.save_steps})"


TrainOne = Callable[[str, StageSpec[Any], Reporter], tuple[Path, list[Skipped]]]


def train_policy(
    plan: Plan, scheduler: Scheduler, reporter: Reporter, train: TrainOne = train_stage, number: int = 1
) -> Model:
    """Run the stages of `train:`, each on the policy of the one before; returns the last policy.

    A reward stage trains the reward model of the stages after it. `train` is called in place of `train_stage`. Of
    several trainings this is the `number`-th, which differs from the others in its seed alone.
    """
    folder, training = plan.folder, plan.folder.training(number)
    data = {"revisions": folder.revisions_jsonl, "preferences": folder.preferences_jsonl}
    if any(isinstance(settings, Online) for settings in plan.train):
        data["prompts"] = folder.train / "prompts.jsonl"
        folder.train.mkdir(exist_ok=True)
        if number == 1:
            write_rows(data["prompts"], plan.training)
    if not isinstance(plan.model, Path):  # it has no folder to train, and `train:` is empty
        return plan.model
    labels = _labels_so_far(plan) if plan.earlier else data["preferences"]
    policy, last_reward = plan.model, None
    for position, settings in enumerate(plan.train, start=1):
        stage = f"{position}-{settings.stage}"
        name = training.label(stage)
        judge = RunJudge(plan, scheduler, name) if judged(settings) else None
        names = models_of(settings.reward) if isinstance(settings, Online) else []
        rewards = [last_reward if name == LAST else Path(name) for name in names]
        spec = StageSpec(
            settings=settings,
            data=labels if settings.stage == "reward" else data[settings.learns_from],
            model=policy,
            folder=training.train / stage,
            seed=training.seed(plan.config.seed),
            reward=rewards[0] if rewards else None,
            other_rewards=tuple(path for path in rewards[1:] if path is not None),
            chat=own.chat if (own := plan.own_settings.get(policy)) else None,
            reference=plan.anchor if isinstance(settings, PPOConfig | DPOConfig) else None,
            launcher=plan.config.launcher,
            judge=judge,
        )
        with scheduler.timed(name), nullcontext() if judge is None else closing(judge):
            result, skipped = train(name, spec, reporter)
        again = [row.model_copy(update={"stage": stage}) for row in skipped]  # as the first training names its stage
        scheduler.skipped += _not_yet_skipped(again, scheduler.skipped)
        if settings.stage == "reward":
            last_reward = result
        else:
            policy = result
    return policy


def _labels_so_far(plan: Plan) -> Path:
    """A file of the labels of all iterations up to this one; those that came with the run are in it once."""
    target = plan.folder.train / "preferences.jsonl"
    target.parent.mkdir(exist_ok=True)
    lines: dict[str, None] = {}
    for folder in (*plan.earlier, plan.folder):
        lines |= dict.fromkeys(folder.preferences_jsonl.read_text(encoding="utf-8").splitlines())
    write_text(target, "".join(f"{line}\n" for line in lines))
    return target


def _not_yet_skipped(rows: Sequence[Skipped], skipped: Sequence[Skipped]) -> list[Skipped]:
    """The rows that an earlier training or evaluation of the run did not skip as well, which is then listed once."""
    known, new = Counter(map(_reason, skipped)), []
    for row in rows:
        if known[_reason(row)]:
            known[_reason(row)] -= 1
        else:
            new.append(row)
    return new


def _reason(row: Skipped) -> tuple[str, str, str]:
    return row.prompt_id, row.stage, row.reason


def pass_gate(plan: Plan, reporter: Reporter, open_engine: OpenEngine) -> tuple[Plan, list[EngineWork]]:
    """Evaluate the judge on the pairs of `judge_gate`, into `judge/` of the run's folder, before any other call.

    Returns: the plan, with the judge's fitted temperature if the gate calibrates, and the calls made.
    Raises: CaiError naming each metric out of its bounds.
    """
    gate = plan.config.judge_gate
    if gate is None or plan.gate is None:
        return plan, []
    out = plan.folder.judge
    evaluated = evaluate_judge(
        plan.gate, Output(out, replace=True), plan.runs / CACHE_FILE, reporter, Extras(gate.calibrate), open_engine
    )
    report = evaluated.report
    unsure = "".join(f"; too few pairs to tell whether {claim}" for claim in undecided(gate, report))
    reporter.say(f"judge on {report.pairs} labelled pairs: accuracy {report.accuracy}{unsure}; {out / 'judge.html'}")
    if failures := out_of_bounds(gate, report):
        raise CaiError(
            f"{plan.run_file}: judge_gate: the judge fails on {plan.gate.data}: {'; '.join(failures)}. "
            f"Its report is {out / 'judge.html'}; try another judge, more principles or other templates"
        )
    if report.calibration is None:
        return plan, evaluated.work
    if not report.calibration.applied:
        reporter.say("labels keep the judge's temperature: the fitted one does not improve calibration")
        return plan, evaluated.work
    judge = plan.config.judge.model_copy(update={"temperature": report.calibration.temperature})
    reporter.say(f"labels use the judge's fitted temperature, {judge.temperature:.3g}")
    return dataclasses.replace(plan, config=plan.config.model_copy(update={"judge": judge})), evaluated.work


def out_of_bounds(gate: GateConfig, report: JudgeReport) -> list[str]:
    """The metrics that fail the gate, a phrase each.

    The calibration error fails where its whole interval is above the bound: on few pairs chance alone makes it large.
    """
    failures = []
    if gate.accuracy is not None and report.accuracy.mean < gate.accuracy:
        failures.append(f"accuracy {report.accuracy}, required at least {gate.accuracy:g}")
    ece = report.ece
    if gate.ece is not None and (ece is None or (ece.mean if ece.low is None else ece.low) > gate.ece):
        failures.append(f"ece {ece or UNJUDGED}, required at most {gate.ece:g}")
    for name, value, bound in (
        ("position_bias", report.position_bias, gate.position_bias),
        ("non_option_mass", report.non_option_mass, gate.non_option_mass),
    ):
        if bound is not None and (value is None or value > bound):
            failures.append(f"{name} {UNJUDGED if value is None else f'{value:.3f}'}, required at most {bound:g}")
    return failures


def undecided(gate: GateConfig, report: JudgeReport) -> list[str]:
    """The bounds of the gate that lie inside the intervals of their metrics, a phrase each: the pairs do not decide."""
    phrases = []
    for name, side, bound, value in (
        ("accuracy", "at least", gate.accuracy, report.accuracy),
        ("ece", "at most", gate.ece, report.ece),
    ):
        if bound is None or value is None or value.low is None or value.high is None:
            continue
        if value.low <= bound < value.high:
            phrases.append(f"{name} is {side} {bound:g}: {value}")
    return phrases


def execute(
    plan: Plan, reporter: Reporter, replace: bool = False, open_engine: OpenEngine = open_model
) -> list[RunFolder]:
    """Run a plan; returns the folders it filled, one per iteration.

    Raises: CaiError; everything finished by then is kept.
    """
    policy, folders = plan.model, list[RunFolder]()
    for number in range(1, plan.config.iterations + 1):
        current = iteration(plan, number, policy)
        folders.append(current.folder)
        with exclusive(current.folder.path), reporter.recording_errors():
            replaced = start_folder(current, replace)
            current.folder.summary_json.unlink(missing_ok=True)
            reporter.log = current.folder.log
            reporter.say(_first_line(current))  # its time in the log is the start of the run
            for text in filter(None, [replaced, *start_warnings(current)]):
                reporter.say(text)
            current, gate_work = pass_gate(current, reporter, open_engine)
            cache = Cache(plan.runs / CACHE_FILE)
            try:
                scheduler = Scheduler(current.config.engine.shared, cache, reporter, open_engine, current.own_settings)
                scheduler.work += gate_work
                with session(current.folder, scheduler):
                    policy = _run_stages(current, scheduler, reporter, replace)
                _write_summary(current.folder, scheduler)
            finally:
                cache.close()
    return folders


def _report_drift(plan: EvaluationPlan, out: Path, reporter: Reporter) -> None:
    """How far all iterations so far took the policy from the first one's model, into `drift.json` of an evaluation."""
    scored, missing = score_answers(plan, out, reporter)
    policy = plan.policies[1].name
    rows = [row for row in scored if row.of == "answers" and row.policy == policy]
    drift = divergence(policy, rows, missing.get("kl", ""))
    write_text(out / DRIFT, drift.model_dump_json(indent=1) + "\n")
    record_files(evaluation_claim(plan, out))
    value = f"{drift.answer.mean:.2f} nats an answer" if drift.answer else f"not measured: {drift.missing}"
    reporter.say(f"{policy}: KL from the run's model: {value}")


def _write_summary(folder: RunFolder, scheduler: Scheduler) -> None:
    """What the run came to, and what it cost this time and in all."""
    calls = scheduler.tally()
    account = {
        "calls": {"cache_misses": calls.cache_misses, "cache_hits": calls.cache_hits, "tokens": calls.tokens},
        "work": [dataclasses.asdict(done.work) for done in scheduler.work],
        "seconds": scheduler.seconds,
        "engines": scheduler.models,
        "in_all": cost_in_all(folder),
        "files": {path.name: file_fingerprint(path) for path in folder.hashed_files() if path.exists()},
    }
    write_text(folder.summary_json, json.dumps(summarise(folder) | account, indent=1) + "\n")


def _first_line(plan: Plan) -> str:
    return (
        f"{plan.folder.name}: {counted(len(plan.training), 'prompts')} for training, {len(plan.held_out)} held out; "
        f"constitution {plan.constitution.name} ({counted(len(plan.constitution.principles), 'principles')})"
    )


def feedback_job(plan: Plan) -> FeedbackJob:
    """The feedback stage of a plan."""
    config, folder = plan.config, plan.folder
    return FeedbackJob(
        prompts=plan.training,
        constitution=plan.constitution,
        templates=plan.templates,
        revise=config.revise,
        judge=config.judge,
        seed=config.seed,
        model=plan.generator,
        reviser=plan.reviser,
        judges=plan.judge_models,
        input_preferences=plan.preferences,
        input_skipped=plan.preferences_skipped,
        revisions_jsonl=folder.revisions_jsonl,
        preferences_jsonl=folder.preferences_jsonl,
        rankings_jsonl=folder.rankings_jsonl,
        applicability_jsonl=folder.applicability_jsonl,
    )


def _run_stages(plan: Plan, scheduler: Scheduler, reporter: Reporter, replace: bool) -> Model:
    """Feedback, trainings and their evaluations in one iteration; returns the policy of the first."""
    folder = plan.folder
    scheduler.skipped += plan.prompts_skipped
    with scheduler.timed("feedback"):
        asyncio.run(collect_feedback(feedback_job(plan), scheduler))
    write_rows(folder.skipped_jsonl, scheduler.skipped)
    policies = list[Model]()
    for training in map(folder.training, range(1, plan.config.seeds + 1)):
        if plan.config.seeds > 1:
            seed = training.seed(plan.config.seed)
            reporter.say(f"{folder.name}: training {training.number} of {plan.config.seeds}, seed {seed}")
        policy = train_policy(plan, scheduler, reporter, number=training.number)
        policies.append(policy)
        if isinstance(policy, Path) and policy != plan.model and plan.held_out:
            _evaluate(plan, scheduler, reporter, policy, training, replace)
    write_rows(folder.skipped_jsonl, scheduler.skipped)
    return policies[0]


def _evaluate(
    plan: Plan, scheduler: Scheduler, reporter: Reporter, folder: Path, training: Training, replace: bool
) -> None:
    """The run's own `cai eval` of a training's policy, in `folder`; see `kept_evaluation` for one that stays."""
    out = training.eval
    policy = Policy(training.label(plan.folder.name), folder, plan.config.model, plan.training)
    if plan.config.evaluate.probes:
        policy = find_policy(training.label(str(plan.folder.path)), plan.runs).policy
    evaluation = PolicyEvaluation(plan_of_run(plan, policy), scheduler)
    changes = None if replace else kept_evaluation(evaluation_claim(evaluation.plan, out))
    if changes is not None:
        if changes:
            reporter.say(
                f"{out}: keeps its evaluation with other options ({'; '.join(changes)}); --replace overwrites it"
            )
        return
    with scheduler.timed(training.label("evaluation")):
        try:
            evaluate_into(Output(out, replace=True), evaluation, reporter)
            if plan.config.iterations > 1:
                _report_drift(evaluation.plan, out, reporter)
        except NothingCompared as error:
            reporter.say(f"evaluation: {error}")
    scheduler.skipped += _not_yet_skipped(evaluation.skipped, scheduler.skipped)
