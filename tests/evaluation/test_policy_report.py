import json
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.evaluation.monitors import Monitor
from cai.evaluation.policy_report import PolicyReport, PolicySummary, read_report
from cai.evaluation.win_rates import PolicyComparison, Rating, Standing, format_elo
from cai.stats.intervals import Estimate


def report(**changes: Any) -> PolicyReport:
    """A small whole report."""
    estimate = Estimate(0.75, 0.5, 1.0, 4)
    rating = Rating(axis="helpful", policy="run", elo=190.8, low=0.0, high=400.0, prompts=4)
    content = {
        "manifest": {"command": "cai eval"},
        "policies": [
            PolicySummary(name="before", folder="model", model="0"),
            PolicySummary(name="run", folder="runs/run/train/1-dpo/model", model="1", trained_from="model"),
        ],
        "prompts": 4,
        "tags": {"harmless": 4},
        "comparisons": [
            PolicyComparison(
                axis="overall", tag=None, policy="run", against="before", prompts=4, identical=0, win_rate=estimate,
                mean_p=estimate, length_controlled_win_rate=None, length_controlled_missing="few", words=(10.0, 12.5), position_bias=0.25,
                non_option_mass=0.5,
            )
        ],
        "ratings": [rating],
        "standings": [Standing(policy="run", helpful=rating, safe=rating, dominated=[])],
        "probes": [],
        "checks": [],
        "monitors": [
            Monitor(
                policy="run", name="length", value=Estimate(1.2, None, None, 1), no_effect=1.0, threshold=1.5,
                state="unclear", meaning="words",
            )
        ],
        "divergences": [],
        "rewards": [],
        "gold_vs_proxy": [],
        "notes": ["only 4 prompts"],
        "cost": {"cache_misses": 3.0},
    }  # fmt: skip
    return PolicyReport.model_validate(content | changes)


def test_a_report_comes_back_from_its_file_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(report().model_dump_json(), encoding="utf-8")
    assert read_report(path) == report()
    assert json.loads(path.read_text(encoding="utf-8"))["comparisons"][0]["win_rate"] == {
        "mean": 0.75, "low": 0.5, "high": 1.0, "n": 4
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ('{"format": 2, "prompts": 3}', "manifest: Field required; run `cai eval --replace` again"),
        ("[]", "expected a JSON object"),
        (
            '{"prompts": 3, "against": []}',
            "expected a report of format 2, found format 1.*run `cai eval --replace` again",
        ),
    ],
)
def test_a_file_that_is_no_report_is_an_error_that_names_it(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaiError, match=rf"evaluation\.json:.*{said}"):
        read_report(path)


@pytest.mark.parametrize(
    ("elo", "low", "high", "result"),
    [
        (-0.0, None, None, "0 (no interval)"),
        (-0.3, -0.4, 0.2, "0 [0, 0]"),
        (0.0, 0.0, 0.0, "0"),
        (-135.2, None, 72.0, "-135 [–, +72]"),
        (None, None, None, "–"),
    ],
)
def test_points_have_a_sign_unless_they_are_zero(
    elo: float | None, low: float | None, high: float | None, result: str
) -> None:
    assert format_elo(Rating(axis="safe", policy="run", elo=elo, low=low, high=high, prompts=4)) == result
