"""`cai constitution test`."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.cli.console import echo_json, listed, resumable
from cai.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_TEMPLATES,
    AsJson,
    ConstitutionFiles,
    KeyEnv,
    ModelOrServer,
    PrincipleId,
    RunsFolder,
    Settings,
    TemplatesFolder,
)
from cai.config.characters import Terminal, visible
from cai.config.locate import find_file
from cai.constitution.templates import OF_TESTS, Templates
from cai.inference.cache import Cache
from cai.inference.chat import control_warnings
from cai.inference.engine import EngineConfig
from cai.inference.models import SMALL_MODEL
from cai.inference.reporter import Reporter
from cai.inference.scheduler import Cost, Scheduler
from cai.inference.servers import resolve_judges
from cai.runs.find import find_constitution
from cai.runs.folder import CACHE_FILE
from cai.runs.run_file import engine_settings
from cai.stats.formatting import counted
from cai.workbench.principle_tests import Outcome, Result, read_tests, run_tests


def test(
    files: ConstitutionFiles,
    principle: PrincipleId = None,
    model: ModelOrServer = SMALL_MODEL,
    key_env: KeyEnv = None,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Settings = None,
    as_json: AsJson = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Run the tests of principles on a model.

    Compares the critique, revision and verdict of each test with what the constitution expects. --set takes settings of
    `engine:` in a run file, such as engine.max_model_len=4096. Exit status: 0 when every test passes, 1 when one fails,
    2 when they cannot be run.
    """
    tests = read_tests([find_constitution(name, None) for name in files], principle)
    command = Path("cai constitution test")
    names = (*OF_TESTS, "applies") if any(placed.test.applies is not None for placed in tests) else OF_TESTS
    found_templates = Templates(find_file("--templates", templates, command), names)
    engine = engine_settings(settings or [], EngineConfig(), command)
    [found_model] = resolve_judges([model], key_env, engine)  # last: a Hub id is downloaded here
    progress = Terminal(stderr=as_json)
    reporter = Reporter(progress)
    with resumable(progress, reporter), closing(Cache(runs / CACHE_FILE)) as cache:
        scheduler = Scheduler(engine, cache, reporter)
        tested, cost = run_tests(tests, found_model, found_templates, scheduler)
    if as_json:
        echo_json(json.dumps([row for test in tested for row in _test_rows(test)], ensure_ascii=False, indent=2))
    else:
        _print_tests(Terminal(), tested, cost)
    if warnings := control_warnings({"control_tokens": scheduler.tally().control_tokens}, "requests"):
        progress.print(listed("!", warnings, "yellow"))
    if not all(outcome.passed for test in tested for outcome in test.outcomes):
        raise typer.Exit(1)


def _test_rows(tested: Result) -> list[dict[str, Any]]:
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


def _print_tests(console: Console, tested: Sequence[Result], cost: Cost) -> None:
    for file, tests in itertools.groupby(tested, key=lambda test: test.placed.file):
        console.print(Text(f"\n{file}", style="bold"), soft_wrap=True)
        console.print(_test_table(list(tests)))
    for test in tested:
        if not all(outcome.passed for outcome in test.outcomes):
            _print_failure(console, test)
    passed = Counter(outcome.passed for test in tested for outcome in test.outcomes)
    calls = f"{counted(cost.cache_misses, 'new calls')}, {counted(cost.cache_hits, 'cache hits')}"
    style = "red" if passed[False] else "green"
    console.print(
        Text.assemble((f"\n{passed[True]} passed, {passed[False]} failed", style), f" in {cost.seconds:.1f} s; {calls}")
    )


def _test_table(tests: Sequence[Result]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "line", "principle", "expected", "p", "first, second", "non-option mass"):
        right = column in ("line", "p", "non-option mass")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "principle", overflow="fold")
    for test in tests:
        for outcome in test.outcomes:
            status = Text("pass", style="green") if outcome.passed else Text("FAIL", style="bold red")
            values = [f"{outcome.p:.3f}" if outcome.p is not None else ""]
            values.append(f"{v.p_forward:.3f}, {v.p_reverse:.3f}" if (v := outcome.verdict) else "")
            values.append(f"{100 * outcome.non_option_mass:.0f} %" if outcome.non_option_mass is not None else "")
            where = (str(test.placed.line), test.placed.principle.id)
            table.add_row(status, *where, _expected(test, outcome), *values)
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
            texts[name] = completion.text + (" … (truncated)" if completion.finish == "length" else "")
    for name, text in texts.items():
        if text is not None:
            console.print(Text(name, style="cyan"))
            console.print(Padding(Text(visible(text)), (0, 0, 0, 4), expand=False))
    for outcome in tested.outcomes:
        if not outcome.passed:
            console.print(Text(f"{_expected(tested, outcome)}: {visible(outcome.reason)}", style="red"))
