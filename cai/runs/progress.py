"""What a run is doing, why it failed, and what it has cost: from its lock, the end of its logs, and `costs.jsonl`."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt

from cai.data.jsonl import read_rows, write_rows
from cai.data.manifest import is_busy
from cai.inference.reporter import ERROR
from cai.inference.scheduler import Scheduler
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


class Session(BaseModel):
    """One start of a run: the calls it made, the tokens they wrote, and the seconds of each of its stages."""

    started: datetime
    cache_misses: NonNegativeInt
    cache_hits: NonNegativeInt
    tokens: NonNegativeInt
    seconds: dict[str, NonNegativeFloat]


@contextmanager
def session(folder: RunFolder, scheduler: Scheduler) -> Iterator[None]:
    """Record what the block cost, also where it ends in an error or an interrupt; only SIGKILL loses the record.

    Raises: CaiError for a damaged record, before the block begins.
    """
    earlier, started = _sessions(folder), datetime.now().astimezone()
    try:
        yield
    finally:
        calls = scheduler.tally()
        this_one = Session(
            started=started,
            cache_misses=calls.cache_misses,
            cache_hits=calls.cache_hits,
            tokens=calls.tokens,
            seconds=scheduler.seconds,
        )
        write_rows(folder.costs_jsonl, [*earlier, this_one])


def cost_in_all(folder: RunFolder) -> dict[str, Any]:
    """The sums over all sessions of a run: `sessions`, `cache_misses`, `tokens`, and `seconds` by stage."""
    sessions = _sessions(folder)
    seconds: Counter[str] = Counter()
    for one in sessions:
        seconds.update(one.seconds)
    return {
        "sessions": len(sessions),
        "cache_misses": sum(one.cache_misses for one in sessions),
        "tokens": sum(one.tokens for one in sessions),
        "seconds": {stage: round(taken, 1) for stage, taken in seconds.items()},
    }


def _sessions(folder: RunFolder) -> list[Session]:
    return read_rows(folder.costs_jsonl, Session) if folder.costs_jsonl.exists() else []
