"""The results in docs/reliability.md, written by the tests that measure them.

`make torture` and `make fuzz` name a file in CAI_RECORD; each attack `add`s its counts there, with date and commit, and
`python -m tests.faults.reliability` puts them into the page as a table, between its markers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RECORD, PAGE = ROOT / "docs/reliability.json", ROOT / "docs/reliability.md"
BEGIN, END = "<!-- results: written by python -m tests.faults.reliability -->", "<!-- end of results -->"
ATTACKS = {  # by key: what was done, what must not happen, and how it is repeated
    "kills": ("a whole run killed (SIGKILL) at a random moment, then run again", "runs not equal byte for byte", "make torture"),
    "kill points": ("a command killed at an operation on its folder's files, then run again", "folders not taken again, or different", "make torture"),
    "caches": ("a cache cut, overwritten, zeroed or with bits flipped", "intact answers lost, or wrong ones returned", "make torture"),
    "servers": ("a fault of a server that is asked: status, body, headers, connection, time", "calls that hang, are lost or kept wrong", "make torture"),
    "engines": ("a fault of an engine: exception, hang, unusable answer, dead process", "calls that hang, are lost or kept wrong", "make torture"),
    "keys": ("of those of servers: a key that the server returns, or a password in an address", "a byte of it in an output or a file", "make torture"),
    "disks": ("a full or read-only disk, a folder or file that is unsafe", "tracebacks, files left or followed", "make torture"),
    "cases": ("a wrong value, file or text, each found once and kept as a test", "anything but one clear line", "make torture"),
    "inputs": ("a hostile input to a reader of files, options, addresses or command lines", "anything but success or one clear error", "make fuzz"),
}  # fmt: skip


def add(attack: str, count: int, failed: int, seed: int | None = None, skipped: int = 0) -> None:
    """Record an attack's counts in the file that CAI_RECORD names; nothing without one.

    Those of several seeds on one commit add up.
    """
    if not (name := os.environ.get("CAI_RECORD")):
        return
    record: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8")) if Path(name).exists() else {}
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    before = record.get(attack, {})
    seeds = before.get("seeds", []) if before.get("commit") == commit and commit != "unknown" else []
    if seed is not None and seeds and seed not in seeds:
        count, failed = count + before["count"], failed + before["failed"]
    else:
        seeds = []
    record[attack] = {"count": count, "failed": failed, "date": date, "commit": commit}
    if skipped:
        record[attack]["skipped"] = skipped
    if seed is not None:
        record[attack]["seeds"] = [*seeds, seed]
    ordered = {key: record[key] for key in ATTACKS if key in record}
    Path(name).write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def add_cases(attack: str, reports: Sequence[Any]) -> None:
    """Record pytest's reports of an attack's cases; those skipped, as full disks are where none can be mounted, apart."""
    skipped = sum(report.skipped for report in reports)
    add(attack, len(reports) - skipped, sum(report.failed for report in reports), skipped=skipped)


def table(record: dict[str, Any]) -> str:
    """The results as a table in Markdown."""
    lines = ["| attack | times | failures | what counts as one | measured | repeat |", "|---|---|---|---|---|---|"]
    for attack, (what, failure, repeat) in ATTACKS.items():
        if entry := record.get(attack):
            measured = f"{entry['date']}, {entry['commit']}"
            times = f"{entry['count']:,}" + (f" ({entry['skipped']:,} skipped)" if entry.get("skipped") else "")
            lines.append(f"| {what} | {times} | {entry['failed']:,} | {failure} | {measured} | `{repeat}` |")
    return "\n".join(lines)


def write_page(record: dict[str, Any], page: Path = PAGE) -> None:
    """Put the results between the markers of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(record)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write_page(json.loads(RECORD.read_text(encoding="utf-8")))
    sys.exit(0)
