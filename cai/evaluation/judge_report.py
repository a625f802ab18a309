"""Whether a judge's labels can be trusted: against labels of people, against itself, and principle by principle.

Everything is computed from pairs that were judged in both orders. The order of the answers in a file carries no
information, so no metric depends on it. Intervals are over prompts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, NamedTuple

from pydantic import PlainSerializer

from cai.config.errors import CaiError
from cai.config.hashing import uniform
from cai.data.manifest import check_format, read_json
from cai.data.records import Row
from cai.evaluation.injection import InjectionGain, injection_warnings
from cai.evaluation.judged_pairs import Judged, Opinion, called, over_prompts, position_bias
from cai.feedback.metrics import (
    ABSTAINED,
    ABSTAINED_MEANING,
    NON_OPTION_MASS,
    POSITION_BIAS,
    TIE_MASS,
    TIE_MASS_MEANING,
    mean_over_prompts,
)
from cai.feedback.pairs import (
    CONTRADICT,
    Agreed,
    PrinciplePair,
    PrincipleVerdicts,
    contradicting,
    principle_notes,
)
from cai.inference.scheduler import Cost
from cai.stats.agreement import (
    COOLEST,
    HOTTEST,
    Bin,
    agreement,
    calibration_error,
    fit_temperature,
    hit,
    mean_log_loss,
    reliability,
    tempered,
)
from cai.stats.formatting import counted, estimate, number, percent
from cai.stats.intervals import Estimate
from cai.stats.logistic import logit
from cai.stats.win_rate import win

FORMAT = 3  # of judge.json from `cai judge-eval`; before 3 the calibration error had no interval
Interval = Annotated[Estimate, PlainSerializer(lambda e: e._asdict())]
"""An Estimate, written to JSON with the names of its fields."""


class PrincipleQuality(Row):
    """One principle's verdicts on the pairs it judged."""

    by: str
    pairs: int
    accuracy: Interval
    position_bias: float
    non_option_mass: float


def principle_qualities(pairs: Sequence[Judged]) -> list[PrincipleQuality]:
    """Each principle alone, as if it were the whole constitution, on the pairs it judged."""
    by_principle: dict[str, list[tuple[Judged, Opinion]]] = {}
    for pair in pairs:
        for opinion in pair.opinions:
            by_principle.setdefault(opinion.by, []).append((pair, opinion))
    qualities = [
        PrincipleQuality(
            by=by,
            pairs=len(rows),
            accuracy=over_prompts((pair.prompt_id, hit(opinion.call, pair.label)) for pair, opinion in rows),
            position_bias=mean_over_prompts((pair.prompt_id, position_bias(opinion)) for pair, opinion in rows) or 0.0,
            non_option_mass=mean_over_prompts((pair.prompt_id, opinion.non_option_mass) for pair, opinion in rows)
            or 0.0,
        )
        for by, rows in by_principle.items()
    ]
    return sorted(qualities, key=lambda quality: (-quality.accuracy.mean, quality.by))


def between_principles(pairs: Sequence[Judged]) -> list[PrinciplePair]:
    """The agreement of every two principles that judged enough pairs in common, least first."""
    verdicts = PrincipleVerdicts()
    for pair in pairs:
        verdicts.add(pair.prompt_id, ((opinion.by, opinion.p) for opinion in pair.opinions))
    return verdicts.pairs()


HIGHEST_PUBLISHED_BIAS = 0.56  # of the smallest judge of Lee et al. 2023 (arXiv:2309.00267 §2.2); 0.18 of the largest


Curve = list[Annotated[Bin, PlainSerializer(lambda b: b._asdict())]]


class LengthBias(Row):
    """Verdicts by length of the answers, on pairs of unequal length; None where there are no such pairs."""

    accuracy_longer: Interval | None  # where the labels prefer the longer answer
    accuracy_shorter: Interval | None
    judge_prefers_longer: Interval | None
    labels_prefer_longer: Interval | None
    correlation: float | None  # of the judge's log-odds with the difference in characters, both from either side


class Calibration(Row):
    """One temperature, fitted on half of the prompts and tried on the others.

    `temperature` is that for `judge.temperature`, with the one the labels were made with already in it.
    """

    temperature: float
    fitted_pairs: int
    pairs: int
    log_loss_before: float  # nats, on the other half, as the next ones
    log_loss_after: float
    ece_before: Interval
    ece_after: Interval
    reliability: Curve  # after
    at_bound: bool  # no temperature that was tried is best; see fit_temperature

    @property
    def applied(self) -> bool:
        """Whether a run's labels are made with it: it is a fit, and lowers the log loss on the other half."""
        return not self.at_bound and self.log_loss_after < self.log_loss_before


class JudgeReport(Row):
    """The metrics of a judge on labelled pairs; rates are in [0, 1]."""

    prompts: int
    pairs: int
    identical: int  # pairs of equal answers: a tie without verdicts
    label_ties: int = 0  # pairs that the labels call a tie
    judged_ties: int = 0  # pairs that the judge calls a tie; of `judge.ties` alone, as the next one
    tie_mass: float | None = None
    ties_agreed: int = 0  # pairs that both call a tie
    no_vote: int = 0  # pairs on which no principle has a vote: the same
    abstained: float | None = None  # share of principles without a vote; None where that was not asked
    accuracy: Interval  # ties count one half
    one_order: Interval  # the same, from one order of each pair only
    human: Agreed
    log_loss: float | None  # nats; of the pairs with verdicts, as all below
    ece: Interval | None
    reliability: Curve
    position_bias: float | None  # this and the next two as cai/feedback/metrics.py aggregates them
    shown_first: float | None  # mean probability of the answer shown first; one half without position bias
    non_option_mass: float | None  # mean probability of anything but the options
    length: LengthBias
    principles: list[PrincipleQuality]  # the most accurate first
    between: list[PrinciplePair]  # of principles with SHARED pairs or more, the least agreed first
    injection: list[InjectionGain] = []  # by attack; empty unless it was asked for
    calls_per_pair: float | None
    seconds_per_pair: float | None  # None where the cache answered some of the calls
    tokens_per_pair: float | None
    calibration: Calibration | None
    notes: list[str]  # warnings about how to read the metrics
    format: int = FORMAT


def judge_report(
    pairs: Sequence[Judged],
    cost: Cost,
    calibrate: bool = False,
    temperature: float = 1.0,
    injection: Sequence[InjectionGain] = (),
) -> JudgeReport:
    """All metrics of a judge; `temperature` is that of its labels. Raises: ValueError for no pairs."""
    if not pairs:
        raise ValueError("no judged pairs to report on")
    asked = [pair for pair in pairs if pair.opinions]
    labels, predicted = [pair.label for pair in asked], [pair.p for pair in asked]
    curve = reliability(predicted, labels)
    human = agreement([pair.call for pair in pairs], [pair.label for pair in pairs], [pair.prompt_id for pair in pairs])
    assert human is not None
    calls = cost.cache_misses + cost.cache_hits
    paid = sum(bool(pair.opinions) or pair.abstained is not None for pair in pairs)  # equal answers cost no call
    report = JudgeReport(
        prompts=len({pair.prompt_id for pair in pairs}),
        pairs=len(pairs),
        identical=sum(not pair.opinions and pair.abstained is None for pair in pairs),
        label_ties=sum(win(pair.label) == 0.5 for pair in pairs),
        judged_ties=sum(pair.tie_mass is not None and pair.call == 0.5 for pair in asked),
        ties_agreed=sum(pair.tie_mass is not None and pair.call == 0.5 and win(pair.label) == 0.5 for pair in asked),
        tie_mass=mean_over_prompts((pair.prompt_id, pair.tie_mass) for pair in asked),
        no_vote=sum(pair.abstained == 1 for pair in pairs),
        abstained=mean_over_prompts((pair.prompt_id, pair.abstained) for pair in pairs),
        accuracy=over_prompts((pair.prompt_id, hit(pair.call, pair.label)) for pair in pairs),
        one_order=over_prompts((pair.prompt_id, fmean(_one_order(pair))) for pair in pairs),
        human=human,
        log_loss=mean_log_loss(predicted, labels) if asked else None,
        ece=calibration_error(predicted, labels, [pair.prompt_id for pair in asked]) if asked else None,
        reliability=curve,
        position_bias=_mean(asked, position_bias),
        shown_first=_mean(asked, lambda o: (o.forward + 1 - o.reverse) / 2),
        non_option_mass=_mean(asked, lambda o: o.non_option_mass),
        length=length_bias(asked),
        principles=principle_qualities(asked),
        between=between_principles(asked),
        injection=list(injection),
        calls_per_pair=calls / paid if paid else None,
        seconds_per_pair=cost.seconds / paid if paid and not cost.cache_hits else None,
        tokens_per_pair=cost.tokens / paid if paid and not cost.cache_hits else None,
        calibration=calibration(asked, temperature) if calibrate else None,
        notes=[],
    )
    return report.model_copy(update={"notes": notes(report)})


def read_judge_report(path: Path) -> JudgeReport:
    """The report in judge.json. Raises: CaiError for another format, or a file that is not of `cai judge-eval`."""
    values = read_json(path)
    if "accuracy" in values:
        check_format(path, values, FORMAT, "cai judge-eval")
    try:
        fields = JudgeReport.model_fields.items()
        return JudgeReport.model_validate(
            {name: values[name] for name, field in fields if field.is_required() or name in values}
        )
    except KeyError as error:
        raise CaiError(f"{path}: expected a finished report of `cai judge-eval`; {error} is missing") from None
    except ValueError as error:
        raise CaiError(f"{path}: expected a report of `cai judge-eval`: {error}") from None


def _one_order(pair: Judged) -> list[float]:
    """The hits of the labels that each order alone would yield."""
    if not pair.opinions:
        return [hit(pair.p, pair.label)]
    total = sum(opinion.weight for opinion in pair.opinions)
    forward = sum(opinion.weight * opinion.forward for opinion in pair.opinions) / total
    reverse = sum(opinion.weight * opinion.reverse for opinion in pair.opinions) / total
    return [hit(called(p, pair.tie_mass), pair.label) for p in (forward, reverse)]


def length_bias(pairs: Sequence[Judged]) -> LengthBias:
    """Accuracy, preference and correlation by the length of the answers."""
    unequal = [pair for pair in pairs if pair.longer]

    def longer_wins(pair: Judged, p: float) -> float:
        return win(p) if pair.longer > 0 else 1 - win(p)

    def over(some: Sequence[Judged], value: Callable[[Judged], float]) -> Estimate | None:
        return over_prompts((pair.prompt_id, value(pair)) for pair in some) if some else None

    def accuracy(wins: float) -> Estimate | None:
        return over([p for p in unequal if longer_wins(p, p.label) == wins], lambda p: hit(p.call, p.label))

    odds = [logit(pair.p) for pair in unequal]
    # from either side every mean is 0, so that the correlation does not depend on which answer stands first
    size = (sum(x * x for x in odds) * sum(pair.longer**2 for pair in unequal)) ** 0.5
    product = sum(x * pair.longer for x, pair in zip(odds, unequal, strict=True))
    return LengthBias(
        accuracy_longer=accuracy(1.0),
        accuracy_shorter=accuracy(0.0),
        judge_prefers_longer=over(unequal, lambda pair: longer_wins(pair, pair.p)),
        labels_prefer_longer=over(unequal, lambda pair: longer_wins(pair, pair.label)),
        correlation=product / size if size else None,
    )


def calibration(pairs: Sequence[Judged], temperature: float = 1.0) -> Calibration | None:
    """A temperature for the judge's labels; None where one of the halves is empty.

    The halves are by the hash of the prompt's id: the same for every judge, and no prompt is in both.
    """
    halves: tuple[list[Judged], list[Judged]] = ([], [])
    for pair in pairs:
        halves[uniform("calibration", pair.prompt_id) < 0.5].append(pair)
    (fitting, fitting_labels), (predicted, labels) = (([p.p for p in h], [p.label for p in h]) for h in halves)
    prompts = [pair.prompt_id for pair in halves[1]]
    if not fitting or not predicted:
        return None
    t = fit_temperature(fitting, fitting_labels)
    after = [tempered(p, t) for p in predicted]
    return Calibration(
        temperature=t * temperature,
        fitted_pairs=len(fitting),
        pairs=len(predicted),
        log_loss_before=mean_log_loss(predicted, labels),
        log_loss_after=mean_log_loss(predicted, labels, t),
        ece_before=calibration_error(predicted, labels, prompts),
        ece_after=calibration_error(after, labels, prompts),
        reliability=reliability(after, labels),
        at_bound=t in (COOLEST, HOTTEST),
    )


def notes(report: JudgeReport) -> list[str]:
    """Warnings about how to read the metrics."""
    warnings = []
    low, high = report.accuracy.low, report.accuracy.high
    if report.identical + report.no_vote == report.pairs:
        alike = report.no_vote and "no principle tells the answers of any pair apart"
        warnings.append(f"the judge gave no verdict: {alike or 'the two answers of every pair are identical'}")
    elif low is not None and high is not None and low <= 0.5 <= high:
        warnings.append("the accuracy on these pairs does not differ significantly from chance (0.5)")
    elif report.accuracy.mean < 0.5:
        warnings.append("the judge prefers the worse answer more often than the better one")
    if 0 < report.identical < report.pairs:
        warnings.append(
            f"{report.identical:,} of {counted(report.pairs, 'pairs')} have equal answers: each counts as half right, "
            "which moves the accuracy towards 0.5; leave them out of the file"
        )
    if report.position_bias is not None and report.position_bias > HIGHEST_PUBLISHED_BIAS:
        warnings.append(
            f"position bias: {100 * report.position_bias:.0f} % of the verdicts flip when the order is swapped; "
            "published judges have 18 % (large) to 56 % (small)"
        )
    if report.non_option_mass is not None and report.non_option_mass > 0.5:
        warnings.append(
            f"non-option probability mass is {100 * report.non_option_mass:.0f} %: check the templates, the model may "
            "not answer the question with an option's letter"
        )
    warnings += injection_warnings(report.injection)
    warnings += principle_notes("give nearly the same verdicts", [pair for pair in report.between if pair.redundant])
    warnings += principle_notes(CONTRADICT, contradicting(report.between))
    c = report.calibration
    if c is not None and not c.applied:
        why = (
            "on the fitted half the judge is never wrong, or at chance"
            if c.at_bound
            else "it does not lower the log loss on the other half: too few pairs, or a calibrated judge"
        )
        warnings.append(f"the fitted temperature is not applied: {why}")
    return warnings


def _mean(pairs: Sequence[Judged], value: Callable[[Opinion], float]) -> float | None:
    return mean_over_prompts((pair.prompt_id, fmean(map(value, pair.opinions))) for pair in pairs)


class Metric(NamedTuple):
    """A metric as text: name, value, and what it means."""

    name: str
    value: str
    meaning: str


def judge_metrics(report: JudgeReport) -> list[Metric]:
    """The metrics of the report as text, except those of single principles; the most important first."""
    length, human = report.length, report.human
    kappa = "–" if human.kappa is None else f"{human.kappa:.3f} [{human.low:.3f}, {human.high:.3f}]"
    metrics = [
        Metric("accuracy", str(report.accuracy), "chance is 0.5; ties ½"),
        Metric("with one order", str(report.one_order), "accuracy of single orders"),
        Metric("κ with the labels", kappa, f"raw agreement {percent(human.observed)}"),
        Metric("calibration error", estimate(report.ece), "confidence vs outcome"),
        Metric("log loss", number(report.log_loss), "no information is 0.693"),
        Metric(POSITION_BIAS, number(report.position_bias), "published: 0.18 to 0.56"),
        Metric("shown first", number(report.shown_first), "probability; even is 0.5"),
        Metric(NON_OPTION_MASS, number(report.non_option_mass), "outside the options"),
        Metric("judge prefers the longer", estimate(length.judge_prefers_longer), ""),
        Metric("labels prefer the longer", estimate(length.labels_prefer_longer), ""),
        Metric("accuracy on longer", estimate(length.accuracy_longer), "where longer is better"),
        Metric("accuracy on shorter", estimate(length.accuracy_shorter), "where shorter is better"),
        Metric("length correlation", number(length.correlation), "with the log-odds"),
        *(Metric(gain.name, gain.shown, f"in p, when an answer {gain.meaning}") for gain in report.injection),
        Metric("cost per pair", f"{number(report.calls_per_pair, 1)} calls", _time_and_tokens(report)),
    ]
    if report.tie_mass is not None:
        metrics.append(Metric(TIE_MASS, number(report.tie_mass), TIE_MASS_MEANING))
        metrics.append(Metric("judged a tie", str(report.judged_ties), f"pairs, {report.ties_agreed} as the labels"))
    if report.label_ties:
        metrics.append(Metric("labelled a tie", str(report.label_ties), "pairs; accuracy ½, 1 if judged so"))
    if report.identical:
        metrics.append(Metric("identical answers", str(report.identical), "ties, counted as p = 0.5"))
    if report.abstained is not None:
        metrics.append(Metric(ABSTAINED, number(report.abstained), ABSTAINED_MEANING))
        metrics.append(Metric("pairs without a vote", str(report.no_vote), "ties, counted as p = 0.5"))
    return metrics + (_calibrated(report.calibration) if report.calibration else [])


def _time_and_tokens(report: JudgeReport) -> str:
    parts = [] if report.seconds_per_pair is None else [f"{report.seconds_per_pair:.2f} s"]
    if report.tokens_per_pair:
        parts.append(f"{report.tokens_per_pair:.0f} tokens")
    return ", ".join(parts)


def _calibrated(c: Calibration) -> list[Metric]:
    return [
        Metric(
            "temperature",
            number(c.temperature, 2),
            f"fitted on {c.fitted_pairs} pairs{'' if c.applied else ', not applied'}",
        ),
        Metric("  calibration error", f"{c.ece_before.mean:.3f} → {c.ece_after.mean:.3f}", f"on {c.pairs} other pairs"),
        Metric("  log loss", f"{c.log_loss_before:.3f} → {c.log_loss_after:.3f}", "on the same pairs"),
    ]
