"""`cai show`."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from cai.cli.options import DEFAULT_RUNS, RunName, RunsFolder
from cai.config.characters import Terminal, visible
from cai.config.errors import CaiError
from cai.data.records import BeforeAfter, Messages, Preference, Revision, Skipped, Verdict
from cai.feedback.pipeline import REVISION_VERDICTS
from cai.feedback.revise import REVISION_PAIRS
from cai.runs.folder import RunFolder, open_run

REASONING_SHOWN = 200  # characters
EMPTY = {"revisions": "revisions", "preferences": "preferences", "evaluation": "evaluation", "skipped": "skipped rows"}
Part = tuple[str, str]  # a heading and its text
Example = tuple[str, list[Part]]


def show(
    run: RunName,
    stage: Annotated[
        str, typer.Option("--stage", metavar="STAGE", help="revisions, preferences, evaluation or skipped.")
    ] = "revisions",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Number of examples.")] = 3,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Print examples of a run.

    Prints every text: prompt, draft, principle, critique, revision and label. --stage chooses other rows.
    """
    stages: dict[str, Callable[[RunFolder], list[Example]]] = {
        "revisions": _revisions,
        "preferences": lambda folder: [_preference(row) for row in folder.preferences()],
        "evaluation": lambda folder: [_comparison(row) for row in folder.evaluation()],
        "skipped": lambda folder: [_skipped(row) for row in folder.skipped()],
    }
    if stage not in stages:
        raise CaiError(f"--stage {stage}: expected one of {', '.join(stages)}")
    folder = open_run(run, runs)
    examples = stages[stage](folder)
    console = Terminal()
    if not examples:
        yet = " yet" if stage == "evaluation" or folder.summary() is None else ""
        console.print(Text(f"{run} has no {EMPTY[stage]}{yet}"))
        return
    for title, parts in examples[:limit]:
        console.rule(Text(title, style="bold"), align="left")
        for heading, text in parts:
            console.print(Text(heading, style="cyan"))
            console.print(Padding(Text(visible(text)), (0, 0, 0, 4)))
        console.print()
    console.print(Text(f"{min(limit, len(examples))} of {len(examples)} {stage.replace('_', ' ')} of {run}"))


def _revisions(folder: RunFolder) -> list[Example]:
    """One example a prompt: its rounds together, and the label of its pair."""
    rounds: dict[str, list[Revision]] = {}
    for row in folder.revisions():
        rounds.setdefault(row.prompt_id, []).append(row)
    labels = {row.prompt_id: row for row in folder.preferences() if row.source == "revision"}
    stages = (REVISION_PAIRS, REVISION_VERDICTS)
    reasons = {row.prompt_id: row.reason for row in folder.skipped() if row.stage in stages}
    examples = []
    for prompt_id, rows in rounds.items():
        parts = [*_conversation(rows[0].messages), *_reasoning("draft", rows[0].draft_reasoning)]
        parts.append((_heading("draft", rows[0]), rows[0].draft))
        for row in rows:
            parts.append((f"principle, round {row.round}", row.principle_id))
            if row.critique is not None:
                parts += _reasoning("critique", row.critique_reasoning)
                parts.append((_heading("critique", row), row.critique))
            parts += _reasoning("revision", row.revision_reasoning)
            parts.append((_heading("revision", row, row.flags), row.revision))
        if prompt_id in labels:
            parts.append(("label", _label(labels[prompt_id])))
        else:
            parts.append(("label", f"none: {reasons.get(prompt_id, 'no pair')}"))
        examples.append((prompt_id, parts))
    return examples


def _reasoning(text: str, thought: str | None) -> list[Part]:
    """The beginning of what a model thought before a text; its rows hold all of it."""
    if not thought:
        return []
    shown = thought[:REASONING_SHOWN] + ("…" if len(thought) > REASONING_SHOWN else "")
    return [(f"reasoning before {text}  ({len(thought):,} characters)", shown)]


def _heading(text: str, row: Revision, flags: Sequence[str] = ()) -> str:
    notes = [*flags, *(["truncated"] if text in row.truncated else [])]
    return text + (f"  ({', '.join(notes)})" if notes else "")


def _preference(row: Preference) -> Example:
    parts = [*_conversation(row.messages), *_reasoning("chosen", row.chosen_reasoning), ("chosen", row.chosen)]
    parts += [*_reasoning("rejected", row.rejected_reasoning), ("rejected", row.rejected)]
    parts.append(("label", _label(row)))
    return row.prompt_id, [*parts, *_verdicts(row.all_verdicts)]


def _label(row: Preference) -> str:
    """A pair's label and where it comes from."""
    if row.source != "revision":
        return f"P(chosen better) = {row.p:.4f}, by {row.source}"
    names = "principles" if len(row.principle_ids) > 1 else "principle"
    principles = f", {names}: {', '.join(row.principle_ids)}" if row.principle_ids else ""
    if row.p == 1:  # a judge's label is below 1
        return f"p = {row.p:g} by construction (revision over draft){principles}"
    better = "draft" if row.draft_chosen else "revision"
    return f"P({better} better) = {row.p:.4f}, by the judge{principles}"


def _comparison(row: BeforeAfter) -> Example:
    parts = [*_conversation(row.messages), ("before", row.before), ("after", row.after)]
    return row.prompt_id, [*parts, ("label", f"P(after better) = {row.p:.4f}"), *_verdicts(row.verdicts)]


def _skipped(row: Skipped) -> Example:
    return row.prompt_id, [(row.stage + ("  (failed)" if row.failed else ""), row.reason)]


def _verdicts(verdicts: list[Verdict]) -> list[Part]:
    lines = [
        f"{v.principle_id}: {v.p:.4f}  (shown first {_p(v.p_forward)}, shown second {_p(v.p_reverse)})"
        if v.votes
        else f"{v.principle_id}: no vote  (P(at issue) = {_p(v.at_issue)})"
        for v in verdicts
    ]
    return [("verdicts", "\n".join(lines))] if lines else []


def _p(p: float | None) -> str:
    return "not judged" if p is None else f"{p:.4f}"


def _conversation(messages: Messages) -> list[Part]:
    return [(message["role"], message["content"]) for message in messages]
