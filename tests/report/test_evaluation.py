from pathlib import Path

from cai.evaluation.injection import InjectionGain
from cai.evaluation.monitors import Monitor
from cai.evaluation.overoptimization import TrainingPhase
from cai.evaluation.policy_report import PolicyReport, PolicySummary
from cai.evaluation.probe_metrics import JudgeCheck, ProbeRate
from cai.evaluation.scores import Divergence, Reward
from cai.evaluation.win_rates import Rating, Standing
from cai.report.run import evaluation_grids, evaluation_plots, read_run, run_report
from cai.stats.intervals import Estimate
from tests.evaluation.test_policy_report import report
from tests.report.folders import write_run
from tests.report.test_run import text_of

RATE = Estimate(0.25, 0.1, 0.4, 30)


def full() -> PolicyReport:
    """A report with something in every part."""
    return report(
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
