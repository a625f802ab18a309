"""`cai compare`."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cai.cli.console import write_file
from cai.cli.effects import EFFECT, columns, effect_cells, hundred_columns, listed, short, show, starred
from cai.cli.options import DEFAULT_RUNS, AsJson, PageOut, RunsFolder
from cai.compare.compare import by_kind, compare_runs
from cai.compare.findings import number
from cai.compare.record import (
    Curve,
    Doubt,
    Example,
    Figure,
    PairComparison,
    PrincipleComparison,
    RunComparison,
    Unpaired,
    Wins,
)
from cai.config.characters import visible
from cai.report.comparison import comparison_report, read_comparison
from cai.runs.folder import open_run
from cai.stats.formatting import counted
from cai.stats.significance import Effect

PRINTED_EXAMPLES = 2  # of each kind; the page has more
PRINTED_EFFECTS = 8
PRINTED_TAGS = 8
SPARKS = "▁▂▃▄▅▆▇█"
STARS = "* significant: with all others of its table, chance brings it in less than 5 % of cases (Holm)"


def compare(
    names: Annotated[list[str], typer.Argument(metavar="A B [C]...", help="Names or folders of runs; A is the base.")],
    as_json: AsJson = False,
    out: PageOut = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Compare runs.

    Each run against the first, A: settings, effects on shared prompts, and which of them are significant. Also writes
    a page, comparison.html in the folder of runs; with --json only if --out names one.
    """
    folders = [open_run(name, runs) for name in names]
    comparison = compare_runs(folders)
    if as_json:
        typer.echo(comparison.model_dump_json(indent=1))
    else:
        console = hundred_columns()
        for part in _comparison(comparison):
            show(console, part)
    if out is not None or not as_json:
        page = out or runs / "comparison.html"
        write_file(page, comparison_report(read_comparison(comparison, folders)))
        if not as_json:
            console.print(Text(f"\nWritten to {page}"), soft_wrap=True)


def _comparison(c: RunComparison) -> Iterator[RenderableType]:
    for run in c.runs:
        counts = f"{counted(run.principles, 'principles')}, {counted(run.prompts, 'prompts')}"
        yield _bold(f"{run.letter}: {run.name}   ({run.constitution or 'no constitution'}, {counts})")
    if c.notes:
        yield listed("note:", c.notes, "yellow")
    yield _bold("\nIn short")
    yield listed("·", c.findings)
    for pair in c.pairs:
        yield from _pair(c, pair)
    yield from _curves(c.curves, [run.letter for run in c.runs])
    yield from _doubts(c.doubts, [run.letter for run in c.runs])


def _pair(c: RunComparison, pair: PairComparison) -> Iterator[RenderableType]:
    b = c.runs[pair.b].letter
    only = f"; {pair.only[0]} only in A, {pair.only[1]} only in {b}" if any(pair.only) else ""
    yield _bold(f"\n{b} against A: {counted(pair.shared, 'shared prompts')}{only}")
    yield listed(
        " ", pair.settings or ["the settings are not known" if pair.settings is None else "no setting differs"]
    )
    kinds: dict[str, list[str]] = {}
    for p in pair.principles:
        if p.kind != "same":
            kinds.setdefault(p.kind, []).append(p.id)
    if kinds:
        yield listed(" ", (f"principles {kind}: {', '.join(ids)}" for kind, ids in kinds.items()))
    if pair.shared:
        yield _bold("\nOn shared prompts, paired")
        if pair.figures:
            yield _figures(pair.figures, b)
            yield Text(f"  {STARS}", style="dim")
        else:
            yield Text("  nothing can be paired")
    if pair.unpaired:
        yield _bold("\nEach run on its own prompts: nothing is paired, and nothing tested")
        yield _unpaired(pair.unpaired, b)
    if any(p.a or p.b for p in pair.principles):
        yield _bold("\nPrinciples: their rounds of revision, A / " + b)
        yield _uses(pair.principles)
        never = sum(not any(use and use.drawn for use in (p.a, p.b)) for p in pair.principles)
        undrawn = f"; {never} more {'was' if never == 1 else 'were'} drawn by no shared prompt" if never else ""
        yield Text(f"  * significant against the run's other principles{undrawn}", style="dim")
    effects = [(p, outcome, effect) for p in pair.principles for outcome, effect in p.effects.items()]
    told = sorted((found for found in effects if found[2].low is not None), key=lambda found: found[2].p or 0.0)
    if told:
        few = f"; {len(effects) - len(told)} come of too few or equal prompts" if len(told) < len(effects) else ""
        yield _bold(
            f"\nEffects of principles, {b} − A: the {min(PRINTED_EFFECTS, len(told))} surest of {len(effects)}{few}"
        )
        yield _effects(told[:PRINTED_EFFECTS])
    elif effects:
        yield _bold(
            f"\nEffects of principles, {b} − A: none to show, all {len(effects)} come of too few or equal prompts"
        )
    if pair.wins:
        what = "Prompts, their answers seen together," if pair.wins[0].directly else "Held-out prompts"
        yield _bold(f"\n{what} on which {b}'s answer is better than A's")
        yield _wins(pair.wins)
    if pair.labels:
        yield _bold("\nLabels of the same two answers")
        yield Text(f"  {_labels(pair)}")
    yield from _examples(pair.examples, b)


def _bold(text: str) -> Text:
    return Text(visible(text), style="bold")


def _figures(figures: Sequence[Figure], b: str) -> Table:
    table = columns("", "A", b, f"{b} − A", *EFFECT[1:])
    for figure in figures:
        table.add_row(figure.name, number(figure.a), number(figure.b), *effect_cells(figure.effect))
    return table


def _unpaired(figures: Sequence[Unpaired], b: str) -> Table:
    table = columns("", "A", "n", b, "n")
    for figure in figures:
        table.add_row(figure.name, number(figure.a), str(figure.n_a), number(figure.b), str(figure.n_b))
    return table


def _uses(principles: Sequence[PrincipleComparison]) -> Table:
    judged = any(use and "verdict" in use.means for p in principles for use in (p.a, p.b))
    last = {"verdict": "p(revision)"} if judged else {"truncated": "cut off"}
    outcomes = {"changed": "changed", "edit": "edit", "words": "words", "flagged": "flagged", **last}
    table = columns("", "drawn", *outcomes.values())
    for p in principles:
        if not any(use and use.drawn for use in (p.a, p.b)):
            continue
        cells = [f"{p.a.drawn if p.a else '–'} / {p.b.drawn if p.b else '–'} "]
        for outcome in outcomes:
            values = [
                starred(_brief(use.means[outcome]), use.against_others.get(outcome)).strip()
                if use and outcome in use.means
                else "–"
                for use in (p.a, p.b)
            ]
            cells.append(" / ".join(values))
        table.add_row(Text(short(p.id)), *cells)
    return table


def _brief(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}"


def _effects(effects: Sequence[tuple[PrincipleComparison, str, Effect]]) -> Table:
    table = columns("", "", "outcome", *EFFECT)
    for p, outcome, effect in effects:
        table.add_row(Text(short(p.id)), p.kind, outcome.replace("_", " "), *effect_cells(effect))
    return table


def _wins(wins: Sequence[Wins]) -> Table:
    table = columns("", "share", "less ½", *EFFECT[1:])
    for axis in dict.fromkeys(won.axis for won in wins):
        of_axis = [won for won in wins if won.axis == axis]
        for won in of_axis[:PRINTED_TAGS]:
            everything = f"{axis}, all" if won.directly else "all"
            name = everything if won.tag is None else f"  {short(visible(won.tag))}"
            table.add_row(Text(name), number(won.share), *effect_cells(won.effect))
        if len(of_axis) > PRINTED_TAGS:
            table.add_row(f"  and {len(of_axis) - PRINTED_TAGS} more tags: --json")
    return table


def _labels(pair: PairComparison) -> str:
    found = pair.labels
    assert found is not None
    if found.agreement is None:
        return "the runs labelled no pair in common: their samples differ"
    agreed, apart = found.agreement, found.mean_difference or 0.0
    interval = "" if agreed.low is None or agreed.high is None else f" [{agreed.low:.2f}, {agreed.high:.2f}]"
    kappa = "κ undefined" if agreed.kappa is None else f"κ {agreed.kappa:.2f}{interval}"
    same = f"the same winner in {100 * agreed.observed:.0f} % of {found.pairs} pairs"
    return f"{same}, {kappa}; p differs by {apart:.3f} on average"


def _examples(examples: Sequence[Example], b: str) -> Iterator[RenderableType]:
    shown: dict[str, int] = {}
    for example in examples:
        shown[example.what] = shown.get(example.what, 0) + 1
        if shown[example.what] > PRINTED_EXAMPLES:
            continue
        yield _bold(f"\n{example.prompt_id}, {example.what}: {100 * example.change:.0f} % of words differ")
        drawn = [f" ({', '.join(ids)})" if ids else "" for ids in (example.principles_a, example.principles_b)]
        parts = {"prompt": example.messages[-1]["content"], f"A{drawn[0]}": example.a, f"{b}{drawn[1]}": example.b}
        yield from _texts(parts)


def _texts(parts: dict[str, str]) -> Iterator[RenderableType]:
    for label, text in parts.items():
        yield Text(visible(label), style="cyan")
        yield Padding(Text(visible(text)), (0, 0, 0, 4))


def _curves(curves: Sequence[Curve], letters: Sequence[str]) -> Iterator[RenderableType]:
    """The runs' curves of one kind of stage under each other, drawn to one scale."""
    kinds = by_kind(curves)
    if not kinds:
        return
    yield _bold("\nTraining, update by update")
    table = Table(box=None, padding=(0, 0, 0, 2), show_header=False)
    for (stage, name), group in kinds.items():
        low, high = min(min(c.values) for c in group), max(max(c.values) for c in group)
        for position, curve in enumerate(group):
            scale = f"{number(low)} to {number(high)}" if position == 0 else ""
            ends = f"{number(curve.values[0])} → {number(curve.values[-1])}, {len(curve.values)} updates"
            title = f"{stage} {name}" if position == 0 else ""
            table.add_row(Text(visible(title)), letters[curve.run], _spark(curve.values, low, high), ends, scale)
    yield table


def _spark(values: Sequence[float], low: float, high: float, width: int = 30) -> str:
    """A curve in so many characters, each the mean of its share of the values."""
    count = min(width, len(values))
    bins = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    heights = [(sum(b) / len(b) - low) / (high - low) if high > low else 0.5 for b in bins]
    return "".join(SPARKS[min(len(SPARKS) - 1, int(h * len(SPARKS)))] for h in heights)


def _doubts(doubts: Sequence[Doubt], letters: Sequence[str]) -> Iterator[RenderableType]:
    """The pair of each run whose verdict depends most on the order, unless it is another run's too."""
    runs, pairs = set[int](), set[tuple[str, ...]]()
    for doubt in doubts:  # of each run the widest first
        pair = (doubt.prompt_id, *sorted((doubt.first, doubt.second)))
        if doubt.run in runs or pair in pairs:
            continue
        runs.add(doubt.run)
        pairs.add(pair)
        yield _bold(f"\n{letters[doubt.run]}: {doubt.prompt_id}, {doubt.what}: the judge's winner depends on the order")
        sides = f"{doubt.p_forward:.3f} shown first and {doubt.p_reverse:.3f} shown second"
        yield Text(visible(f"  by {doubt.principle_id}, P(first is better) is {sides}"))
        yield from _texts({"first": doubt.first, "second": doubt.second})
