import json
import math
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.records import Preference, Revision
from cai.feedback.metrics import RUN_METRICS
from cai.runs import load_run
from cai.runs.metrics import policy_means, run_estimates
from tests.compare.made import make_run, principles, write_metrics

CONSTITUTION = principles("calm", "short")


def test_rows_come_back_from_a_table_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", CONSTITUTION, lambda i, drawn: f"{i} {drawn}", verdict=lambda i, drawn: 0.75)
    tables = load_run(tmp_path / "x")
    assert [Revision.model_validate(row) for row in tables.revisions.to_pylist()] == run.revisions()
    assert [
        Preference.model_validate(row) for row in _without_none(tables.preferences.to_pylist())
    ] == run.preferences()
    assert tables.prompts.num_rows == 40
    assert tables.preferences.column("verdicts")[0].as_py()[0]["p_forward"] == 0.75


def _without_none(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def test_a_data_frame_groups_by_principle(tmp_path: Path) -> None:
    make_run(tmp_path / "x", CONSTITUTION, lambda i, drawn: f"{i} {drawn}")
    frame = load_run("x", runs=tmp_path).revisions.to_pandas()
    assert set(frame.groupby("principle_id").size().index) == {"calm", "short"}


def test_what_a_run_does_not_have_is_a_table_without_rows(tmp_path: Path) -> None:
    make_run(tmp_path / "x", CONSTITUTION, lambda i, drawn: i)
    tables = load_run(tmp_path / "x")
    assert (tables.evaluation.num_rows, tables.rankings.num_rows, tables.updates.num_rows) == (0, 0, 0)
    assert "p" in tables.evaluation.column_names


def test_updates_of_all_stages_are_one_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", CONSTITUTION, lambda i, drawn: i)
    write_metrics(run, "1-sft", [{"step": 1, "loss": 2.5}])
    write_metrics(run, "2-ppo", [{"step": 1, "objective/kl": math.nan, "note": "text"}, {"step": 2, "objective/kl": 3}])
    rows = load_run(tmp_path / "x").updates.to_pylist()
    assert [(row["stage"], row["step"], row["loss"]) for row in rows] == [
        ("1-sft", 1, 2.5),
        ("2-ppo", 1, None),
        ("2-ppo", 2, None),
    ]
    assert math.isnan(rows[1]["objective/kl"]) and rows[2]["objective/kl"] == 3.0
    assert "note" not in rows[1]


def test_an_invalid_row_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", CONSTITUTION, lambda i, drawn: i)
    run.prompts_jsonl.write_text(json.dumps({"id": "p0"}) + "\n")
    with pytest.raises(CaiError, match=r"prompts.jsonl:1: messages"):
        _ = load_run(tmp_path / "x").prompts
    with pytest.raises(CaiError, match="no run 'y'"):
        load_run("y", runs=tmp_path)


def test_metrics_are_those_of_the_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", CONSTITUTION, lambda i, drawn: f"{i} {drawn}", verdict=lambda i, drawn: 0.75)
    with pytest.raises(CaiError, match="not a summary of this version"):
        _ = load_run(tmp_path / "x").metrics
    run.summary_json.unlink()
    unfinished = load_run(tmp_path / "x").metrics.to_pylist()
    estimates = run_estimates(run.revisions(), run.preferences(), policy_means(run))
    metrics = {key: estimate and estimate._asdict() for key, estimate in estimates.items()}
    run.summary_json.write_text(json.dumps({"metrics": metrics}))
    assert unfinished == load_run(tmp_path / "x").metrics.to_pylist()
    assert {row["key"]: row["mean"] for row in unfinished} == {
        key: estimate.mean for key, estimate in estimates.items() if estimate is not None
    }
    assert all(row["name"] == RUN_METRICS[row["key"]].name for row in unfinished)
    assert load_run(tmp_path / "x").constitution == run.constitution()
