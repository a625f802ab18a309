"""Any input ends in success or in one clear error: a share of inputs here, as many as wanted by `make fuzz`."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

from cai.config.errors import CaiError
from cai.data import records
from tests.faults import commands, inputs, results

TARGETS = {
    **inputs.TARGETS,
    **results.TARGETS,
    "command lines": inputs.Target(commands.command_lines(), commands.read, names_file=False, share=8),
}

SECONDS = 20.0  # for one input, on a busy machine
INPUTS = int(os.environ.get("CAI_FUZZ", "0"))  # in all, by share; 0: the quick share, the same each time
QUICK = 25  # inputs of a target
SEED = int(os.environ.get("CAI_FUZZ_SEED", "0"))


class Hang(BaseException):
    """An input took longer than SECONDS."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attack(name: str, drawn: Any, folder: Path) -> None:
    """Read one input; only success and a CaiError that names the file pass."""
    try:
        with limit(SECONDS):
            TARGETS[name].read(drawn, folder)
    except CaiError as error:
        assert str(folder) in str(error) if TARGETS[name].names_file else str(error).strip(), f"names no file: {error}"


@pytest.mark.parametrize("name", results.PROBES)
def test_the_examples_of_probes_are_sound(name: str, tmp_path: Path) -> None:
    results.TARGETS["probes"].read((name, json.dumps(results.probe_example(name)).encode()), tmp_path)


@pytest.mark.parametrize("model", results.ROWS)
def test_the_examples_of_rows_are_sound(model: type[records.Row], tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, results.examples_of_row(model)))
    results.TARGETS["rows"].read((model.__name__, lines.encode()), tmp_path)


@pytest.mark.parametrize("name", results.REPORTS)
def test_the_examples_of_reports_are_sound(name: str, tmp_path: Path) -> None:
    results.TARGETS[name].read(json.dumps(results.report_example(name)).encode(), tmp_path)


def count(name: str) -> int:
    return (
        QUICK
        if not INPUTS
        else max(1, INPUTS * TARGETS[name].share // sum(target.share for target in TARGETS.values()))
    )


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_in_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    @settings(
        max_examples=count(name),
        derandomize=not INPUTS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=True,
    )
    @given(TARGETS[name].inputs)
    def attacked(drawn: Any) -> None:
        attack(name, drawn, tmp_path)

    (seed(SEED)(attacked) if INPUTS else attacked)()
