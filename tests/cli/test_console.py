"""What commands print with."""

import io
import os

import pytest
from rich.console import Console
from rich.table import Table

from cai.cli.console import Grid, effect_cells, show, whole, without_interval
from cai.stats.significance import paired
from tests.cli.test_cli import cai


def test_a_table_wider_than_the_terminal_has_every_cell_in_full() -> None:
    console = Console(file=io.StringIO(), width=20)
    table = Table(box=None)
    for title in ("a long title", "another one", "a third"):
        table.add_column(title, no_wrap=True)
    table.add_row("0.750 [0.375, 1.000]", "0.188 [0.000, 0.500]", "last")
    whole(console, table)
    titles, row = console.file.getvalue().splitlines()
    assert row.split() == ["0.750", "[0.375,", "1.000]", "0.188", "[0.000,", "0.500]", "last"]
    assert titles.rstrip().endswith("a third")
    assert console.width == 20


def lines(grid: Grid, width: int) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO())
    show(console, grid)
    return [line.rstrip() for line in console.export_text().splitlines()]


def grid() -> Grid:
    found = Grid(["", "value", "a heading of many words", "n"], optional=[3, 2])
    found.add("a name", "1.000", "0.250 to 0.750", "24")
    found.add("[bold]another\x1b[0m", "2.000")
    return found


def test_a_wide_terminal_gets_every_column_and_headings_are_broken() -> None:
    assert lines(grid(), 60) == [
        "                                    a heading",
        "                                      of many",
        "                        value           words   n",
        "  a name                1.000  0.250 to 0.750  24",
        "  [bold]another\\x1b[0m  2.000",
    ]


def test_a_narrow_terminal_gets_fewer_columns_and_no_cell_is_cut() -> None:
    assert [line.split()[-1] for line in lines(grid(), 46)][-3:-1] == ["0.750", "2.000"]
    assert "0.250" not in "".join(lines(grid(), 30))
    assert "  [bold]another\\x1b[0m  2.000" in lines(grid(), 10)  # wider than the terminal, and whole
    assert lines(grid(), 46)[-1] == "  not shown at 46 columns: n"
    assert " ".join(lines(grid(), 40)[-2:]) == "  not shown at 40 columns: a heading of many words, n"
    empty = Grid(["", "value", "unit"], optional=[2])
    empty.add("a name", "1.000")
    assert lines(empty, 8)[-1] == "  a name  1.000"  # nothing is missed


def test_a_long_name_is_folded_once_the_other_columns_are_dropped() -> None:
    table = Grid(["run", "state", "n"], optional=[2], broken=0)
    table.add("a-run-with-a-name-of-one-word", "finished", "24")
    assert lines(table, 60)[1] == "  a-run-with-a-name-of-one-word  finished  24"
    assert lines(table, 30) == [
        "  run                    state",
        "  a-run-with-a-name-  finished",
        "  of-one-word",
        "  not shown at 30 columns: n",
    ]


def test_runs_that_are_equal_on_every_prompt_have_no_interval() -> None:
    assert effect_cells(paired([0.0] * 8)) == ("equal ", "", "8", "")
    assert not list(without_interval([paired([0.0] * 8), paired([float(n) for n in range(8)])]))


@pytest.mark.parametrize("differences", [[1.0], [1.0, 2.0, 3.0], [1.0, -1.0], [0.5] * 8])
def test_a_missing_interval_is_explained(differences: list[float]) -> None:
    effect = paired(differences)
    assert effect_cells(effect)[1] == "–"
    assert [str(text) for text in without_interval([effect])] == [
        "  no interval (–): fewer than six prompts, or all differ by the same"
    ]


def test_torch_is_quiet_whoever_imports_it_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("TORCH_CPP_LOG_LEVEL", None)
    assert cai(monkeypatch, "--version") == 0
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"  # which torch reads when it is imported, and workers inherit
    os.environ["TORCH_CPP_LOG_LEVEL"] = "INFO"
    assert cai(monkeypatch, "--version") == 0
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "INFO"
