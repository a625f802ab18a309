"""Printing differences: within a hundred columns, with interval, size and minimum detectable difference."""

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cai.cli.console import whole
from cai.compare.findings import number
from cai.config.characters import visible
from cai.stats.significance import Effect

WIDTH = 100  # columns
NAME = 24  # characters of a principle or a tag
EFFECT = ("difference", "95 % interval", "n", "min. detectable")
"""The columns of `effect_cells`."""


def hundred_columns() -> Console:
    """The terminal, no wider than WIDTH; a file or a pipe gets lines of that width."""
    console = Console()
    return Console(width=min(console.width, WIDTH) if console.is_terminal else WIDTH)


def show(console: Console, part: RenderableType) -> None:
    """Print a table of numbers with every cell in full, and all else within the console's width."""
    if isinstance(part, Table) and part.show_header:
        whole(console, part)
    else:
        console.print(part)


def listed(mark: str, lines: Iterable[str], style: str = "") -> Table:
    """Lines behind a mark, each broken within its own column."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row(Text(mark, style=style), Text(visible(line), style=style))
    return table


def columns(*names: str) -> Table:
    """A table without lines; the first column is of names, the others of numbers."""
    table = Table(box=None, padding=(0, 0, 0, 2))
    for position, name in enumerate(names):
        table.add_column(name, justify="right" if position else "left", no_wrap=True)
    return table


def effect_cells(effect: Effect) -> tuple[str, str, str, str]:
    """The difference, its interval, the number of prompts, and the minimum detectable difference."""
    known = effect.low is not None and effect.high is not None
    interval = f"{number(effect.low or 0.0, '+')} to {number(effect.high or 0.0, '+')}" if known else "–"
    detectable = "–" if effect.minimum_detectable is None else number(effect.minimum_detectable)
    return starred(number(effect.mean, "+"), effect), interval, str(effect.n), detectable


def starred(text: str, effect: Effect | None) -> str:
    """A number, with a star where its effect is significant."""
    return text + ("*" if effect is not None and effect.significant else " ")


def short(name: str) -> str:
    """A name in at most NAME characters."""
    return name if len(name) <= NAME else name[: NAME - 1] + "…"
