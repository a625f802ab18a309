"""`cai compare --plan`: how many prompts, or trainings, a difference of a given size needs to be found.

With the spread of this comparison, at 80 % power, at the level that the metric has among all of its tests.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence

from cai.compare.record import METRIC_TABLE, PlannedMetric, RunComparison
from cai.config.errors import CaiError
from cai.config.validation import closest_names, did_you_mean
from cai.feedback.metrics import RUN_METRICS
from cai.stats.power import MANY_FLAGS, differing_share, planned_errors, planned_flags, planned_prompts
from cai.stats.significance import ALPHA, Effect
from cai.stats.trainings import PROMPTS_ONLY

MOST_TRAININGS = 100  # of a plan
EQUAL = "equal on every prompt, so its spread is unknown"


def parse_plan(options: Sequence[str]) -> dict[str, float]:
    """The difference to plan for by metric's key, from `METRIC=DIFF` or a DIFF for all metrics ("").

    Raises: CaiError for an unknown metric, or a difference that is not a number above 0.
    """
    names = {metric.name: key for key, metric in RUN_METRICS.items()}
    keys = {key: key for key in RUN_METRICS} | names
    planned = {}
    for option in options:
        metric, _, size = option.rpartition("=")
        if metric and metric not in keys:
            near = closest_names(metric, keys) or _with_word(metric, names)
            hint = did_you_mean(near) if near else f"expected one of {', '.join(names)}"
            raise CaiError(f"--plan {option}: no metric '{metric}'; {hint}")
        try:
            difference = float(size)
        except ValueError:
            difference = math.nan
        if not 0 < difference < math.inf:
            raise CaiError(f"--plan {option}: expected a difference above 0 in the metric's unit, found '{size}'")
        planned[keys[metric] if metric else ""] = difference
    return planned


def _with_word(word: str, names: Iterable[str]) -> list[str]:
    """At most four of the names, those with a word that is spelt like this."""
    return [name for name in names if difflib.get_close_matches(word, name.split(), n=1, cutoff=0.75)][:4]


def plan(comparison: RunComparison, differences: dict[str, float]) -> list[PlannedMetric]:
    """What each metric needs of each pair of runs, for the difference of its key or else of ""."""
    return list(_planned(comparison, differences))


def _planned(c: RunComparison, differences: dict[str, float]) -> Iterator[PlannedMetric]:
    alpha = ALPHA / max(1, len(c.family) * c.family.get(METRIC_TABLE, 0))
    for pair in c.pairs:
        for metric in pair.metrics:
            difference = differences.get(metric.key, differences.get(""))
            if difference is None:
                continue
            prompts, trainings, note = needed(metric.effect, difference, alpha)
            yield PlannedMetric(
                b=pair.b,
                key=metric.key,
                name=metric.name,
                difference=difference,
                n=metric.effect.n,
                prompts=prompts,
                trainings=trainings,
                note=note,
            )


def needed(effect: Effect, difference: float, alpha: float) -> tuple[int | None, int | None, str]:
    """Prompts, trainings in each run, and what limits the plan; None where no number is enough, or none is known."""
    if not effect.se or effect.n < 2:
        return None, None, EQUAL if effect.n > 1 else "one prompt has no spread"
    if effect.flips is not None and difference <= 1 and effect.n <= MANY_FLAGS:
        return planned_flags(differing_share(sum(effect.flips), effect.n), difference, alpha), None, effect.note
    if effect.trainings is None or effect.note == PROMPTS_ONLY:
        deviation = effect.se * math.sqrt(effect.n)
        return planned_prompts(deviation, effect.n - 1, difference, alpha), None, effect.note
    least, share = min(effect.trainings), effect.between_trainings or 0.0
    between, within = share * effect.se**2, (1 - share) * effect.se**2

    known = effect.pooled_freedom or effect.freedom or 1.0

    def room(trainings: int) -> float:
        """The variance that so many trainings leave to prompts."""
        errors = planned_errors(alpha, known * (trainings - 1) / (least - 1), known)
        return (difference / errors) ** 2 - between * least / trainings

    if room(least) > 0:
        return max(2, math.ceil(effect.n * within / room(least))), least, effect.note
    enough = (k for k in range(least, MOST_TRAININGS + 1) if room(k) >= within)
    return effect.n, next(enough, None), f"{effect.note}: more prompts alone are not enough"
