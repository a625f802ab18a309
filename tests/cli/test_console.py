"""What commands print with."""

import io

from rich.console import Console
from rich.table import Table

from cai.cli.console import whole


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
