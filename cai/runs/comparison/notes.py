"""What is missing from a comparison, and what must not be read into its figures."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from cai.evaluation.win_rate import FEW_PROMPTS, FOLLOWS_POSITION
from cai.runs.comparison.answers import judged_together, outdated, same_referee
from cai.runs.comparison.reading import RunData
from cai.runs.comparison.record import Curve


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
    followed = [row.same_position for row in (run.answered or {}).values() if row.same_position is not None]
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
        if evaluated and not same_referee(a, b):
            yield f"{both} were not evaluated by the same referee: their win rates do not compare"
        elif other := sum(a.answered[i].before != b.answered[i].before for i in evaluated):
            yield f"{both}: {other} held-out prompts had another answer before training; their wins do not compare"
    for run in (a, b):
        if judged_together(run, a, b) and outdated(run, a, b):
            yield f"{both}: a policy was trained anew since `cai eval {run.name}`, which is left aside; evaluate again"
    critiques = [run.setting("revise", "critique") for run in (a, b)]
    if False in critiques and critiques[0] != critiques[1]:
        yield f"{both}: one makes no critiques, so that its revisions cannot be flagged as copies of one"
    for what in ("config", "model", "judge_models", "templates", "referee"):
        if what not in a.lock or what not in b.lock:
            yield f"{(a if what not in a.lock else b).name} does not say which {what.replace('_', ' ')} it used"
        elif what != "config" and a.lock[what] != b.lock[what]:
            yield f"{both} differ in their {what.replace('_', ' ')} too"
