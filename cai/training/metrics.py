"""metrics.jsonl: what a training logs, a line an update, added while it trains."""

import json
import math
from pathlib import Path
from typing import Any

from cai.errors import CaiError, reading
from cai.formats.jsonl import write_text


def add_metrics(path: Path, line: dict[str, Any]) -> None:
    """Append one line to a metrics file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, each with its `step`; [] where there is none.

    A last line that is cut short is left out: it is being written, or the disk was full.
    Values may be no finite number.
    Raises: CaiError naming the line for any other that is no JSON object.
    """
    if not path.exists():
        return []
    with reading(path):
        written = path.read_text(encoding="utf-8")
    found, lines = [], written.splitlines()
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == len(lines) and not written.endswith("\n"):
                break
            raise CaiError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(line, dict):
            raise CaiError(f"{path}:{number}: expected a JSON object, found {text[:60]}")
        step = line.get("step")
        found.append({**line, "step": int(step) if isinstance(step, int | float) and math.isfinite(step) else number})
    return found


def drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines of updates after `step`, which will be made again."""
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
