"""What commands share: printing lines, tables and changed words, writing files, and resuming after an interrupt.

A table fits the terminal: no cell is wrapped or cut; a narrow terminal gets fewer columns, and the names of the others.
"""

import os
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cai.cli import interrupts
from cai.config.characters import Terminal, visible, visible_json
from cai.config.errors import CaiError, writing
from cai.constitution.difference import word_changes
from cai.data.jsonl import read_rows, write_text
from cai.data.records import Skipped
from cai.inference.reporter import Reporter
from cai.stats.formatting import NONE, UNDETECTABLE, counted, interval, mean_difference, number
from cai.stats.significance import Effect

WIDEST = 1000  # columns of a table
COLOURS = {"added": "green", "removed": "red", "same": ""}


def echo(text: str, err: bool = False) -> None:
    """Print a text for people, without control characters, as it stands: no wrapping, no styles."""
    typer.echo(visible(text), err=err)


def echo_json(text: str) -> None:
    """Print a JSON text; what a terminal might obey is written as JSON's escapes, which keep the value."""
    typer.echo(visible_json(text))


def line(console: Console, text: str | Text) -> None:
    """Print one line verbatim: no markup, no highlighting, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def loading(console: Console, model: str) -> None:
    """Report that a model is being loaded, which can take a while."""
    line(console, Text(f"loading {visible(model)} …", style="dim"))


def whole(console: Console, table: Table) -> None:
    """Print a table with every cell in full, even if it is wider than the terminal."""
    width = console.width
    console.width = max(width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table, crop=False)
    console.width = width


def own_command() -> str:
    """The command line of this process, without --replace: what resumes it."""
    return shlex.join(["cai", *(arg for arg in sys.argv[1:] if arg != "--replace")])


@contextmanager
def resumable(console: Console, reporter: Reporter) -> Iterator[None]:
    """After an interrupt, print what the work of the reporter has kept, if anything, and what resumes it."""
    interruption = interrupts.current
    interruption.message = lambda: _interrupted(reporter)
    try:
        yield
    except KeyboardInterrupt:
        line(console, f"\n{interruption.message()}")
        interruption.reported = True
        raise KeyboardInterrupt("reported") from None


def _interrupted(reporter: Reporter) -> str:
    if reporter.resumption is not None:
        kept = f"{reporter.resumption()}; the same command goes on"
    elif not reporter.advanced:  # a model was still loading
        return "Interrupted."
    else:
        kept = "All answers so far are cached; the same command resumes"
    return f"Interrupted. {visible(kept)}:\n  {own_command()}"


INPUTS = ("prompts.jsonl", "skipped.jsonl", "costs.jsonl")  # the row files that a command writes whatever comes of them


def end_with_failures(*folders: Path, option: str = "") -> None:
    """End with status 1 if a model could not answer rows: how many, by the folders' skipped.jsonl, and how to go on.

    Running a command again, in some cases with an option, asks for them again, since only answers are cached. A folder
    in which every row was skipped, so that it holds no other, is status 1 too: nothing was produced.
    """
    skipped = {folder: _skipped(folder) for folder in folders}
    rows = [row for of_folder in skipped.values() for row in of_folder if row.failed]
    empty = [folder for folder, of_folder in skipped.items() if of_folder and not _has_rows(folder)]
    for folder in empty:
        reasons = _most_common(skipped[folder])
        echo(f"{visible(str(folder))}: no rows were produced; all were skipped: {reasons}", err=True)
    if rows:
        say_failed(f"{counted(len(rows), 'rows')} failed: {_most_common(rows)}", option)
    if rows or empty:
        raise typer.Exit(1)


def say_failed(what: str, option: str = "") -> None:
    """Say on standard error what failed, and the command that asks for it again, in some cases with an option."""
    again = own_command() if not option or option in sys.argv else f"{own_command()} {option}"
    echo(f"{what}\nTo ask for them again, run the same command{option and ' with ' + option}:\n  {again}", err=True)


def _skipped(folder: Path) -> list[Skipped]:
    file = folder / "skipped.jsonl"
    return read_rows(file, Skipped) if file.exists() else []


def _has_rows(folder: Path) -> bool:
    return any(file.stat().st_size for file in folder.glob("*.jsonl") if file.name not in INPUTS)


def _most_common(rows: Sequence[Skipped]) -> str:
    reasons = Counter(row.reason for row in rows)
    reason, count = reasons.most_common(1)[0]
    others = f"; {counted(len(reasons) - 1, 'other reasons')} in skipped.jsonl" if len(reasons) > 1 else ""
    return f"{count:,} × {visible(reason)}{others}"


def marked(before: str, after: str) -> Text:
    """The words of both texts, with marks that do not depend on colour: [-removed-] and {+added+}."""
    text = Text()
    for what, piece in word_changes(before, after):
        left, right = {"removed": ("[-", "-]"), "added": ("{+", "+}"), "same": ("", "")}[what]
        bare = piece.strip() or "␣" * len(piece)  # a difference of spaces alone has to show
        space = len(piece) - len(piece.lstrip()) if piece.strip() else 0
        text.append(piece[:space])
        text.append(f"{left}{visible(bare)}{right}" if left else visible(piece[space:]), style=COLOURS[what])
        if left and piece.strip():
            text.append(piece[space + len(bare) :])
    return text


def with_new_words(before: str, after: str) -> Text:
    """The second text, with the words that are not in the first in colour."""
    text = Text()
    for what, piece in word_changes(before, after):
        if what != "removed":
            text.append(visible(piece), style=COLOURS[what])
    return text


def write_file(path: Path, text: str) -> None:
    """Write a text and create its folder; raises CaiError when that fails."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def write_new(path: Path, text: str) -> None:
    """Write a new file; an existing one, which a person may have edited, is not overwritten."""
    refuse_existing(path)
    write_file(path, text)


def refuse_existing(path: Path) -> None:
    """Raise CaiError for an existing file."""
    if path.exists():
        raise CaiError(f"{path}: already exists; choose another name or delete it first")


WIDE = 120  # columns, beyond which lines are hard to read
PIPED = 100  # columns of a file or a pipe
NAME = 24  # characters of a principle or a tag
HEADING = 11  # characters, beyond which a heading is broken
GAP = 2  # columns between cells
EFFECT = ("difference", "95 % interval", "n", "min. detectable")
"""The headings of `effect_cells`."""


class Grid:
    """A table of texts; the first column is of names, the others of numbers.

    `optional` are the places of the columns that are dropped where the terminal is too narrow, in this order; `left`
    so many first columns are of names, and with `last_left` the last is of text, which is broken where even that does
    not fit; with `broken` it is the column at this place. All headings empty: no line of headings.
    """

    def __init__(
        self,
        headings: Sequence[str],
        optional: Sequence[int] = (),
        left: int = 1,
        last_left: bool = False,
        broken: int | None = None,
    ) -> None:
        self._headings = [_broken(heading) for heading in headings]
        self._optional = optional
        self._left = {*range(left), *([len(headings) - 1] if last_left else [])}
        self._text = len(headings) - 1 if last_left else broken
        self._rows: list[list[Text]] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row, a cell for each heading or fewer; plain text may come from models."""
        texts = [cell if isinstance(cell, Text) else Text(visible(cell)) for cell in cells]
        self._rows.append([*texts, *(Text("") for _ in range(len(self._headings) - len(cells)))])

    def holds(self, text: str) -> bool:
        """Whether a cell is this text."""
        return any(cell.plain == text for row in self._rows for cell in row)

    def shown(self, width: int) -> list[int]:
        """The places of the columns that fit."""
        widths = self._widths()
        places = list(range(len(widths)))
        for place in self._optional:
            if sum(GAP + widths[p] for p in places) > width:
                places.remove(place)
        return places

    def dropped(self, width: int) -> list[str]:
        """The headings of the columns that do not fit, of those that have cells."""
        shown = self.shown(width)
        places = [place for place, heading in enumerate(self._headings) if heading and place not in shown]
        return [self._headings[place].replace("\n", " ") for place in places if any(row[place] for row in self._rows)]

    def _widths(self) -> list[int]:
        return [
            max(0, *(cell_len(line) for line in heading.split("\n")), *(row[place].cell_len for row in self._rows))
            for place, heading in enumerate(self._headings)
        ]

    def table(self, width: int) -> Table:
        """The table with the columns that fit."""
        places, widths = self.shown(width), self._widths()
        room = max(HEADING, width - sum(GAP + widths[place] for place in places if place != self._text) - GAP)
        table = Table(box=None, padding=(0, 0, 0, GAP), show_header=any(self._headings))
        for place in places:
            broken = place == self._text and widths[place] > room
            table.add_column(
                self._headings[place],
                justify="left" if place in self._left else "right",
                no_wrap=not broken,
                overflow="fold",
                max_width=room if broken else None,
            )
        for row in self._rows:
            table.add_row(*(row[place] for place in places))
        return table


def _broken(heading: str) -> str:
    """A long heading on several lines."""
    if len(heading) <= NAME - HEADING:
        return heading
    return "\n".join(textwrap.wrap(heading, HEADING, break_long_words=False, break_on_hyphens=False))


def result_console() -> Console:
    """The terminal, no wider than WIDE; a file or a pipe gets lines of $COLUMNS, or else PIPED, columns."""
    console = Terminal()
    known = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return Terminal(width=min(console.width, WIDE) if known else PIPED)


def show(console: Console, part: RenderableType | Grid) -> None:
    """Print a grid with every cell in full and its missing columns named; all else within the console's width."""
    if isinstance(part, Grid):
        whole(console, part.table(console.width))
        if dropped := part.dropped(console.width):
            console.print(Text(f"  not shown at {console.width} columns: {', '.join(dropped)}", style="dim"))
    else:
        console.print(part)


def listed(mark: str, lines: Iterable[str], style: str = "") -> Table:
    """Lines behind a mark, each broken within its own column."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row(Text(mark, style=style), Text(visible(line), style=style))
    return table


def heading(text: str) -> Text:
    """A line in bold, after an empty one."""
    return Text(f"\n{visible(text)}", style="bold")


def ending(trust: Sequence[tuple[str, str]], commands: Sequence[tuple[str, str]]) -> Iterator[Text | Grid]:
    """The end of a command: what limits its results, and the commands to go on with, each with what it is for."""
    for title, lines in (("Can I trust this?", trust), ("Next", commands)):
        if not lines:
            continue
        yield heading(title)
        grid = Grid(["", ""], left=2, last_left=lines is trust, optional=[] if lines is trust else [1])
        for name, text in lines:
            grid.add(name, text)
        yield grid


def command(*words: str | Path, runs: Path | None = None) -> str:
    """A command of cai to copy; `runs` is the folder of runs, which is named where it is not the default."""
    other = [] if runs is None or runs == Path("runs") else ["--runs", str(runs)]
    return shlex.join(["cai", *map(str, words), *other])


def effect_cells(effect: Effect) -> tuple[str, str, str, str]:
    """The difference, its interval, the number of prompts, and the minimum detectable difference."""
    if effect.mean == 0 and not effect.se:
        return "equal ", "", str(effect.n), ""
    detectable = "none" if effect.undetectable else number(effect.minimum_detectable)
    return starred(mean_difference(effect), effect), interval(effect), str(effect.n), detectable


def footnotes(effects: Iterable[Effect]) -> Iterator[Text]:
    """What the marks in tables of effects mean."""
    yield Text("  * significant at 5 %, corrected for all tests of this comparison (Holm)", style="dim")
    if any(effect.undetectable for effect in effects):
        yield Text(f"  none: {UNDETECTABLE}", style="dim")


def without_interval(effects: Iterable[Effect]) -> Iterator[Text]:
    """Why effects that differ have a dash in place of an interval."""
    if any(interval(effect) == NONE and (effect.mean or effect.se) for effect in effects):
        yield Text(f"  no interval ({NONE}): fewer than six prompts, or all differ by the same", style="dim")


def by_p(effect: Effect) -> float:
    """Sorts effects by p; those that are not tested come last."""
    return 2.0 if effect.p is None else effect.p


def starred(text: str, effect: Effect | None) -> str:
    """A number, with a star where its effect is significant."""
    return text + ("*" if effect is not None and effect.significant else " ")


def short(name: str) -> str:
    """A name in at most NAME characters."""
    return name if len(name) <= NAME else name[: NAME - 1] + "…"
