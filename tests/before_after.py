"""The evaluation of a run made by hand, from the rows it is read back as."""

import json
from collections.abc import Iterable
from pathlib import Path

from cai.data.jsonl import read_rows, write_rows
from cai.data.records import Answer, BeforeAfter, Judgement

BASE, POLICY = "base", "policy"


def write_before_after(folder: Path, rows: Iterable[BeforeAfter]) -> None:
    """Write answers, comparisons and manifest of a policy evaluation into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    asked = ["overall", *(["helpful", "safe"] if any(row.p_helpful is not None for row in rows) else [])]
    manifest = {
        "command": "cai eval",
        "policies": [{"name": name, "model": name} for name in (BASE, POLICY)],
        "axes": {axis: {"name": axis, "principles": {axis: "f"}} for axis in asked},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_rows(
        folder / "answers.jsonl",
        [
            Answer(
                policy=policy, prompts="held_out", prompt_id=row.prompt_id, messages=row.messages, tags=row.tags,
                text=text, truncated=which in row.truncated, model=model,
            )
            for policy, which in ((POLICY, "after"), (BASE, "before"))
            for row in rows
            for text, model in [(row.after, row.after_model) if which == "after" else (row.before, row.before_model)]
        ],
    )  # fmt: skip
    write_rows(
        folder / "comparisons.jsonl",
        [
            Judgement(
                axis=axis, prompt_id=row.prompt_id, tags=row.tags, policy=POLICY, against=BASE, p=p,
                verdicts=row.verdicts if axis == "overall" else [], judge=row.judge,
            )
            for axis in asked
            for row in rows
            for p in [{"overall": row.p, "helpful": row.p_helpful, "safe": row.p_safe}[axis]]
            if p is not None
        ],
    )  # fmt: skip


def add_judgements(folder: Path, rows: Iterable[Judgement], policies: dict[str, str]) -> None:
    """Add judgements of further policies, by name and content, to an evaluation that `write_before_after` wrote."""
    comparisons, path = folder / "comparisons.jsonl", folder / "manifest.json"
    write_rows(comparisons, [*read_rows(comparisons, Judgement), *rows])
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["policies"] += [{"name": name, "model": model} for name, model in policies.items()]
    path.write_text(json.dumps(manifest), encoding="utf-8")
