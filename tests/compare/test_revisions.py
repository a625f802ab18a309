import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from rich.console import Console

from cai.cli.compare import compare
from cai.compare import revisions
from cai.compare.compare import compare_runs
from cai.compare.record import PairComparison, RunComparison
from cai.compare.revisions import Options, RevisionJudge, forecast_revisions, judge_revisions, plan_judge
from cai.config.errors import CaiError, RequestRefused
from cai.constitution.principles import AppliesTo, constitution_yaml
from cai.inference.engine import Choose, ScriptedEngine
from cai.inference.reporter import Reporter
from cai.report.comparison import comparison_report, read_comparison
from cai.runs.folder import RunFolder
from tests.compare.made import make_run, principles
from tests.conftest import scripted

PROMPTS = 12


@pytest.fixture
def runs(tmp_path: Path) -> list[RunFolder]:
    """A revises to the short, B to the kind, and both to the same on prompt 0; each by its own principle."""
    folders = []
    for name, principle in (("a", "short"), ("b", "kind")):
        run = make_run(
            tmp_path / name,
            principles(principle),
            lambda i, drawn: "the same" if i == "p0" else f"a {drawn} one to {i}",
            prompts=PROMPTS,
        )
        run.eval_constitution_yaml.write_text(constitution_yaml(principles("honest")), encoding="utf-8")
        folders.append(run)
    return folders


def prefers_its_principle(request: Choose) -> Sequence[float]:
    """0.9 for the answer that the asked principle names; of the principle `honest`, 0.8 for the kind one."""
    text = request.messages[-1]["content"] + request.messages[-2]["content"]
    wanted, p = next(
        pair
        for pair in {
            "for short.": ("a short", 0.9),
            "for kind.": ("a kind", 0.9),
            "for honest.": ("a kind", 0.8),
        }.items()
        if pair[0] in text
    )[1]
    other = "a kind" if wanted == "a short" else "a short"
    return [p, 1 - p] if text.index(wanted) < text.index(other) else [1 - p, p]


def asked(runs: list[RunFolder], model: Path, constitution: str | None = None) -> RevisionJudge:
    options = Options(str(model), constitution, None, "prompts/default", [])
    return plan_judge(options, runs, runs[0].path.parent)


def judged(runs: list[RunFolder], judge: RevisionJudge, engines: list[ScriptedEngine]) -> RunComparison:
    open_engine, reporter = scripted(engines, weigh=prefers_its_principle), Reporter(Console(quiet=True))
    return compare_runs(runs, judge_revisions=lambda read: judge_revisions(judge, read, reporter, open_engine))


def pair_of(comparison: RunComparison) -> PairComparison:
    (pair,) = comparison.pairs
    return pair


def test_one_judge_compares_revisions_by_the_eval_constitution_and_by_that_of_each_run(
    runs: list[RunFolder], model_folder: Path
) -> None:
    engines: list[ScriptedEngine] = []
    judge = asked(runs, model_folder)
    comparison = judged(runs, judge, engines)
    met = pair_of(comparison).revisions
    assert met is not None and (met.prompts, met.equal, met.skipped) == (PROMPTS, 1, {})
    assert [(row.by, row.constitution) for row in met.preferences] == [
        (["eval"], "made"),
        (["A"], "made"),
        (["B"], "made"),
    ]
    ties = 0.5 / PROMPTS
    expected = [p * (PROMPTS - 1) / PROMPTS + ties for p in (0.8, 0.1, 0.9)]
    assert [row.b for row in met.preferences] == pytest.approx(expected)
    assert [row.a for row in met.preferences] == pytest.approx([1 - b for b in expected])
    assert met.preferences[1].win_rate == pytest.approx(ties)
    assert len(engines[0].requests) == 2 * 3 * (PROMPTS - 1)  # both orders, three principles, no call for a tie

    assert comparison.family["preferences of one judge between revisions"] == 3
    assert all(row.effect.significant for row in met.preferences)
    beats = [line for line in comparison.findings if "beat" in line]
    assert beats[0].startswith("B's revisions beat A's, one judge by the eval constitution (made): P(B better) 0.775")
    assert beats[1].startswith("A's revisions beat B's, one judge by A's (made): P(B better) 0.133")
    page = comparison_report(read_comparison(comparison, runs))
    assert "Revisions head to head" in page and "eval: made" in page

    again: list[ScriptedEngine] = []
    assert judged(runs, judge, again) == comparison
    assert again == []  # all from the cache


def test_a_constitution_that_several_have_is_asked_and_tested_once(runs: list[RunFolder], model_folder: Path) -> None:
    engines: list[ScriptedEngine] = []
    met = pair_of(judged(runs, asked(runs, model_folder, "a"), engines)).revisions
    assert met is not None and [row.by for row in met.preferences] == [["eval", "A"], ["B"]]


def test_prompts_that_no_principle_applies_to_are_counted_and_untested(
    runs: list[RunFolder], model_folder: Path
) -> None:
    (only,) = principles("short").principles
    scoped = principles("short").model_copy(
        update={"principles": [only.model_copy(update={"applies_to": AppliesTo(tags=["even"])})]}
    )
    runs[0].constitution_yaml.write_text(constitution_yaml(scoped), encoding="utf-8")
    met = pair_of(judged(runs, asked(runs, model_folder), [])).revisions
    assert met is not None and met.failed == 0 and met.skipped == {"no principle applies to the prompt": PROMPTS // 2}
    assert [row.effect.n for row in met.preferences] == [PROMPTS, PROMPTS // 2, PROMPTS]


def test_a_judge_that_refuses_every_request_leaves_warnings_and_no_preference(
    runs: list[RunFolder], model_folder: Path
) -> None:
    def refuse(request: Choose) -> Sequence[float]:
        raise RequestRefused("too long", retryable=False)

    runs = [runs[0], make_run(runs[0].path.parent / "c", principles("kind"), lambda i, drawn: f"C to {i}", prompts=3)]
    judge, reporter = asked(runs, model_folder), Reporter(Console(quiet=True))
    comparison = compare_runs(
        runs, judge_revisions=lambda read: judge_revisions(judge, read, reporter, scripted(weigh=refuse))
    )
    met = pair_of(comparison).revisions
    assert met is not None and (met.preferences, met.skipped) == ([], {"too long": 9})
    assert "a and c: 9 verdicts of --judge are missing; its table says why" in comparison.warnings
    assert met.failed == 9
    assert "skipped: 9 verdicts: too long" in comparison_report(read_comparison(comparison, runs))


def test_verdicts_that_failed_end_the_command_with_status_1(
    runs: list[RunFolder], model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_one(request: Choose) -> Sequence[float]:
        if any("to p3" in message["content"] for message in request.messages):
            raise RequestRefused("too long", retryable=False)
        return prefers_its_principle(request)

    folder = runs[0].path.parent
    monkeypatch.setattr(revisions.judge_revisions, "__defaults__", (scripted(weigh=refuse_one),))
    with pytest.raises(typer.Exit) as end:
        compare(["a", "b"], runs=folder, judge=str(model_folder))
    assert end.value.exit_code == 1
    said = capsys.readouterr()
    assert "3 verdicts of --judge failed" in said.err and "run the same command" in said.err
    assert (folder / "comparison.html").exists() and "Report: " in said.out  # the rest is shown
    monkeypatch.setattr(revisions.judge_revisions, "__defaults__", (scripted(weigh=prefers_its_principle),))
    compare(["a", "b"], runs=folder, judge=str(model_folder))  # asks for these again


def test_runs_that_revised_no_prompt_in_common_say_so(
    tmp_path: Path, runs: list[RunFolder], model_folder: Path
) -> None:
    other = make_run(tmp_path / "c", principles("calm"), lambda i, _: "one", prompts=4, prefix="q")
    comparison = judged([runs[0], other], asked(runs, model_folder), [])
    assert pair_of(comparison).revisions is None
    assert "a and c revised no prompt in common, so --judge compared nothing" in comparison.warnings


def test_a_dry_run_counts_the_calls_and_makes_none(runs: list[RunFolder], model_folder: Path) -> None:
    judge = asked(runs, model_folder)
    (line,) = forecast_revisions(judge, runs).lines
    assert (line.cache_misses, line.cache_hits) == (2 * 3 * (PROMPTS - 1), 0)
    assert line.stage == "revisions: b and a"
    assert not (runs[0].path.parent / "cache.sqlite").exists()
    judged(runs, judge, [])
    (line,) = forecast_revisions(judge, runs).lines
    assert (line.cache_misses, line.cache_hits) == (0, 2 * 3 * (PROMPTS - 1))


def test_answers_that_never_met_have_no_winner(tmp_path: Path) -> None:
    def run(name: str, principle: str, p: float) -> RunFolder:
        revise, label = (lambda i, _: "same"), (lambda i: 0.9)
        return make_run(tmp_path / name, principles(principle), revise, labels=label, evaluation=lambda i: p)

    a, b = run("a", "calm", 0.6), run("b", "calm", 0.7)
    comparison = compare_runs([a, b])
    assert any(line.startswith("B gains more than A over the answer before training") for line in comparison.findings)
    assert not any("beat" in line or "B against A: win rate" in line for line in comparison.findings)
    assert "B gains more than A over the answer before training" in comparison_report(
        read_comparison(comparison, [a, b])
    )
    warned = [line for line in comparison.warnings if "own principles" in line]
    assert warned == []
    tied = compare_runs([a, run("tied", "calm", 0.6)]).findings
    assert any(
        re.fullmatch(r"B and A gain the same over .* on \d+ held-out prompts?; a tie on every prompt", line)
        for line in tied
    )
    assert not any("gains more" in line for line in tied)
    calm = principles("calm")
    others = [calm.principles[0].model_copy(update={"revision": "Say it calmly."})]
    reworded = calm.model_copy(update={"principles": others})
    d = make_run(tmp_path / "d", reworded, lambda i, _: "same", labels=lambda i: 0.9, evaluation=lambda i: 0.7)
    assert not any("own principles" in line for line in compare_runs([a, d]).warnings)  # the judge asks the same
    c = run("c", "plain", 0.7)
    (warned_of,) = [line for line in compare_runs([a, c]).warnings if "each judge asks by its run's own" in line]
    assert warned_of.endswith("(`cai compare --judge` puts one to both)")  # `cai attribute`, which warns too, has none


def test_the_command_prints_the_head_to_head_and_options_of_a_judge_need_one(
    runs: list[RunFolder], model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs[0].path.parent
    with pytest.raises(CaiError, match="--dry-run applies to --judge only; add --judge NAME"):
        compare(["a", "b"], runs=folder, dry_run=True)
    compare(["a", "b"], runs=folder, judge=str(model_folder), dry_run=True)
    assert "66" in capsys.readouterr().out
    open_engine = scripted(weigh=prefers_its_principle)
    monkeypatch.setattr(revisions.judge_revisions, "__defaults__", (open_engine,))
    compare(["a", "b"], runs=folder, judge=str(model_folder))
    printed = capsys.readouterr().out
    assert f"Revisions of A and B head to head, by {model_folder}" in printed.replace("\n", "")
    assert "12 prompts that both revised, 1 of them alike" in printed
