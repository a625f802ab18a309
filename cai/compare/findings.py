"""A comparison in plain words: what is significant, and what is noise at this sample size."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from cai.compare.paired import judged_together, outdated, same_eval_judge
from cai.compare.reading import RunData
from cai.compare.record import Curve, PairComparison, PrincipleUse, RunComparison, Wins
from cai.stats.significance import Effect
from cai.stats.win_rate import FEW_PROMPTS, FOLLOWS_POSITION

LINES = 10
SPOKEN = {
    "changed": "how often it changes the answer",
    "edit": "how much it changes the answer",
    "words": "the words it adds",
    "flagged": "flagged revisions",
    "truncated": "revisions cut off",
    "verdict": "P(revision better)",
}
"""A principle's outcomes in a sentence."""


def findings(c: RunComparison) -> list[str]:
    """At most LINES lines; only what Holm's correction leaves standing is called significant."""
    significant = [line for pair in c.pairs for line in _significant(c, pair)]
    undecided = [line for pair in c.pairs for line in _undecided(c, pair)]
    if not any(pair.shared for pair in c.pairs):
        undecided = ["no prompt is shared: what differs between the runs may be their prompts", *undecided]
    room = max(LINES - len(undecided), LINES // 2)
    if len(significant) > room:
        kept = room - 1
        significant = [
            *significant[:kept],
            f"{len(significant) - kept} more differences are significant; see the tables",
        ]
    return ([*significant, *undecided] or ["nothing could be paired, so that nothing can be said"])[:LINES]


def _significant(c: RunComparison, pair: PairComparison) -> Iterator[str]:
    """Between the runs first, then of principles; of each the surest first."""
    b = c.runs[pair.b].letter
    for figure in sorted(pair.figures, key=lambda f: _surprise(f.effect)):
        if figure.effect.significant:
            yield f"{figure.name}: A {number(figure.a)}, {b} {number(figure.b)}; significant: {told(figure.effect)}"
    for wins in pair.wins:
        if wins.effect.significant:
            yield f"{_won(b, wins)}; significant: {told(wins.effect)} off ½"
    changes = [(p, outcome, e) for p in pair.principles for outcome, e in p.effects.items() if e.significant]
    for p, outcome, effect in sorted(changes, key=lambda found: _surprise(found[2])):
        yield f"{p.id} ({p.kind}), {SPOKEN[outcome]}: significant, {b} − A = {told(effect)}"
    if pair is c.pairs[0]:
        yield from _beside_others("A", {p.id: p.a for p in pair.principles})
    yield from _beside_others(b, {p.id: p.b for p in pair.principles})


def _beside_others(letter: str, uses: dict[str, PrincipleUse | None]) -> Iterator[str]:
    """What tells a principle from the others of its run."""
    found = [(i, o, e) for i, use in uses.items() if use for o, e in use.against_others.items() if e.significant]
    for i, outcome, effect in sorted(found, key=lambda item: _surprise(item[2])):
        yield f"{i} beside the other principles of {letter}, {SPOKEN[outcome]}: significant, {told(effect)}"


def _undecided(c: RunComparison, pair: PairComparison) -> Iterator[str]:
    """What is not significant, with the minimum detectable difference of the nearest."""
    b = c.runs[pair.b].letter
    head = f"{b} and A: " if len(c.pairs) > 1 else ""
    equal = [f for f in pair.figures if f.effect.mean == 0 and not f.effect.se]
    undecided = [f for f in pair.figures if not f.effect.significant and f not in equal]
    if undecided:
        same = f"{len(equal)} are equal in both, " if equal else ""
        line = f"{head}of {len(pair.figures)} figures {same}{len(undecided)} are not significant"
        detectable = [f for f in undecided if f.effect.minimum_detectable]
        nearest = max(detectable, key=lambda f: detected_share(f.effect), default=None)
        if nearest:
            line += f"; nearest: {nearest.name} ({number(nearest.effect.mean, '+')}, {_detectable(nearest.effect)})"
        yield line
    elif pair.figures and len(equal) == len(pair.figures):
        yield f"{head}all {len(equal)} figures are equal in both"
    for overall in (w for w in pair.wins if w.tag is None and not w.effect.significant):
        yield f"{_won(b, overall)}: {noise(overall.effect)}"
    effects = [(p, outcome, e) for p in pair.principles for outcome, e in p.effects.items()]
    if effects and not any(e.significant for _, _, e in effects):
        line = f"{head}no effect of a principle between the runs is significant"
        detectable_of = [found for found in effects if found[2].minimum_detectable]
        nearest_of = max(detectable_of, key=lambda found: detected_share(found[2]), default=None)
        if nearest_of:
            p, outcome, effect = nearest_of
            which = "prompts in all, with controls" if p.controls else "prompts that meet it"
            line += f"; nearest: {p.id}, {SPOKEN[outcome]} ({_detectable(effect)} on {effect.n} {which})"
        yield line
    if pair.labels and pair.labels.agreement:
        agreed = pair.labels.agreement
        chance = "" if agreed.kappa is None else f", κ {agreed.kappa:.2f}"
        yield f"{head}labels of the same {pair.labels.pairs} pairs agree in {100 * agreed.observed:.0f} %{chance}"


def _won(b: str, wins: Wins) -> str:
    on = "prompts seen together" if wins.directly else "held-out prompts"
    axis = f" ({wins.axis})" if wins.directly else ""
    tagged = f" tagged {wins.tag}" if wins.tag else ""
    return f"{b} wins {wins.share:.3f} of {wins.effect.n} {on}{tagged} against A{axis}"


def noise(effect: Effect) -> str:
    """That an effect is not significant, with the minimum detectable difference."""
    if effect.mean == 0 and not effect.se:
        return "a tie on every one"
    return "not significant" + (f" ({_detectable(effect)})" if effect.minimum_detectable else "")


def _detectable(effect: Effect) -> str:
    return f"minimum detectable difference {number(effect.minimum_detectable or 0.0)}"


def detected_share(effect: Effect) -> float:
    """The size of an effect as a share of the minimum detectable difference; 0 where there is none."""
    return abs(effect.mean) / effect.minimum_detectable if effect.minimum_detectable else 0.0


def told(effect: Effect) -> str:
    """An effect with its interval and size: `+0.312 [+0.125, +0.562], n=16`."""
    known = effect.low is not None and effect.high is not None
    interval = f" [{number(effect.low or 0.0, '+')}, {number(effect.high or 0.0, '+')}]" if known else ""
    return f"{number(effect.mean, '+')}{interval}, n={effect.n}"


def number(value: float, sign: str = "") -> str:
    """A number in at most six characters, if it is below a thousand."""
    return f"{value:{sign}.1f}" if abs(value) >= 10 else f"{value:{sign}.3f}"


def _surprise(effect: Effect) -> tuple[float, float]:
    """Sorts the surest effect first."""
    return effect.adjusted or 0.0, -abs(effect.mean / effect.se) if effect.se else 0.0


# What is missing from a comparison, and what must not be read into its figures.


def notes_on_run(run: RunData, curves: Sequence[Curve]) -> Iterator[str]:
    """Of one run alone."""
    name, finished = run.name, run.folder.summary_json.exists()
    if not finished:
        yield f"{name} is unfinished: only what it has made so far is compared"
    yield from (f"{name}, left aside (damaged, or of another version): {told}" for told in run.unreadable)
    yet = "" if finished else " yet"
    if run.rows["prompts"] is None and not _told(run, "prompts"):
        yield f"{name} has no prompts.jsonl: nothing of it can be paired"
    if run.revised is None and not _told(run, "revisions"):
        yield f"{name} has no revisions{yet}"
    elif run.revised == {}:
        yield f"{name} makes no revisions"
    if run.labels is None and not _told(run, "preferences"):
        yield f"{name} has no labels{yet}"
    elif run.labels and not run.labels.pairs:
        yield f"{name} has no pairs labelled by a judge"
    if run.revised and run.labels and not run.labels.revisions and not run.setting("judge", "revisions"):
        yield f"{name}: the judge was not asked about its revisions (`judge.revisions`)"
    if run.answered is None and not _told(run, "evaluation"):
        yield (
            f"{name} trains nothing: no policy to evaluate"
            if run.setting("train") == []
            else f"{name} has no evaluation{yet}"
        )
    followed = [row.position_bias for row in (run.answered or {}).values() if row.position_bias is not None]
    if followed and fmean(followed) >= FOLLOWS_POSITION:
        yield f"{name}: {100 * fmean(followed):.0f} % of verdicts follow the position; its win rate says little"
    for curve in curves:
        if curve.missing:
            of = f"{curve.missing} of {curve.missing + len(curve.values)} updates of {curve.stage}"
            yield f"{name}: {of} have no finite {curve.name}; they are left out of its curve"


def _told(run: RunData, file: str) -> bool:
    """Whether a file is there and could not be read, which `unreadable` says."""
    return (run.folder.path / f"{file}.jsonl").exists()


def notes_on_pair(a: RunData, b: RunData, shared: Sequence[str]) -> Iterator[str]:
    """Of two runs beside each other."""
    both = f"{a.name} and {b.name}"
    reused = len(a.prompts.keys() & b.prompts.keys()) - len(shared)
    if reused:
        yield f"{both} use {reused} ids for different prompts; these are not paired"
    if not shared:
        yield f"{both} share no prompts: nothing can be paired"
    if a.answered and b.answered:
        evaluated = [i for i in shared if i in a.answered and i in b.answered]
        if not evaluated:
            yield f"{both}: no held-out prompt was evaluated in both: the trained policies cannot be compared"
        elif len(evaluated) < FEW_PROMPTS:
            yield f"{both}: only {len(evaluated)} held-out prompts were evaluated in both: expect wide intervals"
        if evaluated and not same_eval_judge(a, b):
            yield f"{both} were not evaluated by the same eval judge: their win rates do not compare"
        elif other := sum(a.answered[i].before != b.answered[i].before for i in evaluated):
            yield f"{both}: {other} held-out prompts had another answer before training; their wins do not compare"
    for run in (a, b):
        if judged_together(run, a, b) and outdated(run, a, b):
            yield f"{both}: a policy was trained anew since `cai eval {run.name}`, which is left aside; evaluate again"
    critiques = [run.setting("revise", "critique") for run in (a, b)]
    if False in critiques and critiques[0] != critiques[1]:
        yield f"{both}: one makes no critiques, so that its revisions cannot be flagged as copies of one"
    for what in ("config", "model", "judge_models", "templates", "eval_constitution"):
        if what not in a.manifest or what not in b.manifest:
            yield f"{(a if what not in a.manifest else b).name} does not say which {what.replace('_', ' ')} it used"
        elif what != "config" and a.manifest[what] != b.manifest[what]:
            yield f"{both} differ in their {what.replace('_', ' ')} too"
