"""A long attack with hypothesis' inputs: python -m tests.faults.fuzz [INPUTS] [SEED] [TARGET …]; `make fuzz` runs it.

A fault does not end it: each is listed once, by what was raised where, with an input that raises it. Exit status 1 if
there is one.
"""

import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.faults import reliability
from tests.faults.test_fuzz import TARGETS, attack

BATCH = 500  # inputs of a target between two lines of progress
SHOWN = 400  # characters of an input


class Attack:
    """Inputs tried, and faults by what was raised where."""

    def __init__(self) -> None:
        self.tried = 0
        self.faults: dict[str, str] = {}

    def batch(self, name: str, inputs: int, number: int, folder: Path) -> None:
        """Try so many inputs of a target; `number` is the seed."""

        @settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @seed(number)
        @given(TARGETS[name].inputs)
        def tried(drawn: Any) -> None:
            self.tried += 1
            try:
                attack(name, drawn, folder)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                place = [f for f in traceback.extract_tb(error.__traceback__) if "/cai/" in f.filename][-1:]
                where = f"{Path(place[0].filename).name}:{place[0].lineno}" if place else "?"
                self.faults.setdefault(
                    f"{name}: {type(error).__name__} at {where}: {str(error)[:120]!r}", ascii(drawn)[:SHOWN]
                )

        tried()


def counts(inputs: int, names: Sequence[str]) -> dict[str, int]:
    """How many of the inputs each target gets, by its share; at least one. The last gets what rounding leaves."""
    shares = sum(TARGETS[name].share for name in names)
    by_target = {name: max(1, inputs * TARGETS[name].share // shares) for name in names}
    by_target[names[-1]] += max(0, inputs - sum(by_target.values()))
    return by_target


def main() -> int:
    """Attack all targets by share; print progress, and every fault once."""
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    number = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    names = sys.argv[3:] or list(TARGETS)
    first = number
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(f"fuzz: {inputs:,} inputs, seed {number} (again: python -m tests.faults.fuzz {inputs} {number})", flush=True)
    attacked, start = Attack(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cai-fuzz-") as folder:
        os.chdir(folder)
        for name, left in counts(inputs, names).items():
            own = Path(folder) / name.replace(" ", "-")
            own.mkdir()
            while left > 0:
                before = time.monotonic()
                attacked.batch(name, min(BATCH, left), number, own)
                left, number = left - BATCH, number + 1
                rate = min(BATCH, left + BATCH) / (time.monotonic() - before)
                print(
                    f"fuzz: {attacked.tried:,} of {inputs:,}, {name}, {rate:,.0f}/s, {len(attacked.faults)} faults",
                    flush=True,
                )
        os.chdir("/")
    for fault, example in attacked.faults.items():
        print(f"FAULT {fault}\n      {example}")
    record = {
        "inputs": attacked.tried,
        "faults": len(attacked.faults),
        "minutes": round((time.monotonic() - start) / 60, 1),
    }
    if not sys.argv[3:]:
        reliability.add("inputs", attacked.tried, len(attacked.faults), first)
    print(json.dumps(record))
    return 1 if attacked.faults else 0


if __name__ == "__main__":
    sys.exit(main())
