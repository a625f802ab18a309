"""What a run has cost: one record a session, in `costs.jsonl`, so that running again erases nothing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt

from cai.data.jsonl import read_rows, write_rows
from cai.inference.scheduler import Scheduler
from cai.runs.folder import RunFolder


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
