"""The tables and texts that `cai compare` prints."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from cai.cli.console import (
    EFFECT,
    Grid,
    by_p,
    effect_cells,
    footnotes,
    heading,
    listed,
    short,
    starred,
    without_interval,
)
from cai.compare.compare import by_kind
from cai.compare.head_to_head import win_heading
from cai.compare.labels import PAIR_NAMES, label_flips_text
from cai.compare.record import (
    OUTCOME_NAMES,
    Curve,
    Example,
    HeadToHead,
    LabelAgreement,
    LabelFlips,
    MetricDifference,
    PairComparison,
    PlannedMetric,
    PositionFlip,
    PrincipleComparison,
    RevisionHeadToHead,
    RunComparison,
    UnpairedMetric,
)
from cai.compare.revisions import (
    revision_notes,
    revision_row,
)
from cai.config.characters import visible
from cai.feedback.metrics import RUN_METRICS
from cai.feedback.pairs import LABEL_MASS, label_mass_text
from cai.stats.formatting import NONE, counted, number, percent, prompt_counts
from cai.stats.significance import Effect

PRINTED_EXAMPLES = 2  # of each kind; the page has more
PRINTED_EFFECTS = 8
PRINTED_TAGS = 8
SPARKS = "▁▂▃▄▅▆▇█"


def comparison_parts(c: RunComparison) -> Iterator[RenderableType | Grid]:
    """What is printed of a comparison, in order."""
    letters = [run.letter for run in c.runs]
    for run in c.runs:
        counts = f"{counted(run.principles, 'principles')}, {prompt_counts(run.prompts, run.held_out)}"
        yield Text(visible(f"{run.letter}: {run.name}   ({run.constitution or 'no constitution'}, {counts})"), "bold")
        if run.label_mass:
            yield Text(f"   {LABEL_MASS} of its pairs: {label_mass_text(run.label_mass)}")
    yield heading("Findings")
    yield listed("·", c.findings)
    if c.warnings:
        yield heading("Warnings")
        yield listed("!", c.warnings, "yellow")
    for pair in c.pairs:
        yield from _pair(c, pair)
    if c.plan:
        yield heading("Prompts that a difference needs to be found with 80 % power, corrected as here")
        yield _plan(c.plan, letters)
        yield listed(" ", (f"{place}: {note}" for place, note in enumerate(_plan_notes(c.plan), 1)), "dim")
    yield from _curves(c.curves, letters)
    yield from _flips(c.flips, letters)


def _pair(c: RunComparison, pair: PairComparison) -> Iterator[RenderableType | Grid]:
    b = c.runs[pair.b].letter
    only = (
        f"; {prompt_counts(training, held_out)} only in {letter}"
        for letter, training, held_out in zip(("A", b), pair.only, pair.only_held_out, strict=True)
        if training or held_out
    )
    shared = prompt_counts(pair.shared, pair.shared_held_out, "shared prompts")
    yield heading(f"{b} against A: {shared}{''.join(only)}")
    unknown = "the settings are not recorded" if pair.settings is None else "no setting differs"
    yield listed(" ", pair.settings or [unknown])
    kinds: dict[str, list[str]] = {}
    for p in pair.principles:
        if p.kind != "same":
            kinds.setdefault(p.kind, []).append(p.id)
    if kinds:
        yield listed(" ", (f"principles {kind}: {', '.join(ids)}" for kind, ids in kinds.items()))
    of_policies = [m for m in pair.metrics if m.effect.trainings]
    if tested := [m for m in pair.metrics if not m.effect.trainings]:
        yield heading("Metrics on shared prompts, paired")
        yield _metrics(tested, b)
    if of_policies:
        yield heading("Metrics of the trained policies on shared prompts")
        yield _policy_metrics(of_policies, b)
    if pair.metrics:
        yield from footnotes(m.effect for m in tested)  # the other tables have no room for the column
        yield from without_interval(m.effect for m in pair.metrics)
    if pair.unpaired:
        yield heading("Metrics of each run on its own prompts: not paired, not tested")
        yield _unpaired(pair.unpaired, b)
    yield from _principles(pair, b)
    if pair.revisions:
        yield from _revisions(pair.revisions, b)
    if pair.head_to_head:
        yield heading(win_heading(pair.head_to_head[0], b))
        yield _head_to_head(pair.head_to_head)
        yield from without_interval(row.effect for row in pair.head_to_head)
    if pair.labels:
        yield heading("Labels of the same two answers")
        yield listed(" ", _labels(pair.labels))
    if pair.label_flips:
        yield from _label_flips(pair.label_flips, b)
    yield from _examples(pair.examples, b)


def _plan(metrics: Sequence[PlannedMetric], letters: Sequence[str]) -> Grid:
    several = len({row.b for row in metrics}) > 1
    with_trainings = any(row.trainings is not None for row in metrics)
    notes = _plan_notes(metrics)
    headings = ["", "difference", "n now", "prompts", *(["trainings"] if with_trainings else [])]
    grid = Grid([*headings, *(["note"] if notes else [])], broken=0)
    for row in metrics:
        name = f"{row.name}, {letters[row.b]}" if several else row.name
        prompts = NONE if row.prompts is None else f"{row.prompts:,}"
        trainings = [] if not with_trainings else ["" if row.trainings is None else str(row.trainings)]
        note = str(notes.index(row.note) + 1) if row.note else ""
        grid.add(name, number(row.difference), str(row.n), prompts, *trainings, *([note] if notes else []))
    return grid


def _plan_notes(metrics: Sequence[PlannedMetric]) -> list[str]:
    """What limits the plans, each note once."""
    return list(dict.fromkeys(row.note for row in metrics if row.note))


def _metrics(metrics: Sequence[MetricDifference], b: str) -> Grid:
    grid = Grid(["", "A", b, f"{b} − A", *EFFECT[1:]], optional=[6])
    for row in metrics:
        metric = RUN_METRICS[row.key]
        grid.add(row.name, metric.text(row.a), metric.text(row.b), *effect_cells(row.effect))
    return grid


def _policy_metrics(metrics: Sequence[MetricDifference], b: str) -> Grid:
    """As `_metrics`, with the trainings that each difference is of."""
    headings = ["", "A", b, f"{b} − A", *EFFECT[1:], ""]
    without = all(row.effect.minimum_detectable is None for row in metrics)
    if without:
        headings.remove(EFFECT[3])
    grid = Grid(headings, optional=[4, 5] if without else [6, 4, 5], last_left=True)
    for row in metrics:
        metric = RUN_METRICS[row.key]
        cells = effect_cells(row.effect)
        grid.add(row.name, metric.text(row.a), metric.text(row.b), *cells[: 3 if without else 4], row.effect.note)
    return grid


def _unpaired(metrics: Sequence[UnpairedMetric], b: str) -> Grid:
    grid = Grid(["", "A", "n", b, "n"])
    for row in metrics:
        metric = RUN_METRICS[row.key]
        grid.add(row.name, metric.text(row.a), str(row.n_a), metric.text(row.b), str(row.n_b))
    return grid


def _principles(pair: PairComparison, b: str) -> Iterator[RenderableType | Grid]:
    """Each principle's outcomes in both runs, then the effects of changing it."""
    if any(p.a or p.b for p in pair.principles):
        yield heading(f"Principles, over the rounds of revision that sampled them: A / {b}")
        yield _uses(pair.principles)
        undrawn = sum(not any(use and use.drawn for use in (p.a, p.b)) for p in pair.principles)
        uses = [use for p in pair.principles for use in (p.a, p.b) if use]
        notes = []
        if any(effect.significant for use in uses for effect in use.against_others.values()):
            notes.append("* significant against the run's other principles")
        if undrawn:
            notes.append(f"{counted(undrawn, 'principles')} not sampled by any shared prompt")
        if notes:
            yield Text(f"  {'; '.join(notes)}", style="dim")
    effects = [(p, outcome, effect) for p in pair.principles for outcome, effect in p.effects.items()]
    known = sorted((item for item in effects if item[2].low is not None), key=lambda item: by_p(item[2]))
    few = f"{counted(len(effects) - len(known), 'effects')} on too few or equal prompts"
    if known:
        hidden = f"; {few}" if len(known) < len(effects) else ""
        shown = f"the {min(PRINTED_EFFECTS, len(known))} smallest p values of {len(effects)}"
        yield heading(f"Effects of principles, {b} − A: {shown}{hidden}")
        yield _effects(known[:PRINTED_EFFECTS])
    elif effects:
        yield heading(f"Effects of principles, {b} − A: none to show, {few}")


def _uses(principles: Sequence[PrincipleComparison]) -> Grid:
    outcomes = [key for key in OUTCOME_NAMES if any(u and key in u.means for p in principles for u in (p.a, p.b))]
    by_importance = [key for key in ("truncated", "filtered", "verdict", "changed") if key in outcomes]
    optional = [2 + outcomes.index(key) for key in by_importance]
    grid = Grid(["", "sampled", *(OUTCOME_NAMES[key] for key in outcomes)], optional)
    for p in principles:
        if not any(use and use.drawn for use in (p.a, p.b)):
            continue
        cells = [f"{p.a.drawn if p.a else NONE} / {p.b.drawn if p.b else NONE}"]
        for outcome in outcomes:
            values = [
                starred(_brief(use.means[outcome]), use.against_others.get(outcome)).strip()
                if use and outcome in use.means
                else NONE
                for use in (p.a, p.b)
            ]
            cells.append(" / ".join(values))
        grid.add(short(p.id), *cells)
    return grid


def _brief(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2f}"


def _effects(effects: Sequence[tuple[PrincipleComparison, str, Effect]]) -> Grid:
    grid = Grid(["", "change", "outcome", *EFFECT], optional=[6, 1], left=3)
    for p, outcome, effect in effects:
        grid.add(short(p.id), p.kind, OUTCOME_NAMES[outcome], *effect_cells(effect))
    return grid


def _revisions(met: RevisionHeadToHead, b: str) -> Iterator[RenderableType | Grid]:
    """Whose revisions one judge prefers by each constitution."""
    yield heading(f"Revisions of A and {b} head to head, by {met.judge}: P(better than the other's)")
    grid = Grid(["principles of", "A", b, "win rate", f"{b} − ½", *EFFECT[1:]], optional=[7, 3])
    for row in met.preferences:
        grid.add(short(visible(revision_row(row))), number(row.a), number(row.b), number(row.win_rate),
                 *effect_cells(row.effect))  # fmt: skip
    if met.preferences:
        yield grid
        yield from without_interval(row.effect for row in met.preferences)
    yield listed(" ", revision_notes(met), "dim")


def _head_to_head(rows: Sequence[HeadToHead]) -> Grid:
    grid = Grid(
        ["", "win rate" if rows[0].directly else "share", "less ½", *EFFECT[1:], ""], optional=[5, 3, 4], last_left=True
    )
    for axis in dict.fromkeys(row.axis for row in rows):
        of_axis = [row for row in rows if row.axis == axis]
        most = max(row.effect.n for row in of_axis)
        of_axis = [row for row in of_axis if row.tag is None or row.effect.n < most]
        for row in of_axis[:PRINTED_TAGS]:
            everything = f"{axis}, all" if row.directly else "all"
            name = everything if row.tag is None else f"  {short(visible(row.tag))}"
            grid.add(name, number(row.win_rate), *effect_cells(row.effect), row.effect.note)
        if len(of_axis) > PRINTED_TAGS:
            grid.add(f"  and {counted(len(of_axis) - PRINTED_TAGS, 'more tags')}: --json")
    return grid


def _labels(labels: LabelAgreement) -> list[str]:
    if labels.agreement is None:
        return ["the runs labelled no pair in common: their samples differ"]
    agreement = labels.agreement
    interval = "" if agreement.low is None else f" [{number(agreement.low, 2)}, {number(agreement.high, 2)}]"
    kappa = "κ undefined" if agreement.kappa is None else f"κ {number(agreement.kappa, 2)}{interval}"
    same = f"the same winner in {percent(agreement.observed)} of {counted(labels.pairs, 'pairs')}"
    return [f"{same}, {kappa}", f"mean absolute difference of p {number(labels.mean_difference)}"]


def _label_flips(found: LabelFlips, b: str) -> Iterator[RenderableType]:
    """How many labels flip, and the pairs whose labels lie furthest apart."""
    yield heading(f"Labels that flip: A and {b} prefer different answers")
    yield listed(" ", [label_flips_text(found)])
    for flip in found.widest[:PRINTED_EXAMPLES]:
        sides = f"A {number(flip.p_a)}, {b} {number(flip.p_b)}"
        yield heading(f"{flip.prompt_id}, {PAIR_NAMES[flip.source].lower()}: P(answer 1 better): {sides}")
        yield from _texts(
            {"prompt": flip.messages[-1]["content"], "answer 1": flip.preferred_a, "answer 2": flip.preferred_b}
        )


def _examples(examples: Sequence[Example], b: str) -> Iterator[RenderableType]:
    shown: dict[str, int] = {}
    for example in examples:
        shown[example.what] = shown.get(example.what, 0) + 1
        if shown[example.what] > PRINTED_EXAMPLES:
            continue
        yield heading(f"{example.prompt_id}, {example.what}: {percent(example.change)} of words differ")
        drawn = [f" ({', '.join(ids)})" if ids else "" for ids in (example.principles_a, example.principles_b)]
        parts = {"prompt": example.messages[-1]["content"], f"A{drawn[0]}": example.a, f"{b}{drawn[1]}": example.b}
        yield from _texts(parts)


def _texts(parts: dict[str, str]) -> Iterator[RenderableType]:
    for label, text in parts.items():
        yield Text(visible(label), style="cyan")
        yield Padding(Text(visible(text)), (0, 0, 0, 4))


def _curves(curves: Sequence[Curve], letters: Sequence[str]) -> Iterator[RenderableType | Grid]:
    """The runs' curves of one kind of stage under each other, on one scale."""
    kinds = by_kind(curves)
    if not kinds:
        return
    yield heading("Training curves, by update")
    grid = Grid(["", "run", "", "first → last", "updates", "range"], optional=[5, 4], left=3)
    for (stage, name), group in kinds.items():
        low, high = min(min(c.values) for c in group), max(max(c.values) for c in group)
        for position, curve in enumerate(group):
            scale = f"{number(low)} to {number(high)}" if any(len(c.values) > 1 for c in group) else ""
            title, scale = (f"{stage} {name}", scale) if position == 0 else ("", "")
            first, *rest = map(number, curve.values)  # of one update a value, and no curve
            ends, spark = (f"{first} → {rest[-1]}", _spark(curve.values, low, high)) if rest else (first, "")
            grid.add(short(title), letters[curve.run], spark, ends, str(len(curve.values)), scale)
    yield grid


def _spark(values: Sequence[float], low: float, high: float, width: int = 20) -> str:
    """A curve in so many characters, each the mean of its share of the values."""
    count = min(width, len(values))
    bins = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    heights = [(sum(b) / len(b) - low) / (high - low) if high > low else 0.5 for b in bins]
    return "".join(SPARKS[min(len(SPARKS) - 1, int(h * len(SPARKS)))] for h in heights)


def _flips(flips: Sequence[PositionFlip], letters: Sequence[str]) -> Iterator[RenderableType]:
    """The pair of each run whose verdict depends most on the order, unless it is another run's too."""
    runs, pairs = set[int](), set[tuple[str, ...]]()
    for flip in flips:  # of each run the widest first
        pair = (flip.prompt_id, *sorted((flip.first, flip.second)))
        if flip.run in runs or pair in pairs:
            continue
        runs.add(flip.run)
        pairs.add(pair)
        yield heading(f"{letters[flip.run]}: {flip.prompt_id}, {flip.what}: position bias at its widest")
        sides = f"{number(flip.p_forward)} when shown first, {number(flip.p_reverse)} when shown second"
        yield Text(visible(f"  {flip.principle_id}: P(answer 1 better): {sides}"))
        yield from _texts({"answer 1": flip.first, "answer 2": flip.second})
