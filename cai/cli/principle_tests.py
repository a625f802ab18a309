"""What `cai constitution test` prints."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.cli.console import going_on
from cai.cli.principles import find_constitution
from cai.config.characters import visible
from cai.config.locate import find_file
from cai.constitution.templates import OF_TESTS, Templates
from cai.evaluation.judge_report import Cost
from cai.inference.endpoints import resolve_judges
from cai.inference.progress import Reporter
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted
from cai.workbench.principle_tests import Outcome, Result, read_tests, run_tests


def run_and_print_tests(
    names: list[str], principle: str | None, model: str, templates: str, as_json: bool, runs: Path
) -> bool:
    """Carry out the tests of constitutions and print what came of them; returns whether all passed."""
    tests = read_tests([find_constitution(name, None) for name in names], principle)
    found_templates = Templates(find_file("--templates", templates, Path("cai constitution test")), OF_TESTS)
    [found_model] = resolve_judges([model])
    progress = Console(stderr=as_json)
    with going_on(progress):
        tested, cost = run_tests(tests, found_model, found_templates, runs / CACHE_FILE, Reporter(progress))
    if as_json:
        typer.echo(json.dumps([row for test in tested for row in _rows(test)], ensure_ascii=False, indent=2))
    else:
        _print(Console(), tested, cost)
    return all(outcome.passed for test in tested for outcome in test.outcomes)


def _rows(tested: Result) -> list[dict[str, Any]]:
    placed, critique, revision = tested.placed, tested.critique, tested.revision
    return [
        {
            "file": str(placed.file),
            "line": placed.line,
            "principle": placed.principle.id,
            "test": placed.number,
            "expects": outcome.expects,
            "passed": outcome.passed,
            "reason": outcome.reason,
            "p": outcome.p,
            "p_forward": outcome.verdict and outcome.verdict.p_forward,
            "p_reverse": outcome.verdict and outcome.verdict.p_reverse,
            "non_option_mass": outcome.non_option_mass,
            "least": placed.test.least,
            "critique": critique and critique.text,
            "revision": revision and revision.text,
        }
        for outcome in tested.outcomes
    ]


def _print(console: Console, tested: Sequence[Result], cost: Cost) -> None:
    for file, tests in itertools.groupby(tested, key=lambda test: test.placed.file):
        console.print(Text(f"\n{file}", style="bold"), soft_wrap=True)
        console.print(_table(list(tests)))
    for test in tested:
        if not all(outcome.passed for outcome in test.outcomes):
            _print_failure(console, test)
    passed = Counter(outcome.passed for test in tested for outcome in test.outcomes)
    calls = f"{counted(cost.asked, 'calls')} asked, {cost.remembered} remembered"
    style = "red" if passed[False] else "green"
    console.print(
        Text.assemble((f"\n{passed[True]} passed, {passed[False]} failed", style), f" in {cost.seconds:.1f} s; {calls}")
    )


def _table(tests: Sequence[Result]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "line", "principle", "expected", "p", "first, second", "non_option_mass"):
        right = column in ("line", "p", "non_option_mass")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "principle", overflow="fold")
    for test in tests:
        for outcome in test.outcomes:
            status = Text("pass", style="green") if outcome.passed else Text("FAIL", style="bold red")
            figures = [f"{outcome.p:.3f}" if outcome.p is not None else ""]
            figures.append(f"{v.p_forward:.3f}, {v.p_reverse:.3f}" if (v := outcome.verdict) else "")
            figures.append(f"{100 * outcome.non_option_mass:.0f} %" if outcome.non_option_mass is not None else "")
            where = (str(test.placed.line), test.placed.principle.id)
            table.add_row(status, *where, _expected(test, outcome), *figures)
    return table


def _expected(tested: Result, outcome: Outcome) -> str:
    """What the test's author wrote: `finds`, `finds nothing`, or the field."""
    return str(tested.placed.test.critique) if outcome.expects == "critique" else outcome.expects


def _print_failure(console: Console, tested: Result) -> None:
    """Why a test failed, and all the texts it is about."""
    placed, test = tested.placed, tested.placed.test
    title = f"{placed.file}:{placed.line}: {placed.principle.id}, test {placed.number}"
    console.print()
    console.rule(Text(title, style="bold"), align="left")
    texts = {"prompt": test.prompt, "draft": test.draft, "better": test.better, "worse": test.worse}
    for name, completion in (("critique", tested.critique), ("revision", tested.revision)):
        if completion is not None:
            texts[name] = completion.text + (" … (cut off)" if completion.finish == "length" else "")
    for name, text in texts.items():
        if text is not None:
            console.print(Text(name, style="cyan"))
            console.print(Padding(Text(visible(text)), (0, 0, 0, 4), expand=False))
    for outcome in tested.outcomes:
        if not outcome.passed:
            console.print(Text(f"{_expected(tested, outcome)}: {visible(outcome.reason)}", style="red"))
