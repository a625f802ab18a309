"""`cai attribute`: what each principle of a sweep does to each outcome, from runs without it or with it alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from cai.compare.findings import LINES, detected_share, noise, notes_on_pair, notes_on_run, told
from cai.compare.paired import same_eval_judge
from cai.compare.reading import RunData, mean, read_run
from cai.compare.record import Attributed, Attribution
from cai.config.errors import CaiError
from cai.data.jsonl import parse_row
from cai.data.manifest import read_json
from cai.runs.folder import SWEEP_JSON, RunFolder
from cai.stats.significance import Effect, corrected, paired
from cai.stats.win_rate import win

How = Literal["leave-one-out", "one-at-a-time"]
OUTCOMES = {
    "change": "word edit distance from the draft to the last revision, 0 to 1",
    "words": "words of the last revision",
    "flagged": "rounds of revision that hygiene flags",
    "cut off": "rounds of revision cut off at max_tokens",
    "better": "P(revision better than draft) by the run's judge",
    "after words": "words of the trained policy's answers",
    "after p": "P(the trained policy's answer is better than the one before) by the eval judge",
    "wins": "held-out prompts won against the other run, less one half",
}
"""Columns of the matrix: name → meaning."""
BY_EVAL_JUDGE = ("after p", "wins")
Measured = Mapping[str, Mapping[str, float]]  # by outcome and prompt


class Selected(BaseModel):
    """Which principles a run of a sweep keeps."""

    how: Literal["all", "leave-one-out", "one-at-a-time", "first-n"]
    id: str | None = None


class Member(BaseModel):
    """A run of a sweep, as its index has it."""

    run: str
    varies: dict[str, Any]
    principles: Selected


class Index(BaseModel):
    """A sweep's sweep.json."""

    name: str
    runs: list[Member]


def attribute(folder: Path) -> list[Attribution]:
    """One matrix for each combination of the sweep's other settings.

    Raises: CaiError for a folder that is no sweep, or one in which no principles are left out or alone.
    """
    index = _index(folder / SWEEP_JSON)
    found = []
    for varies in _combinations(index):
        members = [member for member in index.runs if member.varies == varies]
        base = next((member for member in members if member.principles.how == "all"), None)
        for how in ("leave-one-out", "one-at-a-time"):
            single = [member for member in members if member.principles.how == how]
            if single and base:
                found.append(_attribute(index.name, folder, how, base, single))
    if not found:
        raise CaiError(
            f"{folder / SWEEP_JSON}: no runs with all principles beside runs without one, or with one alone; a sweep "
            "has them with `principles: leave-one-out` or `one-at-a-time`"
        )
    return found


def _index(path: Path) -> Index:
    if not path.parent.is_dir() or not path.exists():
        raise CaiError(f"{path.parent}: no sweep: {path.name} is not there; `cai sweep FILE` makes one")
    return parse_row(path, read_json(path), Index)


def _combinations(index: Index) -> list[dict[str, Any]]:
    """The combinations of settings that vary, in order."""
    return list({json.dumps(member.varies): member.varies for member in index.runs}.values())


class _Read(NamedTuple):
    """A principle's run, read, before correction."""

    member: Member
    shared: int
    effects: dict[str, Effect]


def _attribute(sweep: str, folder: Path, how: How, base: Member, single: Sequence[Member]) -> Attribution:
    whole = read_run(RunFolder(folder / base.run))
    notes = list(notes_on_run(whole, []))
    known = {note.removeprefix(whole.name) for note in notes}  # what holds of all runs is told of one
    paired_notes: dict[str, list[str]] = {}  # what is told of the whole run beside others: of which
    drawn = {this.principle for row in (whole.revised or {}).values() for this in row.rounds}
    read: list[_Read] = []
    for member in single:
        path = folder / member.run
        if not (path / "manifest.json").exists():
            notes.append(f"{sweep}/{member.run} has not been started: its row is missing")
            continue
        one = read_run(RunFolder(path))  # let go after its row: a sweep may hold more than fits in memory
        shared = [i for i, prompt in whole.prompts.items() if one.prompts.get(i) == prompt]
        notes += [note for note in notes_on_run(one, []) if note.removeprefix(one.name) not in known]
        for note in notes_on_pair(whole, one, shared):
            paired_notes.setdefault(note.removeprefix(f"{whole.name} and {one.name}"), []).append(one.name)
        if whole.revised and (id := member.principles.id) is not None and id not in drawn:
            notes.append(f"'{id}' was drawn for no revision of {whole.name}: its row is what it does as a judge alone")
        sides = (whole, one) if how == "one-at-a-time" else (one, whole)
        read.append(_Read(member, len(shared), dict(_effects(*sides, shared))))
    for note, names in paired_notes.items():
        notes.append(f"{whole.name} and {names[0] if len(names) == 1 else f'each of {len(names)} others'}{note}")
    outcomes = {name: meaning for name, meaning in OUTCOMES.items() if any(name in row.effects for row in read)}
    columns = {name: corrected({r.member.run: r.effects[name] for r in read if name in r.effects}) for name in outcomes}
    rows = [
        Attributed(
            principle_id=row.member.principles.id or "",
            run=row.member.run,
            shared=row.shared,
            effects={name: columns[name][row.member.run] for name in outcomes if name in row.effects},
        )
        for row in read
    ]
    attribution = Attribution(
        sweep=sweep,
        how=how,
        varies=base.varies,
        base=base.run,
        outcomes=outcomes,
        means={name: mean(list(values.values())) for name, values in _measured(whole).items() if values},
        rows=rows,
        notes=list(dict.fromkeys(notes)),
        findings=[],
    )
    return attribution.model_copy(update={"findings": list(_findings(attribution))})


def _measured(run: RunData) -> Measured:
    """Every outcome of a run but its wins."""
    revised, answered = run.revised or {}, run.answered or {}
    said = run.labels.revisions if run.labels else {}
    return {
        "change": {i: row.edit for i, row in revised.items()},
        "words": {i: row.text_words for i, row in revised.items()},
        "flagged": {i: mean([bool(this.flags) for this in row.rounds]) for i, row in revised.items()},
        "cut off": {i: mean([this.truncated for this in row.rounds]) for i, row in revised.items()},
        "better": {i: mean(list(verdicts.values())) for i, verdicts in said.items()},
        "after words": {i: row.after_words for i, row in answered.items()},
        "after p": {i: row.p for i, row in answered.items()},
    }


def _effects(a: RunData, b: RunData, shared: Sequence[str]) -> Iterator[tuple[str, Effect]]:
    """The outcomes of `b` less those of `a`, paired, on the shared prompts that both measured."""
    of_a, of_b = _measured(a), _measured(b)
    found = {
        name: [of_b[name][i] - values[i] for i in shared if i in values and i in of_b[name]]
        for name, values in of_a.items()
    }
    in_a, in_b = a.answered or {}, b.answered or {}
    answers = [(in_a[i], in_b[i]) for i in shared if i in in_a and i in in_b]
    found["wins"] = [win(0.5 + (y.p - x.p) / 2) - 0.5 for x, y in answers if x.before == y.before]
    for name, differences in found.items():
        if differences and (name not in BY_EVAL_JUDGE or same_eval_judge(a, b)):
            yield name, paired(differences)


def _findings(found: Attribution) -> Iterator[str]:
    """At most LINES lines: what is significant, the surest first, then the nearest to it."""
    effects = [(row.principle_id, name, effect) for row in found.rows for name, effect in row.effects.items()]
    significant = sorted((e for e in effects if e[2].significant), key=lambda e: e[2].adjusted or 0.0)
    for principle, name, effect in significant[: LINES - 2]:
        adds = f"{principle} adds to" if found.how == "leave-one-out" else f"{principle} alone, beside all together, in"
        yield f"{adds} `{name}`: significant, {told(effect)}"
    if len(significant) > LINES - 2:
        yield f"{len(significant) - LINES + 2} more effects are significant; see the matrix"
    undecided = [e for e in effects if not e[2].significant]
    nearest = max((e for e in undecided if e[2].minimum_detectable), key=lambda e: detected_share(e[2]), default=None)
    if nearest and len(significant) < LINES - 1:
        principle, name, effect = nearest
        yield f"of the others the nearest, {principle} on `{name}` ({told(effect)}), {noise(effect)}"
    if not significant:
        yield f"no effect of {len(found.rows)} principles on {len(found.outcomes)} outcomes is significant at this size"
