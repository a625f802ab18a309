"""What a run that has not finished is doing, or why it failed: from the lock of its folder and the end of its logs."""

import re
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cai.data.manifest import is_busy
from cai.inference.reporter import ERROR
from cai.runs.folder import RunFolder

LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d) +(\S.*)")  # a text's second line has no time
DONE = re.compile(r": (\d+)/(\d+) \S")
LEFT = re.compile(r", about [^,]* left$")
TAIL = 8192  # bytes, in which the last line is looked for


class Progress(NamedTuple):
    """Whether a process works on a run, and the last line that was logged; "" where nothing was.

    Of a run that an error ended, `failed`, it is the first line of the error.
    Of the stage that this line is about, `done` of `total` units are done, such as calls; 0 of 0 if it does not say.
    """

    running: bool
    line: str
    seconds: float  # since it was logged
    done: int
    total: int
    failed: bool = False


def run_progress(folder: RunFolder) -> Progress:
    """The progress of a run that has not finished; of one that stopped, without an estimate of the time left."""
    running = is_busy(folder.path)
    ended, error = _last_line(folder.log)  # where an error is the run's last word
    if not running and error.startswith(ERROR):
        return Progress(False, error.removeprefix(ERROR), _seconds_since(ended), 0, 0, failed=True)
    at, line = max(map(_last_line, _logs(folder)))
    count = DONE.search(line)
    done, total = map(int, count.groups()) if count else (0, 0)
    seconds = _seconds_since(at) if line else 0.0
    return Progress(running, line if running else LEFT.sub("", line), seconds, done, total)


def _seconds_since(at: datetime) -> float:
    return max(0.0, (datetime.now() - at).total_seconds())


def _logs(folder: RunFolder) -> list[Path]:
    """The logs of the run itself, of its judge gate and of the evaluations of its policies."""
    return [folder.log, *(path / folder.log.name for path in (folder.judge, *folder.evaluations()))]


def _last_line(log: Path) -> tuple[datetime, str]:
    """When the last complete line of a log was written, and its text; of none the earliest time, and ""."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return datetime.min, ""
    lines = filter(None, map(LINE.fullmatch, reversed(text.rpartition("\n")[0].split("\n"))))
    for line in lines:
        try:
            return datetime.fromisoformat(line[1]), line[2]
        except ValueError:  # no day of any month
            continue
    return datetime.min, ""
