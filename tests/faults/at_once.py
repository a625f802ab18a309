"""Several runs of one run file at the same moment: python -m tests.faults.at_once RUN_FILE RUNS COUNT.

Prints how each of them ended, a line each.
"""

import os
import sys
import time
from pathlib import Path

from rich.console import Console

from cai.config.errors import CaiError
from cai.inference.reporter import Reporter
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from tests.conftest import scripted

if __name__ == "__main__":
    run_file, runs, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    plan = make_plan(run_file, [], None, runs)
    start = time.monotonic() + 0.2
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(max(0.0, start - time.monotonic()))
            try:
                execute(plan, Reporter(Console(quiet=True)), False, scripted(delay=0.05))
                outcome = "completed"
            except CaiError as error:
                outcome = str(error)
            except BaseException as error:
                outcome = repr(error)
            os.write(1, f"{outcome}\n".encode())
            os._exit(0)
    for _ in range(count):
        os.wait()
