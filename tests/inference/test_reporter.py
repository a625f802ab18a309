import io
from pathlib import Path

import pytest
from rich.console import Console

from cai.inference.reporter import Reporter


def test_no_time_is_estimated_before_a_tenth_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cai.inference.reporter.time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    with Reporter(console).task("answers", 100, "calls") as task:
        for now, done in ((20.0, 1), (60.0, 2), (80.0, 12)):  # noqa: B007
            task.update(done, 100)
    assert console.file.getvalue().splitlines() == [
        "  answers: 1/100 calls",
        "  answers: 2/100 calls",
        "  answers: 12/100 calls, 5.5 s each, about 8 min 00 s left",
    ]


def test_where_bars_show_progress_the_log_has_its_lines_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr("cai.inference.reporter.time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with Reporter(console, tmp_path / "log.txt").task("answers", 100, "calls") as task:
        for now, done in ((20.0, 20), (21.0, 21), (40.0, 40)):  # noqa: B007
            task.update(done, 100)
        task.close()
    logged = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition("   ")[2] for line in logged] == [
        "answers: 20/100 calls",
        "answers: 40/100 calls, 1.0 calls/s, about 1 min 00 s left",
        "answers: 40 calls in 40.0 s",
    ]
    assert "answers: 20/100 calls" not in console.file.getvalue()


def test_neither_loading_nor_cache_hits_count_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cai.inference.reporter.time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    with Reporter(console).task("answers", 100, "calls") as task:
        for now, done, hits in ((20.0, 40, 40), (60.0, 50, 40), (80.0, 60, 40), (100.0, 70, 50)):  # noqa: B007
            task.update(done, 100, cache_hits=hits)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "  answers: 40/100 calls, 40 cache hits",  # the model is loading
        "  answers: 50/100 calls, 40 cache hits",
        "  answers: 60/100 calls, 2.0 s each, 40 cache hits, about 1 min 20 s left",
        "  answers: 70/100 calls, 4.0 s each, 50 cache hits, about 2 min 00 s left",
    ]


def test_work_that_goes_on_is_timed_from_where_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cai.inference.reporter.time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    with Reporter(console).task("dpo", 0, "updates") as task:
        for now, done in ((30.0, 90), (50.0, 92)):  # noqa: B007
            task.update(done, 100)
    assert console.file.getvalue().splitlines()[-1] == "  dpo: 92/100 updates, 10.0 s each, about 1 min 20 s left"
