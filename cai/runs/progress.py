"""Progress of long work: bars with rates and estimates on a terminal, plain lines elsewhere, and always a log file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0  # between two plain lines


class Task:
    """Work of a known amount, under way."""

    def __init__(self, reporter: "Reporter", name: str, total: int) -> None:
        self._reporter, self.name, self.total = reporter, name, total
        self.done = 0
        self._start = self._last = time.monotonic()
        self._bar = reporter.bars.add_task(name, total=total, rate="") if reporter.bars else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` is shown beside the rate."""
        self.update(self.done + count, self.total, note)

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` are done."""
        self.done, self.total = done, total
        now = time.monotonic()
        rate = done / max(now - self._start, 1e-9)
        text = f"{rate:.2f}/s {note}" if rate >= 0.1 else f"{1 / max(rate, 1e-9):.0f} s each {note}"
        if self._reporter.bars and self._bar is not None:
            self._reporter.bars.update(self._bar, completed=done, total=total, rate=text)
        elif now - self._last >= PLAIN_SECONDS and done < total:
            self._last = now
            left = (total - done) / rate
            self._reporter.say(f"  {self.name}: {done}/{total}, {text.strip()}, about {_span(left)} left")

    def close(self) -> None:
        """The work ended; its line stays in the log."""
        if self._reporter.bars and self._bar is not None:
            self._reporter.bars.remove_task(self._bar)
        if self.total:
            self._reporter.say(f"  {self.name}: {self.done}/{self.total} in {_span(time.monotonic() - self._start)}")


class Reporter:
    """Says what happens to the console and to a log file."""

    def __init__(self, console: Console, log: Path | None = None) -> None:
        self.console, self.log = console, log
        self.bars: Progress | None = None

    def say(self, text: str) -> None:
        """One line, printed and logged."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().isoformat(timespec='seconds')} {text}\n")

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Task]:
        """Report progress of `total` pieces of work inside the block."""
        if not self.console.is_terminal:
            task = Task(self, name, total)
            yield task
            task.close()
            return
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as self.bars:
            try:
                task = Task(self, name, total)
                yield task
                task.close()
            finally:
                self.bars = None


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
