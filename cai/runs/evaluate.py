"""`cai eval`: policies answer the same prompts and probes, a judge compares them, and a report is made of it."""

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows, write_text
from cai.data.manifest import claimed, earlier
from cai.evaluation.policy_report import PolicyReport
from cai.inference.cache import Cache, CachedEngine
from cai.inference.models import Model, folder_fingerprint
from cai.inference.progress import Reporter
from cai.inference.scheduler import OpenEngine, cached_engine, open_model
from cai.runs.contest import PolicyEvaluation
from cai.runs.evaluating import OVERALL, PROBES, EvaluationPlan, made_from, read_probes, shipped_axes
from cai.runs.find import Policy, policy_of_model
from cai.runs.plan import Plan
from cai.runs.policy_figures import policy_report
from cai.runs.scores import score_answers

ROWS = {
    "answers": "answers",
    "comparisons": "judgements",
    "probes": "replies",
    "course": "samples",
    "skipped": "skipped",
}
"""The files of rows, and where a contest has them."""
MADE_FROM, REPORT = "made_from.json", "evaluation.json"  # the report is written last: with it an evaluation is finished
RESULTS = (*(f"{name}.jsonl" for name in ROWS), "scores.jsonl", REPORT)


def evaluate_policies(
    evaluating: EvaluationPlan,
    out: Path,
    cache: Path,
    reporter: Reporter,
    replace: bool = False,
    open_engine: OpenEngine = open_model,
) -> PolicyReport:
    """Write the rows and evaluation.json into `out`, over a cache.

    Raises: CaiError, also for a finished evaluation in `out` that was made with other options, unless `replace`.
    """
    if not replace and (other := finished_otherwise(evaluating, out)):
        raise CaiError(
            f"{out} holds a finished evaluation made with other options: {'; '.join(other)}. Write over it "
            "(--replace), or write elsewhere (--out FOLDER)."
        )
    with closing(Cache(cache)) as store:
        engines: dict[str, CachedEngine] = {}

        def engine_of(model: Model) -> CachedEngine:
            engine = cached_engine(model, evaluating.engine, store, open_engine)
            return engines.setdefault(engine.fingerprint, engine)

        return evaluate_into(out, PolicyEvaluation(evaluating, engine_of, reporter), reporter)


def evaluate_into(out: Path, contest: PolicyEvaluation, reporter: Reporter) -> PolicyReport:
    """Carry out a contest and write what came of it into `out`; the report is written last. Raises: CaiError."""
    evaluating, now = contest.evaluating, made_from(contest.evaluating)
    with claimed(now, out, MADE_FROM, RESULTS, reporter):
        begun = time.monotonic()
        asyncio.run(contest.carry_out())
        for name, rows in ROWS.items():
            write_rows(out / f"{name}.jsonl", getattr(contest, rows))
        if not contest.judgements:
            raise CaiError(f"no prompt has an answer of two policies; the reasons are in {out / 'skipped.jsonl'}")
        scored, missing = score_answers(evaluating, out, reporter)
        calls = contest.calls()
        cost = {
            "asked": calls.asked,
            "remembered": calls.remembered,
            "tokens": calls.tokens,
            "seconds": round(time.monotonic() - begun, 1),
        }
        report = policy_report(contest, scored, missing, now, cost)
        write_text(out / REPORT, report.model_dump_json(indent=1) + "\n")
    return report


def finished_otherwise(evaluating: EvaluationPlan, out: Path) -> list[str]:
    """What differs between an evaluation and the finished one in `out`, shortly: `limit: all → 1`.

    [] where none is finished, or it is the same; versions do not count.
    """
    before, now = earlier(out / MADE_FROM), made_from(evaluating)
    if before is None or before["command"] != now["command"] or not (out / REPORT).exists():
        return []
    try:
        said = [(key, was, value) for (key, was), value in zip(_said(before).items(), _said(now).values(), strict=True)]
    except (LookupError, TypeError, AttributeError):
        return ["it is of another version of cai"]
    told = {key: f"{key}: {was} → {value}" for key, was, value in said if was != value}
    parts = ("policies", "prompts", "axes", "templates", "judge", "probes")
    return [*told.values(), *(f"other {p}" for p in parts if p not in told and before.get(p) != now[p])]


def _said(made: dict[str, Any]) -> dict[str, Any]:
    """The part of what an evaluation was made from that says something to a reader; the rest are hashes."""
    probes = [name for name in PROBES if made["probes"][name]]
    return {
        "policies": ", ".join(policy["name"] for policy in made["policies"]),
        "limit": "all" if made["limit"] is None else made["limit"],
        "probes": {0: "none", len(PROBES): "all"}.get(len(probes), ",".join(probes)),
        "judge": made["judge"]["where"],
        "max_tokens": made["settings"]["max_tokens"],
        "temperature": made["settings"]["temperature"],
        "seed": made["seed"],
    }


def is_about(policy: Policy, out: Path) -> bool:
    """Whether what lies in `out` was made of this very policy, by content."""
    before = earlier(out / MADE_FROM) or {}
    return folder_fingerprint(policy.folder) in [known["model"] for known in before.get("policies", [])]


def evaluating_of(plan: Plan, policy: Policy) -> EvaluationPlan:
    """What a run's own `evaluate: {probes: true}` asks for, of the policy it trained."""
    return EvaluationPlan(
        contenders=[policy_of_model(plan.config.model)._replace(folder=plan.before), policy],
        prompts=plan.held_out,
        prompts_skipped=[],
        axes={OVERALL: plan.eval_constitution, **shipped_axes()},
        templates=plan.templates,
        judge=plan.judge_models[0],
        settings=plan.config.evaluate,
        probes=read_probes("all"),
        limit=None,
        seed=plan.config.seed,
        engine=plan.config.engine,
        notes=[],
    )
