"""A folder for the results of one command: held while it works, and cleared of what was made from something else."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cai.errors import CaiError
from cai.formats.jsonl import write_text
from cai.runs.folder import BUSY, RunFolder, exclusive
from cai.runs.progress import Reporter


@contextmanager
def claimed(
    made_from: dict[str, Any], out: Path, file: str, results: Sequence[str], reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Hold `out` for a command; what the block adds to the dictionary ends in `file` there, beside `made_from`.

    `made_from` says what decides the results, and under `command` which command makes them. `results`, the files that
    the block is to write, are cleared away where they were made from something else.
    Raises: CaiError for a folder that holds other things.
    """
    with exclusive(RunFolder(out)):
        before, command = earlier(out / file), made_from["command"]
        if before is None and any(path.name != BUSY for path in out.iterdir()):
            raise CaiError(f"--out {out}: the folder is not empty and holds no results of `{command}`; choose another")
        if before is not None and before["command"] != command:
            raise CaiError(f"--out {out}: the folder holds the results of `{before['command']}`; choose another")
        if before != made_from:
            for name in results:
                (out / name).unlink(missing_ok=True)
        figures: dict[str, Any] = {"made_from": made_from}
        write_text(out / file, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        log, reporter.log = reporter.log, out / "log.txt"
        try:
            yield figures
        finally:
            reporter.log = log
        write_text(out / file, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def earlier(path: Path) -> dict[str, Any] | None:
    """What the results in a folder were made from; None where there are none, or the file is something else."""
    try:
        made_from = json.loads(path.read_text(encoding="utf-8"))["made_from"]
        return made_from if isinstance(made_from["command"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
