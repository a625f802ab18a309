"""`cai show`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import typer
from rich.padding import Padding
from rich.text import Text

from cai.cli.options import DEFAULT_RUNS, PrincipleId, RunName, RunsFolder
from cai.config.characters import Terminal, visible
from cai.config.errors import CaiError
from cai.config.validation import closest_names, did_you_mean
from cai.constitution.principles import find_principle, load_constitution
from cai.data.filters import FILTERS
from cai.data.records import BeforeAfter, Messages, Preference, Revision, Skipped, Verdict
from cai.feedback.pipeline import REVISION_VERDICTS
from cai.feedback.revise import REVISION_PAIRS
from cai.runs.folder import RunFolder, open_run

REASONING_SHOWN = 200  # characters
EMPTY = {"revisions": "revisions", "preferences": "preferences", "evaluation": "evaluation", "skipped": "skipped rows"}
TRUNCATED = "truncated"  # the flag that rows of every stage but skipped may have
Part = tuple[str, str]  # a heading and its text


class Example(NamedTuple):
    """The texts of a prompt, and what a filter finds them by: principles and flags of each of its rounds."""

    prompt_id: str
    parts: list[Part]
    rounds: Sequence[tuple[Sequence[str], Sequence[str]]] = ()


class Wanted(NamedTuple):
    """The options that choose examples; one round has to match both principle and flag."""

    prompt: str | None
    principle: str | None
    flag: str | None

    def keeps(self, example: Example) -> bool:
        """Whether an example is chosen."""
        if self.prompt not in (None, example.prompt_id):
            return False
        return (self.principle is None and self.flag is None) or any(
            (self.principle is None or self.principle in principles) and (self.flag is None or self.flag in flags)
            for principles, flags in example.rounds
        )

    def __str__(self) -> str:
        named = {"--prompt": self.prompt, "--principle": self.principle, "--flag": self.flag}
        return " ".join(f"{option} {value}" for option, value in named.items() if value is not None)


def show(
    run: RunName,
    stage: Annotated[
        str, typer.Option("--stage", metavar="STAGE", help="revisions, preferences, evaluation or skipped.")
    ] = "revisions",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Number of examples.")] = 3,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="ID", help="Only this prompt.")] = None,
    principle: PrincipleId = None,
    flag: Annotated[
        str | None, typer.Option("--flag", metavar="FLAG", help="Only with this flag, such as unchanged or truncated.")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Print examples of a run.

    Prints every text: prompt, draft, principle, critique, revision and label. --stage chooses other rows, and --prompt,
    --principle and --flag some of them; with several, a round has to match all.
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
    wanted = Wanted(prompt, principle, flag)
    _check(wanted, stage, folder)
    every = stages[stage](folder)
    examples = [example for example in every if wanted.keeps(example)]
    console = Terminal()
    if not examples:
        yet = " yet" if stage == "evaluation" or folder.summary() is None else ""
        none = f"none of {len(every)} {EMPTY[stage]} of {run} match {wanted}" if every else ""
        console.print(Text(visible(none or f"{run} has no {EMPTY[stage]}{yet}")))
        for why in _absence(folder, prompt) if prompt is not None and stage != "skipped" else ():
            console.print(Text(visible(f"  {why}")))
        return
    for title, parts, _ in examples[:limit]:
        console.rule(Text(title, style="bold"), align="left")
        for heading, text in parts:
            console.print(Text(heading, style="cyan"))
            console.print(Padding(Text(visible(text)), (0, 0, 0, 4)))
        console.print()
    which = f" that match {wanted}" if str(wanted) else ""
    console.print(Text(visible(f"{min(limit, len(examples))} of {len(examples)} {EMPTY[stage]} of {run}{which}")))


def _absence(folder: RunFolder, prompt_id: str) -> Iterator[str]:
    """Why a prompt has no rows of a stage, as far as the run recorded it."""
    if prompt_id in folder.manifest().get("held_out", ()):
        yield "held out from training: its rows are those of --stage evaluation"
    yield from (f"{row.stage}: {row.reason}" for row in folder.skipped() if row.prompt_id == prompt_id)


def _check(wanted: Wanted, stage: str, folder: RunFolder) -> None:
    """Raises: CaiError for a prompt, a principle or a flag that the stage's rows cannot have, naming the nearest."""
    if wanted.prompt is not None:
        ids = [*(prompt.id for prompt in folder.prompts()), *(row.prompt_id for row in folder.skipped())]
        _known("--prompt", wanted.prompt, list(dict.fromkeys(ids)), f"a prompt of {folder.name}")
    if wanted.principle is not None:
        if stage == "skipped":
            raise CaiError("--principle applies to revisions, preferences and evaluation; skipped rows have none")
        file = folder.eval_constitution_yaml if stage == "evaluation" else folder.constitution_yaml
        find_principle(load_constitution(file).principles, wanted.principle, str(file))
    if wanted.flag is not None:
        flags = {"revisions": list(FILTERS), "skipped": []}.get(stage, [TRUNCATED])
        if not flags:
            raise CaiError("--flag applies to revisions, preferences and evaluation; skipped rows have none")
        _known("--flag", wanted.flag, flags, f"a flag of {stage}")


def _known(option: str, name: str, names: Sequence[str], what: str) -> None:
    if name in names:
        return
    near = closest_names(name, names)
    few = len(names) <= len(FILTERS)
    hint = did_you_mean(near) if near else f"expected one of {', '.join(names)}" if few else "`prompts.jsonl` has all"
    raise CaiError(f"{option} {name}: not {what}; {hint}")


def _revisions(folder: RunFolder) -> list[Example]:
    """One example a prompt: its rounds together, the label of its pair or why it has none, and what else it lacks."""
    rounds: dict[str, list[Revision]] = {}
    for revision in folder.revisions():
        rounds.setdefault(revision.prompt_id, []).append(revision)
    labels = {row.prompt_id: row for row in folder.preferences() if row.source == "revision"}
    stages = (REVISION_PAIRS, REVISION_VERDICTS)
    skipped: dict[str, list[Skipped]] = {}
    for skip in folder.skipped():
        skipped.setdefault(skip.prompt_id, []).append(skip)
    unlabelled = "revise.label is off" if _label_setting(folder) == "off" else "no pair"
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
            reasons = [skip.reason for skip in skipped.get(prompt_id, ()) if skip.stage in stages]
            parts.append(("label", f"none: {', '.join(reasons) or unlabelled}"))
        others = [f"{skip.stage}: {skip.reason}" for skip in skipped.get(prompt_id, ()) if skip.stage not in stages]
        if others:
            parts.append(("skipped", "\n".join(others)))
        rounds_of = [([row.principle_id], [*row.flags, *([TRUNCATED] if row.truncated else [])]) for row in rows]
        examples.append(Example(prompt_id, parts, rounds_of))
    return examples


def _label_setting(folder: RunFolder) -> str | None:
    """`revise.label` of the run, as its manifest has it."""
    revise = (folder.manifest().get("config") or {}).get("revise")
    return revise.get("label") if isinstance(revise, dict) else None


def _reasoning(text: str, thought: str | None) -> list[Part]:
    """The beginning of what a model thought before a text; its rows hold all of it."""
    if not thought:
        return []
    shown = thought[:REASONING_SHOWN] + ("…" if len(thought) > REASONING_SHOWN else "")
    return [(f"reasoning before {text}  ({len(thought):,} characters)", shown)]


def _heading(text: str, row: Revision, flags: Sequence[str] = ()) -> str:
    notes = dict.fromkeys([*flags, *(["truncated"] if text in row.truncated else [])])
    return text + (f"  ({', '.join(notes)})" if notes else "")


def _preference(row: Preference) -> Example:
    parts = [*_conversation(row.messages), *_reasoning("chosen", row.chosen_reasoning), ("chosen", row.chosen)]
    parts += [*_reasoning("rejected", row.rejected_reasoning), ("rejected", row.rejected)]
    parts.append(("label", _label(row)))
    principles = [*row.principle_ids, *(verdict.principle_id for verdict in row.all_verdicts)]
    flags = [TRUNCATED] if row.truncated else []
    return Example(row.prompt_id, [*parts, *_verdicts(row.all_verdicts)], [(principles, flags)])


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
    label = "none, as there is no eval judge" if row.p is None else f"P(after better) = {row.p:.4f}"
    parts = [*parts, ("label", label), *_verdicts(row.verdicts)]
    principles = [verdict.principle_id for verdict in row.verdicts]
    return Example(row.prompt_id, parts, [(principles, [TRUNCATED] if row.truncated else [])])


def _skipped(row: Skipped) -> Example:
    return Example(row.prompt_id, [(row.stage + ("  (failed)" if row.failed else ""), row.reason)])


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
