from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai.cli.main import app
from cai.errors import CaiError
from cai.runs.folder import RunFolder
from tests.report.folders import write_run


@pytest.mark.parametrize(
    ("lock", "expected"),
    [
        ("[]", r"lock\.json: expected a JSON object, found \[\]"),
        ('{"config": [1]}', r"lock\.json: config: expected an object, found \[1\]"),
        ('{"config": {}, "referee": "r"}', r'lock\.json: referee: expected an object, found "r"'),
        ('{"con', r"lock\.json: not valid JSON: it ends at column 5"),
    ],
)
def test_a_lock_that_is_none_is_named_with_what_was_expected(tmp_path: Path, lock: str, expected: str) -> None:
    (tmp_path / "lock.json").write_text(lock)
    with pytest.raises(CaiError, match=expected):
        RunFolder(tmp_path).lock()


def test_a_damaged_run_does_not_hide_the_others_from_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    for name in ("fine [b]one[-b]", "empty", "older", "folder"):
        write_run(tmp_path / name, prompts=9)
    (tmp_path / "empty/lock.json").write_text("{}")
    (tmp_path / "older/summary.json").write_text('{"prompts": 3}')
    (tmp_path / "folder/lock.json").write_text("")
    found = CliRunner().invoke(app, ["runs", "--runs", str(tmp_path)])
    assert found.exit_code == 0, found.exception
    for part in ("fine [b]one[-b]", "1.000 [0.438, 1.000]", "made by another version of cai", "not valid JSON"):
        assert part in found.output
