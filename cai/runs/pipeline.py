"""A run from start to end: feedback, training, evaluation, summary. Every step resumes by running again."""

import asyncio
import dataclasses
import json
from pathlib import Path

from cai.engines.memo import Memo
from cai.formats.jsonl import write_rows, write_text
from cai.runs.assess import assess_policy
from cai.runs.collect import collect_feedback
from cai.runs.contenders import find_contender
from cai.runs.contest import Contest
from cai.runs.evaluate import evaluate_into, evaluating_of, finished_otherwise, is_about
from cai.runs.folder import MEMO, RunFolder, exclusive
from cai.runs.gate import pass_gate
from cai.runs.plan import Plan, claim_folder, iteration
from cai.runs.progress import Reporter, counted
from cai.runs.session import OpenEngine, Session, open_model
from cai.runs.summary import summarise
from cai.runs.train import train_policy


def execute(
    plan: Plan, reporter: Reporter, replace: bool = False, open_engine: OpenEngine = open_model
) -> list[RunFolder]:
    """Carry out a plan; returns the folders it filled, one an iteration.

    Raises: CaiError, and whatever was done by then is kept.
    """
    folders, policy = [], plan.model
    for number in range(1, plan.config.iterations + 1):
        current = iteration(plan, number, policy)
        folders.append(current.folder)
        with exclusive(current.folder):
            claim_folder(current, replace)
            current.folder.summary_json.unlink(missing_ok=True)
            reporter.log = current.folder.log
            reporter.say(_begun(current))  # its time in the log is when the run was started
            current, gate_work = pass_gate(current, reporter, open_engine)
            memo = Memo(plan.runs / MEMO)
            try:
                policy = _carry_out(Session(current, reporter, memo, open_engine, gate_work), replace)
            finally:
                memo.close()
    return folders


def _begun(plan: Plan) -> str:
    return (
        f"{plan.folder.name}: {counted(len(plan.training), 'prompts')} to learn from, {len(plan.held_out)} held out; "
        f"constitution {plan.constitution.name} ({counted(len(plan.constitution.principles), 'principles')})"
    )


def _carry_out(session: Session, replace: bool) -> Path:
    plan, folder = session.plan, session.plan.folder
    with session.timed("feedback"):
        asyncio.run(collect_feedback(session))
    write_rows(folder.left_out_jsonl, session.left_out)
    policy = train_policy(session)
    if policy != plan.model and plan.held_out:
        with session.timed("evaluation"):
            asyncio.run(assess_policy(session, policy))
        if plan.config.evaluate.probes:
            _evaluate(session, replace)
    write_rows(folder.left_out_jsonl, session.left_out)
    calls = session.calls()
    account = {
        "calls": {"asked": calls.asked, "remembered": calls.remembered, "tokens": calls.tokens},
        "work": [dataclasses.asdict(done.work) for done in session.work],
        "seconds": session.seconds,
    }
    summary = summarise(folder) | account
    write_text(folder.summary_json, json.dumps(summary, indent=1) + "\n")
    return policy


def _evaluate(session: Session, replace: bool) -> None:
    """The run's own `cai eval`. A finished one of the same policy, which somebody asked other things of, stays."""
    plan, out = session.plan, session.plan.folder.eval
    policy = find_contender(str(plan.folder.path), plan.runs)
    evaluating = evaluating_of(plan, policy)
    if not replace and is_about(policy, out) and (other := finished_otherwise(evaluating, out)):
        session.reporter.say(f"{out} stays as it is, made with other options: {'; '.join(other)} (--replace: anew)")
        return
    contest = Contest(evaluating, session.engine, session.reporter)
    with session.timed("probes"):
        evaluate_into(out, contest, session.reporter)
    session.work += contest.work
