"""What an unfinished run is doing, by its lock and its logs."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cai.data.manifest import exclusive
from cai.runs.folder import RunFolder
from cai.runs.progress import Progress, run_progress


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def log(path: Path, *lines: tuple[float, str]) -> None:
    """Write lines of a log, each with how many seconds ago it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now()
    texts = [f"{(now - timedelta(seconds=ago)).isoformat(timespec='seconds')} {text}\n" for ago, text in lines]
    path.write_text("".join(texts), encoding="utf-8")


def test_a_run_that_is_under_way_shows_its_last_line_and_how_much_of_the_stage_is_done(folder: RunFolder) -> None:
    line = "feedback: 40/56 calls, 2.6 calls/s, 16/28 prompts, about 6.2 s left"
    log(folder.log, (90, "a: 28 prompts"), (30, f"  {line}"))
    with exclusive(folder.path):
        running, shown, seconds, done, total, _ = run_progress(folder)
    assert (running, shown, done, total) == (True, line, 40, 56)
    assert 29 <= seconds <= 40
    stopped = run_progress(folder)
    assert (stopped.running, stopped.line) == (False, "feedback: 40/56 calls, 2.6 calls/s, 16/28 prompts")


def test_a_run_that_an_error_ended_has_failed_until_it_is_resumed(folder: RunFolder) -> None:
    log(folder.log, (30, "  1-dpo: loading the model"), (20, "error: runs/a: no space left\n  and a second line"))
    log(folder.training(1).eval / "log.txt", (20, "  judge: comparisons: 64/74 calls, 35/40 items"))
    failed = run_progress(folder)
    assert (failed.failed, failed.line, failed.done, failed.total) == (True, "runs/a: no space left", 0, 0)
    with exclusive(folder.path):
        assert not run_progress(folder).failed
    log(folder.log, (30, "error: runs/a: no space left"), (20, "a: 28 prompts"))
    assert not run_progress(folder).failed


def test_of_several_logs_the_latest_line_counts(folder: RunFolder) -> None:
    log(folder.log, (60, "a: training 2 of 2, seed 7"), (50, "  1-sft#2: 26 updates in 45.3 s"))
    log(folder.training(1).eval / "log.txt", (70, "  judge: comparisons: 74 calls in 36.4 s"))
    log(folder.training(2).eval / "log.txt", (10, "  judge: comparisons: 64/74 calls, 35/40 items"))
    assert run_progress(folder).line == "judge: comparisons: 64/74 calls, 35/40 items"


def test_a_line_of_several_lines_or_half_written_or_broken_is_none(folder: RunFolder) -> None:
    log(folder.log, (9, "  loading the model"))
    with folder.log.open("a", encoding="utf-8") as file:
        file.write(
            "  second line of a text\n2026-99-99T00:00:00 no day\n\ud7ff\x00\n2026-01-01T00:00:00   feedback: 3/"
        )
    assert run_progress(folder).line == "loading the model"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n", b"no time\n"])
def test_a_run_without_a_line_has_no_progress(folder: RunFolder, content: bytes | None) -> None:
    if content is not None:
        folder.log.write_bytes(content)
    assert run_progress(folder) == Progress(False, "", 0.0, 0, 0)


def test_only_the_end_of_a_long_log_is_read(folder: RunFolder) -> None:
    log(folder.log, *((9, f"  feedback: {n}/100000 calls") for n in range(50_000)))
    assert run_progress(folder).done == 49_999
