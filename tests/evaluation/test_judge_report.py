import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.config.hashing import uniform
from cai.data.records import Message, Preference, Verdict
from cai.evaluation.judge_report import JudgeReport, calibration, judge_metrics, judge_report
from cai.evaluation.judged_pairs import Judged, Opinion, judged, over_prompts
from cai.feedback.pairs import SHARED, contradicting
from cai.inference.scheduler import Cost
from cai.stats.agreement import hit
from cai.stats.logistic import logit, sigmoid

pytestmark = pytest.mark.numeric

FREE = Cost(cache_misses=0, cache_hits=0, tokens=0, seconds=0.0)


def opinion(forward: float, reverse: float | None = None, by: str = "kind", non_option_mass: float = 0.0) -> Opinion:
    reverse = forward if reverse is None else reverse
    return Opinion(by, sigmoid((logit(forward) + logit(reverse)) / 2), forward, reverse, non_option_mass, 1.0)


def pair(label: float, *opinions: Opinion, prompt: str = "p", longer: int = 0, p: float | None = None) -> Judged:
    if p is None:
        p = sum(o.p for o in opinions) / len(opinions) if opinions else 0.5
    return Judged(prompt, label, p, longer, opinions)


def turned(pair: Judged) -> Judged:
    """The same pair with its other answer first."""
    opinions = tuple(o._replace(p=1 - o.p, forward=1 - o.reverse, reverse=1 - o.forward) for o in pair.opinions)
    return Judged(pair.prompt_id, 1 - pair.label, 1 - pair.p, -pair.longer, opinions)


probability = st.floats(0.01, 0.99).filter(lambda p: abs(p - 0.5) > 1e-6)
pairs = st.lists(
    st.builds(
        lambda label, a, b, c, d, longer, prompt: pair(
            label, opinion(a, b), opinion(c, d, by="true", non_option_mass=0.25), longer=longer, prompt=prompt
        ),
        st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        *[probability] * 4,
        st.integers(-50, 50),
        st.sampled_from("abcdef"),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25)  # each resamples a dozen means
@given(pairs, st.integers(0, 255))
def test_no_metric_depends_on_which_answer_of_a_pair_stands_first(rows: list[Judged], turn: int) -> None:
    otherwise = [turned(row) if turn >> i & 1 else row for i, row in enumerate(rows)]
    ours, theirs = (judge_report(r, FREE).model_dump() for r in (rows, otherwise))

    def same(a: object, b: object) -> None:
        if isinstance(a, dict):
            assert isinstance(b, dict)
            for key in a:
                same(a[key], b[key])
        elif isinstance(a, list):
            assert isinstance(b, list)
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                same(x, y)
        else:
            assert a == (pytest.approx(b, abs=1e-9) if isinstance(b, float) else b)

    same(ours, theirs)
    for rate in ("accuracy", "one_order"):
        assert 0 <= ours[rate]["mean"] <= 1


def test_averaging_two_orders_mends_what_one_order_gets_wrong() -> None:
    # a leaning to the first shown of odds 9, and an opinion of odds 4, which alone decides once both orders are asked
    forward, reverse = sigmoid(math.log(4) + math.log(9)), sigmoid(math.log(4) - math.log(9))
    report = judge_report([pair(1.0, opinion(forward, reverse), prompt=f"{i}") for i in range(10)], FREE)
    assert report.accuracy.mean == 1.0
    assert report.one_order.mean == 0.5
    assert report.position_bias == 1.0
    assert report.shown_first == pytest.approx((forward + 1 - reverse) / 2)
    assert report.log_loss == pytest.approx(-math.log(0.8))
    assert report.ece is not None
    assert report.ece.mean == pytest.approx(
        0.5**0.1 - 0.8, abs=0.005
    )  # of the judge that is half the times always right


def test_ties_and_identical_answers_count_one_half() -> None:
    rows = [
        pair(1.0, opinion(0.9), prompt="right"),
        pair(1.0, opinion(0.2, non_option_mass=0.5), prompt="wrong"),
        pair(1.0, opinion(0.9, 0.1), prompt="tie"),
        pair(1.0, prompt="identical"),
    ]
    report = judge_report(rows, Cost(cache_misses=4, cache_hits=2, tokens=0, seconds=3.0))
    assert report.accuracy.mean == 0.5
    assert (report.pairs, report.identical, report.prompts) == (4, 1, 4)
    assert [note.partition(":")[0] for note in report.notes if "equal" in note] == ["1 of 4 pairs have equal answers"]
    assert not [note for note in judge_report(rows[:3], FREE).notes if "equal" in note]
    assert report.calls_per_pair == 2  # of the three that were asked
    assert report.non_option_mass == pytest.approx(0.5 / 3)
    assert report.human.observed == 0.25
    assert report.position_bias == pytest.approx(1 / 3)
    assert [hit(*both) for both in ((0.8, 0.6), (0.8, 0.4), (0.5, 1), (0.8, 0.5))] == [1.0, 0.0, 0.5, 0.5]


def test_a_prompt_with_many_pairs_counts_as_one() -> None:
    rows = [pair(1.0, opinion(0.9), prompt="many")] * 9 + [pair(1.0, opinion(0.1), prompt="one")]
    report = judge_report(rows, FREE)
    assert (report.accuracy.mean, report.accuracy.n) == (0.5, 2)


def test_a_liking_for_length_shows() -> None:
    longer_is_better = [pair(1.0, opinion(0.9), longer=40, prompt=f"a{i}") for i in range(6)]
    shorter_is_better = [pair(1.0, opinion(0.2), longer=-40, prompt=f"b{i}") for i in range(4)]
    bias = judge_report([*longer_is_better, *shorter_is_better, pair(0.0, opinion(0.9))], FREE).length
    assert bias.accuracy_longer is not None
    assert bias.accuracy_shorter is not None
    assert bias.judge_prefers_longer is not None
    assert bias.labels_prefer_longer is not None
    assert (bias.accuracy_longer.mean, bias.accuracy_shorter.mean) == (1.0, 0.0)
    assert (bias.judge_prefers_longer.mean, bias.labels_prefer_longer.mean) == (1.0, 0.6)
    odds = [math.log(9)] * 6 + [math.log(4)] * 4  # for the longer answer, which is always longer by 40
    assert bias.correlation == pytest.approx(sum(odds) / (10 * sum(x * x for x in odds)) ** 0.5)
    equal = judge_report([pair(1.0, opinion(0.9))], FREE).length
    assert (equal.judge_prefers_longer, equal.correlation) == (None, None)


def test_principles_are_reported_apart_and_compared_with_each_other() -> None:
    rng = random.Random(0)
    rows = []
    for i in range(60):
        sure = 0.9 if rng.random() < 0.8 else 0.2
        opinions = [opinion(sure, by="good"), opinion(sure, by="twin"), opinion(1 - sure, by="foe")]
        if i < SHARED - 1:
            opinions.append(opinion(0.6, by="rare"))
        rows.append(pair(1.0, *opinions, prompt=f"{i}"))
    report = judge_report(rows, FREE)
    by = {quality.by: quality for quality in report.principles}
    assert by["good"].accuracy.mean == pytest.approx(1 - by["foe"].accuracy.mean)
    assert by["good"].accuracy.low is not None
    assert 0.5 < by["good"].accuracy.low < by["good"].accuracy.mean < 0.95
    assert (by["rare"].pairs, by["good"].pairs) == (SHARED - 1, 60)
    assert report.principles[-1].by == "foe"
    found = {(p.a, p.b): (p.agreement.kappa, p.redundant) for p in report.between}
    assert found == {("good", "twin"): (1.0, True), ("foe", "good"): (-1.0, False), ("foe", "twin"): (-1.0, False)}
    assert [(p.a, p.b) for p in contradicting(report.between)] == [("foe", "good"), ("foe", "twin")]
    assert (
        "principles that give nearly the same verdicts: good and twin (κ 1.00 [0.88, 1.00], 60 pairs)" in report.notes
    )
    both = "foe and good (κ -1.00 [-1.00, -0.88], 60 pairs), foe and twin (κ -1.00 [-1.00, -0.88], 60 pairs)"
    assert f"principles that contradict each other: {both}" in report.notes


def test_of_many_such_principles_the_first_are_named() -> None:
    rows = [pair(1.0, *[opinion(0.9, by=f"p{n}") for n in range(4)], prompt=f"{i}") for i in range(SHARED)]
    [note] = judge_report(rows, FREE).notes
    assert re.search(r"p0 and p3 \(κ 1\.00 \[0\.\d\d, 1\.00\], 20 pairs\), and 3 more pairs$", note)


def test_a_few_disagreements_are_no_contradiction() -> None:
    rows = [pair(1.0, opinion(0.9, by="a"), opinion(0.9 if i % 9 < 4 else 0.1, by="b")) for i in range(27)]
    [between] = judge_report(rows, FREE).between
    assert between.agreement.kappa is not None
    assert between.agreement.kappa < 0
    assert not contradicting([between])


def overconfident(temperature: float, count: int = 600) -> list[Judged]:
    rng = random.Random(1)
    rows = []
    for i in range(count):
        odds = rng.gauss(0, 1.5)
        label = float(rng.random() < sigmoid(odds))
        rows.append(pair(label, opinion(sigmoid(odds * temperature)), prompt=f"{i // 2}"))
    return rows


def test_a_temperature_fitted_on_half_of_the_prompts_mends_the_other_half() -> None:
    rows = overconfident(3.0)
    report = judge_report(rows, FREE, calibrate=True, temperature=2.0)
    found = report.calibration
    assert found is not None
    assert found.temperature / 2.0 == pytest.approx(3.0, rel=0.2)
    assert found.fitted_pairs + found.pairs == 600
    assert 0.35 < found.pairs / 600 < 0.65
    assert found.ece_after.mean < found.ece_before.mean / 2
    assert found.log_loss_after < found.log_loss_before
    assert sum(b.n for b in found.reliability) == found.pairs
    assert found.applied


def test_no_prompt_is_in_both_halves_and_the_metrics_are_those_of_the_half_not_fitted() -> None:
    rows = overconfident(3.0, 40)
    found = calibration(rows)
    assert found is not None
    assert found.pairs % 2 == 0  # both pairs of a prompt
    spoilt = {
        prompt for prompt in {row.prompt_id for row in rows}
        if (other := calibration([row._replace(label=0.0) if row.prompt_id == prompt else row for row in rows]))
        and other.log_loss_before != found.log_loss_before
        and other.temperature != found.temperature
    }  # fmt: skip
    assert spoilt == set()  # what a prompt says changes the fit or the metrics before it, not both
    assert calibration(rows[:2]) is None


def test_weaknesses_of_a_judge_are_warnings() -> None:
    def result(*rows: Judged, calibrate: bool = False) -> str:
        return " | ".join(judge_report(rows, FREE, calibrate).notes)

    chance = [pair(float(i % 2), opinion(0.9, 0.4, non_option_mass=0.7), prompt=f"{i}") for i in range(20)]
    assert "does not differ significantly from chance" in result(*chance)
    assert "position bias: 100 % of the verdicts flip" in result(*chance)
    assert "non-option probability mass is 70 %" in result(*chance)
    assert "prefers the worse answer" in result(*[pair(0.0, opinion(0.9), prompt=f"{i}") for i in range(20)])
    perfect = [pair(1.0, opinion(0.9), prompt=f"{i}") for i in range(20)]
    assert result(*perfect) == ""
    assert "not applied: on the fitted half the judge is never wrong" in result(*perfect, calibrate=True)
    luck = [
        pair(float(i % 10 > 0 if uniform("calibration", f"{i}") < 0.5 else i % 2), opinion(0.7), prompt=f"{i}")
        for i in range(100)
    ]
    assert "not applied: it does not lower the log loss on the other half" in result(*luck, calibrate=True)
    assert "temperature" not in result(*overconfident(3.0), calibrate=True)
    assert result(*[pair(1.0, prompt=f"{i}") for i in range(3)]).startswith("the judge gave no verdict")


def test_the_report_is_written_with_the_names_of_its_metrics_and_read_back() -> None:
    report = judge_report(overconfident(2.0, 50), Cost(8, 0, 10, 4.0), calibrate=True)
    assert '"accuracy":{"mean":' in report.model_dump_json()
    assert JudgeReport.model_validate_json(report.model_dump_json()) == report
    assert (report.seconds_per_pair, report.tokens_per_pair) == (4 / 50, 10 / 50)
    cached = judge_report(overconfident(2.0, 50), Cost(8, 2, 10, 4.0))
    assert (cached.seconds_per_pair, cached.tokens_per_pair) == (None, None)
    assert cached.calls_per_pair == 10 / 50


def test_a_report_of_identical_answers_alone_has_no_metrics_of_verdicts() -> None:
    report = judge_report([pair(1.0)], FREE, calibrate=True)
    assert (report.accuracy.mean, report.position_bias, report.ece, report.calibration) == (0.5, None, None, None)
    with pytest.raises(ValueError, match="no judged pairs"):
        judge_report([], FREE)


def test_a_pair_is_seen_through_its_preference_row() -> None:
    verdict = Verdict(
        principle_id="kind",
        principle_hash="x",
        weight=2,
        judge="abcdef0123",
        p_forward=0.8,
        p_reverse=0.4,
        non_option_mass=0.1,
    )
    row = Preference(
        prompt_id="p", messages=[Message(role="user", content="Why?")], chosen="longer", rejected="short", p=0.7,
        source="judge", verdicts=[verdict, verdict.model_copy(update={"judge": ""})], input_p=0.25,
    )  # fmt: skip
    seen = judged(row)
    assert (seen.prompt_id, seen.label, seen.p, seen.longer) == ("p", 0.25, 0.7, 1)
    assert seen.opinions[0] == ("kind @abcdef", verdict.p, 0.8, 0.4, 0.1, 2.0, None)
    assert seen.opinions[1].by == "kind"
    with pytest.raises(ValueError, match="without a label"):
        judged(row.model_copy(update={"input_p": None}))


def test_few_prompts_that_all_agree_are_no_certainty() -> None:
    found = over_prompts([("a", 1.0), ("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)])
    assert (found.mean, found.n) == (1.0, 4)
    assert found[1:3] == pytest.approx((0.5101, 1.0), abs=1e-4)  # Wilson, 4 of 4
    assert over_prompts([("a", 0.0)])[:3] == pytest.approx((0.0, 0.0, 0.7935), abs=1e-4)
    halves = over_prompts([("a", 0.5), ("b", 0.5)])  # not certain either
    assert halves.low is not None and halves.high is not None and halves.low < 0.25 and halves.high > 0.75


def tied(label: float, p: float, mass: float, prompt: str) -> Judged:
    """A pair by a judge that may say that the answers are equally good."""
    return pair(label, opinion(p)._replace(tie_mass=mass), prompt=prompt)._replace(tie_mass=mass)


def test_a_tie_that_is_likelier_than_either_answer_is_the_judges_verdict() -> None:
    rows = [
        tied(0.5, 0.55, 0.6, "a"),  # both call a tie
        tied(1.0, 0.55, 0.6, "b"),  # the judge alone
        tied(0.5, 0.70, 0.2, "c"),  # the labels alone
        tied(1.0, 0.70, 0.2, "d"),  # neither, and the same winner
    ]
    report = judge_report(rows, FREE)
    assert report.accuracy.mean == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert (report.label_ties, report.judged_ties, report.ties_agreed) == (2, 2, 1)
    assert report.tie_mass == pytest.approx(0.4)
    assert report.human.observed == 0.5  # a tie is a verdict of its own
    assert report.principles[0].accuracy.mean == report.accuracy.mean == report.one_order.mean
    shown = {metric.name: (metric.value, metric.meaning) for metric in judge_metrics(report)}
    assert shown["judged a tie"] == ("2", "pairs, 1 as the labels")
    assert shown["labelled a tie"][0] == "2"


def test_without_the_option_of_a_tie_labelled_ties_are_counted_and_no_more() -> None:
    report = judge_report([pair(0.5, opinion(0.9)), pair(1.0, opinion(0.9), prompt="q")], FREE)
    assert (report.accuracy.mean, report.label_ties, report.judged_ties, report.tie_mass) == (0.75, 1, 0, None)
    names = {metric.name for metric in judge_metrics(report)}
    assert "labelled a tie" in names and "judged a tie" not in names


def test_the_mass_of_a_tie_is_read_from_a_pairs_verdicts_by_weight() -> None:
    def verdict(name: str, weight: float, mass: float) -> Verdict:
        return Verdict(
            principle_id=name, principle_hash="-", weight=weight, p_forward=0.6, p_reverse=0.6, non_option_mass=0.0,
            tie_mass=mass,
        )  # fmt: skip

    row = Preference(
        prompt_id="p", messages=[Message(role="user", content="q")], chosen="a", rejected="b", p=0.6, source="judge",
        verdicts=[verdict("kind", 1, 0.2), verdict("true", 3, 0.6)], input_p=0.5,
    )  # fmt: skip
    found = judged(row)
    assert found.tie_mass == pytest.approx(0.5)
    assert [opinion.call for opinion in found.opinions] == [0.6, 0.5]
    assert found.call == 0.5
