"""What commands that take long share: plain lines, and how to go on after an interrupt."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.config.characters import visible

WIDEST = 1000  # columns of a table


def line(console: Console, text: str | Text) -> None:
    """Print one line as it stands: no markup, no colours, no breaks of its own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def loading(console: Console, model: str) -> None:
    """Say that a model is being loaded, which takes long without a word."""
    line(console, Text(f"loading {visible(model)} …", style="dim"))


def whole(console: Console, table: Table) -> None:
    """Print a table with every cell in full, also where it is wider than the terminal."""
    width = console.width
    console.width = max(width, console.measure(table, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(table, crop=False)
    console.width = width


@contextmanager
def going_on(console: Console) -> Iterator[None]:
    """Say after an interrupt how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["cai", *(arg for arg in sys.argv[1:] if arg != "--replace")])
        line(
            console,
            f"\nInterrupted. Every answer so far is remembered; to go on, run the same command again:\n  {command}",
        )
        raise
