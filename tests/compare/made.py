"""Runs made of rows that a test decides, without a model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai.constitution.principles import Constitution, assign, constitution_yaml
from cai.data.jsonl import write_rows
from cai.data.records import BeforeAfter, Message, Preference, Prompt, Revision, Verdict
from cai.runs.folder import RunFolder
from tests.before_after import write_before_after

Revise = Callable[[str, str], str]  # (prompt id, principle id) → revision


def principles(*ids: str, **reworded: str) -> Constitution:
    texts = {i: reworded.get(i, f"Look for {i}.") for i in ids}
    return Constitution.model_validate(
        {
            "name": "made",
            "principles": [{"id": i, "critique": text, "revision": text, "judge": text} for i, text in texts.items()],
        }
    )


def make_run(
    path: Path,
    constitution: Constitution,
    revise: Revise,
    prompts: int = 40,
    verdict: Callable[[str, str], float] | None = None,  # (prompt id, principle id) → P(revision better)
    labels: Callable[[str], float] | None = None,  # prompt id → P(the sample "first" is better)
    evaluation: Callable[[str], float] | None = None,  # prompt id → P(after is better)
    before: str = "the answer before",
    rounds: int = 1,
    prefix: str = "p",
    finished: bool = True,
    seeds: Sequence[Callable[[str], float]] = (),  # as `evaluation`, of the policies of further trainings
    axes: Callable[[str], tuple[float, float]] | None = None,  # prompt id → P(after is more helpful), P(it is safer)
    **settings: Any,
) -> RunFolder:
    """A run of `prompts` to learn from, and as many held out where there is an evaluation."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    config = {"seed": 0, "revise": {"rounds": rounds, "critique": True}, "train": [{"stage": "dpo"}], **settings}
    manifest: dict[str, Any] = {
        "config": config,
        "eval_constitution": {"fingerprint": "r"},
        "model": "m",
        "judge_models": ["m"],
        "templates": "t",
    }
    folder.constitution_yaml.write_text(constitution_yaml(constitution), encoding="utf-8")
    asked = [prompt(f"{prefix}{number}") for number in range(prompts)]
    held_out = [prompt(f"held-{prefix}{number}") for number in range(prompts if evaluation else 0)]
    rows: list[Revision] = []
    pairs: list[Preference] = []
    for one in asked:
        answer = "the draft of it all"
        drawn = [assign(constitution, 0, one.id, f"round {number + 1}")[0] for number in range(rounds)]
        for number, principle in enumerate(drawn, start=1):
            revision = revise(one.id, principle.id)
            rows.append(
                Revision(
                    prompt_id=one.id,
                    messages=one.messages,
                    tags=one.tags,
                    round=number,
                    draft="the draft of it all",
                    before=answer,
                    principle_id=principle.id,
                    principle_hash=principle.fingerprint,
                    critique="fine",
                    revision=revision,
                    truncated=[],
                    flags=["unchanged"] if revision == answer else [],
                    model="m",
                    templates="t",
                    seed=0,
                )
            )
            answer = revision
        about: dict[str, Any] = {"prompt_id": one.id, "messages": one.messages, "judge": "j"}
        if verdict:
            said = [said_of(principle.id, verdict(one.id, principle.id)) for principle in drawn]
            pairs.append(Preference(**about, chosen=answer, rejected="d", p=1.0, source="revision", verdicts=said))
        if labels:
            p = labels(one.id)
            chosen, rejected = ("first", "second") if p >= 0.5 else ("second", "first")
            p = max(p, 1 - p)
            said = [said_of(drawn[0].id, p)]
            pairs.append(Preference(**about, chosen=chosen, rejected=rejected, p=p, source="judge", verdicts=said))
    manifest["held_out"] = [one.id for one in held_out]
    folder.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    write_rows(folder.prompts_jsonl, [*asked, *held_out])
    write_rows(folder.revisions_jsonl, rows)
    write_rows(folder.preferences_jsonl, pairs)
    write_rows(folder.skipped_jsonl, [])
    if evaluation:
        for number, of_seed in enumerate((evaluation, *seeds)):
            eval_folder = path / f"seeds/{number + 1}/eval" if number else folder.eval
            answered = [compared(one, of_seed(one.id), before) for one in held_out]
            if axes:
                answered = [
                    row.model_copy(update=dict(zip(("p_helpful", "p_safe"), axes(row.prompt_id), strict=True)))
                    for row in answered
                ]
            write_before_after(eval_folder, answered)
    if finished:
        folder.summary_json.write_text("{}", encoding="utf-8")
    return folder


def prompt(id: str) -> Prompt:
    number = int("".join(c for c in id if c.isdigit()))
    return Prompt(
        id=id, messages=[Message(role="user", content=f"Asked: {id}")], tags=["even" if number % 2 == 0 else "odd"]
    )


def said_of(principle: str, p: float) -> Verdict:
    return Verdict(principle_id=principle, principle_hash="h", p_forward=p, p_reverse=p, non_option_mass=0.0)


def compared(one: Prompt, p: float, before: str) -> BeforeAfter:
    return BeforeAfter(
        prompt_id=one.id,
        messages=one.messages,
        tags=one.tags,
        before=before,
        after=f"after {one.id} {p}",
        truncated=[],
        p=p,
        verdicts=[said_of("good", p)],
        before_model="m",
        after_model="n",
        judge="j",
    )


def write_metrics(folder: RunFolder, stage: str, lines: Sequence[dict[str, Any]]) -> None:
    (folder.train / stage).mkdir(parents=True)
    (folder.train / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
