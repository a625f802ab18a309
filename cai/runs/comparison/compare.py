"""`cai compare`: runs beside the first of them, on the prompts they share."""

from collections.abc import Sequence

from cai.errors import CaiError
from cai.evaluation.effects import corrected
from cai.runs.comparison import answers
from cai.runs.comparison.curves import curves
from cai.runs.comparison.figures import figures, unpaired_figures
from cai.runs.comparison.findings import findings
from cai.runs.comparison.notes import notes_on_pair, notes_on_run
from cai.runs.comparison.principles import compare_principles
from cai.runs.comparison.reading import RunData, read_run
from cai.runs.comparison.record import Curve, PairComparison, RunComparison, RunPart
from cai.runs.folder import RunFolder, differences

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compare_runs(folders: Sequence[RunFolder], examples: int = 5) -> RunComparison:
    """The first run against each of the others, from the folders alone; what a run lacks is said in `notes`.

    Holm's correction is over the figures of all pairs together, and over each table of principles and of wins.
    Raises: CaiError for fewer than two runs, or more than there are letters.
    """
    if not 2 <= len(folders) <= len(LETTERS):
        raise CaiError(f"expected 2 to {len(LETTERS)} runs to compare, found {len(folders)}")
    runs = [read_run(folder, number) for number, folder in enumerate(folders)]
    drawn: list[Curve] = []
    notes: list[str] = []
    for number, run in enumerate(runs):
        own, unreadable = curves(run.folder, number)
        run.unreadable.extend(unreadable)
        notes += notes_on_run(run, own)
        drawn += own
    pairs = []
    for number, other in enumerate(runs[1:], start=1):
        shared = _shared(runs[0], other)
        notes += notes_on_pair(runs[0], other, shared)
        pairs.append(_pair(runs[0], other, number, shared, examples))
    comparison = RunComparison(
        runs=[_part(number, run) for number, run in enumerate(runs)],
        pairs=_corrected(pairs),
        curves=drawn,
        doubts=[doubt for run in runs for doubt in run.doubts],
        notes=list(dict.fromkeys(notes)),
        findings=[],
    )
    return comparison.model_copy(update={"findings": findings(comparison)})


def _shared(a: RunData, b: RunData) -> list[str]:
    """The ids of prompts that are the same in both, in A's order."""
    return [i for i, prompt in a.prompts.items() if i in b.prompts and b.prompts[i].messages == prompt.messages]


def _pair(a: RunData, b: RunData, number: int, shared: Sequence[str], examples: int) -> PairComparison:
    return PairComparison(
        b=number,
        settings=differences(a.lock["config"], b.lock["config"]) if "config" in a.lock and "config" in b.lock else None,
        shared=len(shared),
        only=(len(a.prompts) - len(shared), len(b.prompts) - len(shared)),
        figures=figures(a, b, shared, answers.same_referee(a, b)),
        unpaired=[] if shared else unpaired_figures(a, b, answers.same_referee(a, b)),
        principles=compare_principles(a, b, shared),
        wins=answers.wins(a, b, shared),
        labels=answers.label_agreement(a.labels, b.labels, shared) if shared else None,
        examples=answers.examples(a, b, shared, examples),
    )


def _corrected(pairs: Sequence[PairComparison]) -> list[PairComparison]:
    """The pairs with the figures of all of them corrected together."""
    effects = corrected({(pair.b, f.name): f.effect for pair in pairs for f in pair.figures})
    return [
        pair.model_copy(
            update={
                "figures": [f.model_copy(update={"effect": effects[pair.b, f.name]}) for f in pair.figures],
            }
        )
        for pair in pairs
    ]


def _part(number: int, run: RunData) -> RunPart:
    return RunPart(
        letter=LETTERS[number],
        name=run.name,
        finished=run.folder.summary_json.exists(),
        constitution=run.constitution.name if run.constitution else "",
        principles=len(run.constitution.principles) if run.constitution else 0,
        prompts=len(run.prompts),
        rows=run.rows,
        left_out=run.left_out,
    )
