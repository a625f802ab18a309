"""Ctrl-C and SIGTERM: a command leaves within PROMISED_SECONDS, whatever a model does, and leaves no process behind.

The first signal interrupts the command, which closes what it can and prints how to resume. Where that takes longer than
GRACE_SECONDS, as for a model that another thread is loading, the process ends all the same; a second signal ends it at
once. Nothing is lost by that: answers are in the cache as soon as they arrive, and files are replaced whole.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

PROMISED_SECONDS = 2.0  # from the signal to the end of the process
GRACE_SECONDS = 1.0  # half of them: to end children and the process takes the rest on a busy machine
CHILD_SECONDS = 0.5  # how long to wait for killed children; one that holds much memory takes a tenth of a second a GiB
SHOW_CURSOR = b"\x1b[?25h"  # progress bars hide it


class Interruption:
    """The signals a command has received, and what to print for them."""

    def __init__(self) -> None:
        self.message: Callable[[], str] = lambda: "Interrupted."
        self.reported = False  # whether the message is printed
        self._received: list[int] = []
        self._patience: threading.Timer | None = None

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self._received[0] if self._received else signal.SIGINT)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler: interrupt the command, and end the process if that does not."""
        self._received.append(number)
        if len(self._received) > 1:
            self._give_up()
        self._patience = threading.Timer(GRACE_SECONDS, self._give_up)
        self._patience.daemon = True
        self._patience.start()
        raise KeyboardInterrupt

    def end(self) -> None:
        """The command has ended by itself."""
        if self._patience is not None:
            self._patience.cancel()

    def _give_up(self) -> NoReturn:
        with suppress(OSError):
            if sys.__stdout__ is not None and sys.__stdout__.isatty():
                os.write(1, SHOW_CURSOR)
            if not self.reported:
                os.write(2, f"\n{self.message()}\n".encode())
        leave(self.status, flush=False)


current = Interruption()


@contextmanager
def handled() -> Iterator[Interruption]:
    """Handle both signals inside the block, which must be in the main thread to do so."""
    global current
    current = Interruption()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, current.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield current
    finally:
        current.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(status: int, flush: bool = True) -> NoReturn:
    """End the process at once, and its children; what is taken apart beneath a working thread would break noisily."""
    if flush:
        sys.stdout.flush()
        sys.stderr.flush()
    with suppress(Exception):
        _end_children()
    os._exit(status)


def _end_children() -> None:
    """Kill all processes below this one, such as vLLM's engine core and training workers, and wait until they are gone.

    Waited for because the next command wants their memory and their locks. All but multiprocessing's resource tracker:
    it ends with the last of them, and frees the shared memory they leave.
    """
    import psutil

    killed = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "multiprocessing.resource_tracker" not in " ".join(child.cmdline()):
                child.kill()
                killed.append(child)
    deadline = time.monotonic() + CHILD_SECONDS
    while any(map(_is_alive, killed)) and time.monotonic() < deadline:
        time.sleep(0.005)


def _is_alive(process: "psutil.Process") -> bool:
    """Whether a process still holds its memory; one that nobody has waited for yet does not."""
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
