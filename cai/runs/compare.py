"""Two runs side by side: what differs between them, paired figures on the prompts they share, telling examples."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cai import constitution
from cai.constitution import Constitution
from cai.evaluation.statistics import Estimate, bootstrap_mean
from cai.evaluation.win_rate import win
from cai.feedback.hygiene import FLAGS
from cai.records import Comparison, Messages, Revision
from cai.runs.folder import RunFolder, differences
from cai.runs.summary import words

Row = TypeVar("Row", Revision, Comparison)
FOLLOWS_POSITION = 0.5  # share of verdicts; the smallest judges of Lee et al. 2023 (§2.2) reach 0.56


@dataclass(frozen=True)
class Figure:
    """One figure on the shared prompts: its mean in A, in B, and the mean of the paired differences B − A."""

    name: str
    a: float
    b: float
    difference: Estimate


@dataclass(frozen=True)
class Example:
    """One shared prompt answered by both runs; `change` is how unlike the answers are, in [0, 1]."""

    prompt_id: str
    messages: Messages
    what: str
    a: str
    b: str
    change: float


@dataclass(frozen=True)
class RunComparison:
    """Everything `cai compare` says."""

    names: tuple[str, str]
    settings: list[str]  # what differs, a line each
    constitutions: tuple[Constitution, Constitution]
    principles: constitution.Difference
    shared: int
    only: tuple[int, int]  # prompts that only A, only B has
    figures: list[Figure]
    examples: list[Example]
    notes: list[str]  # what is missing or must not be read into the figures


def compare_runs(a: RunFolder, b: RunFolder, examples: int = 5) -> RunComparison:
    """Compare from the folders alone; what a run lacks is said in `notes`."""
    locks = (a.lock(), b.lock())
    prompts_a, prompts_b = ({prompt.id: prompt for prompt in folder.prompts()} for folder in (a, b))
    shared = {i for i in prompts_a.keys() & prompts_b.keys() if prompts_a[i].messages == prompts_b[i].messages}

    def of_shared(rows: Sequence[Row]) -> dict[str, Row]:
        return {row.prompt_id: row for row in rows if row.prompt_id in shared}  # the last round of a prompt stays

    revisions_a, revisions_b = of_shared(a.revisions()), of_shared(b.revisions())
    evaluation_a, evaluation_b = of_shared(a.evaluation()), of_shared(b.evaluation())
    figures = [
        *_figures(REVISION_FIGURES, revisions_a, revisions_b),
        *_figures(EVALUATION_FIGURES, evaluation_a, evaluation_b),
    ]
    pairs = [
        *_examples("trained policy", evaluation_a, evaluation_b, lambda row: row.after, examples),
        *_examples("last revision", revisions_a, revisions_b, lambda row: row.revision, examples),
    ]
    constitutions = (a.constitution(), b.constitution())
    return RunComparison(
        names=(a.name, b.name),
        settings=differences(locks[0]["config"], locks[1]["config"]),
        constitutions=constitutions,
        principles=constitution.diff(*constitutions),
        shared=len(shared),
        only=(len(prompts_a) - len(shared), len(prompts_b) - len(shared)),
        figures=figures,
        examples=pairs,
        notes=_notes((a, b), locks, len(shared), len(evaluation_a.keys() & evaluation_b.keys())),
    )


REVISION_FIGURES: dict[str, Callable[[Revision], float]] = {
    "draft, words": lambda row: words(row.draft),
    "last revision, words": lambda row: words(row.revision),
    "draft → revision, change": lambda row: change(row.draft, row.revision),
    **{f"revision {flag.replace('_', ' ')}": lambda row, flag=flag: flag in row.flags for flag in FLAGS},  # type: ignore[misc]
    "revision cut off": lambda row: "revision" in row.truncated,
}
EVALUATION_FIGURES: dict[str, Callable[[Comparison], float]] = {
    "answer before, words": lambda row: words(row.before),
    "answer after, words": lambda row: words(row.after),
    "win rate of after": lambda row: win(row.p),
    "mean p(after better)": lambda row: row.p,
}


def change(a: str, b: str) -> float:
    """How unlike two texts are by words: 0 equal, 1 nothing in common (1 − difflib's ratio)."""
    return 1.0 - difflib.SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio()


def _figures(
    wanted: Mapping[str, Callable[[Row], float]], rows_a: dict[str, Row], rows_b: dict[str, Row]
) -> list[Figure]:
    ids = sorted(rows_a.keys() & rows_b.keys())
    if not ids:
        return []
    figures = []
    for name, value in wanted.items():
        a, b = ([float(value(rows[i])) for i in ids] for rows in (rows_a, rows_b))
        paired = bootstrap_mean([y - x for x, y in zip(a, b, strict=True)])
        figures.append(Figure(name, sum(a) / len(a), sum(b) / len(b), paired))
    return figures


def _examples(
    what: str, rows_a: dict[str, Row], rows_b: dict[str, Row], text: Callable[[Row], str], count: int
) -> list[Example]:
    found = [
        Example(i, rows_a[i].messages, what, text(rows_a[i]), text(rows_b[i]), change(text(rows_a[i]), text(rows_b[i])))
        for i in rows_a.keys() & rows_b.keys()
    ]
    return sorted(found, key=lambda e: (-e.change, e.prompt_id))[:count]


def _notes(folders: tuple[RunFolder, RunFolder], locks: tuple[Any, Any], shared: int, evaluated: int) -> list[str]:
    notes = [f"{folder.name} is unfinished" for folder in folders if folder.summary() is None]
    if not shared:
        notes.append("the runs share no prompts: nothing can be paired")
    elif not evaluated:
        notes.append("no held-out prompt was evaluated in both runs: the trained policies cannot be compared")
    elif evaluated < 30:
        notes.append(f"only {evaluated} held-out prompts were evaluated in both runs: expect wide intervals")
    for folder in folders:
        evaluation = (folder.summary() or {}).get("evaluation")
        if evaluation and (evaluation["same_position"] or 0) >= FOLLOWS_POSITION:
            rate = 100 * evaluation["same_position"]
            notes.append(f"{folder.name}: {rate:.0f} % of verdicts follow the position; its win rate says little")
    if locks[0]["config"]["revise"]["critique"] != locks[1]["config"]["revise"]["critique"]:
        notes.append("one run makes no critiques: its revisions cannot be flagged as copies of one")
    for what in ("model", "judge_models", "templates", "referee"):
        if locks[0][what] != locks[1][what]:
            notes.append(f"the runs differ in their {what.replace('_', ' ')} too")
    return notes
