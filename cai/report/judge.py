"""The page of a judge's evaluation: a function of the folder that `cai judge-eval` writes."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cai.data.jsonl import each_row, read_rows, write_text
from cai.data.manifest import MANIFEST_JSON, read_json
from cai.data.records import Preference, Skipped
from cai.evaluation.judge_report import JudgeReport, judge_metrics, read_judge_report
from cai.report.html import render
from cai.stats.agreement import Bin, hit

JUDGE_JSON, VERDICTS, SKIPPED, PAGE = "judge.json", "verdicts.jsonl", "skipped.jsonl", "judge.html"
MISTAKES = 5  # most confident mistakes on the page


class JudgeEvaluation(NamedTuple):
    """A judge's report and the manifest of what it was computed from."""

    report: JudgeReport
    manifest: dict[str, Any]


def write_judge_page(folder: Path) -> Path:
    """Write `judge.html` beside the files of `cai judge-eval`, and return its path.

    The page reads manifest.json, judge.json, verdicts.jsonl and skipped.jsonl. Raises: CaiError for a file that is
    missing or of another version.
    """
    path = folder / PAGE
    write_text(path, judge_page(folder))
    return path


def judge_page(folder: Path) -> str:
    """The HTML of a judge's report, with its most confident mistakes. Raises: CaiError, as `write_judge_page`."""
    report, manifest = read_judge_evaluation(folder)
    curves = [("a", "as judged", report.reliability)]
    if report.calibration is not None:
        curves.append(("b", "with the fitted temperature, on the other half", report.calibration.reliability))
    principles, asked = len(manifest["constitution"]["principles"]), manifest["settings"]["principles"]
    return render(
        "judge.html.jinja",
        report=report,
        metrics=judge_metrics(report),
        curves=[(colour, name, bins, [_dot(b, bins) for b in bins]) for colour, name, bins in curves],
        mistakes=most_confident_mistakes(folder),
        skipped=Counter(row.reason for row in read_rows(folder / SKIPPED, Skipped)),
        manifest=manifest,
        principles=principles,
        asked=principles if asked == "all" else asked,
    )


def read_judge_evaluation(folder: Path) -> JudgeEvaluation:
    """What judge.json holds. Raises: CaiError for a file that is not the finished report of `cai judge-eval`."""
    return JudgeEvaluation(read_judge_report(folder / JUDGE_JSON), read_json(folder / MANIFEST_JSON))


def most_confident_mistakes(folder: Path, most: int = MISTAKES) -> list[Preference]:
    """The judged pairs whose label names the rejected answer, highest P(chosen) first."""
    return heapq.nlargest(most, _mistakes(folder), key=lambda pair: pair.p)


def _mistakes(folder: Path) -> Iterator[Preference]:
    return (
        pair
        for pair in each_row(folder / VERDICTS, Preference)
        if pair.input_p is not None and hit(pair.p, pair.input_p) == 0.0
    )


class Dot(NamedTuple):
    """A bin in the reliability diagram, whose plot is 100 units wide and high with its origin at the upper left."""

    x: float
    y: float
    radius: float


def _dot(b: Bin, bins: Sequence[Bin]) -> Dot:
    most = max(other.n for other in bins)
    return Dot(200 * (b.confidence - 0.5), 100 * (1 - b.observed), 1 + 3 * (b.n / most) ** 0.5)
