"""The examples of a run: all rows about one prompt, read from the run's files on request, as a line and as a detail.

`Examples` finds rows in their files; `run_line` and `run_detail` lay out an example of one run, `comparison_table` the
examples that compared runs share.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, NamedTuple

from cai.compare.labels import PAIR_NAMES, flips_label
from cai.compare.reading import labelled
from cai.config.errors import CaiError, reading
from cai.constitution.difference import word_distance
from cai.data.jsonl import AnyRow, parse_row
from cai.data.records import BeforeAfter, Messages, Preference, Prompt, Ranking, Revision, Skipped, Verdict
from cai.feedback.metrics import words
from cai.report.model_hashes import by_model, models_of
from cai.report.table import Cell, Column, Detail, Line, Table
from cai.runs.folder import RunFolder
from cai.stats.formatting import signed


class Example(NamedTuple):
    """One prompt of a run with every row about it."""

    id: str
    tags: list[str]
    messages: Messages  # empty for a row that was skipped before it was read
    held_out: bool
    revisions: list[Revision]  # the rounds in order
    preferences: list[Preference]
    rankings: list[Ranking]
    evaluation: list[BeforeAfter]
    skipped: list[Skipped]


class Place(NamedTuple):
    """Where a row is in its file, in bytes; the line number is for errors."""

    start: int
    size: int
    number: int


class RowFile(Generic[AnyRow]):
    """A file of rows that are read one by one, in any order and by several threads.

    An open file stays readable when another one replaces it. A missing file has no rows.
    """

    def __init__(self, path: Path, model: type[AnyRow]) -> None:
        self.path, self.model = path, model
        with reading(path):
            self._file = path.open("rb") if path.exists() else None

    def places(self) -> Iterator[tuple[str, Place]]:
        """The prompt id and the place of each row."""
        start = 0
        for number, line in enumerate(self._file or (), start=1):
            if line.strip():
                yield self._prompt_id(line, number), Place(start, len(line), number)
            start += len(line)

    def row(self, place: Place) -> AnyRow:
        """The row at a place; raises CaiError naming file, line and field."""
        return parse_row(f"{self.path}:{place.number}", json.loads(self.raw(place)), self.model)

    def raw(self, place: Place) -> bytes:
        """The line at a place, unparsed."""
        assert self._file is not None
        return os.pread(self._file.fileno(), place.size, place.start)

    def _prompt_id(self, line: bytes, number: int) -> str:
        try:
            row = json.loads(line)
            return str(row["id" if self.model is Prompt else "prompt_id"])
        except (ValueError, KeyError, TypeError):
            raise CaiError(
                f"{self.path}:{number}: expected a row of a run: a JSON object with the id of its prompt"
            ) from None


class Examples:
    """The examples of a run, by id. Opening them reads every file once and keeps only the places of rows."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._models = models_of(folder)
        self._held_out = set(folder.manifest().get("held_out", []))
        self._prompts = RowFile(folder.prompts_jsonl, Prompt)
        self._revisions = RowFile(folder.revisions_jsonl, Revision)
        self._preferences = RowFile(folder.preferences_jsonl, Preference)
        self._rankings = RowFile(folder.rankings_jsonl, Ranking)
        self._evaluation: dict[str, list[BeforeAfter]] = {}
        for row in folder.evaluation():
            self._evaluation.setdefault(row.prompt_id, []).append(by_model(row, self._models))
        self._skipped = RowFile(folder.skipped_jsonl, Skipped)
        self._files: list[RowFile[Any]] = [
            self._prompts, self._revisions, self._preferences, self._rankings, self._skipped
        ]  # fmt: skip
        self._places: dict[str, tuple[list[Place], ...]] = {}
        for kind, file in enumerate(self._files):
            for prompt_id, place in file.places():
                self._places.setdefault(prompt_id, tuple([] for _ in self._files))[kind].append(place)
        for prompt_id in self._evaluation:
            self._places.setdefault(prompt_id, tuple([] for _ in self._files))

    @property
    def ids(self) -> list[str]:
        """The prompts in the order of their file, then those that only other rows name, such as human labels."""
        return list(self._places)

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._places

    def read(self, prompt_id: str) -> Example:
        """Everything about one prompt. Raises: KeyError for an unknown one, CaiError for an invalid row."""
        prompts, revisions, preferences, rankings, skipped = self._places[prompt_id]
        rounds = (by_model(self._revisions.row(p), self._models) for p in revisions)
        example = Example(
            id=prompt_id,
            tags=[],
            messages=[],
            held_out=prompt_id in self._held_out,
            revisions=sorted(rounds, key=lambda row: row.round),
            preferences=[by_model(self._preferences.row(p), self._models) for p in preferences],
            rankings=[self._rankings.row(p) for p in rankings],
            evaluation=self._evaluation.get(prompt_id, []),
            skipped=[self._skipped.row(p) for p in skipped],
        )
        own: Prompt | Preference | None = (
            self._prompts.row(prompts[0]) if prompts else next(iter(example.preferences), None)
        )
        return example._replace(tags=own.tags, messages=own.messages) if own else example

    def may_contain(self, prompt_id: str, text: str) -> bool:
        """Whether an example's rows may contain a lower-case text: cheap, and never wrongly False."""
        needle = json.dumps(text, ensure_ascii=False)[1:-1]
        return any(
            needle in file.raw(place).decode("utf-8").lower()
            for file, places in zip(self._files, self._places[prompt_id], strict=True)
            for place in places
        ) or any(needle in row.model_dump_json().lower() for row in self._evaluation.get(prompt_id, []))


COLUMNS = [
    Column("prompt", "text", "last user turn"),
    Column("principles", "text", "principle of each revision round"),
    Column("flags", "text", "filters that the revisions fail, and truncated texts"),
    Column("draft words", "number", "words in the draft"),
    Column("revision words", "number", "words in the last revision"),
    Column("edit distance", "probability", "share of words that differ between draft and last revision"),
    Column("P(chosen)", "probability", "P(chosen better) by the judge, mean over the prompt's judged pairs"),
    Column("P(after)", "probability", "P(answer after training better) by the eval judge"),
]
FACETS = ["principle", "judged by", "flag", "tag", "label source", "split", "skipped"]


def run_line(example: Example) -> Line:
    """The cells of one example, and its values by facet."""
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
    """The first hundred characters of the last turn."""
    text = " ".join(example.messages[-1]["content"].split()) if example.messages else ""
    return text if len(text) <= 100 else text[:99] + "…"


def example_flags(example: Example) -> list[str]:
    """The filters that an example's revisions fail, and which of its texts are truncated, without repetition."""
    flags = [flag.replace("_", " ") for row in example.revisions for flag in row.flags]
    flags += [f"truncated {text}" for row in example.revisions for text in row.truncated]
    flags += [f"truncated {text}" for row in example.evaluation for text in row.truncated]
    return list(dict.fromkeys(flags))


def run_detail(example: Example) -> Detail:
    """The conversation and every row of an example."""
    detail = Detail(example.messages)
    for row in example.revisions:
        revision_blocks(detail, row, f"Round {row.round}")
    for pair in example.preferences:
        _preference_blocks(detail, pair, example)
    for ranking in example.rankings:
        rows = zip(ranking.responses, ranking.strengths, strict=True)
        for place, (response, strength) in enumerate(rows, start=1):
            detail.text(
                f"Ranked {place} of {len(ranking.responses)}", response, f"strength {signed(strength)} (log-odds)"
            )
    for comparison in example.evaluation:
        evaluation_blocks(detail, comparison)
    detail.table(
        "Skipped", [[row.stage, row.reason + (" (request failed)" if row.failed else "")] for row in example.skipped]
    )
    return detail


def revision_blocks(detail: Detail, row: Revision, title: str) -> None:
    """One round: the critique, the revision beside the answer it started from, their reasoning and provenance."""
    if row.draft_reasoning and row.round == 1:
        detail.folded(f"{title}: reasoning before the draft", row.draft_reasoning)
    if row.critique_reasoning:
        detail.folded(f"{title}: reasoning before the critique", row.critique_reasoning)
    if row.revision_reasoning:
        detail.folded(f"{title}: reasoning before the revision", row.revision_reasoning)
    if row.critique is not None:
        note = "truncated" if "critique" in row.truncated else ""
        detail.text(f"{title}: critique by {row.principle_id}", row.critique, note)
    before = "draft" if row.round == 1 else "answer before"
    notes = [flag.replace("_", " ") for flag in row.flags]
    notes += [f"truncated {text}" for text in row.truncated if text != "critique"]
    name = f"{title}: {before} → revision by {row.principle_id}"
    detail.diff(name, (before, "revision"), (row.before, row.revision), ", ".join(notes), row.principle_id)
    detail.table(f"{title}: provenance", revision_provenance(row))


def revision_provenance(row: Revision) -> list[list[Cell]]:
    """Principle, model, templates and seed of a revision."""
    return [
        ["principle", f"{row.principle_id}, text {row.principle_hash}"],
        ["model", row.model],
        ["templates", row.templates],
        ["seed", str(row.seed)],
    ]


def _preference_blocks(detail: Detail, pair: Preference, example: Example) -> None:
    label = f"P(chosen better) = {pair.p:.4f}" + (f", weight {pair.weight:g}" if pair.weight != 1 else "")
    draft, revision = (pair.chosen, pair.rejected) if pair.draft_chosen else (pair.rejected, pair.chosen)
    if any((row.before, row.revision) == (draft, revision) for row in example.revisions):
        detail.note(PAIR_NAMES[pair.source], f"{'draft' if pair.draft_chosen else 'revision'} above is chosen, {label}")
    else:
        detail.diff(PAIR_NAMES[pair.source], ("rejected", "chosen"), (pair.rejected, pair.chosen), label)
        for side, thought in (("chosen", pair.chosen_reasoning), ("rejected", pair.rejected_reasoning)):
            if thought:
                detail.folded(f"{PAIR_NAMES[pair.source]}: reasoning before the {side} answer", thought)
    verdict_block(detail, pair.all_verdicts, "chosen")
    provenance: list[list[Cell]] = [["label source", pair.source]]
    provenance += [["principles", ", ".join(pair.principle_ids)]] if pair.principle_ids else []
    provenance += [["model", pair.model]] if pair.model else []
    provenance += [["judge", pair.judge]] if pair.judge else []
    provenance += [["seeds", ", ".join(map(str, pair.seeds))]] if pair.seeds else []
    detail.table(f"{PAIR_NAMES[pair.source]}: provenance", provenance)


def evaluation_blocks(detail: Detail, row: BeforeAfter, title: str = "Held out") -> None:
    """The answers before and after training, and the eval judge's verdicts."""
    label = [f"P(after better) = {row.p:.4f}"] if row.p is not None else []
    notes = [*label, *(f"truncated {text}" for text in row.truncated)]
    texts = (row.before, row.after)
    detail.diff(f"{title}: before → after training", ("before", "after"), texts, ", ".join(notes))
    verdict_block(detail, row.verdicts, "after")
    detail.table(
        f"{title}: provenance",
        [
            ["model before", row.before_model],
            ["model after", row.after_model],
            *([["eval judge", row.judge]] if row.judge else []),
        ],
    )


def verdict_block(detail: Detail, verdicts: Sequence[Verdict], side: str) -> None:
    """Each principle's verdict in both orders, and the chains of thought before it."""
    flips = {None: None, True: "yes", False: "no"}
    verified, tied = (any(getattr(v, name) is not None for v in verdicts) for name in ("at_issue", "tie_mass"))
    rows: list[list[Cell]] = [
        [v.principle_id, v.p if v.votes else None, v.p_forward, v.p_reverse, flips[v.position_bias], v.non_option_mass,
         *([v.tie_mass] if tied else []), *([v.at_issue] if verified else []), v.principle_hash, v.judge]
        for v in verdicts
    ]  # fmt: skip
    orders = ("in first position", "in second position", "flips with the order", "non-option mass")
    extra = [*(["tie mass"] if tied else []), *(["P(at issue)"] if verified else [])]
    columns = ("principle", f"P({side} better)", *orders, *extra, "principle hash", "judge")
    detail.table("Verdicts", rows, columns)
    for v in verdicts:
        for number, thought in enumerate(v.cot, start=1):
            detail.text(f"Chain of thought {number} before the verdict of {v.principle_id}", thought)
            if reasoning := (v.cot_reasoning or [""] * number)[number - 1]:
                detail.folded(f"Reasoning before chain of thought {number}", reasoning)


def judged_p(example: Example) -> float | None:
    """P(chosen better) over the pairs that a judge labelled, revision pairs with verdicts included; None without any.

    A pair of a human label, or of one by construction, does not count.
    """
    judged = [pair.p for pair in example.preferences if pair.source != "human" and pair.verdicts]
    return fmean(judged) if judged else None


REVISED = "Last revision"
Side = tuple[str, Example]  # a run's letter, and its rows about the prompt


def comparison_table(letters: Sequence[str], runs: Sequence[Examples]) -> Table:
    """A line for every prompt that all runs share and two of them answered; raises CaiError for an invalid row."""

    def sides(prompt_id: str) -> list[Side]:
        return [(letter, run.read(prompt_id)) for letter, run in zip(letters, runs, strict=True)]

    shared = (sides(i) for i in runs[0].ids if all(i in run for run in runs[1:]))
    lines = [comparison_line(of_prompt) for of_prompt in shared if _comparable(of_prompt)]
    facets = ["tag", "split", "labels", *(f"principle in {x}" for x in letters), *(f"flag in {x}" for x in letters)]

    def contains(prompt_id: str, text: str) -> bool:
        possible = any(run.may_contain(prompt_id, text) for run in runs)
        return possible and comparison_detail(sides(prompt_id)).contains(text)

    return Table(columns(letters), facets, lines, lambda i: comparison_detail(sides(i)), contains)


def columns(letters: Sequence[str]) -> list[Column]:
    """The columns of a table of these runs."""
    first, others = letters[0], ", ".join(letters[1:])
    return [
        Column("prompt", "text", "last user turn"),
        Column(
            "revision distance", "probability", f"word edit distance between the last revisions of {first} and {others}"
        ),
        Column(
            "answer distance", "probability", f"word edit distance between the trained answers of {first} and {others}"
        ),
        *(Column(f"words {x}", "number", f"words in the last revision of {x}") for x in letters),
        *(
            Column(
                f"P(chosen) {x}", "probability", f"P(chosen better) in {x}, mean over the pairs that a judge labelled"
            )
            for x in letters
        ),
        *(Column(f"P(after) {x}", "probability", f"P(answer after training better) in {x}") for x in letters),
    ]


def comparison_line(sides: Sequence[Side]) -> Line:
    """The cells of one prompt, and its values by facet; with several other runs, the largest distance."""
    examples = [example for _, example in sides]
    revised, answered = ([_last(e.revisions) for e in examples], [_last(e.evaluation) for e in examples])
    cells: list[Cell] = [
        opening(examples[0]),
        _distance([row.revision if row else None for row in revised]),
        _distance([row.after if row else None for row in answered]),
        *(words(row.revision) if row else None for row in revised),
        *(judged_p(example) for example in examples),
        *(row.p if row else None for row in answered),
    ]
    facets = [
        examples[0].tags,
        ["held out" if examples[0].held_out else "training"],
        ["flip"] if any(True for other in sides[1:] for _ in _label_flips(sides[0], other)) else [],
        *([row.principle_id for row in e.revisions] for e in examples),
        *(example_flags(e) for e in examples),
    ]
    return Line(examples[0].id, cells, [list(dict.fromkeys(values)) for values in facets])


def comparison_detail(sides: Sequence[Side]) -> Detail:
    """Each run's texts beside those of the first; then the rows of each run."""
    first = sides[0]
    detail = Detail(first[1].messages)
    for other in sides[1:]:
        texts = [_texts(example) for _, example in (first, other)]
        for title in (title for title in texts[0] if title in texts[1]):
            _compare(detail, title, (first, other), (texts[0][title], texts[1][title]))
        for pair, p in _label_flips(first, other):
            note = f"P(chosen in {first[0]} better): {first[0]} {pair.p:.4f}, {other[0]} {p:.4f}"
            names = (f"chosen in {other[0]}", f"chosen in {first[0]}")
            detail.diff(f"{PAIR_NAMES[pair.source]}: the labels flip", names, (pair.rejected, pair.chosen), note)
    for x, example in sides:
        for revision in example.revisions:
            revision_blocks(detail, revision, f"{x}, round {revision.round}")
        for row in example.evaluation:
            evaluation_blocks(detail, row, f"{x}, held out")
    return detail


def _label_flips(first: Side, other: Side) -> Iterator[tuple[Preference, float]]:
    """Pairs that the first run labels, each with the other run's P(its chosen answer better), where that is below ½."""
    labels = {(label.source, label.pair): label.p for label in map(labelled, other[1].preferences)}
    for pair in first[1].preferences:
        own = labelled(pair)
        p = labels.get((own.source, own.pair))
        if p is not None and flips_label(own.p, p):
            yield pair, p if own.p == pair.p else 1 - p


def _texts(example: Example) -> dict[str, str]:
    """The texts that runs are compared by, by title."""
    texts: dict[str, str] = {}
    if last := _last(example.revisions):
        texts |= {"Draft": last.draft, REVISED: last.revision}
    if answered := _last(example.evaluation):
        texts["After training"] = answered.after
    return texts


def _compare(detail: Detail, title: str, sides: tuple[Side, Side], texts: tuple[str, str]) -> None:
    letters = [letter for letter, _ in sides]
    if texts[0] == texts[1]:
        detail.text(f"{title}, equal in {letters[0]} and {letters[1]}", texts[0])
        return
    names = letters
    if title == REVISED:
        names = [f"{letter}: {', '.join(row.principle_id for row in e.revisions)}" for letter, e in sides]
    detail.diff(f"{title}, {letters[0]} → {letters[1]}", (names[0], names[1]), texts)


def _distance(texts: Sequence[str | None]) -> float | None:
    first, *others = texts
    distances = [word_distance(first, other) for other in others if first is not None and other is not None]
    return max(distances, default=None)


def _comparable(sides: Sequence[Side]) -> bool:
    """Whether the prompt is the same in all runs, and at least two of them have texts for it."""
    examples = [example for _, example in sides]
    same = all(e.messages == examples[0].messages for e in examples)
    return same and sum(bool(e.revisions or e.evaluation) for e in examples) > 1


def _last(rows: Sequence[AnyRow]) -> AnyRow | None:
    return rows[-1] if rows else None
