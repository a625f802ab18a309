"""`cai eval`, and a run's own evaluation: planned, run, and written into a folder."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cai.config import locate, yaml_files
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.config.locate import find_constitution_file, find_file
from cai.config.yaml_files import YamlSource
from cai.constitution.principles import Constitution, load_constitution
from cai.constitution.templates import Templates, names_for
from cai.data.jsonl import write_rows, write_text
from cai.data.manifest import (
    Claim,
    Output,
    check,
    exclusive,
    read_manifest,
    record_files,
    replacement,
    take,
    write_manifest,
)
from cai.data.prompts import read_prompts
from cai.data.records import Prompt, Skipped
from cai.evaluation.evaluation_plan import OVERALL, EvaluateConfig, EvaluationPlan, Policy, evaluation_axes
from cai.evaluation.policy import PolicyEvaluation
from cai.evaluation.policy_report import (
    ANSWERS,
    COMPARISONS,
    INJECTION,
    PROBES,
    REPORT,
    SAMPLES,
    SKIPPED,
    PolicyReport,
    policy_report,
)
from cai.evaluation.probes import read_probes
from cai.evaluation.scores import score_answers
from cai.inference.cache import Cache
from cai.inference.engine import EngineConfig
from cai.inference.models import Model, folder_fingerprint
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine, Scheduler, open_model
from cai.inference.servers import require_servers, resolve_judges
from cai.runs.evaluation_folder import EVAL, OWN_PROMPTS, adds_to, evaluation_claim, refuse_other_options
from cai.runs.find import FoundPolicy, check_base, find_policy, policy_of_model
from cai.runs.plan import Plan
from cai.runs.run_file import engine_settings, named_eval_judge

ROWS = {
    ANSWERS: "answers",
    COMPARISONS: "judgements",
    PROBES: "replies",
    SAMPLES: "samples",
    INJECTION: "attacked",
    SKIPPED: "skipped",
}
"""The files of rows, and where a PolicyEvaluation has them."""
COMMAND = Path(EVAL)  # where options come from, for messages


class Options(NamedTuple):
    """The options of `cai eval`; None takes what the run was made with."""

    policy: str
    against: Sequence[str] = ()
    reference: str | None = None
    prompts: Path | None = None
    constitution: str | None = None
    judge: str | None = None
    key_env: str | None = None
    probes: str = "all"
    limit: int | None = None
    settings: Sequence[str] = ()


def plan_evaluation(options: Options, runs: Path) -> EvaluationPlan:
    """Read and check everything; raises CaiError naming the option to mend."""
    first = find_policy(options.policy, runs)
    settings = _settings(options, first)
    probes = read_probes(options.probes)
    others = [find_policy(name, runs).policy for name in options.against]
    prompts, skipped = _prompts(options, first)
    axes = {OVERALL: _eval_constitution(options, settings, first), **evaluation_axes(settings)}
    templates = Templates(
        first.run.templates if first.run is not None else find_file("files", "prompts/default", COMMAND),
        names_for(axes.values()),
    )
    reference = _reference(options, first)
    policies = [reference, first.policy, *others]
    base = first.config.engine if first.config is not None else EngineConfig()
    engine = _engine(options, base.with_chat(None))
    asked = engine if options.reference else _engine(options, base.with_chat(first.chat))
    judge, judge_engine = _judge(options, first) or reference.folder, _judge_engine(options, first, engine)
    _refuse_cluster(options, (engine, judge_engine))
    _refuse_twins(policies)
    return EvaluationPlan(
        policies=policies,
        prompts=prompts,
        prompts_skipped=skipped,
        axes=axes,
        templates=templates,
        judge=judge,
        settings=settings,
        probes=probes,
        limit=options.limit,
        seed=first.config.seed if first.config is not None else 0,
        engine=engine,
        own_settings={judge: judge_engine, reference.folder: asked},
        prompts_from=_prompts_from(options, first),
        notes=[*_chosen_prompts(options, first, prompts), *_trained_on(policies, prompts)],
    )


def _engine(options: Options, base: EngineConfig) -> EngineConfig:
    """The engine settings of the options, laid over `base`."""
    return engine_settings([setting for setting in options.settings if _of_engine(setting)], base, COMMAND)


def _of_engine(setting: str) -> bool:
    return setting.startswith("engine.")


def _settings(options: Options, first: FoundPolicy) -> EvaluateConfig:
    """Those of the run but for its judge, axes and probes, with `--set` options laid over them, but for `engine:`."""
    overrides = [setting.removeprefix("evaluate.") for setting in options.settings if not _of_engine(setting)]
    base = first.config.evaluate if first.config is not None else EvaluateConfig()
    source = YamlSource(COMMAND, base.model_dump(exclude={"judge", "axes", "probes"}), {})
    return yaml_files.validate(yaml_files.apply_overrides(source, overrides), EvaluateConfig)


def _prompts(options: Options, first: FoundPolicy) -> tuple[list[Prompt], list[Skipped]]:
    if options.prompts is not None:
        return read_prompts(locate.find_data("--prompts", str(options.prompts), COMMAND), options.limit)
    if first.run is None:
        return _shipped_prompts(first.policy)[: options.limit], []
    held_out = set(first.run.manifest()["held_out"])
    prompts = [prompt for prompt in first.run.prompts() if prompt.id in held_out]
    if not prompts:
        raise CaiError(f"--prompts: {first.run.path} holds out no prompts (prompts.holdout: 0); name a file of prompts")
    return prompts[: options.limit], []


def _prompts_from(options: Options, first: FoundPolicy) -> str:
    if options.prompts is not None:
        return str(options.prompts)
    return PROMPTS if first.run is None else OWN_PROMPTS


PROMPTS = "examples/prompts.jsonl"  # comes with cai
MOST_PROMPTS = 50  # of these: more than FEW_PROMPTS, and 300 verdicts on three axes


def _shipped_prompts(policy: Policy) -> list[Prompt]:
    """Prompts for a policy that has none held out: MOST_PROMPTS of those that come with cai and it was not trained on.

    Raises: CaiError where it was trained on them all.
    """
    learned = policy.trained_on()
    prompts = read_prompts(find_file("--prompts", PROMPTS, COMMAND))[0]
    fresh = [prompt for prompt in prompts if fingerprint(prompt.messages) not in learned][:MOST_PROMPTS]
    if not fresh:
        raise CaiError(
            f"--prompts: '{policy.name}' holds out no prompts, and was trained on all of {PROMPTS}; name a file"
        )
    return fresh


def _eval_constitution(options: Options, settings: EvaluateConfig, first: FoundPolicy) -> Constitution:
    if options.constitution is not None:
        return load_constitution(find_constitution_file("--constitution", options.constitution, COMMAND))
    same = first.config is not None and settings.constitution == first.config.evaluate.constitution
    if first.run is not None and same:
        return load_constitution(first.run.eval_constitution_yaml)
    return load_constitution(find_constitution_file("--set constitution", settings.constitution, COMMAND))


def _reference(options: Options, first: FoundPolicy) -> Policy:
    if options.reference is not None:
        return policy_of_model(options.reference)
    if first.policy.base is None:
        raise CaiError(
            f"--reference: what '{first.policy.name}' was trained from is not known; name a model to compare with"
        )
    base = _base(first.policy.base, first.policy)
    check_base(first, base.folder)
    return base


def _judge(options: Options, first: FoundPolicy) -> Model | None:
    """The named judge, or the first of the run's, as in the run's own evaluation; None for a run that judges itself.

    Endpoints of the options hold the judge, of which name it may be; policies answer from their folders.
    """
    given, config = _engine(options, EngineConfig()), first.config
    if options.judge is not None:
        return resolve_judges([options.judge], options.key_env, given)[0]
    if config is None:
        return None
    name, own = named_eval_judge(config)
    if name is None and not (given.endpoints or config.engine.endpoints):
        return None
    key_env = options.key_env or (config.judge.key_env if name else None)
    shared = given if given.endpoints else own if name else config.engine
    return resolve_judges([name or config.model], key_env, shared)[0]


def _judge_engine(options: Options, first: FoundPolicy, engine: EngineConfig) -> EngineConfig:
    """The settings of the eval judge's engine, as the run that names the judge has them."""
    config = first.config
    if options.judge is not None or config is None:
        return engine
    own = named_eval_judge(config)[1]
    return engine if own is None else own.over(engine).in_process


def _refuse_cluster(options: Options, engines: Sequence[EngineConfig]) -> None:
    """Raises: CaiError for the address of a Ray cluster that only the run's folder names.

    The folder may be anybody's, and a cluster can run any code in this process.
    """
    given = _engine(options, EngineConfig()).ray
    for engine in engines:
        address = engine.ray.address if engine.ray else None
        if address not in (None, "auto") and (given is None or given.address != address):
            raise CaiError(
                f"{options.policy}: its engine.ray.address is {address}, and a Ray cluster can run any code here; if "
                f"it is yours, add --set engine.ray.address={address}, else --set engine.ray=null"
            )


def _refuse_twins(policies: Sequence[Policy]) -> None:
    names: dict[str, Path] = {}
    contents: dict[str, str] = {}
    for policy in policies:
        content = folder_fingerprint(policy.folder)
        if content in contents:
            raise CaiError(f"'{contents[content]}' and '{policy.name}' are the same model: nothing to compare")
        if policy.name in names:
            where = f"{names[policy.name]} and {policy.folder}"
            raise CaiError(f"--against: two policies would be called '{policy.name}': {where}")
        names[policy.name] = policy.folder
        contents[content] = policy.name


def _chosen_prompts(options: Options, first: FoundPolicy, prompts: Sequence[Prompt]) -> list[str]:
    if options.prompts is not None or first.run is not None:
        return []
    return [f"the prompts are {len(prompts)} of {PROMPTS}, which comes with cai; --prompts FILE names others"]


def _trained_on(policies: Sequence[Policy], prompts: Sequence[Prompt]) -> list[str]:
    """A note for each policy that was trained on some of the prompts."""
    asked = [fingerprint(prompt.messages) for prompt in prompts]
    trained_on = {policy.name: policy.trained_on() for policy in policies}
    counts = {name: sum(prompt in known for prompt in asked) for name, known in trained_on.items()}
    return [f"{name} was trained on {n} of these {len(asked)} prompts" for name, n in counts.items() if n]


def evaluate_policies(
    plan: EvaluationPlan,
    out: Path,
    cache: Path,
    reporter: Reporter,
    replace: bool = False,
    open_engine: OpenEngine = open_model,
) -> PolicyReport:
    """Write the rows and evaluation.json into `out`, over a cache.

    Raises: CaiError, also for a finished evaluation with other options in `out`, unless `replace`.
    """
    with closing(Cache(cache)) as store:
        scheduler = Scheduler(plan.engine, store, reporter, open_engine, plan.own_settings)
        return evaluate_into(Output(out, replace), PolicyEvaluation(plan, scheduler), reporter)


def check_evaluation(plan: EvaluationPlan, out: Path, replace: bool) -> str:
    """What `evaluate_policies` would replace in `out`, for a forecast. Raises: CaiError as it does; writes nothing."""
    claim = evaluation_claim(plan, out)
    if _adds(claim):
        return ""
    if not replace:
        refuse_other_options(claim)
    check(claim, replace)
    return replacement(claim)


def _adds(claim: Claim) -> bool:
    """Whether the folder holds a finished evaluation that this one only adds to."""
    return claim.is_finished() and adds_to(claim.manifest, read_manifest(claim.folder))


class NothingCompared(CaiError):
    """No prompt has an answer of two policies."""


def evaluate_into(output: Output, evaluation: PolicyEvaluation, reporter: Reporter) -> PolicyReport:
    """Run an evaluation and write its rows and report into a folder, the report last.

    A finished evaluation there that this one only adds to stays as it is until all calls are done. So `cai eval RUN`
    adds axes and probes to the evaluation that the run ended with.
    Raises: CaiError; NothingCompared, once the rows are written, where no prompt has an answer of two policies.
    """
    plan, out = evaluation.plan, output.folder
    claim = evaluation_claim(plan, out)
    with exclusive(out), reporter.logging_to(out / "log.txt"):
        if not _adds(claim):
            if not output.replace:
                refuse_other_options(claim)
            if claim.changes():
                require_servers([plan.judge])
            if replaced := take(claim, output.replace):
                reporter.say(replaced)
        begun = time.monotonic()
        asyncio.run(evaluation.run())
        for file, rows in ROWS.items():
            write_rows(out / file, getattr(evaluation, rows))
        write_manifest(out, claim.manifest)
        if not (evaluation.judgements if plan.judge is not None else evaluation.answered_by_all()):
            raise NothingCompared(f"no prompt has an answer of two policies; the reasons are in {out / SKIPPED}")
        scored, missing = score_answers(plan, out, reporter) if plan.probes is not None else ([], {})
        calls = evaluation.calls()
        cost = {
            "cache_misses": calls.cache_misses,
            "cache_hits": calls.cache_hits,
            "tokens": calls.tokens,
            "seconds": round(time.monotonic() - begun, 1),
        }
        report = policy_report(evaluation, scored, missing, claim.manifest, cost)
        write_text(out / REPORT, report.model_dump_json(indent=1) + "\n")
        record_files(claim)
    return report


def plan_of_run(plan: Plan, policy: Policy) -> EvaluationPlan:
    """A run's own evaluation: the trained policy against the model it started from, on the held-out prompts.

    On all axes unless `evaluate: {axes: false}`; with `evaluate: {probes: true}` all that `cai eval` measures. With
    `evaluate: {judge: off}` on none.
    """
    probes = plan.config.evaluate.probes
    assert isinstance(plan.before, Path), "a policy was trained from it"
    return EvaluationPlan(
        policies=[dataclasses.replace(_base(plan.config.model, policy), folder=plan.before), policy],
        prompts=list(plan.held_out),
        prompts_skipped=[],
        axes={OVERALL: plan.eval_constitution, **evaluation_axes(plan.config.evaluate)} if plan.eval_judge else {},
        templates=plan.templates,
        judge=plan.eval_judge,
        settings=plan.config.evaluate,
        probes=read_probes("all") if probes else None,
        limit=None,
        seed=plan.config.seed,
        engine=plan.config.engine.shared,
        own_settings=plan.own_settings,
        prompts_from=OWN_PROMPTS,
        notes=[],
    )


def _base(model: str, policy: Policy) -> Policy:
    """The model that a policy was trained from, by another name than the policy's."""
    base = policy_of_model(model)
    return dataclasses.replace(base, name=f"{base.name} (base)") if base.name == policy.name else base
