"""What docs/reliability.md has of attacks: all that ran, and those that could not run on the machine."""

import json
import re
from pathlib import Path

import pytest

from tests.faults import fuzz, reliability


class Report:
    def __init__(self, failed: bool = False, skipped: bool = False) -> None:
        self.failed, self.skipped = failed, skipped


def test_cases_that_a_machine_skips_are_no_attacks_and_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAI_RECORD", str(tmp_path / "record.json"))
    reliability.add_cases("disks", [Report(), Report(failed=True), *[Report(skipped=True)] * 11])
    reliability.add_cases("cases", [Report()])
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["disks"]["count"], record["disks"]["failed"], record["disks"]["skipped"]) == (2, 1, 11)
    assert "skipped" not in record["cases"]
    rows = [line for line in reliability.table(record).splitlines() if "11 skipped" in line]
    assert len(rows) == 1 and "| 2 (11 skipped) | 1 |" in rows[0]


@pytest.mark.parametrize("inputs", [1_000, 9_999, 100_000])
def test_a_long_attack_has_as_many_inputs_as_it_was_asked_for(inputs: int) -> None:
    counts = fuzz.counts(inputs, list(fuzz.TARGETS))
    assert sum(counts.values()) == inputs and min(counts.values()) > 0


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(
        r"^\|[^|]*\| `([\w/]+\.py)` \| `(test_\w+)` \|$", reliability.PAGE.read_text(encoding="utf-8"), re.M
    )
    assert len(named) > 30
    for file, test in named:
        assert f"\ndef {test}(" in (reliability.ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}: {test}"
