"""The prompts that compared runs share, as a table: what each run made of a prompt, beside the first run."""

from collections.abc import Sequence

from cai.evaluation.edits import word_distance
from cai.formats.jsonl import AnyRow
from cai.report.examples import Example, Examples
from cai.report.run_table import evaluation_blocks, example_flags, opening, revision_blocks
from cai.report.table import Cell, Column, Detail, Line, Table
from cai.runs.summary import words

REVISED = "Last revision"

Side = tuple[str, Example]  # a run's letter, and what it made of the prompt


def comparison_table(letters: Sequence[str], runs: Sequence[Examples]) -> Table:
    """A line for every prompt that all runs share and answered; raises CaiError for a row that is none."""

    def sides(prompt_id: str) -> list[Side]:
        return [(letter, run.read(prompt_id)) for letter, run in zip(letters, runs, strict=True)]

    found = (sides(i) for i in runs[0].ids if all(i in run for run in runs[1:]))
    lines = [comparison_line(own) for own in found if _comparable(own)]
    facets = ["tag", "part", *(f"principle in {x}" for x in letters), *(f"flag in {x}" for x in letters)]

    def holds(prompt_id: str, text: str) -> bool:
        return any(run.may_hold(prompt_id, text) for run in runs) and comparison_detail(sides(prompt_id)).holds(text)

    return Table(columns(letters), facets, lines, lambda i: comparison_detail(sides(i)), holds)


def columns(letters: Sequence[str]) -> list[Column]:
    """The columns of a table of these runs."""
    first, others = letters[0], ", ".join(letters[1:])
    return [
        Column("prompt", "text", "the last turn of the user"),
        Column("revisions apart", "share", f"words that differ between the last revisions of {first} and {others}"),
        Column("answers apart", "share", f"words that differ between the trained answers of {first} and {others}"),
        *(Column(f"words {x}", "number", f"of the last revision in {x}") for x in letters),
        *(Column(f"after {x}", "probability", f"p(the answer after training is better) in {x}") for x in letters),
    ]


def comparison_line(sides: Sequence[Side]) -> Line:
    """The figures of one prompt, and what it can be found by; of several other runs the furthest counts."""
    examples = [example for _, example in sides]
    revised, answered = ([_last(e.revisions) for e in examples], [_last(e.evaluation) for e in examples])
    cells: list[Cell] = [
        opening(examples[0]),
        _apart([row.revision if row else None for row in revised]),
        _apart([row.after if row else None for row in answered]),
        *(words(row.revision) if row else None for row in revised),
        *(row.p if row else None for row in answered),
    ]
    facets = [
        examples[0].tags,
        ["held out" if examples[0].held_out else "training"],
        *([row.principle_id for row in e.revisions] for e in examples),
        *(example_flags(e) for e in examples),
    ]
    return Line(examples[0].id, cells, [list(dict.fromkeys(values)) for values in facets])


def comparison_detail(sides: Sequence[Side]) -> Detail:
    """Each run's texts of a prompt beside those of the first; then what each run made of it."""
    first = sides[0]
    detail = Detail(first[1].messages)
    for other in sides[1:]:
        texts = [_texts(example) for _, example in (first, other)]
        for title in (title for title in texts[0] if title in texts[1]):
            _beside(detail, title, (first, other), texts[0][title], texts[1][title])
    for x, example in sides:
        for revision in example.revisions:
            revision_blocks(detail, revision, f"{x}, round {revision.round}")
        for row in example.evaluation:
            evaluation_blocks(detail, row, f"{x}, held out")
    return detail


def _texts(example: Example) -> dict[str, str]:
    """What is set beside the same of another run."""
    found: dict[str, str] = {}
    if last := _last(example.revisions):
        found |= {"Draft": last.draft, REVISED: last.revision}
    if answered := _last(example.evaluation):
        found["After training"] = answered.after
    return found


def _beside(detail: Detail, title: str, sides: tuple[Side, Side], a: str, b: str) -> None:
    letters = [letter for letter, _ in sides]
    if a == b:
        detail.text(f"{title}, the same in {letters[0]} and {letters[1]}", a)
        return
    names = letters
    if title == REVISED:
        names = [f"{letter}: {', '.join(row.principle_id for row in e.revisions)}" for letter, e in sides]
    detail.diff(f"{title}, {letters[0]} → {letters[1]}", (names[0], names[1]), a, b)


def _apart(texts: Sequence[str | None]) -> float | None:
    first, *others = texts
    found = [word_distance(first, other) for other in others if first is not None and other is not None]
    return max(found, default=None)


def _comparable(sides: Sequence[Side]) -> bool:
    """Whether it is the same prompt in all runs, and any two made something of it."""
    examples = [example for _, example in sides]
    same = all(e.messages == examples[0].messages for e in examples)
    return same and sum(bool(e.revisions or e.evaluation) for e in examples) > 1


def _last(rows: Sequence[AnyRow]) -> AnyRow | None:
    return rows[-1] if rows else None
