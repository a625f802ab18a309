"""What commands share: printing lines, tables and changed words, writing files, and resuming after an interrupt."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.config.characters import visible
from cai.config.errors import CaiError, writing
from cai.constitution.principles import word_changes
from cai.data.jsonl import write_text

WIDEST = 1000  # columns of a table
COLOURS = {"added": "green", "removed": "red", "same": ""}


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


@contextmanager
def resumable(
    console: Console, message: str = "Interrupted. All answers so far are cached; the same command resumes:"
) -> Iterator[None]:
    """After an interrupt, print the command that resumes."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["cai", *(arg for arg in sys.argv[1:] if arg != "--replace")])
        line(
            console,
            f"\n{message}\n  {command}",
        )
        raise KeyboardInterrupt("reported") from None


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
