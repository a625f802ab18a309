import random

import numpy as np
import pytest

from cai.compare.compare import compare_runs
from cai.compare.record import RunComparison
from cai.compare.sample_size import needed, parse_plan, plan
from cai.config.errors import CaiError
from cai.stats.power import planned_prompts
from cai.stats.significance import ALPHA
from cai.stats.trainings import two_level
from tests.compare.made import make_run
from tests.compare.test_known_truth import BOTH, noisy, words


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> RunComparison:
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, seeds: int) -> RunComparison:
        evaluations = [noisy(moved, 0.0 if name[0] == "a" else 0.05) for moved in (-0.03, 0.0, 0.04)[:seeds]]
        return make_run(
            folder / name, BOTH, lambda i, drawn: words(i, 20 + random.Random(i + name).randint(0, 9)),
            evaluation=evaluations[0], seeds=evaluations[1:],
        )  # fmt: skip

    return compare_runs([run("a", 3), run("b", 3), run("c", 1)])


def test_a_difference_may_be_named_for_one_metric_by_key_or_name_or_for_all() -> None:
    assert parse_plan(["words after training=10", "win_rate=0.1", "0.5"]) == {
        "after_words": 10.0, "win_rate": 0.1, "": 0.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("zebra=0.1", "--plan zebra=0.1: no metric 'zebra'; expected one of words in the draft, "),
        (
            "wordss=10",
            "no metric 'wordss'; did you mean 'words in the draft' or 'words in the revision' or 'words ",
        ),
        ("revision_word=1", "no metric 'revision_word'; did you mean 'revision_words' or 'revision_worse'?"),
        ("words in revision=1", "no metric 'words in revision'; did you mean 'words in the revision'?"),
        ("win_rate=much", "--plan win_rate=much: expected a difference above 0 in the metric's unit, found 'much'"),
        ("-1", "expected a difference above 0"),
        ("nan", "expected a difference above 0"),
    ],
)
def test_a_plan_that_cannot_be_read_is_an_error_that_says_what_was_expected(option: str, message: str) -> None:
    with pytest.raises(CaiError) as error:
        parse_plan([option])
    assert message in str(error.value)


def test_prompts_are_planned_with_the_spread_and_the_correction_of_the_comparison(compared: RunComparison) -> None:
    [first, _] = plan(compared, {"revision_words": 3.0})
    effect = next(m for m in compared.pairs[0].metrics if m.key == "revision_words").effect
    tests = len(compared.family) * compared.family["metrics"]
    assert effect.se is not None
    assert first.prompts == planned_prompts(effect.se * effect.n**0.5, effect.n - 1, 3.0, 0.05 / tests)
    [smaller, _] = plan(compared, {"revision_words": 1.5})
    assert (smaller.prompts or 0) == pytest.approx(4 * (first.prompts or 0), rel=0.2)  # the smaller, the more


def test_where_trainings_vary_more_of_them_are_planned(compared: RunComparison) -> None:
    several, one = plan(compared, {"after_better": 0.1})
    assert several.trainings is not None and several.trainings > 3 and several.prompts == several.n
    assert several.note.endswith("more prompts alone are not enough")
    assert one.prompts is not None and one.note == "prompts only; training variance unknown"
    [easy, _] = plan(compared, {"after_better": 2.0})
    assert (easy.trainings, easy.note.startswith("3 + 3 trainings")) == (3, True)
    assert easy.prompts is not None and easy.prompts <= several.n


def test_metrics_without_spread_have_no_plan(compared: RunComparison) -> None:
    equal = next(row for row in plan(compared, {"": 0.1}) if row.key == "draft_words")
    assert (equal.prompts, equal.note) == (None, "equal on every prompt, so its spread is unknown")


@pytest.mark.numeric
@pytest.mark.parametrize(("difference", "deviation"), [(25.0, 11.0), (15.0, 11.0), (15.0, 3.0)])
def test_planned_trainings_find_their_difference_four_times_in_five(difference: float, deviation: float) -> None:
    """On average over pilots of three trainings a run, whether trainings or prompts vary more."""
    rng, designs = np.random.default_rng(0), 800

    def policies(trainings: int, prompts: int, difference: float) -> tuple[np.ndarray, np.ndarray]:
        a, b = (rng.normal(0, deviation, (trainings, 1)) + rng.normal(0, 15, (trainings, prompts)) for _ in "ab")
        return a, b + difference + rng.normal(0, 10, prompts)

    found = planned = 0
    for _ in range(designs):
        prompts, trainings, _ = needed(two_level(*policies(3, 40, 0.0)), difference, ALPHA)
        if prompts and trainings:
            planned += 1
            found += (two_level(*policies(trainings, prompts, difference)).p or 0) <= ALPHA
    assert planned > 0.95 * designs
    assert found / planned == pytest.approx(0.8, abs=0.05)
