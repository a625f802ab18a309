import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Answer, Message, Scored
from cai.evaluation import scores
from cai.evaluation.policy import EvaluationPlan
from cai.inference.progress import Reporter
from cai.runs.evaluate import Options, plan_evaluation
from tests.runs.test_evaluate import make_run

QUIET = Reporter(Console(quiet=True))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the worker was asked for, in place of which a row is written."""
    calls: list[dict[str, Any]] = []

    def follow(command: list[str], log: Path, report: Any) -> None:
        spec = json.loads(Path(command[-1]).read_text(encoding="utf-8"))
        calls.append(spec)
        report({"step": 1, "of": 1, "note": "x"})
        write_rows(Path(spec["out"]), [Scored(policy="good", of="answers", prompt_id="p0", tokens=1, logp=-1.0)])

    monkeypatch.setattr(scores, "follow", follow)
    return calls


def planned(folder: Path, **options: Any) -> tuple[EvaluationPlan, Path]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    answer = Answer(
        policy="good", prompts="held_out", prompt_id="p0", messages=[Message(role="user", content="?")], text="a",
        truncated=False, model="m",
    )  # fmt: skip
    write_rows(out / "answers.jsonl", [answer])
    return plan_evaluation(Options("good", **options), folder / "runs"), out


def test_the_same_answers_are_scored_once_and_others_anew(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    make_run(tmp_path / "runs", "good")
    evaluating, out = planned(tmp_path)
    rows, missing = scores.score_answers(evaluating, out, QUIET)
    assert ([row.policy for row in rows], missing) == (
        ["good"],
        {"reward": "'good' was not trained against a reward model"},
    )
    assert scores.score_answers(evaluating, out, QUIET)[0] == rows
    assert len(asked) == 1
    assert (asked[0]["temperature"], [p["name"] for p in asked[0]["policies"]], asked[0]["reward"]) == (
        1.0,
        ["good"],
        None,
    )
    with (out / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write((out / "answers.jsonl").read_text(encoding="utf-8").replace("p0", "p1"))
    scores.score_answers(evaluating, out, QUIET)
    assert len(asked) == 2
    (out / "scores.jsonl").unlink()
    scores.score_answers(evaluating, out, QUIET)
    assert len(asked) == 3


def test_greedy_answers_have_no_kl_and_without_a_reward_model_nothing_is_started(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    make_run(tmp_path / "runs", "good")
    rows, missing = scores.score_answers(*planned(tmp_path, settings=["temperature=0"]), QUIET)
    assert (rows, asked) == ([], [])
    assert "greedy" in missing["kl"]


def test_a_reward_model_that_is_gone_is_told_and_one_that_is_there_is_asked(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    run = make_run(tmp_path / "runs", "good")
    reward = tmp_path / "reward"
    (run.train / "1-dpo/stage.json").write_text(json.dumps({"reward": str(reward)}), encoding="utf-8")
    _, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert missing["reward"] == f"its reward model is no longer at {reward}"
    reward.mkdir()
    (reward / "reward.json").write_text("{}", encoding="utf-8")
    run.preferences_jsonl.write_text("", encoding="utf-8")
    _, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert missing == {}
    assert (asked[-1]["reward"], asked[-1]["pairs"]) == (str(reward), str(run.preferences_jsonl))


def test_a_worker_that_fails_leaves_the_rest_of_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs", "good")

    def follow(*_: Any) -> None:
        raise CaiError("no memory")

    monkeypatch.setattr(scores, "follow", follow)
    rows, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert (rows, missing["kl"]) == ([], "scoring failed: no memory")


@pytest.mark.slow
def test_a_real_worker_scores_and_tells_what_it_cannot_read(tmp_path: Path, tiny_model: Path) -> None:
    make_run(tmp_path / "runs", "good")  # whose models only pass for some
    rows, missing = scores.score_answers(*planned(tmp_path), QUIET)
    assert rows == []
    assert missing["kl"].startswith("scoring failed: ")
