"""Progress and messages: bars with rates and estimates on a terminal, plain lines elsewhere, always in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cai.config.characters import visible
from cai.config.errors import error_text, writing
from cai.stats.formatting import counted, duration

ERROR = "error: "  # how the line in the log begins
PLAIN_SECONDS = 15.0  # between two plain lines
MEASURED_SHARE, MEASURED_UNITS = 0.1, 32  # of the work, or units, whichever is less: before, a rate is mostly chance


class Task:
    """Work of a known amount in progress."""

    def __init__(self, reporter: "Reporter", name: str, total: int, unit: str) -> None:
        self._reporter, self.name, self.total, self.unit = reporter, name, total, unit
        self.done = self.cache_hits = 0
        self._start = self._last = time.monotonic()
        self._first: tuple[float, int] | None = None  # when work was first seen to have cost time, and how much of it
        self._bar = reporter.bars.add_task(visible(name), total=total or None, text="") if reporter.bars else None

    def update(self, done: int, total: int, note: str = "", cache_hits: int = 0) -> None:
        """`done` of `total` units are done, `cache_hits` of them without work; `note` stands beside the rate."""
        self.done, self.total = done, total
        self._reporter.advanced |= done > 0
        self.cache_hits = cache_hits
        now, rate = time.monotonic(), self._rate(done - cache_hits)
        speed = "" if rate is None else f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        if self._reporter.bars and self._bar is not None:
            text = ", ".join(filter(None, [speed, self._hits(), note]))
            self._reporter.bars.update(self._bar, completed=done, total=total, text=text)
        if now - self._last >= PLAIN_SECONDS and 0 < done < total:
            self._last = now
            left = "" if rate is None else f"about {duration((total - done) / rate)} left"
            parts = (f"{done}/{total} {self.unit}", speed, self._hits(), note, left)
            self._reporter.progress(f"  {self.name}: " + ", ".join(filter(None, parts)))

    def _rate(self, paid: int) -> float | None:
        """Units a second since the first of them was done, so that loading a model does not pass for slow work.

        None at first: while many are under way and few are done, the rate of those done says little.
        """
        now = time.monotonic()
        if self._first is None and paid > 0:
            self._first = now, paid
        if self._first is None or now == self._first[0]:
            return None
        if paid - self._first[1] < max(1, min(MEASURED_UNITS, MEASURED_SHARE * (self.total - self._first[1]))):
            return None
        return (paid - self._first[1]) / (now - self._first[0])

    def _hits(self) -> str:
        return counted(self.cache_hits, "cache hits") if self.cache_hits else ""

    def close(self) -> None:
        """The work ended; one line of it stays."""
        if self._reporter.bars and self._bar is not None:
            self._reporter.bars.remove_task(self._bar)
        if self.total:
            parts = (f"{counted(self.done, self.unit)} in {duration(time.monotonic() - self._start)}", self._hits())
            self._reporter.say(f"  {self.name}: " + ", ".join(filter(None, parts)))


class Reporter:
    """Writes progress and messages to the console and to a log file."""

    def __init__(self, console: Console, log: Path | None = None) -> None:
        self.console, self.log = console, log
        self.bars: Progress | None = None
        self.advanced = False  # whether any work is done
        self.resumption: Callable[[], str] | None = (
            None  # what the work in progress resumes from, if not from the cache
        )

    @contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        """Log to another file inside the block."""
        before, self.log = self.log, path
        try:
            yield
        finally:
            self.log = before

    def say(self, text: str) -> None:
        """Print and log one line; names and texts in it cannot control a terminal, nor begin a line of the log."""
        text = visible(text)
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._write(text)

    def progress(self, text: str) -> None:
        """Log one line of progress, and print it where no bar shows it."""
        if self.bars is None:
            self.say(text)
        else:
            self._write(visible(text))

    @contextmanager
    def recording_errors(self) -> Iterator[None]:
        """Log the error that ends the block, which the command prints."""
        try:
            yield
        except Exception as error:
            self._write(visible(f"{ERROR}{error_text(error)}"))
            raise

    def _write(self, text: str) -> None:
        if self.log is not None:
            with writing(self.log), self.log.open("a", encoding="utf-8") as file:
                lines = text.replace("\n", "\n  ")
                file.write(f"{datetime.now().isoformat(timespec='seconds')} {lines}\n")

    def note(self, text: str) -> None:
        """As `say`, for a line among those of a stage's progress."""
        self.say(f"  {text}")

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Report progress of `total` units of work inside the block, which closes the task."""
        self.resumption = None  # of work before it that failed
        if not self.console.is_terminal:
            yield Task(self, name, total, unit)
            return
        with Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as self.bars:
            try:
                yield Task(self, name, total, unit)
            finally:
                self.bars = None
