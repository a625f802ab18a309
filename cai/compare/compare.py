"""What training logged: score, KL, length and loss of every stage, update by update."""

import math
from collections.abc import Sequence

from cai.compare import paired
from cai.compare.findings import findings, notes_on_pair, notes_on_run
from cai.compare.paired import compare_principles, figures, unpaired_figures
from cai.compare.reading import RunData, read_run
from cai.compare.record import Curve, PairComparison, RunComparison, RunPart
from cai.config.errors import CaiError
from cai.data.manifest import differences
from cai.runs.folder import RunFolder, stage_order
from cai.runs.metrics import CURVES
from cai.stats.significance import corrected
from cai.training.metrics import read_metrics


def by_kind(found: Sequence[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """The curves that have values, of one kind of stage (such as ppo) and one name together."""
    kinds: dict[tuple[str, str], list[Curve]] = {}
    for curve in found:
        if curve.values:
            kinds.setdefault((curve.stage.partition("-")[2] or curve.stage, curve.name), []).append(curve)
    return kinds


def curves(folder: RunFolder, run: int) -> tuple[list[Curve], list[str]]:
    """The curves of a run, the `run`-th of its comparison, and what could not be read."""
    found, unreadable = [], []
    for path in sorted(folder.train.glob("*/metrics.jsonl"), key=lambda path: stage_order(path.parent)):
        try:
            lines = read_metrics(path)
        except CaiError as error:
            unreadable.append(str(error))
            continue
        for name, logged in CURVES.items():
            points = [
                (line["step"], next(line[key] for key in logged if line.get(key) is not None))
                for line in lines
                if any(line.get(key) is not None for key in logged)
            ]
            fit = [(step, value) for step, value in points if isinstance(value, int | float) and math.isfinite(value)]
            if points:
                found.append(
                    Curve(
                        stage=path.parent.name,
                        name=name,
                        run=run,
                        steps=[step for step, _ in fit],
                        values=[float(value) for _, value in fit],
                        missing=len(points) - len(fit),
                    )
                )
    return found, unreadable


# `cai compare`: runs beside the first of them, on the prompts they share.


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
        settings=differences(a.manifest["config"], b.manifest["config"])
        if "config" in a.manifest and "config" in b.manifest
        else None,
        shared=len(shared),
        only=(len(a.prompts) - len(shared), len(b.prompts) - len(shared)),
        figures=figures(a, b, shared, paired.same_eval_judge(a, b)),
        unpaired=[] if shared else unpaired_figures(a, b, paired.same_eval_judge(a, b)),
        principles=compare_principles(a, b, shared),
        wins=paired.wins(a, b, shared),
        labels=paired.label_agreement(a.labels, b.labels, shared) if shared else None,
        examples=paired.examples(a, b, shared, examples),
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
        skipped=run.skipped,
    )
