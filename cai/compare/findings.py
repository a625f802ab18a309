"""A comparison in sentences: what is significant, what is not at this sample size, and what limits the comparison."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from cai.compare.head_to_head import judged_together, outdated, same_eval_judge
from cai.compare.reading import RunData
from cai.compare.record import (
    OUTCOME_NAMES,
    Curve,
    HeadToHead,
    PairComparison,
    PrincipleUse,
    RevisionPreference,
    RunComparison,
)
from cai.feedback.metrics import HELPFUL_WIN_RATE, RUN_METRICS
from cai.stats.formatting import UNDETECTABLE, counted, difference, mean_difference, number, percent
from cai.stats.significance import ALPHA, Effect, counts
from cai.stats.trainings import PROMPTS_ONLY
from cai.stats.win_rate import FEW_PROMPTS

UNTESTABLE = "too few prompts, or equal ones"
LINES = 10


def findings(c: RunComparison) -> list[str]:
    """At most LINES lines; only what remains after Holm's correction is called significant."""
    significant = [line for pair in c.pairs for line in _significant(c, pair)]
    not_significant = [line for pair in c.pairs for line in _not_significant(c, pair)]
    if c.family:
        not_significant.insert(0, family_line(c))
    if not any(pair.shared or pair.shared_held_out for pair in c.pairs):
        not_significant = ["the runs share no prompts, so their prompts may explain any difference", *not_significant]
    room = max(LINES - len(not_significant), LINES // 2)
    if len(significant) > room:
        kept = room - 1
        significant = [*significant[:kept], f"{len(significant) - kept} more significant differences are in the tables"]
    return [*_pairs(c), *([*significant, *not_significant] or ["no prompt could be paired"])][:LINES]


def _pairs(c: RunComparison) -> Iterator[str]:
    """Of three runs or more, which are compared and which are not."""
    others = [run.letter for run in c.runs[1:]]
    if len(others) > 1:
        listed = f"{', '.join(others[:-1])} and {others[-1]}"
        yield f"{listed} are each compared with A ({c.runs[0].name}), and not with each other (--baseline: another A)"


def _significant(c: RunComparison, pair: PairComparison) -> Iterator[str]:
    """Between the runs first, then of principles; the most significant first."""
    b = c.runs[pair.b].letter
    for metric in sorted(pair.metrics, key=lambda m: _rank(m.effect)):
        if metric.effect.significant:
            values = f"A {number(metric.a)}, {b} {number(metric.b)}"
            yield f"{metric.name}: {values}; significant, {b} − A = {difference(metric.effect)}"
    for preference in pair.revisions.preferences if pair.revisions else ():
        if preference.effect.significant:
            winner, loser = (b, "A") if preference.effect.mean > 0 else ("A", b)
            line = f"{winner}'s revisions beat {loser}'s, {_preference(b, preference)}"
            yield f"{line}; significant, {difference(preference.effect)} from ½"
    for row in pair.head_to_head:
        if row.effect.significant:
            yield f"{_head_to_head(b, row)}; significant, {difference(row.effect)} from ½"
    effects = [(p, outcome, e) for p in pair.principles for outcome, e in p.effects.items() if e.significant]
    for p, outcome, effect in sorted(effects, key=lambda item: _rank(item[2])):
        yield f"{p.id} ({p.kind}), {OUTCOME_NAMES[outcome]}: significant, {b} − A = {difference(effect)}"
    if pair is c.pairs[0]:
        yield from _against_others("A", {p.id: p.a for p in pair.principles})
    yield from _against_others(b, {p.id: p.b for p in pair.principles})


def _against_others(letter: str, uses: dict[str, PrincipleUse | None]) -> Iterator[str]:
    """What distinguishes a principle from the others of its run."""
    effects = [(i, o, e) for i, use in uses.items() if use for o, e in use.against_others.items() if e.significant]
    for i, outcome, effect in sorted(effects, key=lambda item: _rank(item[2])):
        yield f"{i} in {letter}, {OUTCOME_NAMES[outcome]}: significant against the others, {difference(effect)}"


def _not_significant(c: RunComparison, pair: PairComparison) -> Iterator[str]:
    """What is not significant, with the minimum detectable difference of the nearest."""
    b = c.runs[pair.b].letter
    head = f"{b} and A: " if len(c.pairs) > 1 else ""
    equal = [m for m in pair.metrics if m.effect.mean == 0 and not m.effect.se]
    untested = [m for m in pair.metrics if m.effect.note == PROMPTS_ONLY and m not in equal]
    left = [m for m in pair.metrics if m not in (*equal, *untested)]
    few = [m for m in left if m.effect.p is None or m.effect.least_p > ALPHA]
    differ = [m for m in left if not m.effect.significant and m not in few]
    if equal:
        which = f"all {len(equal)}" if len(equal) == len(pair.metrics) else f"{len(equal)} of {len(pair.metrics)}"
        yield f"{head}{which} metrics {'is' if len(equal) == 1 else 'are'} equal in both runs"
    if few:
        do = "differs" if len(few) == 1 else "differ"
        which = f"{len(few)} of {len(pair.metrics)} metrics"
        yield f"{head}{which} {do} on fewer than six prompts, too few to be significant"
    if differ:
        do = "does" if len(differ) == 1 else "do"
        line = f"{head}{len(differ)} of {len(pair.metrics)} metrics {do} not differ significantly"
        detectable = [m for m in differ if m.effect.minimum_detectable]
        nearest = max(detectable, key=lambda m: detected_share(m.effect), default=None)
        if nearest:
            change = f"{nearest.name} {mean_difference(nearest.effect)}"
            line += f"; closest to significance: {change}, {_detectable(nearest.effect)}"
        elif any(m.effect.undetectable for m in differ):
            line += f"; {UNDETECTABLE}"
        yield line
    if untested:
        widest = max(untested, key=lambda m: abs(m.effect.mean / m.effect.se) if m.effect.se else 0.0)
        metrics = f"{counted(len(untested), 'metrics')} of the trained policies"
        line = f"{head}{metrics} not tested, such as {widest.name} {difference(widest.effect)}"
        yield f"{line}; `seeds: 3` in both runs makes a test possible"
    for overall in (row for row in pair.head_to_head if row.tag is None and not row.effect.significant):
        yield f"{_head_to_head(b, overall)}; {insignificance(overall.effect)}"
    for preference in pair.revisions.preferences if pair.revisions else ():
        if not preference.effect.significant:
            line = f"{b}'s revisions against A's, {_preference(b, preference)}"
            yield f"{line}; {insignificance(preference.effect)}"
    yield from _no_principle_effect(head, pair)
    if pair.labels and pair.labels.agreement:
        agreement = pair.labels.agreement
        kappa = "" if agreement.kappa is None else f", κ {number(agreement.kappa, 2)}"
        same = f"the same winner in {percent(agreement.observed)} of {counted(pair.labels.pairs, 'shared pairs')}"
        yield f"{head}the judges label {same}{kappa}"


def _no_principle_effect(head: str, pair: PairComparison) -> Iterator[str]:
    effects = [(p, outcome, e) for p in pair.principles for outcome, e in p.effects.items()]
    if not effects or any(effect.significant for *_, effect in effects):
        return
    if not any(counts(effect) for *_, effect in effects):
        yield f"{head}no effect of a principle can be tested: {UNTESTABLE}"
        return
    line = f"{head}no effect of a principle is significant"
    detectable = [item for item in effects if item[2].minimum_detectable]
    nearest = max(detectable, key=lambda item: detected_share(item[2]), default=None)
    if nearest:
        p, outcome, effect = nearest
        prompts = f"{effect.n} prompts with controls" if p.controls else f"the {effect.n} prompts that sampled it"
        change = f"{OUTCOME_NAMES[outcome]} {mean_difference(effect)} on {prompts}"
        line += f"; closest to significance: {p.id}, {change}, {_detectable(effect)}"
    elif any(effect.undetectable for *_, effect in effects):
        line += f"; {UNDETECTABLE}"
    yield line


def family_line(c: RunComparison) -> str:
    """What was corrected together: `63 tests, corrected as one family (Holm, 5 %): 10 metrics, 3 win rates …`."""
    tables = ", ".join(
        counted(number, first) + name.removeprefix(first)
        for name, number in c.family.items()
        for first in [name.partition(" of ")[0].partition(" against ")[0]]
    )
    return f"{counted(sum(c.family.values()), 'tests')}, corrected as one family (Holm, 5 %): {tables}"


def _preference(b: str, row: RevisionPreference) -> str:
    """The preference of the judge that `--judge` names, by one constitution."""
    whose = " and ".join("the eval constitution" if by == "eval" else f"{by}'s" for by in row.by)
    return f"one judge by {whose} ({row.constitution}): P({b} better) {number(row.b)} on {row.effect.n} prompts"


def _head_to_head(b: str, row: HeadToHead) -> str:
    tagged = f" tagged {row.tag}" if row.tag else ""
    if not row.directly:  # their answers never met
        prompts = counted(row.effect.n, "held-out prompts")
        if is_tie(row.effect):
            return f"{b} and A gain the same over the answer before training on {prompts}{tagged}"
        gains = f"{b} gains more than A over the answer before training on {percent(row.win_rate)}"
        return f"{gains} of {prompts}{tagged} (ties count one half)"
    prompts = "prompts judged side by side"
    return f"{b} against A, {row.axis}: win rate {number(row.win_rate)} on {row.effect.n} {prompts}{tagged}"


def is_tie(effect: Effect) -> bool:
    """Whether no prompt makes a difference."""
    return effect.mean == 0 and not effect.se


def insignificance(effect: Effect) -> str:
    """That an effect is not significant, with the minimum detectable difference; or why it is not tested."""
    if is_tie(effect):
        return "a tie on every prompt"
    if effect.note == PROMPTS_ONLY:
        return f"not tested ({PROMPTS_ONLY})"
    if effect.undetectable:
        return f"not significant, and {UNDETECTABLE}"
    return "not significant" + (f", {_detectable(effect)}" if effect.minimum_detectable else "")


def _detectable(effect: Effect) -> str:
    return f"min. detectable {number(effect.minimum_detectable)}"


def detected_share(effect: Effect) -> float:
    """The size of an effect as a share of the minimum detectable difference; 0 where there is none."""
    return abs(effect.mean) / effect.minimum_detectable if effect.minimum_detectable else 0.0


def _rank(effect: Effect) -> tuple[float, float]:
    """Sorts the most significant effect first."""
    return effect.adjusted or 0.0, -abs(effect.mean / effect.se) if effect.se else 0.0


def run_warnings(run: RunData, curves: Sequence[Curve]) -> Iterator[str]:
    """What one run lacks."""
    name, finished = run.name, run.folder.summary_json.exists()
    if not finished:
        yield f"{name} is unfinished; only the rows written so far are compared"
    yield from (f"{name}, not compared: {reason}" for reason in run.unreadable)
    yet = "" if finished else " yet"
    if run.rows["prompts"] is None and not _unreadable(run, "prompts"):
        yield f"{name} has no prompts.jsonl, so no prompt can be paired"
    if run.revised is None and not _unreadable(run, "revisions"):
        yield f"{name} has no revisions{yet}"
    elif run.revised == {}:
        yield f"{name} makes no revisions"
    if run.labels is None and not _unreadable(run, "preferences"):
        yield f"{name} has no labels{yet}"
    elif run.labels and not run.labels.mass.pairs["judge"] and run.setting("judge", "samples") != 0:
        yield f"{name} has no samples labelled by its judge"
    if run.revised and run.labels and not run.labels.revisions:
        if run.setting("revise", "label") == "off" and run.labels.mass.pairs["judge"]:  # else nothing is to be labelled
            yield f"{name} has no verdicts on its revisions (`revise.label: judge` asks for them)"
        elif not run.setting("judge", "revisions"):
            yield f"{name} has no verdicts on its revisions (`judge.revisions: true` asks for them)"
    if run.answered is None and not _unreadable(run, "evaluation"):
        trains = run.setting("train") != []
        yield f"{name} has no evaluation{yet}" if trains else f"{name} trains no policy, so none is evaluated"
    for curve in curves:
        if curve.missing:
            updates = f"{curve.missing} of {curve.missing + len(curve.values)} updates of {curve.stage}"
            yield f"{name}: {updates} have no finite {curve.name}; the curve skips them"


def high_metrics(run: RunData) -> Iterator[str]:
    """The metrics of a run that are worth a warning, in one line."""
    means = {key: fmean(by_prompt.values()) for key, by_prompt in run.metrics.items() if by_prompt}
    watched = ((metric, means[key]) for key, metric in RUN_METRICS.items() if key in means)
    high = [f"{metric.name} {metric.text(mean)}" for metric, mean in watched if metric.warns(mean)]
    if high:
        yield f"{run.name}, high: {', '.join(high)}"


def _unreadable(run: RunData, file: str) -> bool:
    """Whether a file is there and could not be read, which `unreadable` says."""
    return (run.folder.path / f"{file}.jsonl").exists()


def pair_warnings(a: RunData, b: RunData, shared: Sequence[str]) -> Iterator[str]:
    """What limits the comparison of two runs."""
    both = f"{a.name} and {b.name}"
    reused = len(a.prompts.keys() & b.prompts.keys()) - len(shared)
    if reused:
        yield f"{both} use {counted(reused, 'ids')} for different prompts, which are not paired"
    if not shared:
        yield f"{both} share no prompts, so nothing is paired"
    if a.answered and b.answered:
        evaluated = [i for i in shared if i in a.answered and i in b.answered]
        if not evaluated:
            yield f"{both} evaluate no held-out prompt in common, so their policies are not compared"
        elif len(evaluated) < FEW_PROMPTS:
            yield f"{both} evaluate only {counted(len(evaluated), 'held-out prompts')} in common: intervals are wide"
        judged = [any(row.judge for row in run.answered.values()) for run in (a, b) if run.answered]
        if not any(judged):
            return
        if not all(judged):
            yield f"{(a if judged[1] else b).name} has no eval judge, so win rates are not compared"
        elif evaluated and not same_eval_judge(a, b):
            yield f"{both} have different eval judges, so their win rates are not compared"
        elif other := sum(a.answered[i].before != b.answered[i].before for i in evaluated):
            prompts = counted(other, "held-out prompts")
            yield f"{both} have different answers before training on {prompts}, which head-to-head leaves out"
        if len(without := [run for run in (a, b) if not run.metrics.get(HELPFUL_WIN_RATE.key)]) == 1:
            yield f"{without[0].name} has no win rates by helpful and safe (`evaluate.axes: true` asks for them)"
    for run in (a, b):
        if judged_together(run, a, b) and outdated(run, a, b):
            yield f"{both}: `cai eval {run.name}` is older than one of the policies and is ignored; run it again"
    labelled = [run.constitution for run in (a, b) if run.constitution and run.labels and run.labels.mass.pairs]
    questions = [{p.id: (p.judge, p.weight, p.applies_to) for p in own.principles} for own in labelled]
    if len(questions) > 1 and questions[0] != questions[1]:
        yield (
            f"{both}: each judge asks by its run's own principles, so labels and P(revision better) compare different "
            "questions (`cai compare --judge` puts one to both)"
        )
    critiques = [run.setting("revise", "critique") for run in (a, b)]
    if False in critiques and critiques[0] != critiques[1]:
        yield f"{both}: one makes no critiques, so copied critiques are not compared"
    for what in ("config", "model", "judge_models", "templates", "eval_constitution"):
        if what not in a.manifest or what not in b.manifest:
            yield f"{(a if what not in a.manifest else b).name} does not record its {what.replace('_', ' ')}"
        elif what != "config" and a.manifest[what] != b.manifest[what]:
            yield f"{both} also differ in {what.replace('_', ' ')}"
