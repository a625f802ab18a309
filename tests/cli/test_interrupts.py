"""Leaving while a model loads, as a real process."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from cai.cli import interrupts
from cai.cli.interrupts import GRACE_SECONDS, PROMISED_SECONDS, Interruption
from tests.conftest import ROOT, write_workspace


class Loading(NamedTuple):
    """A command that waits for its model, and the child that loads it."""

    process: subprocess.Popen[str]
    child: int

    def stopped(self, *signals: signal.Signals, pause: float = 0.1) -> tuple[int, float, str]:
        """Send signals; returns the exit status, the seconds from the last of them to the end, and all output."""
        for place, number in enumerate(signals):
            time.sleep(pause if place else 0)
            self.process.send_signal(number)
        begun = time.monotonic()
        status = self.process.wait(timeout=30)
        seconds = time.monotonic() - begun
        assert is_gone_within(1.0, self.child)
        return status, seconds, self.process.communicate(timeout=30)[0]


@pytest.fixture
def command(request: pytest.FixtureRequest, tmp_path: Path, model_folder: Path) -> Iterator[Loading]:
    run_file = write_workspace(tmp_path, model_folder)
    arguments = [getattr(request, "param", "loading"), "run", str(run_file), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.slow_load", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        started = next((line for line in lines if line.startswith("loading")), None)
        assert started is not None
        yield Loading(process, int(started.split()[1]))
    finally:
        process.kill()


def test_the_promise_is_that_of_the_documentation() -> None:
    assert "Ctrl-C ends a command within two seconds" in (ROOT / "docs/run-file.md").read_text(encoding="utf-8")
    assert PROMISED_SECONDS == 2


def is_gone_within(seconds: float, pid: int) -> bool:
    """Whether a killed process ends: on a machine with much other work it takes longer than the command waits for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


class Child:
    """A process that ends some time after it was killed, or never."""

    def __init__(self, seconds: float, order: list[str]) -> None:
        self.seconds, self.order, self.end = seconds, order, math.inf

    def cmdline(self) -> list[str]:
        return ["python"]

    def kill(self) -> None:
        self.end = time.monotonic() + self.seconds
        self.order.append("killed")

    def status(self) -> str:
        if time.monotonic() < self.end:
            return psutil.STATUS_RUNNING
        self.order.append("gone")
        raise psutil.NoSuchProcess(1)


@pytest.mark.parametrize(("seconds", "ends"), [(0.1, ["killed", "gone", "left"]), (math.inf, ["killed", "left"])])
def test_a_command_leaves_once_its_children_are_gone_or_have_had_time_to_go(
    seconds: float, ends: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Own:
        def children(self, recursive: bool) -> list[Child]:
            return [Child(seconds, order)]

    monkeypatch.setattr(psutil, "Process", Own)
    monkeypatch.setattr(interrupts, "CHILD_SECONDS", 0.3 if seconds == math.inf else 5.0)
    monkeypatch.setattr("os._exit", lambda status: order.append("left"))
    interrupts.leave(130, flush=False)
    assert order == ends


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_model_that_loads_is_not_waited_for(command: Loading, number: signal.Signals, expected: int) -> None:
    assert command.process.stdout is not None
    lines = iter(command.process.stdout.readline, "")
    assert "vLLM still loads the model, for " in next(line for line in lines if "vLLM" in line)
    status, seconds, out = command.stopped(number)
    assert status == expected
    assert seconds < PROMISED_SECONDS
    assert out.count("Interrupted.\n") == 1
    assert "All answers so far are cached" not in out
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["stuck"], indirect=True)
def test_what_does_not_end_is_ended(command: Loading) -> None:
    status, seconds, out = command.stopped(signal.SIGINT)
    assert status == 130
    assert GRACE_SECONDS - 0.5 < seconds < PROMISED_SECONDS
    assert out.count("Interrupted.\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["stuck"], indirect=True)
def test_a_second_signal_ends_at_once(command: Loading) -> None:
    status, seconds, out = command.stopped(signal.SIGINT, signal.SIGINT)
    assert status == 130
    assert seconds < GRACE_SECONDS - 0.3
    assert out.count("Interrupted.\n") == 1


@pytest.mark.parametrize("reported", [True, False])
def test_a_message_that_the_command_has_printed_is_not_printed_again(
    reported: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def leave(status: int, flush: bool) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(interrupts, "leave", leave)
    interruption = Interruption()
    try:
        with pytest.raises(KeyboardInterrupt):
            interruption.receive(signal.SIGTERM, None)
        interruption.reported = reported
        with pytest.raises(SystemExit, match="143"):
            interruption.receive(signal.SIGINT, None)
    finally:
        interruption.end()
    assert capfd.readouterr().err == ("" if reported else "\nInterrupted.\n")
