"""`cai compare`."""

from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.cli.show import visible
from cai.errors import CaiError
from cai.formats.jsonl import write_text
from cai.runs.compare import RunComparison, compare_runs
from cai.runs.folder import open_run
from cai.runs.report import comparison_page

PRINTED_EXAMPLES = 2  # of each kind; the page has more


def compare_and_print(a: str, b: str, html: Path, runs: Path) -> None:
    """Print a comparison and write it as HTML."""
    comparison = compare_runs(open_run(a, runs), open_run(b, runs))
    console = Console()
    _print(console, comparison)
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_text(html, comparison_page(comparison))
    except OSError as error:
        raise CaiError(f"--html {html}: cannot be written: {error.strerror}") from error
    console.print(f"\nWritten to {html}", markup=False, highlight=False, soft_wrap=True)


def _print(console: Console, c: RunComparison) -> None:
    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    only = f"; {c.only[0]} only in A, {c.only[1]} only in B" if any(c.only) else ""
    line(f"A: {c.names[0]}   B: {c.names[1]}   ({c.shared} shared prompts{only})", "bold")
    for note in c.notes:
        line(f"note: {note}", "yellow")
    line("\nWhat differs", "bold")
    for setting in c.settings or ["no setting"]:
        line(f"  {setting}")
    for kind, ids in c.principles._asdict().items():
        if ids:
            line(f"  principles {kind}: {', '.join(ids)}")
    line("\nOn shared prompts, paired", "bold")
    if c.figures:
        console.print(_figures(c))
    else:
        line("  nothing can be paired")
    shown: dict[str, int] = {}
    for example in c.examples:
        shown[example.what] = shown.get(example.what, 0) + 1
        if shown[example.what] > PRINTED_EXAMPLES:
            continue
        line(f"\n{example.prompt_id}, {example.what}, {100 * example.change:.0f} % of words differ", "bold")
        for label, text in (("prompt", example.messages[-1]["content"]), ("A", example.a), ("B", example.b)):
            line(label, "cyan")
            console.print(Padding(Text(visible(text)), (0, 0, 0, 4)))


def _figures(c: RunComparison) -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in ("", "A", "B", "B − A", "95 % interval", "n"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for figure in c.figures:
        low, high = figure.difference.low, figure.difference.high
        interval = f"{_short(low, '+')} to {_short(high, '+')}" if low is not None and high is not None else "–"
        numbers = (_short(figure.a), _short(figure.b), _short(figure.difference.mean, "+"), interval)
        table.add_row(figure.name, *numbers, str(figure.difference.n))
    return table


def _short(value: float, sign: str = "") -> str:
    """A number in at most six characters, if it is below a thousand."""
    return f"{value:{sign}.1f}" if abs(value) >= 10 else f"{value:{sign}.3f}"
