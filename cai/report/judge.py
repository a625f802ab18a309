"""A judge's report in words, and as one self-contained HTML page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from cai.data.records import Preference, Skipped
from cai.evaluation.judge_report import JudgeReport, figures
from cai.report.html import page
from cai.stats.calibration import Bin
from cai.stats.formatting import counted, estimate, number, percent


def judge_page(
    report: JudgeReport, mistakes: Sequence[Preference], skipped: Sequence[Skipped], made_from: dict[str, Any]
) -> str:
    """The HTML of a report, with the judge's surest mistakes; light and dark, for wide and narrow screens."""
    curves = [("a", "as judged", report.reliability)]
    if report.calibration is not None:
        curves.append(("b", "with the temperature, on the half not fitted", report.calibration.reliability))
    principles, asked = len(made_from["constitution"]["principles"]), made_from["settings"]["principles"]
    return page(
        "judge.html.jinja",
        {"percent": percent, "number": number, "estimate": estimate, "counted": counted},
        report=report,
        figures=figures(report),
        curves=[(colour, name, bins, [_dot(b, bins) for b in bins]) for colour, name, bins in curves],
        mistakes=mistakes,
        skipped=Counter(row.reason for row in skipped),
        made_from=made_from,
        principles=principles,
        asked=principles if asked == "all" else asked,
    )


class Dot(NamedTuple):
    """A bin in the reliability diagram, whose plot is 100 units wide and high and starts at the upper left."""

    x: float
    y: float
    radius: float


def _dot(b: Bin, bins: Sequence[Bin]) -> Dot:
    most = max(other.n for other in bins)
    return Dot(200 * (b.confidence - 0.5), 100 * (1 - b.observed), 1 + 3 * (b.n / most) ** 0.5)
