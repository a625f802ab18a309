"""Counts what the tests of this folder attack, for docs/reliability.md (tests/faults/reliability.py)."""

import re
from typing import Any

from tests.faults import kill_points, reliability

MODULES = {  # of which each test case is one attack
    "caches": ("test_corrupt_caches",),
    "servers": ("test_endpoint_faults",),
    "engines": ("test_engine_faults",),
    "disks": ("test_full_disks", "test_unsafe_folders"),
    "cases": ("test_bad_input", "test_terminal"),
}
PLANTED = re.compile(r"\b(the|a) key\b|(?<!for_a)_key_|_password_")  # cases with a planted key or password


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Record how many cases of each module ran, how many failed, and how many this machine cannot run."""
    reports = [report for kind in ("passed", "failed", "skipped") for report in terminalreporter.stats.get(kind, ())]
    for attack, modules in MODULES.items():
        own = [report for report in reports if any(f"{module}.py" in report.nodeid for module in modules)]
        if own:
            reliability.add_cases(attack, own)
    if keys := [
        report for report in reports if "test_endpoint_faults.py" in report.nodeid and PLANTED.search(report.nodeid)
    ]:
        reliability.add_cases("keys", keys)
    if kill_points.killed:
        failed = sum(report.failed for report in reports if "test_killed_claims.py" in report.nodeid)
        reliability.add("kill points", kill_points.killed, failed)
