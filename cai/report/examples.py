"""The examples of a run: all that happened to one prompt, read from the run's files when it is asked for."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, NamedTuple

from cai.config.errors import CaiError, reading
from cai.data.jsonl import AnyRow, parse_row
from cai.data.records import Comparison, Messages, Preference, Prompt, Ranking, Revision, Skipped, Verdict
from cai.feedback.metrics import words
from cai.report.table import Cell, Column, Detail, Line, Table
from cai.runs.folder import RunFolder
from cai.stats.edits import word_distance


class Example(NamedTuple):
    """One prompt of a run, and every row that speaks of it."""

    id: str
    tags: list[str]
    messages: Messages  # none of a row that was left out before it was read
    held_out: bool
    revisions: list[Revision]  # the rounds in order
    preferences: list[Preference]
    rankings: list[Ranking]
    evaluation: list[Comparison]
    skipped: list[Skipped]


class Place(NamedTuple):
    """Where a row stands in its file; the number of its line is for errors."""

    start: int
    size: int
    number: int


class RowFile(Generic[AnyRow]):
    """A file of rows that are read one by one, in any order and by several threads.

    What was opened stays readable as it was, even when another file takes its name. A file that is not there is empty.
    """

    def __init__(self, path: Path, model: type[AnyRow]) -> None:
        self.path, self.model = path, model
        with reading(path):
            self._file = path.open("rb") if path.exists() else None

    def places(self) -> Iterator[tuple[str, Place]]:
        """The prompt id of each row, and where it stands."""
        start = 0
        for number, line in enumerate(self._file or (), start=1):
            if line.strip():
                yield self._prompt_id(line, number), Place(start, len(line), number)
            start += len(line)

    def row(self, place: Place) -> AnyRow:
        """The row at a place; raises CaiError naming file, line and field."""
        return parse_row(f"{self.path}:{place.number}", json.loads(self.raw(place)), self.model)

    def raw(self, place: Place) -> bytes:
        """The line at a place, as it stands in the file."""
        assert self._file is not None
        return os.pread(self._file.fileno(), place.size, place.start)

    def _prompt_id(self, line: bytes, number: int) -> str:
        try:
            row = json.loads(line)
            return str(row["id" if self.model is Prompt else "prompt_id"])
        except (ValueError, KeyError, TypeError):
            raise CaiError(f"{self.path}:{number}: expected a row of a run, a JSON object with a prompt's id") from None


class Examples:
    """The examples of a run, by id. Opening it reads every file once and keeps only where the rows stand."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._held_out = set(folder.manifest().get("held_out", []))
        self._prompts = RowFile(folder.prompts_jsonl, Prompt)
        self._revisions = RowFile(folder.revisions_jsonl, Revision)
        self._preferences = RowFile(folder.preferences_jsonl, Preference)
        self._rankings = RowFile(folder.rankings_jsonl, Ranking)
        self._evaluation = RowFile(folder.evaluation_jsonl, Comparison)
        self._skipped = RowFile(folder.skipped_jsonl, Skipped)
        self._files: list[RowFile[Any]] = [
            self._prompts, self._revisions, self._preferences, self._rankings, self._evaluation, self._skipped
        ]  # fmt: skip
        self._places: dict[str, tuple[list[Place], ...]] = {}
        for kind, file in enumerate(self._files):
            for prompt_id, place in file.places():
                self._places.setdefault(prompt_id, tuple([] for _ in self._files))[kind].append(place)

    @property
    def ids(self) -> list[str]:
        """The prompts in the order of their file, then those that only other rows name, such as labels of people."""
        return list(self._places)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._places

    def read(self, prompt_id: str) -> Example:
        """Everything about one prompt; raises KeyError for an unknown one, CaiError for a row that is none."""
        prompts, revisions, preferences, rankings, evaluation, skipped = self._places[prompt_id]
        found = Example(
            id=prompt_id,
            tags=[],
            messages=[],
            held_out=prompt_id in self._held_out,
            revisions=sorted((self._revisions.row(p) for p in revisions), key=lambda row: row.round),
            preferences=[self._preferences.row(p) for p in preferences],
            rankings=[self._rankings.row(p) for p in rankings],
            evaluation=[self._evaluation.row(p) for p in evaluation],
            skipped=[self._skipped.row(p) for p in skipped],
        )
        own: Prompt | Preference | None = (
            self._prompts.row(prompts[0]) if prompts else next(iter(found.preferences), None)
        )
        return found._replace(tags=own.tags, messages=own.messages) if own else found

    def may_hold(self, prompt_id: str, text: str) -> bool:
        """Whether a lower-case text may stand somewhere in an example's rows: cheap, and never wrongly False."""
        needle = json.dumps(text, ensure_ascii=False)[1:-1]
        return any(
            needle in file.raw(place).decode("utf-8").lower()
            for file, places in zip(self._files, self._places[prompt_id], strict=True)
            for place in places
        )


# The examples of one run as a table.


COLUMNS = [
    Column("prompt", "text", "the last turn of the user"),
    Column("principles", "text", "the principle of each round of revision"),
    Column("flags", "text", "what hygiene says of the revisions, and which texts ran into the limit of tokens"),
    Column("words", "number", "of the draft"),
    Column("revised", "number", "words of the last revision"),
    Column("changed", "share", "words that differ between draft and last revision: 0 % none, 100 % all"),
    Column("judge", "probability", "p(chosen is preferred) by the judge, the mean of the example's judged pairs"),
    Column("after", "probability", "p(the answer after training is better) by the eval judge"),
]
FACETS = ["principle", "judged by", "flag", "tag", "label by", "part", "left out"]


def run_line(example: Example) -> Line:
    """The figures of one example, and what it can be found by."""
    last = example.revisions[-1] if example.revisions else None
    judged = [pair.p for pair in example.preferences if pair.source == "judge"]
    flags = example_flags(example)
    cells: list[Cell] = [
        opening(example),
        ", ".join(row.principle_id for row in example.revisions),
        ", ".join(flags),
        words(last.draft) if last else None,
        words(last.revision) if last else None,
        word_distance(last.draft, last.revision) if last else None,
        fmean(judged) if judged else None,
        example.evaluation[-1].p if example.evaluation else None,
    ]
    verdicts = [*(pair.verdicts for pair in example.preferences), *(row.verdicts for row in example.evaluation)]
    facets: list[list[str]] = [
        [row.principle_id for row in example.revisions],
        [v.principle_id for of_row in verdicts for v in of_row],
        flags,
        example.tags,
        [pair.source for pair in example.preferences],
        ["held out" if example.held_out else "training"],
        [row.reason for row in example.skipped],
    ]
    return Line(example.id, cells, [list(dict.fromkeys(values)) for values in facets])


def opening(example: Example) -> str:
    """The first hundred characters of what the user last said."""
    text = " ".join(example.messages[-1]["content"].split()) if example.messages else ""
    return text if len(text) <= 100 else text[:99] + "…"


def example_flags(example: Example) -> list[str]:
    """What is the matter with an example's texts, without repetition."""
    found = [flag.replace("_", " ") for row in example.revisions for flag in row.flags]
    found += [f"{text} cut off" for row in example.revisions for text in row.truncated]
    found += [f"{text} cut off" for row in example.evaluation for text in row.truncated]
    return list(dict.fromkeys(found))


def run_detail(example: Example) -> Detail:
    """Everything there is about an example."""
    detail = Detail(example.messages)
    for row in example.revisions:
        revision_blocks(detail, row, f"Round {row.round}")
    for pair in example.preferences:
        _preference_blocks(detail, pair, example)
    for ranking in example.rankings:
        rows = zip(ranking.responses, ranking.strengths, strict=True)
        for place, (response, strength) in enumerate(rows, start=1):
            detail.text(
                f"Ranked {place} of {len(ranking.responses)}", response, f"strength {strength:+.3f} in log-odds"
            )
    for comparison in example.evaluation:
        evaluation_blocks(detail, comparison)
    detail.table("Left out", [[row.stage, row.reason + (" (failed)" if row.failed else "")] for row in example.skipped])
    return detail


def revision_blocks(detail: Detail, row: Revision, title: str) -> None:
    """One round: the critique, what became of the answer, where it comes from."""
    if row.critique is not None:
        detail.text(f"{title}: critique by {row.principle_id}", row.critique, _cut(row.truncated, "critique"))
    start = "draft" if row.round == 1 else "before"
    notes = [flag.replace("_", " ") for flag in row.flags]
    notes += [f"{text} cut off" for text in row.truncated if text != "critique"]
    name = f"{title}: {'draft' if row.round == 1 else 'answer before'} → revision by {row.principle_id}"
    detail.diff(name, (start, "revision"), row.before, row.revision, ", ".join(notes))
    detail.table(f"{title}: where it comes from", revision_origin(row))


def revision_origin(row: Revision) -> list[list[Cell]]:
    """Where a revision comes from."""
    return [
        ["principle", f"{row.principle_id}, text {row.principle_hash}"],
        ["model", row.model],
        ["templates", row.templates],
        ["seed", str(row.seed)],
    ]


def _preference_blocks(detail: Detail, pair: Preference, example: Example) -> None:
    name = {"revision": "Pair from the revision", "judge": "Pair labelled by the judge", "human": "Pair of the file"}
    label = f"p(chosen preferred) = {pair.p:.4f}" + (f", weight {pair.weight:g}" if pair.weight != 1 else "")
    if any((row.before, row.revision) == (pair.rejected, pair.chosen) for row in example.revisions):
        detail.note(name[pair.source], f"draft and revision as above, {label}")
    else:
        detail.diff(name[pair.source], ("rejected", "chosen"), pair.rejected, pair.chosen, label)
    verdict_block(detail, pair.verdicts, "chosen")
    origin: list[list[Cell]] = [["label by", pair.source]]
    origin += [["principles", ", ".join(pair.principle_ids)]] if pair.principle_ids else []
    origin += [["written by", pair.model]] if pair.model else []
    origin += [["judged by", pair.judge]] if pair.judge else []
    origin += [["seeds", ", ".join(map(str, pair.seeds))]] if pair.seeds else []
    detail.table("Where the label comes from", origin)


def evaluation_blocks(detail: Detail, row: Comparison, title: str = "Held out") -> None:
    """The answers before and after training, and what the eval judge says of them."""
    notes = [f"p(after better) = {row.p:.4f}", *(f"{text} cut off" for text in row.truncated)]
    detail.diff(f"{title}: before → after training", ("before", "after"), row.before, row.after, ", ".join(notes))
    verdict_block(detail, row.verdicts, "after")
    detail.table(
        f"{title}: where it comes from",
        [["before by", row.before_model], ["after by", row.after_model], ["eval judge", row.judge]],
    )


def verdict_block(detail: Detail, verdicts: Sequence[Verdict], side: str) -> None:
    """What each principle says in both orders, and the thoughts before it."""
    shown_in = ("shown first", "shown second", "non_option_mass", "position decides")
    decides = {None: None, True: "yes", False: "no"}
    rows: list[list[Cell]] = []
    for v in verdicts:
        said = [v.p, v.p_forward, v.p_reverse, v.non_option_mass, decides[v.position_bias]]
        rows.append([v.principle_id, *said, v.principle_hash, v.judge])
    detail.table("Verdicts", rows, ("verdict of", f"p({side} better)", *shown_in, "text", "judge"))
    for v in verdicts:
        for number, thought in enumerate(v.cot, start=1):
            detail.text(f"Thought {number} before the verdict of {v.principle_id}", thought)


def _cut(truncated: Sequence[str], text: str) -> str:
    return "cut off" if text in truncated else ""


# The prompts that compared runs share, as a table: what each run made of a prompt, beside the first run.


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
