"""What a run will ask, said before anything is paid for."""

import io
import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from cai.cli.console import show
from cai.cli.main import app
from cai.cli.run import forecast_parts
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.inference.cache import Cache, Tally, Work
from cai.inference.engine import EngineConfig, Generate
from cai.inference.reporter import Reporter
from cai.inference.scheduler import engine_fingerprint
from cai.runs.dry_run import FEW_SPREAD, LEAST_SPREAD, DryRun, Line, account, dry_run, fit_rates
from cai.runs.pipeline import execute
from cai.runs.plan import Plan, make_plan
from cai.runs.training_estimates import TrainingTime
from tests.conftest import SIXTEEN, scripted, write_workspace

Counts = dict[tuple[str, str], tuple[int, int]]


def sensitive(request: Generate) -> str:
    """An answer that is another one when anything of the request is."""
    return fingerprint(request.messages, request.seed)


def run_to_end(plan: Plan) -> Counts:
    execute(plan, Reporter(Console(quiet=True)), True, scripted(answer=sensitive))
    return {
        (line.stage, line.step): (line.cache_misses, line.cache_hits) for line in account(plan.folder.summary() or {})
    }


def counted(found: DryRun) -> Counts:
    return {(line.stage, line.step): (line.cache_misses, line.cache_hits) for line in found.lines}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["constitution=brief.yaml"],
        ["revise.rounds=1"],
        ["revise.critique=false"],
        ["judge.principles=6"],
        ["judge.samples=3"],
        ["judge.ask=choice", "judge.samples=3"],
        ["judge.cot_samples=2"],
        ["judge.samples=0"],
        ["seed=1"],
        ["revise.when=finds"],
        ["judge.verify=true"],
        ["judge.ties=true", "judge.cot_samples=1"],
    ],
)
def test_a_run_asks_what_was_forecast(tmp_path: Path, model_folder: Path, overrides: list[str]) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    run_to_end(make_plan(run_file, [], None, tmp_path / "runs"))
    (tmp_path / "brief.yaml").write_text(
        (SIXTEEN).read_text(encoding="utf-8").replace("harmful", "hurtful", 3),
        encoding="utf-8",
    )
    plan = make_plan(run_file, overrides, "other", tmp_path / "runs")
    assert counted(dry_run(plan)) == run_to_end(plan)


def test_a_forecast_counts_the_tokens_of_demonstrations(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    plain, shown = (
        make_plan(run_file, [f"templates=prompts/{name}"], name, tmp_path / "runs") for name in ("default", "few-shot")
    )
    without, found = dry_run(plain), dry_run(shown)
    assert counted(found) == counted(without)
    turns = shown.templates.few_shot
    characters = {"critique": turns.revision, "revision": turns.revision, "verdict": turns.judge, "answer": []}
    more = sum(line.cache_misses * sum(len(turn["content"]) for turn in characters[line.step]) for line in found.lines)
    assert found.tokens_read - without.tokens_read == pytest.approx(more / 4, rel=0.02)  # roles count too
    run_to_end(plain)
    assert all(line.cache_hits == 0 for line in dry_run(shown).lines if line.step != "answer")


def test_a_long_name_of_a_run_is_folded_and_never_cut() -> None:
    name = "revisions: harmless-with-another-critique and harmless-without-a-critique"
    console = Console(record=True, width=80)
    for part in forecast_parts(DryRun([Line(name, "verdict", 1152, 0, 0.0)], 0.0, None, [], 0), None):
        show(console, part)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and "1,152" in lines[2]
    assert "".join(line.split("  ")[1] for line in lines[2:6]).replace(" ", "") == name.replace(" ", "")


def test_a_forecast_leaves_no_trace(tmp_path: Path, model_folder: Path) -> None:
    plan = make_plan(write_workspace(tmp_path, model_folder), [], None, tmp_path / "runs")
    found = dry_run(plan)
    assert sum(line.cache_misses for line in found.lines) == 108
    assert found.seconds is None
    assert not (tmp_path / "runs").exists()
    run_to_end(plan)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.json*")}
    assert all(line.cache_misses == 0 for line in dry_run(plan).lines)
    assert before == {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*.json*")}


def test_a_judge_that_is_another_model_is_counted_in_a_stage_of_its_own(tmp_path: Path, model_folder: Path) -> None:
    judge = tmp_path / "judge"
    judge.mkdir()
    for path in model_folder.iterdir():
        (judge / path.name).write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    plan = make_plan(write_workspace(tmp_path, model_folder), [f"judge.model={judge}"], None, tmp_path / "runs")
    found = counted(dry_run(plan))
    assert found["judging", "verdict"] == (72, 0)
    assert found == run_to_end(plan)


def test_untrained_stages_and_calls_of_an_untrained_policy_are_listed(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="train: [{stage: sft}, {stage: dpo}]\n")
    found = dry_run(make_plan(run_file, [], None, tmp_path / "runs"))
    assert found.untrained == ["1-sft", "2-dpo"]
    assert counted(found)["test: answers", "answer"] == (2, 0)
    assert counted(found)["judge: comparisons", "verdict"] == (12, 0)  # of two prompts on three axes, in both orders


def test_an_evaluation_without_axes_asks_a_third_of_the_verdicts(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="train: [{stage: sft}]\nevaluate: {axes: false}\n")
    found = dry_run(make_plan(run_file, [], None, tmp_path / "runs"))
    assert counted(found)["judge: comparisons", "verdict"] == (4, 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 999), st.integers(1, 99)), min_size=3, max_size=8))
def test_rates_are_recovered_from_work_they_explain(stages: list[tuple[bool, int, int]]) -> None:
    load, token, verdict = 8.0, 0.01, 0.05

    def work(loaded: bool, tokens: int, verdicts: int) -> Work:
        steps = {"answer": Tally(1, 0, tokens, tokens, 1), "verdict": Tally(verdicts)}
        return Work("feedback", steps, load * loaded + token * tokens + verdict * verdicts, loaded)

    rates = fit_rates([work(*stage) for stage in stages])
    assert rates is not None
    for loaded, tokens, verdicts in stages:
        took = load * loaded + token * tokens + verdict * verdicts
        assert rates.load * loaded + rates.token * tokens + rates.verdict * verdicts == pytest.approx(took, rel=1e-6)


def test_time_is_forecast_from_what_was_measured(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    run_to_end(make_plan(run_file, [], None, tmp_path / "runs"))
    found = dry_run(make_plan(run_file, ["seed=1"], "other", tmp_path / "runs"))
    assert found.seconds is not None
    assert found.seconds > 0
    summary = json.loads((tmp_path / "runs/test/summary.json").read_text(encoding="utf-8"))
    written = sum(tally["tokens"] for work in summary["work"] for tally in work["steps"].values())
    assert sum(line.tokens for line in found.lines) == pytest.approx(written, rel=0.01)  # answers as long as before


def test_a_higher_limit_of_tokens_is_not_forecast_from_texts_that_a_lower_one_truncated(
    tmp_path: Path, model_folder: Path
) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    run_to_end(make_plan(run_file, ["revise.max_tokens=100"], None, tmp_path / "runs"))

    def per_call(limit: int) -> float:
        lines = dry_run(make_plan(run_file, [f"revise.max_tokens={limit}", "seed=1"], "other", tmp_path / "runs")).lines
        written = [line for line in lines if line.step in ("critique", "revision")]
        return sum(line.tokens for line in written) / sum(line.cache_misses for line in written)

    before = per_call(100)
    assert before < 50
    assert per_call(50) == pytest.approx(before)
    assert per_call(1000) == 1000


def test_a_forecast_is_as_wide_as_the_work_that_it_comes_from() -> None:
    def work(tokens: int, seconds: float) -> Work:
        return Work("feedback", {"answer": Tally(1, 0, tokens, tokens, 1)}, seconds, False)

    steady = fit_rates([work(n, n / 100) for n in (1000, 2000, 3000, 4000)])
    unsteady = fit_rates([work(1000, 10), work(1000, 30), work(1000, 10), work(1000, 10)])
    few = fit_rates([work(1000, 10)])
    assert steady is not None
    assert unsteady is not None
    assert few is not None
    assert (steady.token, steady.spread) == (pytest.approx(0.01), LEAST_SPREAD)
    assert unsteady.spread == pytest.approx(2.0)  # the fit is the mean, 15 s, and one took 30
    assert few.spread == FEW_SPREAD
    assert DryRun([], 0, 60.0, [], 0, 2.0).time_range() == (30.0, 120.0)


def test_a_forecast_that_is_too_wide_says_what_makes_the_time_known() -> None:
    def work(tokens: int, seconds: float) -> Work:
        return Work("feedback", {"answer": Tally(1, 0, tokens, tokens, 1)}, seconds, False)

    disturbed, calm = [work(1000, 10), work(4000, 400)], [work(100 * n, n) for n in range(10, 100)]
    few, many = fit_rates(disturbed), fit_rates([*disturbed, *calm])
    assert few is not None and many is not None
    assert few.spread > 3.2 and many.spread < 2
    lines = [Line("feedback", "answer", 4, 0, 100.0)]
    known, unknown = DryRun(lines, 0, 60.0, [], 0, 3.1), DryRun(lines, 0, 60.0, [], 0, 4.6)
    assert unknown.time_range() is None
    narrow = Console(width=80)
    with narrow.capture() as captured:
        narrow.print(list(forecast_parts(unknown, None))[-1])
    printed = captured.get()
    assert "not known yet: by the times of earlier calls, the most would be 21 times\n" in printed
    assert "`cai bench RUN.yaml`" in printed and all(line.startswith("  ") for line in printed.splitlines())
    assert "19.4 s to 3 min 06 s" in [str(part) for part in forecast_parts(known, None)][-1]


def test_a_forecast_by_one_measurement_says_so(tmp_path: Path, model_folder: Path) -> None:
    run_file, runs = write_workspace(tmp_path, model_folder), tmp_path / "runs"

    def printed() -> str:
        expected = dry_run(make_plan(run_file, ["seed=1"], "other", runs))
        timed = expected._replace(training=[TrainingTime("1-dpo", 3, 2.0, 5.0, expected.measured)], untrained=["1-dpo"])
        console = Console(width=80, record=True, file=io.StringIO())
        for part in forecast_parts(timed, None):
            show(console, part)
        return console.export_text()

    engine = engine_fingerprint(model_folder, EngineConfig())
    with closing(Cache(runs / "cache.sqlite")) as cache:
        cache.add_work(engine, Work("feedback", {"answer": Tally(1, 0, 1000, 1000, 1)}, 20.0, False))
    assert re.search(r"time: .* to .*, by one measurement of this model here$", printed(), re.MULTILINE)
    assert re.search(r"1-dpo .* to .*, by one training$", printed(), re.MULTILINE)
    with closing(Cache(runs / "cache.sqlite")) as cache:
        cache.add_work(engine, Work("feedback", {"answer": Tally(1, 0, 2000, 2000, 1)}, 40.0, False))
    assert "by this model's speed here so far" in printed() and "one training" not in printed()


def test_what_a_run_would_refuse_its_dry_run_refuses(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    run_to_end(make_plan(run_file, [], None, tmp_path / "runs"))
    changed = [str(run_file), "--set", "seed=1", "--runs", str(tmp_path / "runs"), "--dry-run"]
    before = (tmp_path / "runs/test/manifest.json").read_bytes()
    with pytest.raises(CaiError, match="holds finished results of `cai run` with other settings"):
        CliRunner().invoke(app, ["run", *changed], catch_exceptions=False)
    for allowed in (["--replace"], ["--name", "other"]):
        assert CliRunner().invoke(app, ["run", *changed, *allowed], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "runs/test/manifest.json").read_bytes() == before
    assert not (tmp_path / "runs/other").exists()


def test_the_judges_gate_is_forecast_and_accounted_for(tmp_path: Path, model_folder: Path) -> None:
    pairs = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    gate = f"judge_gate: {{data: {tmp_path / 'pairs.jsonl'}}}\n"
    plan = make_plan(write_workspace(tmp_path, model_folder, extra=gate), [], None, tmp_path / "runs")
    found = counted(dry_run(plan))
    assert found["gate", "verdict"] == (40, 0)
    assert found == run_to_end(plan)
