import tracemalloc
from typing import Any, NamedTuple

import pytest

from cai.data.records import Preference, Source, Verdict
from cai.feedback.metrics import (
    REVISION_PAIR_METRICS,
    RUN_METRICS,
    Metric,
    PromptMeans,
    mean_over_prompts,
    non_option_mass,
    position_bias,
)
from cai.feedback.pairs import LabelMass, label_mass_text
from cai.stats.intervals import Estimate


class Row(NamedTuple):
    prompt_id: str
    value: float | None


ALL = Metric[Row]("all", "all rows", "", "share", lambda row: row.value)
LAST = Metric[Row]("last", "last row", "", "words", lambda row: row.value, last_round=True)


def means(*rows: tuple[str, float | None]) -> PromptMeans[Row]:
    return PromptMeans([ALL, LAST]).add_all(Row(*row) for row in rows)


def test_a_prompt_counts_once_however_many_rows_it_has() -> None:
    found = means(("a", 1.0), ("b", 0.0), ("a", 1.0), ("a", 0.4))
    assert found.by_prompt(ALL) == {"a": pytest.approx(0.8), "b": 0.0}
    assert found.estimates()["all"] == Estimate(pytest.approx(0.4), None, None, 2)
    assert mean_over_prompts([("a", 1.0), ("b", 0.0), ("a", 1.0), ("a", 0.4)]) == pytest.approx(0.4)


def test_of_the_last_round_only_the_last_row_of_a_prompt_counts() -> None:
    assert means(("a", 1.0), ("b", 2.0), ("a", 7.0)).by_prompt(LAST) == {"a": 7.0, "b": 2.0}


def test_rows_without_a_value_are_in_no_mean() -> None:
    found = means(("a", None), ("a", 0.5), ("b", None))
    assert found.by_prompt(ALL) == {"a": 0.5}
    assert means(("a", None)).estimates() == {"all": None, "last": None}
    assert mean_over_prompts([("a", None)]) is None


def test_a_prompt_takes_little_memory() -> None:
    metrics = [Metric[Row](str(i), str(i), "", "share", lambda row: row.value) for i in range(5)]
    tracemalloc.start()
    found = PromptMeans(metrics).add_all(Row(f"{i:016x}", 0.5) for i in range(20_000))
    found.estimates()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / 20_000 < 330  # bytes, of which 60 are sums and counts; an array for each prompt took 450


def test_only_verdicts_in_both_orders_have_a_position_bias() -> None:
    def verdict(forward: float | None, reverse: float | None) -> Verdict:
        said: dict[str, Any] = {"principle_id": "p", "principle_hash": "h", "non_option_mass": 0.25}
        return Verdict(p_forward=forward, p_reverse=reverse, **said)

    same, flipped, one_order = verdict(0.9, 0.8), verdict(0.9, 0.2), verdict(0.9, None)
    assert position_bias([same, flipped, one_order]) == 0.5
    assert position_bias([one_order]) is None
    assert non_option_mass([same, one_order]) == 0.25
    assert non_option_mass([]) is None


def test_no_two_metrics_share_a_name() -> None:
    assert len({metric.name for metric in RUN_METRICS.values()}) == len(RUN_METRICS)


def pair(p: float, source: Source = "revision", chosen: str = "new", **more: Any) -> Preference:
    about: dict[str, Any] = {"prompt_id": "p", "messages": [{"role": "user", "content": "?"}], "rejected": "old"}
    return Preference(**about, chosen=chosen, p=p, source=source, **more)


def test_label_mass_is_what_labels_say_by_source() -> None:
    labels = LabelMass()
    for row in (pair(1.0), pair(0.75, "judge"), pair(0.25, "judge"), pair(0.5, "judge"), pair(0.75, "human", weight=2)):
        labels.add(row)
    assert labels.pairs == {"revision": 1, "judge": 3, "human": 1}
    assert labels.shares() == pytest.approx({"revision": 1 / 3, "judge": 1 / 3, "human": 1 / 3})
    assert label_mass_text({"revision": 0.25, "judge": 0.75}) == "25 % by revision, 75 % by judge"


def test_labels_that_say_nothing_have_no_mass() -> None:
    labels = LabelMass()
    labels.add(pair(0.5, "judge"))
    assert labels.shares() == {}


def test_what_a_pair_teaches_is_measured_on_the_revisions_that_are_chosen() -> None:
    def of(row: Preference) -> dict[str, float | None]:
        return {metric.key: metric.value(row) for metric in REVISION_PAIR_METRICS}

    def verdicts(p: float) -> list[Verdict]:
        about: dict[str, Any] = {"principle_id": "a", "principle_hash": "h", "non_option_mass": 0.0}
        return [Verdict(**about, p_forward=p, p_reverse=p)]

    taught = of(pair(1.0, verdicts=verdicts(0.2), truncated=["chosen"], chosen="on and on and " * 5))
    assert taught == {
        "revision_better": pytest.approx(0.2), "revision_worse": True, "chosen_worse": True, "chosen_truncated": True,
        "chosen_repeats": True,
    }  # fmt: skip
    rejected = of(pair(0.8, verdicts=verdicts(0.8), truncated=["rejected"], draft_chosen=True))
    assert rejected == {
        "revision_better": pytest.approx(0.2), "revision_worse": True, "chosen_worse": None, "chosen_truncated": None,
        "chosen_repeats": None,
    }  # fmt: skip
    unjudged = of(pair(1.0))
    assert (unjudged["revision_better"], unjudged["revision_worse"], unjudged["chosen_worse"]) == (None, None, None)
    assert (unjudged["chosen_truncated"], unjudged["chosen_repeats"]) == (False, False)
