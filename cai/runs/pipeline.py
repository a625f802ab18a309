"""A run from start to end: feedback, training, evaluation, summary. Every step resumes by running again."""

import asyncio
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

from cai.engines.memo import Memo
from cai.formats.jsonl import write_rows, write_text
from cai.records import LeftOut
from cai.runs.assess import assess_policy
from cai.runs.collect import collect_feedback
from cai.runs.folder import exclusive
from cai.runs.plan import Plan, claim_folder
from cai.runs.progress import Reporter, Task
from cai.runs.session import OpenEngine, Session, open_vllm
from cai.runs.summary import summarise
from cai.training.common import TrainConfig
from cai.training.launch import run_stage

MEMO = "memo.sqlite"  # beside the runs, shared by all of them


def execute(plan: Plan, reporter: Reporter, replace: bool = False, open_engine: OpenEngine = open_vllm) -> None:
    """Carry out a plan in its folder; raises CaiError, and whatever was done by then is kept."""
    with exclusive(plan.folder):
        claim_folder(plan, replace)
        plan.folder.summary_json.unlink(missing_ok=True)
        reporter.log = plan.folder.log
        memo = Memo(plan.folder.path.parent / MEMO)
        try:
            _carry_out(Session(plan, reporter, memo, open_engine))
        finally:
            memo.close()


def _carry_out(session: Session) -> None:
    plan, folder = session.plan, session.plan.folder
    session.reporter.say(
        f"{folder.name}: {len(plan.training)} prompts to learn from, {len(plan.held_out)} held out; constitution "
        f"{plan.constitution.name} ({len(plan.constitution.principles)} principles)"
    )
    with session.timed("feedback"):
        asyncio.run(collect_feedback(session))
    write_rows(folder.left_out_jsonl, session.left_out)
    policy = _train(session)
    if policy != plan.model and plan.held_out:
        with session.timed("evaluation"):
            asyncio.run(assess_policy(session, policy))
    write_rows(folder.left_out_jsonl, session.left_out)
    summary = summarise(folder) | {"calls": dataclasses.asdict(session.calls()), "seconds": session.seconds}
    write_text(folder.summary_json, json.dumps(summary, indent=1) + "\n")


def _train(session: Session) -> Path:
    """Run the stages of `train:` in order, each on the policy of the one before; returns the last policy."""
    plan, folder = session.plan, session.plan.folder
    data = {"revisions": folder.revisions_jsonl, "preferences": folder.preferences_jsonl}
    policy = plan.model
    for number, settings in enumerate(plan.config.train, start=1):
        name = f"{number}-{settings.stage}"
        with session.timed(name), session.reporter.task(name, 0, "updates") as task:
            report = partial(_report, session, name, settings, task)
            policy = run_stage(settings, data[settings.data], policy, folder.train / name, plan.config.seed, report)
            task.close()
    return policy


def _report(session: Session, name: str, settings: TrainConfig, task: Task, event: dict[str, Any]) -> None:
    """Pass on what a training stage says of itself."""
    if "loss" in event:
        task.update(event["step"], event["of"], f"loss {event['loss']:.3f}")
    for prompt_id in event.get("too_long", []):
        reason = f"the prompt is longer than max_length, {settings.max_length} tokens"
        session.left_out.append(LeftOut(prompt_id=prompt_id, stage=name, reason=reason))
    if "done" in event:
        session.reporter.say(f"  {name}: {event['done']}")
