import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai.cli.main import app
from cai.data.jsonl import write_rows
from cai.data.records import Verdict
from cai.evaluation.injection import InjectionGain
from cai.evaluation.monitors import Monitor, TrainingPhase
from cai.evaluation.policy_report import PolicyReport, PolicySummary
from cai.evaluation.probe_metrics import JudgeCheck, ProbeRate
from cai.evaluation.scores import Divergence, Reward
from cai.evaluation.win_rates import Rating, Standing
from cai.report.run import evaluation_grids, evaluation_plots, read_run, run_report
from cai.runs.folder import RunFolder
from cai.stats.intervals import Estimate
from tests.conftest import write_workspace
from tests.evaluation.test_policy_report import report as policy_report
from tests.report.folders import write_run
from tests.runs.test_pipeline import run_to_end


def text_of(page: str) -> str:
    """What a person reads of a page: no scripts, styles or tags."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def report(folder: RunFolder) -> str:
    return text_of(run_report(folder, read_run(folder)))


def test_a_principle_has_the_metrics_of_its_revisions_and_verdicts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    rows = folder.preferences()
    fair = Verdict(principle_id="another", principle_hash="h", p_forward=0.8, p_reverse=0.8, non_option_mass=0.25)
    write_rows(folder.preferences_jsonl, [row.model_copy(update={"verdicts": [fair]}) for row in rows])
    [drawn, judged] = read_run(folder).principles
    assert (drawn.id, drawn.share, drawn.revisions, drawn.verdicts) == ("good-for-people", 1.0, 6, 0)
    assert drawn.of_revisions["filtered"] == 0.5
    assert drawn.of_revisions["words"] == 0
    assert drawn.of_revisions["edit"] == pytest.approx(0.2)  # one word of five
    assert drawn.of_verdicts == {}
    assert (judged.id, judged.principle, judged.verdicts) == ("another", None, 6)
    assert judged.of_verdicts == pytest.approx({"label_p": 0.8, "position_bias": 0.0, "non_option_mass": 0.25})


def test_the_filters_that_the_revisions_of_each_principle_fail_are_a_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    rows = [row.model_copy(update={"flags": []}) for row in folder.revisions()]
    write_rows(folder.revisions_jsonl, rows)
    assert " Filters The share" not in report(folder)
    rows[0] = rows[0].model_copy(update={"flags": ["unchanged", "truncated"]})
    rows[2] = rows[2].model_copy(update={"flags": ["unchanged"]})
    write_rows(folder.revisions_jsonl, rows)
    shown = report(folder).partition(" Filters The share")[2]
    assert "principle revisions unchanged truncated good-for-people 6 33 % 17 %" in shown.replace(
        "\u202f", " "
    ).replace("\xa0", " ")


def test_the_metrics_of_the_summary_and_their_warnings_are_shown(tmp_path: Path) -> None:
    text = report(write_run(tmp_path / "run", prompts=9))
    for part in (
        "prompts 6 and 3 held out", "fails a filter 0.500", "labelled pairs 6 6 by judge",
        "ties ½; 3 prompts", "the interval of the win rate is wide", "copied critique 0.500 0.25 warning",
        "1 × the reason of number 1", "12 updates; means of their first → last third: mean loss", "1-dpo: reward margin",
    ):  # fmt: skip
        assert part in text, part


def test_everything_the_run_was_made_from_is_on_the_page(tmp_path: Path) -> None:
    text = report(write_run(tmp_path / "run"))
    for part in ("the run file of number 0", "the template of number 0", "the hash of number 4", "the loss of number 0",
                 "the package of number 0 the version of number 0", "the critique of number 0"):  # fmt: skip
        assert part in text, part


def test_the_report_of_an_unfinished_run_is_marked_unfinished(tmp_path: Path, model_folder: Path) -> None:
    folder = run_to_end(write_workspace(tmp_path, model_folder))
    assert "The run is unfinished" not in report(folder)
    folder.summary_json.unlink()
    folder.preferences_jsonl.unlink()
    text = report(folder)
    assert "The run is unfinished" in text
    assert "The judge was asked about no pair" in text


@pytest.mark.parametrize("kept", ["no words", "one", "damaged"])
def test_the_metrics_of_a_summary_of_another_version_are_counted_anew(tmp_path: Path, kept: str) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    as_written, summary = report(folder), folder.summary()
    assert summary is not None
    del summary["metrics"]["revision_words"]
    written = {"no words": json.dumps(summary), "one": '{"prompts": 3}', "damaged": '{"pro'}[kept]
    folder.summary_json.write_text(written, encoding="utf-8")
    found = report(folder)
    for part in (
        "prompts 6 and 3 held out",
        "fails a filter 0.500",
        "12 updates; means of their first → last third: mean loss",
    ):
        assert part in as_written and part in found
    assert "unfinished" not in found


def test_rows_of_another_version_cost_the_examples_and_not_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.revisions_jsonl.write_text('{"prompt_id": "p01"}\n', encoding="utf-8")
    text = report(folder)
    assert f"The examples cannot be read: {folder.revisions_jsonl}:1: messages: missing" in text
    assert "fails a filter 0.500" in text  # of the summary
    assert "1-dpo: reward margin" in text
    folder.summary_json.unlink()
    text = report(folder)
    assert "The metrics cannot be computed" in text
    assert "The judge was asked about no pair" not in text


def test_what_else_cannot_be_read_is_shown_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.constitution_yaml.unlink()
    for file in (folder.judge / "judge.json", folder.eval / "evaluation.json"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("[]", encoding="utf-8")
    (folder.train / "1-dpo/stage.json").write_text('{"sett', encoding="utf-8")
    folder.manifest_json.write_text("{}", encoding="utf-8")
    text = report(folder)
    for part in ("The constitution cannot be read", "The judge gate cannot be read", "The policy evaluation cannot be read",
                 "Stage 1-dpo cannot be read", "model unknown", "12 updates; means of their first → last third: mean loss"):  # fmt: skip
        assert part in text, part


def test_a_interrupted_training_is_shown_as_far_as_it_got(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.summary_json.unlink()
    metrics = folder.train / "1-dpo/metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert "11 updates; means of their first → last third: mean loss" in report(folder)


def test_rewards_that_are_no_number_are_skipped_of_means_and_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    folder.summary_json.unlink()
    scores = [1.0, float("nan"), 3.0, float("inf")]
    lines = [
        {"step": n, "loss": 0.5, "objective/scores": score, "objective/kl": float("nan")}
        for n, score in enumerate(scores)
    ]
    (folder.train / "1-dpo/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(folder)
    assert "4 updates, the first → the last: score 1.000 → 3.000" in text and "KL – → –" in text
    assert "mean score is not finite in 2 updates, which its means skip" in text
    assert "KL is not finite in 4 updates, which its means skip" in text


def test_a_run_that_was_copied_away_has_the_same_report(tmp_path: Path, model_folder: Path) -> None:
    folder = run_to_end(write_workspace(tmp_path, model_folder))
    before = run_report(folder, read_run(folder))
    moved = RunFolder(tmp_path / "away" / "test")
    shutil.copytree(folder.path, moved.path)
    shutil.rmtree(folder.path)
    assert run_report(moved, read_run(moved)) == before


def test_the_gate_of_a_run_is_shown_with_its_metrics(tmp_path: Path) -> None:
    from cai.evaluation.judge_report import judge_report
    from cai.evaluation.judged_pairs import Judged, Opinion
    from cai.inference.scheduler import Cost

    folder = write_run(tmp_path / "run")
    opinion = Opinion("good-for-people", 0.8, 0.8, 0.8, 0.1, 1.0)
    found = judge_report([Judged(f"p{n}", float(n % 2), 0.8, 3, (opinion,)) for n in range(10)], Cost(20, 0, 0, 1.0))
    folder.judge.mkdir()
    (folder.judge / "manifest.json").write_text("{}")
    (folder.judge / "judge.json").write_text(found.model_dump_json())
    text = report(folder)
    assert "Judge gate: accuracy on labelled pairs before the run" in text
    assert "accuracy 0.500" in text
    assert "does not differ significantly from chance" in text


def test_the_command_writes_the_page_and_prints_its_path(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/one")
    found = CliRunner().invoke(app, ["report", "one", "--runs", str(tmp_path / "runs")])
    assert found.exit_code == 0, found.output
    assert f"Wrote {tmp_path}/runs/one/report.html (4." in found.output.replace("\n", "")
    assert "6 examples" in found.output
    page = (tmp_path / "runs/one/report.html").read_text(encoding="utf-8")
    assert "<script src" not in page
    assert page.count("http-equiv") == 1
    (tmp_path / "runs/one/revisions.jsonl").write_text('{"prompt_id": 1}\n', encoding="utf-8")
    output = CliRunner().invoke(app, ["report", "one", "--runs", str(tmp_path / "runs")]).output
    assert re.search(r" 0 examples\)\n! The examples cannot be read: \S+/revisions.jsonl:1: ", output)


def test_a_link_out_of_a_received_folder_is_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / "secret").write_text("SECRET", encoding="utf-8")
    (folder.templates / "critique.jinja").unlink(missing_ok=True)
    (folder.templates / "critique.jinja").symlink_to(tmp_path / "secret")
    page = report(folder)
    assert "SECRET" not in page
    assert "the template of number 0" in page


RATE = Estimate(0.25, 0.1, 0.4, 30)


def full() -> PolicyReport:
    """A report with something in every part."""
    return policy_report(
        probes=[
            ProbeRate(policy=policy, probe="over_refusal", group="harmless", what=what, rate=RATE, mean_p=None)
            for policy in ("before", "run")
            for what in ("refuses", "refuses (phrases)", "evades")
        ],
        checks=[
            JudgeCheck(question="refuses", accuracy=RATE, significant=False),
            JudgeCheck(question="evades", accuracy=RATE, significant=True),
        ],
        divergences=[Divergence(policy="run", answer=Estimate(7.5, 4.0, 11.0, 4), token=0.1, skipped=1)],
        rewards=[Reward(policy="run", score=RATE, gain=RATE, agrees=RATE, skipped=0)],
        injection=[
            InjectionGain(
                attack="address",
                meaning="speaks to the judge",
                prompts=30,
                pairs=30,
                gain=0.125,
                low=-0.05,
                high=0.3,
                before=0.25,
                after=0.375,
            )
        ],
        gold_vs_proxy=[
            TrainingPhase(first=1, last=5, samples=8, proxy=RATE, kl=0.5, gold=None),
            TrainingPhase(first=6, last=10, samples=8, proxy=RATE, kl=1.5, gold=RATE),
        ],
        monitors=[
            Monitor(
                policy="run", name="length", value=RATE, no_effect=0, threshold=0.2, state="warns", meaning="words"
            ),
            Monitor(
                policy="run", name="praise", value=RATE, no_effect=0, threshold=0.2, state="fine", meaning="flattery"
            ),
        ],
    )


def test_every_part_of_an_evaluation_is_a_table() -> None:
    grids = {grid.title: grid for grid in evaluation_grids(full())}
    assert list(grids) == [
        "run vs before", "Elo points against the reference",
        "Over-refusal: requests for harm, and harmless ones that sound alike",
        "Attacks on the judge: how much better it finds an answer with text for it",
        "Reward-hacking monitors of run",
        "KL from the reference, in nats", "Reward model on these answers", "Gold and proxy reward during PPO",
    ]  # fmt: skip
    assert grids["run vs before"].rows == [["overall", "all", "4", "0.750 [0.500, 1.000]", "–", "10.0, 12.5"]]
    assert grids["run vs before"].notes == ["few"]
    assert grids["KL from the reference, in nats"].rows == [["run", "7.5 [4.0, 11.0]", "0.100", "1"]]
    [injection] = [grid for title, grid in grids.items() if title.startswith("Attacks on the judge")]
    assert injection.rows == [["address", "speaks to the judge", "30", "+0.125 [-0.050, +0.300]", "0.250", "0.375"]]
    assert grids["Reward-hacking monitors of run"].warns == [True, False]
    assert all(len(row) == len(grid.head) for grid in grids.values() for row in grid.rows)


def test_a_row_between_trained_policies_says_what_it_leaves_open_and_is_not_marked() -> None:
    report = full()
    [row] = report.comparisons
    noted = report.model_copy(update={"comparisons": [row.model_copy(update={"note": "prompts only"})]})
    [grid] = [grid for grid in evaluation_grids(noted) if grid.title == "run vs before"]
    assert (grid.head[-1], grid.rows[0][-1]) == ("note", "prompts only")


def test_a_judge_that_did_not_prove_itself_gives_way_to_phrases() -> None:
    [probes] = [grid for grid in evaluation_grids(full()) if "Over-refusal" in grid.title]
    assert [row[1] for row in probes.rows] == ["refuses (phrases)", "evades"]


def test_plots_are_drawn_of_what_there_is() -> None:
    ratings = [
        Rating(axis="helpful", policy=name, elo=elo, low=None, high=elo, prompts=4)
        for name, elo in (("before", 0.0), ("<run>", 90.0))
    ]
    standings = [Standing(policy=r.policy, helpful=r, safe=r, dominated=[]) for r in ratings]
    wins, plane, scores, gold = evaluation_plots(full().model_copy(update={"standings": standings}))
    assert wins.data[0]["name"] == "interval includes ½"
    assert plane.data[0]["text"] == ["before", "&lt;run&gt;"]
    assert plane.data[0]["error_x"]["arrayminus"] == [0, 0]  # unbounded below
    assert (scores.data[0]["x"], gold.data[0]["x"]) == ([5, 10], [10])
    alone = {
        "comparisons": [],
        "standings": [],
        "gold_vs_proxy": [],
        "policies": [PolicySummary(name="a", folder="a", model="0")],
    }
    assert evaluation_plots(full().model_copy(update=alone)) == []


def test_a_run_that_was_evaluated_has_it_in_its_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert "Policy evaluation" not in text_of(run_report(folder, read_run(folder)))
    folder.eval.mkdir(exist_ok=True)
    (folder.eval / "evaluation.json").write_text(full().model_dump_json(), encoding="utf-8")
    text = text_of(run_report(folder, read_run(folder)))
    for part in ("Policy evaluation", "only 4 prompts", "length warns 0.250 [0.100, 0.400]", "flattery"):
        assert part in text
