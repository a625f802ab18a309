"""A folder for the results of one command: held while it works, and cleared of what was made from something else."""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cai.config.errors import CaiError, reading
from cai.data.jsonl import parse_json, write_text

BUSY = ".busy"  # held locked by the process that works on a run


class Logging(Protocol):
    """What says things to a log file."""

    log: Path | None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run, making its folder, for this process alone; raises CaiError when another one works on it."""
    if folder.exists() and not folder.is_dir():
        raise CaiError(f"{folder}: is a file; expected a folder, or a new name for one")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / BUSY).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CaiError(f"{folder}: another process is working on this run") from None
        yield


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """What differs between two JSON values, a line each: `judge.principles: 4 → 8`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        lines = []
        for key in keys:
            lines += differences(before.get(key), after.get(key), f"{at}.{key}" if at else str(key))
        return lines
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line for i, pair in enumerate(zip(before, after, strict=True)) for line in differences(*pair, f"{at}[{i}]")
        ]
    return [] if before == after else [f"{at}: {_short(before)} → {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CaiError naming it for a file that cannot be read or holds no object."""
    with reading(path):
        text = path.read_text(encoding="utf-8")
    value = parse_json(str(path), text)
    if not isinstance(value, dict):
        raise CaiError(f"{path}: expected a JSON object, found {_short(value)}")
    return value


@contextmanager
def claimed(
    made_from: dict[str, Any], out: Path, file: str, results: Sequence[str], reporter: Logging
) -> Iterator[dict[str, Any]]:
    """Hold `out` for a command; what the block adds to the dictionary ends in `file` there, beside `made_from`.

    `made_from` says what decides the results, and under `command` which command makes them. `results`, the files that
    the block is to write, are cleared away where they were made from something else.
    Raises: CaiError for a folder that holds other things.
    """
    with exclusive(out):
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
