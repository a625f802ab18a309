"""The report of one run: what it was made of, what came of it, every example."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from cai.constitution import Constitution
from cai.errors import CaiError
from cai.evaluation.judge_quality import JudgeReport
from cai.evaluation.statistics import Estimate
from cai.feedback.hygiene import FLAGS
from cai.report.behaviour import Behaviour, Tally
from cai.report.configuration import as_yaml, configuration_files, made_of
from cai.report.evaluation import evaluation_grids, evaluation_plots
from cai.report.examples import Examples
from cai.report.html import report
from cai.report.plots import Plot, bars, curves, histogram, read_metrics, reliability
from cai.report.run_table import COLUMNS, FACETS, run_detail, run_line
from cai.report.table import Table
from cai.runs.comparison.notes import FOLLOWS_POSITION
from cai.runs.folder import RunFolder
from cai.runs.judge_page import Figure, figures, number, percent
from cai.runs.summary import summarise, training_lines

OUTSIDE = 0.5  # of the probability: more is on something that is no answer than on one, as in the judge's own report
CUT_OFF = 0.5  # of the texts: how long the model would have written is then unknown for most


class Contents(NamedTuple):
    """A run read through once."""

    table: Table
    constitution: Constitution
    behaviours: list[Behaviour]


class Monitor(NamedTuple):
    """A figure that is watched; `look` says that it is past its bound."""

    name: str
    value: str
    bound: str
    look: bool


class Stage(NamedTuple):
    """One stage of training: its settings, what came of it in words, and the numbers of its plots."""

    name: str
    settings: str
    lines: list[str]
    plots: list[int]


def read_run(folder: RunFolder) -> Contents:
    """Read every row of a run; raises CaiError for one that is none."""
    examples, tally, lines = Examples(folder), Tally(), []
    for prompt_id in examples.ids:
        example = examples.read(prompt_id)
        lines.append(run_line(example))
        tally.add(example)
    constitution = folder.constitution()

    def holds(prompt_id: str, text: str) -> bool:
        return examples.may_hold(prompt_id, text) and run_detail(examples.read(prompt_id)).holds(text)

    table = Table(COLUMNS, FACETS, lines, lambda i: run_detail(examples.read(i)), holds)
    return Contents(table, constitution, tally.behaviours(constitution))


def run_report(folder: RunFolder, contents: Contents, url: str | None = None) -> str:
    """The HTML of a run's report; raises CaiError when a file of the run cannot be read."""
    try:
        return _run_report(folder, contents, url)
    except KeyError as error:
        files = f"{folder.lock_json.name} or {folder.summary_json.name}"
        raise CaiError(f"{folder.path}: {files} lacks {error}: the run was made by another version of cai") from None


def _run_report(folder: RunFolder, contents: Contents, url: str | None) -> str:
    lock, written = folder.lock(), folder.summary()
    summary: dict[str, Any] = written or summarise(folder)
    plots = _overview_plots(contents)
    overview = list(range(len(plots)))
    gate = _gate(folder)
    if gate is not None:
        plots.append(
            reliability(
                "The judge on the labelled pairs of its gate", {"judge": [b._asdict() for b in gate.reliability]}
            )
        )
    evaluated, first = folder.policy_report(), len(plots)
    plots += evaluation_plots(evaluated) if evaluated else []
    of_policies = list(range(first, len(plots)))
    stages = []
    for path in sorted((p for p in folder.train.glob("*") if p.is_dir()), key=_stage_order):
        first, training = len(plots), summary["training"].get(path.name)
        plots += _stage_plots(path, training)
        lines = training_lines(training) if training else []
        stages.append(Stage(path.name, _stage_settings(path), lines, list(range(first, len(plots)))))
    return report(
        "run.html.jinja",
        contents.table,
        plots,
        url,
        name=folder.name,
        made_of=made_of(lock),
        notes=_notes(summary, finished=written is not None),
        facts=_facts(summary),
        constitution=contents.constitution,
        behaviours=contents.behaviours,
        overview=overview,
        judge=_judge_facts(summary),
        gate=figures(gate) if gate else [],
        gate_notes=gate.notes if gate else [],
        gate_plot=len(overview) if gate else None,
        evaluated=evaluation_grids(evaluated) if evaluated else [],
        evaluated_notes=evaluated.notes if evaluated else [],
        evaluated_plots=of_policies,
        monitors=_monitors(summary),
        stages=stages,
        files=configuration_files(folder, lock),
        left_out=summary["left_out"]["reasons"],
        percent=percent,
        number=number,
    )


def _facts(summary: dict[str, Any]) -> list[Figure]:
    """What the run came to, the widest first."""
    facts = [Figure("prompts", str(summary["prompts"]), f"and {summary['held_out']} held out")]
    if revisions := summary["revisions"]:
        flagged = sum(revisions["flags"].values())
        words = revisions["words"]
        facts += [
            Figure("revisions", str(revisions["rows"]), f"{percent(flagged)} flagged by hygiene"),
            Figure("words", f"{words['draft']:.0f} → {words['revision']:.0f}", "from draft to last revision, means"),
        ]
    if preferences := summary["preferences"]:
        by_source = ", ".join(f"{n} by {source}" for source, n in preferences["by_source"].items())
        facts.append(Figure("labelled pairs", str(sum(preferences["by_source"].values())), by_source))
    if evaluation := summary["evaluation"]:
        win_rate, words = Estimate(**evaluation["win_rate"]), evaluation["words"]
        facts += [
            Figure("win rate of after", str(win_rate), f"by the referee, on {win_rate.n} held-out prompts"),
            Figure(
                "words held out", f"{words['before']:.0f} → {words['after']:.0f}", "before and after training, means"
            ),
        ]
    left_out = summary["left_out"]
    facts.append(
        Figure(
            "left out",
            str(sum(left_out["reasons"].values()) + left_out["failed"]),
            f"{left_out['failed']} of it failed",
        )
    )
    if calls := summary.get("calls"):
        facts.append(
            Figure("calls", f"{calls['asked'] + calls['remembered']:,}", f"{calls['remembered']:,} of them remembered")
        )
    if seconds := summary.get("seconds"):
        facts.append(
            Figure(
                "time", _duration(sum(seconds.values())), ", ".join(f"{k} {_duration(s)}" for k, s in seconds.items())
            )
        )
    return facts


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _judge_facts(summary: dict[str, Any]) -> list[Figure]:
    facts = []
    judged = (summary["preferences"] or {}).get("judged")
    for who, found in (("judge", judged), ("referee", summary["evaluation"])):
        if found:
            facts += [
                Figure(
                    f"{who}: same position wins",
                    percent(found["same_position"]),
                    "published: 18 % (large) to 56 % (small)",
                ),
                Figure(f"{who}: outside the letters", percent(found["outside"]), "of the probability"),
            ]
    if judged:
        facts.append(Figure("judge: mean p", number(judged["mean_p"]), "of the chosen answer; 0.5 is no opinion"))
    return facts


def _monitors(summary: dict[str, Any]) -> list[Monitor]:
    """Every rate that tells of trouble, with the bound past which to look."""

    def rate(name: str, value: float | None, bound: float, over: str) -> Monitor:
        look = value is not None and value >= bound
        return Monitor(name, percent(value), over, look)

    found = []
    if revisions := summary["revisions"]:
        found += [rate(f"revision {flag.replace('_', ' ')}", revisions["flags"][flag], 0.25, "25 %") for flag in FLAGS]
        found += [rate(f"{text} cut off", share, CUT_OFF, "50 %") for text, share in revisions["truncated"].items()]
    judged = (summary["preferences"] or {}).get("judged")
    for who, said in (("judge", judged), ("referee", summary["evaluation"])):
        if said:
            found.append(
                rate(f"{who}: position decides", said["same_position"], FOLLOWS_POSITION, percent(FOLLOWS_POSITION))
            )
            found.append(rate(f"{who}: outside the letters", said["outside"], OUTSIDE, percent(OUTSIDE)))
    if evaluation := summary["evaluation"]:
        found += [
            rate(f"answer {which} training cut off", share, CUT_OFF, "50 %")
            for which, share in evaluation["truncated"].items()
        ]
    failed = summary["left_out"]["failed"]
    found.append(Monitor("requests that failed", str(failed), "none", failed > 0))
    for stage, training in summary["training"].items():
        found += [Monitor(f"training {stage}", warning, "", True) for warning in training["warnings"]]
    return found


def _notes(summary: dict[str, Any], finished: bool) -> list[str]:
    """What a reader must not miss."""
    notes = [] if finished else ["The run is unfinished: what is here is what there was when this page was made."]
    past = [f"{m.name} {m.value}" if m.bound else f"{m.name}: {m.value}" for m in _monitors(summary) if m.look]
    if past:
        notes.append("Look at: " + "; ".join(past) + ".")
    evaluation = summary["evaluation"]
    if evaluation and evaluation["win_rate"]["n"] < 30:
        notes.append(f"Only {evaluation['win_rate']['n']} prompts were held out: the win rate's interval is wide.")
    return notes


def _overview_plots(contents: Contents) -> list[Plot]:
    plots = []
    column = {c.title: at for at, c in enumerate(COLUMNS)}

    def values(title: str) -> list[float]:
        return [v for line in contents.table.lines if isinstance(v := line.cells[column[title]], int | float)]

    drafts, revised, judge, after = (values(title) for title in ("words", "revised", "judge", "after"))
    if drafts:
        most = float(max(*drafts, *revised))
        plots.append(
            histogram("Words of draft and last revision", "words", {"draft": drafts, "revision": revised}, 0, most)
        )
    labels = {name: found for name, found in (("judge, of the chosen", judge), ("referee, of after", after)) if found}
    if labels:
        plots.append(histogram("What judge and referee say", "p", labels, 0, 1))
    met = [b for b in contents.behaviours if b.revisions]
    if met:
        flagged = [round((b.flagged or 0) * b.revisions) for b in met]
        fit = [b.revisions - n for b, n in zip(met, flagged, strict=True)]
        plots.append(
            bars(
                "Revisions by principle",
                "revisions",
                [b.id for b in met],
                {"fit": fit, "flagged": flagged},
                stacked=True,
            )
        )
    return plots


def _stage_plots(path: Path, training: dict[str, Any] | None) -> list[Plot]:
    plots = [
        curves(f"{path.name}: {name}", {name: points}) for name, points in read_metrics(path / "metrics.jsonl").items()
    ]
    if training and training["held_out"]:
        bins = training["held_out"]["reliability"]
        plots.append(reliability(f"{path.name}: calibration on held-out pairs", {"reward model": bins}))
    return plots


def _stage_order(path: Path) -> tuple[int, str]:
    first = path.name.split("-")[0]
    return (int(first) if first.isdecimal() else 0, path.name)


def _stage_settings(path: Path) -> str:
    file = path / "stage.json"
    return as_yaml(json.loads(file.read_text(encoding="utf-8"))["settings"]) if file.exists() else ""


def _gate(folder: RunFolder) -> JudgeReport | None:
    file = folder.judge / "judge.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    try:
        return JudgeReport.model_validate({name: found[name] for name in JudgeReport.model_fields})
    except (KeyError, ValueError) as error:
        raise CaiError(f"{file}: expected the report of a judge: {error}") from None
