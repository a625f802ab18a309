import tracemalloc
from typing import Any, NamedTuple

import pytest

from cai.data.records import Verdict
from cai.feedback.metrics import (
    RUN_METRICS,
    Metric,
    PromptMeans,
    mean_over_prompts,
    non_option_mass,
    position_bias,
)
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
