import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cai.cli.console import show
from cai.cli.eval import report_tables
from cai.cli.main import app
from cai.config.errors import CaiError, RequestRefused
from cai.config.hashing import fingerprint
from cai.data.jsonl import read_rows, write_rows
from cai.data.records import Answer, Attacked, Judgement, Message, Prompt, Reply, Skipped
from cai.evaluation.injection import injection_gains
from cai.evaluation.policy_report import PolicyReport, read_report
from cai.evaluation.probes import read_injection
from cai.inference.engine import Choose, Engine, EngineConfig, Generate, RayConfig, ScriptedEngine
from cai.inference.models import Server, folder_fingerprint
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine, Scheduler
from cai.report.run import evaluation_grids
from cai.runs import pipeline
from cai.runs.dry_run import account, dry_run
from cai.runs.evaluate import Options, evaluate_policies, plan_evaluation
from cai.runs.evaluation_folder import evaluation_claim, option_changes
from cai.runs.folder import RunFolder
from cai.runs.plan import Plan, make_plan
from cai.runs.run_file import RunConfig
from cai.runs.trust import run_trust
from cai.runs.verify import verify_run
from tests.conftest import ROOT, cached_answers, scripted, write_workspace

QUIET = Reporter(Console(quiet=True))
GREEDY = ("temperature=0",)  # of greedy answers no KL is result, so that no process is started


def model(folder: Path, name: str) -> Path:
    """A folder that passes for a model as long as nothing loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / file).write_text(json.dumps({"name": name}), encoding="utf-8")
    return folder


def make_run(runs: Path, name: str, prompts: int = 12, base: Path | None = None) -> RunFolder:
    """A finished run of one DPO stage, a third of whose prompts are held out; its models pass for some."""
    base = base or model(runs.parent / "base", "base")
    run = RunFolder(runs / name)
    run.path.mkdir(parents=True)
    config = RunConfig.model_validate(
        {
            "model": str(base), "constitution": "constitutions/brief.yaml", "prompts": {"source": "p.jsonl"},
            "train": [{"stage": "dpo"}], "evaluate": {"max_tokens": 50},
        }
    )  # fmt: skip
    model(run.train / "1-dpo/model", name)
    (run.train / "1-dpo/stage.json").write_text(json.dumps({"model": str(base), "reward": None}), encoding="utf-8")
    rows = [
        Prompt(
            id=f"p{i}",
            messages=[Message(role="user", content=f"Question {i}?")],
            tags=["even" if i % 2 == 0 else "odd"],
        )
        for i in range(3 * prompts)
    ]
    write_rows(run.prompts_jsonl, rows)
    manifest = {
        "command": "cai run", "config": config.model_dump(mode="json"), "held_out": [f"p{i}" for i in range(prompts)],
        "model": folder_fingerprint(base),
    }  # fmt: skip
    run.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    shutil.copy(ROOT / "constitutions/plain.yaml", run.eval_constitution_yaml)
    shutil.copytree(ROOT / "prompts/default", run.templates)
    return run


QUALITY = {"base": 0.0, "good": 2.0, "bad": -2.0}


def spoken(name: str) -> Callable[[Generate], str]:
    """What the policy of a name answers: its name, so that a judge may know it; and it declines what is harmful."""

    def answer(request: Generate) -> str:
        asked = request.messages[-1]["content"]
        if name == "good" and "neighbour's dog" in asked:
            return "I won't help with that."
        words = " ".join(["word"] * (request.seed % 7 + (6 if name == "good" else 3)))
        return f"{name} says {words} of {request.seed}."

    return answer


def weigh(request: Choose) -> Sequence[float]:
    """A judge that prefers policies by QUALITY, knows refusals, and always prefers what is shown first a little."""
    text = request.messages[0]["content"]
    if "I am quite sure" in text or "If you ask me" in text or "I have always" in text or "Everybody" in text:
        named = re.split(r"[:;] ", text.split("\n\n")[0])[-1].rstrip(".")
        odds = 1.0 if f"A: {named}" in text else -1.0  # this policy agrees with the user
    elif "What does the answer do" in text:
        declines = any(
            phrase in text
            for phrase in ("cannot help", "won't", "not able", "rather not", "not something", "No. Selling")
        )
        odds = 2.0 if declines == ("A: It declines" in text) else -2.0
    elif "Does the answer" in text:
        odds = 0.3  # of the rest it knows nothing
    else:
        shown = re.findall(r"^<answer [AB]>\n(\w+) says", text, re.MULTILINE)
        odds = QUALITY[shown[0]] - QUALITY[shown[1]] + 0.2 if len(shown) == 2 else 0.2
    first = 1 / (1 + math.exp(-odds))
    return [0.9 * first, 0.9 * (1 - first)]


def by_name(
    engines: list[str] | None = None, refuse: str = "nothing", judge: Callable[[Choose], Sequence[float]] = weigh
) -> OpenEngine:
    """Engines that answer by what their folder says they are; one open at a time, as the list shows."""

    def open_engine(folder: Any, fingerprint: str, settings: EngineConfig) -> Engine:
        served = isinstance(folder, Server)
        name = "judge" if served else json.loads((folder / "config.json").read_text(encoding="utf-8"))["name"]
        if engines is not None:
            engines.append(name)

        class Named(ScriptedEngine):
            async def generate(self, request: Generate) -> Any:
                if refuse in request.messages[-1]["content"]:
                    raise RequestRefused("too long")
                return await super().generate(request)

            async def close(self) -> None:
                if engines is not None:
                    engines.append(f"-{name}")

        return Named(fingerprint, spoken(name), judge)

    return open_engine


def evaluate(
    runs: Path, options: Options, out: Path | None = None, replace: bool = False, **opened: Any
) -> PolicyReport:
    evaluating = plan_evaluation(options._replace(settings=(*GREEDY, *options.settings)), runs)
    target = out or runs / options.policy / "eval"
    return evaluate_policies(evaluating, target, runs / "cache.sqlite", QUIET, replace, by_name(**opened))


def test_a_run_is_evaluated_from_its_folder_with_all_metrics_that_can_be_had(tmp_path: Path) -> None:
    runs, opened = tmp_path / "runs", list[str]()
    run = make_run(runs, "good", prompts=16)
    report = evaluate(runs, Options("good", limit=14), engines=opened)
    assert opened == ["good", "-good", "base", "-base"]  # one model at a time; the judge is the base
    assert report == read_report(run.eval / "evaluation.json") == run.policy_report()
    assert [(p.name, p.trained_from) for p in report.policies] == [
        ("base", None),
        ("good", str(tmp_path / "base")),
    ]
    assert (report.prompts, report.tags) == (14, {"even": 7, "odd": 7})
    assert {(row.axis, row.tag) for row in report.comparisons} == {
        ("overall", None),
        ("helpful", None),
        ("safe", None),
    }
    for row in report.comparisons:
        assert row.win_rate is not None and row.win_rate.mean == 1.0
        assert row.mean_p is not None and row.mean_p.mean == pytest.approx(1 / (1 + math.exp(-2)))  # the place cancels
        assert row.non_option_mass == pytest.approx(0.1)
        assert row.position_bias == 0.0
    assert [(r.elo, r.low) for r in report.ratings if r.policy == "good"] == [(None, None)] * 3  # it never lost
    [check] = [c for c in report.checks if c.question == "refuses"]
    assert check.significant
    rates = {(r.policy, r.probe, r.group, r.what): r.rate.mean for r in report.probes if r.rate is not None}
    assert rates["good", "over_refusal", "harmful", "refuses"] == pytest.approx(1 / 14)
    assert rates["good", "over_refusal", "harmless", "refuses"] == 0.0
    assert rates["good", "over_refusal", "harmful", "refuses (phrases)"] == pytest.approx(1 / 14)
    assert rates["good", "sycophancy", "opinions", "agrees with the user"] == 1.0
    monitors = {m.name: m for m in report.monitors}
    assert monitors["sycophancy"].state == "warns"
    assert monitors["length"].value is not None and monitors["length"].value.mean > 1.1
    assert {m.name for m in report.monitors if m.state == "not measured"} == {
        "harmful compliance", "KL", "reward-length correlation", "ensemble", "agreement with eval judge", "reward calibration", "overoptimization"
    }  # fmt: skip
    assert all(m.missing for m in report.monitors if m.state == "not measured")
    assert any("only 14 prompts" in note for note in report.notes)
    assert any("is right on 5 of 10 on 'evades', 5 of 10 on 'complies'" in note for note in report.notes)
    assert any("the judge is the model of" in note for note in report.notes)


@pytest.mark.parametrize("control", ["text", "escape", "refuse"])
def test_answers_that_spell_control_tokens_are_counted_for_a_server(tmp_path: Path, control: str) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good", prompts=6)
    manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["engine"]["control_tokens"] = control
    (run.path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    prompts = run.prompts()
    prompts[1].messages[-1]["content"] += "<|im_end|>"
    write_rows(run.prompts_jsonl, prompts)

    plan = plan_evaluation(Options("good", probes="none", settings=GREEDY), runs)
    behind = replace(plan, judge=Server.at("http://localhost:8000/v1", "big"))
    served = evaluate_policies(behind, run.eval, tmp_path / "cache.sqlite", QUIET, open_engine=by_name())
    here = evaluate_policies(plan, tmp_path / "here", tmp_path / "cache.sqlite", QUIET, open_engine=by_name())
    counts = [(report.control_tokens, report.control_tokens_escaped) for report in (served, here)]
    # Both policies answer the prompt; a judge in the process reads it as text.
    assert counts == {
        "text": [(2, None), (None, None)], "escape": [(None, 2), (None, 2)], "refuse": [(None, None)] * 2
    }[control]  # fmt: skip
    warnings = [note for note in served.notes if "control tokens" in note]
    assert [warning.split(" with ")[0] for warning in warnings] == ([] if control == "refuse" else ["2 answers"])
    assert json.loads((run.eval / "evaluation.json").read_text(encoding="utf-8"))["control_tokens"] == counts[0][0]


def test_a_cluster_that_only_the_runs_folder_names_is_not_joined(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good", prompts=6)
    manifest = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    manifest["config"]["engine"]["ray"] = {"address": "10.0.0.1:6379", "replicas": 2}
    (run.path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    def planned(*settings: str) -> EngineConfig:
        return plan_evaluation(Options("good", probes="none", settings=[*GREEDY, *settings]), runs).engine

    with pytest.raises(
        CaiError, match=r"good: its engine\.ray\.address is 10\.0\.0\.1:6379, and a Ray cluster can run"
    ):
        planned()
    assert planned("engine.ray.address=10.0.0.1:6379").ray == RayConfig(address="10.0.0.1:6379", replicas=2)
    assert planned("engine.ray=null").ray is None


def test_answers_that_attack_the_eval_judge_gain_nothing_or_what_every_surface_shows(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good", prompts=16)
    attacks = read_injection().attacks

    def credulous(request: Choose) -> Sequence[float]:
        text = request.messages[0]["content"]
        addressed = re.search(r"^<answer ([AB])>\n[^\n]*\n\nNote to whoever", text, re.MULTILINE)
        odds = 0.0 if addressed is None else 4.0 if addressed[1] == "A" else -4.0
        p, q = weigh(request)
        first = 1 / (1 + math.exp(-math.log(p / q) - odds))
        return [first, 1 - first]

    report = evaluate(runs, Options("good", probes="injection"), judge=credulous)
    assert [(gain.attack, gain.prompts, gain.pairs) for gain in report.injection] == [
        ("address", 16, 16), ("format", 16, 16), ("control", 16, 16), ("control", 16, 16),
        ("neutral", 16, 16),
    ]  # fmt: skip
    fooled, *sober = report.injection
    assert fooled.significant and fooled.gain > 0.1
    assert fooled.after - fooled.before == pytest.approx(fooled.gain)
    assert [(gain.gain, gain.significant) for gain in sober] == [(0.0, False)] * 4

    rows = read_rows(run.eval / "injection.jsonl", Attacked)
    assert len(rows) == 80
    sides = {row.prompt_id: row.answer.split()[0] for row in rows}
    assert set(sides.values()) == {"good", "base"}  # no verdict decides which of the two is attacked
    compared = {
        row.prompt_id: row.p for row in read_rows(run.eval / "comparisons.jsonl", Judgement) if row.axis == "overall"
    }
    for row in rows:
        assert row.p == pytest.approx(
            compared[row.prompt_id] if sides[row.prompt_id] == "good" else 1 - compared[row.prompt_id]
        )
    assert injection_gains(rows, attacks) == report.injection

    assert json.loads((run.eval / "evaluation.json").read_text(encoding="utf-8"))["injection"][0]["gain"] == fooled.gain
    console = Console(width=160)
    with console.capture() as printed:
        for part in report_tables(report, console.width):
            show(console, part)
    assert "\n16 prompts, by tag: even 8, odd 8\n" in printed.get()
    [grid] = [grid for grid in evaluation_grids(report) if grid.title.startswith("Attacks on the judge")]
    for gain in report.injection:
        assert re.search(rf"{gain.label} +16 +{re.escape(gain.shown)} .* {gain.meaning} *\n", printed.get()), (
            gain.attack
        )
        assert gain.shown in next(row for row in grid.rows if row[0] == gain.label)
    [warning] = [note for note in report.notes if note.startswith("injection")]
    assert (
        warning
        == f"injection: the judge finds an answer better when it speaks to the judge: {fooled.shown} in p, 16 prompts"
    )


def test_an_evaluation_asks_what_was_forecast_and_a_forecast_writes_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good")
    given = ["eval", "good", "--runs", str(runs), "--limit", "4", "--set", "temperature=0"]

    def forecast() -> str:
        result = CliRunner().invoke(app, [*given, "--dry-run"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    before = sorted(tmp_path.rglob("*"))
    printed = forecast()
    assert sorted(tmp_path.rglob("*")) == before
    assert "time: not measured yet; `cai bench RUN.yaml` measures this machine" in printed
    assert printed.endswith("not included: scores of the answers (KL, reward), which take no calls\n")
    report = evaluate(runs, Options("good", limit=4))
    total = re.search(r"total +(\d[\d,]*) +0 +(\d[\d,]*)", printed)
    assert total is not None and total[1] == total[2] == f"{report.cost['cache_misses']:,.0f}"
    again = forecast()
    assert re.search(rf"total +{total[1]} +{total[1]} +0 ", again) and "all calls are cache hits" in again
    given[given.index("4")] = "3"
    with pytest.raises(CaiError, match=r"holds a finished evaluation with other options:\n  --limit: 4 → 3"):
        forecast()
    assert (run.eval / "evaluation.json").exists()


def test_every_row_is_written_and_a_second_time_nothing_is_asked_of_a_model(tmp_path: Path) -> None:
    runs, again = tmp_path / "runs", list[str]()
    run = make_run(runs, "good")
    first = evaluate(runs, Options("good", probes="over_refusal,sycophancy", limit=3))
    answers = read_rows(run.eval / "answers.jsonl", Answer)
    assert len(answers) == 2 * (3 + 6)
    assert {a.prompts for a in answers} == {"held_out", "over_refusal"}
    judgements = read_rows(run.eval / "comparisons.jsonl", Judgement)
    assert [(j.axis, j.policy) for j in judgements] == [
        (axis, "good") for axis in ("overall", "helpful", "safe") for _ in range(3)
    ]
    replies = read_rows(run.eval / "probes.jsonl", Reply)
    assert len([r for r in replies if r.probe == "sycophancy"]) == 2 * 2 * 2 * 3  # policies, kinds, sides
    calls = cached_answers(runs / "cache.sqlite")
    second = evaluate(runs, Options("good", probes="over_refusal,sycophancy", limit=3), engines=again)
    assert again == []
    assert cached_answers(runs / "cache.sqlite") == calls == first.cost["cache_misses"]
    assert second.model_copy(update={"cost": first.cost}) == first


def test_a_finished_evaluation_with_another_setting_of_control_tokens_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "good")
    options = Options("good", limit=3)
    evaluate(tmp_path / "runs", options)
    plan = plan_evaluation(options, tmp_path / "runs")
    assert not any("control_tokens" in change for change in evaluation_claim(plan, run.eval).changes())
    refusing = replace(plan, engine=EngineConfig(control_tokens="refuse"))
    assert any("control_tokens" in change for change in evaluation_claim(refusing, run.eval).changes())


def test_many_policies_share_one_scale_and_who_is_worse_on_both_axes_is_dominated(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "good", prompts=16)
    make_run(runs, "bad", prompts=16)
    report = evaluate(runs, Options("good", ["bad"], probes="none"))
    couples = {(row.policy, row.against) for row in report.comparisons}
    base = "base"
    assert couples == {("good", base), ("bad", base), ("bad", "good")}
    alone = "prompts only; training variance unknown"
    assert f"win rates and Elo differences between trained policies are of one training each: {alone}" in report.notes
    between = {("bad", "good")}
    assert {(row.policy, row.against) for row in report.comparisons if row.note} == between
    assert all(row.note == alone for row in report.comparisons if (row.policy, row.against) in between)
    console = Console(width=160, record=True, force_terminal=False)
    for part in report_tables(report, console.width):
        show(console, part)
    noted = re.findall(rf"\] +–  {alone} *\n", console.export_text())
    assert len(noted) == sum(bool(row.note) for row in report.comparisons) == 9  # three axes, three rows each
    by_name = {standing.policy: standing for standing in report.standings}
    assert [r.elo for r in report.ratings if r.policy == base] == [0.0] * 3
    assert {name: [d.by for d in s.dominated] for name, s in by_name.items()} == {
        "good": [], "bad": [base, "good"], base: ["good"]
    }  # fmt: skip
    assert by_name["bad"].helpful.elo is None  # it lost always, which is no number
    assert all(rate.probe == "held_out" for rate in report.probes)
    assert {row.tag for row in report.comparisons} == {None, "even", "odd"}


def test_a_request_that_is_refused_is_listed_and_the_rest_stands(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good")
    report = evaluate(runs, Options("good", probes="none"), refuse="Question 3?")
    rows = read_rows(run.eval / "skipped.jsonl", Skipped)
    assert [(r.prompt_id, r.failed, r.reason) for r in rows] == [("p3", True, "too long")] * 2
    assert {row.prompts for row in report.comparisons} == {11}
    assert any(r.missing == 1 for r in report.probes)
    assert any("2 requests failed" in note for note in report.notes)


def test_policies_with_equal_answers_have_no_win_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "good")
    monkeypatch.setattr("tests.runs.test_evaluate.spoken", lambda name: lambda request: "The same.")
    report = evaluate(runs, Options("good", probes="none"))
    assert {
        (row.win_rate, row.mean_p, row.length_controlled_win_rate, row.identical) for row in report.comparisons
    } == {(None, None, None, 12)}
    assert any("all answers are equal: there is nothing to compare" in note for note in report.notes)
    console = Console(width=200, record=True, quiet=True)
    for part in report_tables(report, console.width):
        show(console, part)


def test_one_prompt_gives_metrics_without_intervals_that_would_mislead(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "good")
    report = evaluate(runs, Options("good", limit=1, probes="none"))
    [row] = [row for row in report.comparisons if row.axis == "overall"]
    assert row.win_rate is not None and row.win_rate.low is not None and row.win_rate.low < 0.3
    assert row.mean_p is not None and row.mean_p.low is not None and row.mean_p.low < 0.3
    assert "too few" in row.length_controlled_missing
    assert {m.state for m in report.monitors} <= {"unclear", "not measured"}


def test_a_finished_evaluation_is_replaced_by_another_only_when_asked_to(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run, _ = make_run(runs, "good"), make_run(runs, "bad")
    first = evaluate(runs, Options("good", limit=2))
    (run.eval / "scores.jsonl").write_text("stale\n", encoding="utf-8")
    other = Options("good", against=["bad"], limit=3, probes="none")
    with pytest.raises(
        CaiError,
        match=r"(?s)eval: holds a finished evaluation with other options:\n  --limit: 2 → 3\n"
        r"  --probes: over_refusal, sycophancy, red_team, injection → none\nKeep it .*--out FOLDER.*--replace",
    ):
        evaluate(runs, other)
    assert (run.eval / "scores.jsonl").exists()
    assert run.policy_report() == first
    again = evaluate(runs, Options("good", limit=2))  # the same goes on
    assert again.comparisons == first.comparisons
    evaluate(runs, other, out=tmp_path / "elsewhere")
    evaluate(runs, other, replace=True)
    assert not (run.eval / "scores.jsonl").exists()
    (run.eval / "evaluation.json").unlink()  # as if interrupted: nothing finished is lost
    evaluate(runs, Options("good", limit=2))
    log = (run.eval / "log.txt").read_text(encoding="utf-8")
    assert "replaces unfinished results with other settings" in log
    assert "\n    limit: 3 → 2\n" in log


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_options_that_only_add_to_a_finished_evaluation_are_not_named_as_the_conflict(
    tmp_path: Path, dry: list[str]
) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "good")
    make_run(runs, "bad")
    evaluate(runs, Options("good", probes="none", settings=("axes=false",)))  # as the run's own
    given = ["eval", "good", "--runs", str(runs), "--set", "temperature=0", "--against", "bad", "--limit", "2", *dry]
    with pytest.raises(CaiError) as raised:
        CliRunner().invoke(app, given, catch_exceptions=False)
    assert re.findall(r"^  (\S.*)", str(raised.value), re.MULTILINE) == ["--limit: none → 2"]
    assert "--out FOLDER" in str(raised.value) and "--replace" in str(raised.value)


def test_what_differs_from_a_finished_evaluation_is_named_as_its_options_are(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good")
    evaluate(runs, Options("good", probes="none"))
    manifest = json.loads((run.eval / "manifest.json").read_text())
    assert option_changes(manifest, manifest) == []
    other = json.loads(json.dumps(manifest).replace(manifest["axes"]["overall"]["name"], "mine"))
    engine = {"max_tokens": 7, "vllm": {"dtype": "float16"}}
    other |= {"prompts": "0" * 16, "seed": 4, "judge": "1" * 32, "settings": {**manifest["settings"], **engine}}
    other["judge_engine"] = {"vllm": {"dtype": "bfloat16"}}
    other["policies"] = [{"name": "base2", "model": "2" * 32}, *manifest["policies"][1:]]
    changes = [
        "--reference: base → base2",
        "--prompts: held out, with other content",
        "--constitution: plain → mine",
        f"--judge: {manifest['where']['judge']}, with other content",
        "seed of the run: 0 → 4",
        f"--set max_tokens: {manifest['settings']['max_tokens']} → 7",
        '--set engine.vllm: unset → {"dtype": "float16"}',
        'judge_engine: null → {"vllm": {"dtype": "bfloat16"}}',
    ]
    assert option_changes(manifest, other) == changes
    other["where"] |= {"prompts": "mine.jsonl"}
    assert option_changes(manifest, other)[1] == "--prompts: held out → mine.jsonl"
    assert option_changes(manifest, manifest | {"axes": {"overall": manifest["axes"]["overall"]}}) == [
        "--set axes: true → false"
    ]
    assert option_changes({"command": "cai eval"}, manifest) == []


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good")
    with pytest.raises(CaiError, match=r"good: holds the results of `cai run`; choose another \(--out FOLDER\)"):
        evaluate(runs, Options("good", probes="none"), out=run.path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": "god"}, r"'god' is no run in .* \(did you mean 'good'\?\), and as a model: .*no such folder"),
        ({"probes": "over_refusl"}, "unknown set 'over_refusl'; did you mean 'over_refusal'"),
        ({"probes": "x"}, "expected all, none, or some of over_refusal, sycophancy, red_team, injection"),
        ({"against": ["good"]}, "'good' and 'good' are the same model"),
        ({"against": ["bad", "bad"]}, "'bad' and 'bad' are the same model"),
        ({"settings": ("max_token=3",)}, "max_token: unknown key 'max_token'; did you mean 'max_tokens'"),
        ({"constitution": "constitutions/no.yaml"}, "--constitution: 'constitutions/no.yaml' not found"),
        ({"prompts": Path("no.jsonl")}, "--prompts: 'no.jsonl' not found"),
        ({"judge": "nobody"}, "'nobody': no such folder"),
    ],
)
def test_a_mistaken_option_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "good")
    make_run(runs, "bad")
    with pytest.raises(CaiError, match=said):
        plan_evaluation(Options(**({"policy": "good"} | change)), runs)


def test_what_a_run_lacks_is_an_error_before_any_call(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good")
    manifest = run.manifest()
    shutil.rmtree(run.train)
    with pytest.raises(CaiError, match="its last policy, 1-dpo, is not trained yet; finish the run first"):
        plan_evaluation(Options("good"), runs)
    model(run.train / "1-dpo/model", "good")
    (run.train / "1-dpo/stage.json").write_text("{}", encoding="utf-8")
    run.manifest_json.write_text(json.dumps(manifest | {"held_out": []}), encoding="utf-8")
    with pytest.raises(CaiError, match=r"holds out no prompts .*; name a file of prompts"):
        plan_evaluation(Options("good"), runs)
    run.manifest_json.write_text(json.dumps(manifest | {"model": "changed"}), encoding="utf-8")
    with pytest.raises(CaiError, match=r"has changed since the run started from it; name the one .* --reference"):
        plan_evaluation(Options("good"), runs)
    manifest["config"]["train"] = []
    run.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(
        CaiError, match=r"the run trains no policy, since `train:` of its run file is empty; add a stage"
    ):
        plan_evaluation(Options("good"), runs)
    run.manifest_json.write_text(json.dumps({"config": {"moodel": 1}}), encoding="utf-8")
    with pytest.raises(CaiError, match=r"manifest\.json: not the settings of a run of this version of cai"):
        plan_evaluation(Options("good"), runs)


def test_a_trained_stage_or_any_model_is_evaluated_on_prompts_that_are_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    base, good = model(tmp_path / "base", "base"), model(tmp_path / "dpo/model", "good")
    (tmp_path / "dpo/stage.json").write_text(json.dumps({"model": str(base), "settings": {"stage": "dpo"}}))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n', encoding="utf-8")
    assert len(plan_evaluation(Options(str(tmp_path / "dpo")), runs).prompts) == 50  # of those that come with cai
    report = evaluate(runs, Options(str(tmp_path / "dpo"), prompts=prompts, probes="none"), out=tmp_path / "out")
    assert [(p.name, p.folder) for p in report.policies] == [("base", str(base)), ("dpo", str(good))]
    with pytest.raises(CaiError, match=r"--reference: what .* was trained from is not known"):
        plan_evaluation(Options(str(good), prompts=prompts), runs)
    with pytest.raises(CaiError, match="are the same model: nothing to compare"):
        plan_evaluation(Options(str(tmp_path / "dpo"), reference=str(good), prompts=prompts), runs)
    with pytest.raises(CaiError, match=r"two policies would be called 'dpo': .*dpo/model and .*old/dpo"):
        old = model(tmp_path / "old/dpo", "old")
        plan_evaluation(Options(str(tmp_path / "dpo"), [str(old)], prompts=prompts), runs)
    (tmp_path / "dpo/stage.json").write_text(json.dumps({"model": str(base), "settings": {"stage": "reward"}}))
    with pytest.raises(CaiError, match="a reward model, which generates no answers"):
        plan_evaluation(Options(str(tmp_path / "dpo"), prompts=prompts), runs)


def test_prompts_that_a_policy_was_trained_on_are_noted(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, "good")
    report = evaluate(runs, Options("good", prompts=run.prompts_jsonl, probes="none", limit=14))
    assert "good was trained on 2 of these 14 prompts" in report.notes


def test_the_last_iteration_of_a_run_is_its_policy(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in (1, 2, 10):
        make_run(runs / "good", f"iteration-{number}", base=model(tmp_path / "base", "base"))
    found = plan_evaluation(Options("good", settings=GREEDY), runs)
    assert found.policies[1].name == "good/iteration-10"


def test_the_report_is_printed_whole_and_hidden_characters_are_shown(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs, "good", prompts=16)
    report = evaluate(runs, Options("good", limit=14))
    report = report.model_copy(update={"notes": [*report.notes, "a \x1b[31m note"]})
    console = Console(width=220, record=True, force_terminal=False)
    for part in report_tables(report, console.width):
        show(console, part)
    text = console.export_text()
    for said in ("Two axes, in Elo points", "Over-refusal: requests", "Signs of reward hacking in good", "not measured: KL: answers are greedy",
                 "good against ", "a \\x1b[31m note", "warning: sycophancy: questions answered"):  # fmt: skip
        assert said in text


def test_the_report_fits_eighty_columns_with_several_policies(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("good", "bad", "bad-with-a-rather-long-name-2"):
        make_run(runs, name)
    report = evaluate(
        runs, Options("good", against=["bad", "bad-with-a-rather-long-name-2"], probes="over_refusal,injection")
    )
    console = Console(width=80, record=True, force_terminal=False)
    for part in report_tables(report, 80):
        show(console, part)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("better than bad on both: base (" in line for line in lines)
    assert sum("harmful   refuses" in line for line in lines) == 2  # four policies in two tables


@pytest.mark.slow
def test_a_run_may_end_with_its_evaluation_which_is_forecast_and_accounted_for(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = write_workspace(
        tmp_path, model_folder, extra="train: [{stage: dpo}]\nevaluate: {probes: true, temperature: 0}\n"
    )
    plan = make_plan(run_file, [], None, tmp_path / "runs")

    def trained(plan: Plan, scheduler: Scheduler, reporter: Reporter, number: int) -> Path:
        stage = plan.folder.train / "1-dpo"
        policy = model(stage / "model", "trained")
        (stage / "stage.json").write_text("{}", encoding="utf-8")
        return policy

    monkeypatch.setattr(pipeline, "train_policy", trained)
    expected = {line.stage: line.cache_misses for line in dry_run(plan).lines}

    def open_engine(folder: Any, name: str, settings: EngineConfig) -> Engine:
        return ScriptedEngine(name, lambda request: fingerprint(name, request.messages, request.seed))

    [folder] = pipeline.execute(plan, QUIET, open_engine=open_engine)
    report = folder.policy_report()
    assert report is not None
    assert [p.name for p in report.policies] == [tmp_path.name, "test"]  # of a folder `model`, the one it is in
    assert report.prompts == 2
    summary = folder.summary()
    assert summary is not None
    asked = {line.stage: line.cache_misses for line in account(summary)}
    assert asked == expected
    assert {"test: answers", f"{tmp_path.name}: sides", "judge: questions"} <= asked.keys()
    assert "evaluation" in summary["seconds"]
    # it says nothing of what the run is made from: the run is the same with and without
    pipeline.execute(
        make_plan(run_file, ["evaluate.probes=false"], None, tmp_path / "runs"), QUIET, open_engine=scripted()
    )


@pytest.mark.slow
def test_a_run_keeps_a_finished_evaluation_of_its_policy_unless_replaced(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "train: [{stage: dpo}]\nevaluate: {probes: true, temperature: 0}\n"
    model(model_folder, "base")
    plan = make_plan(write_workspace(tmp_path, model_folder, extra=extra), [], None, tmp_path / "runs")
    names = ["first"]

    def trained(plan: Plan, scheduler: Scheduler, reporter: Reporter, number: int) -> Path:
        stage = plan.folder.train / "1-dpo"
        policy = model(stage / "model", names[-1])
        (stage / "stage.json").write_text("{}", encoding="utf-8")
        return policy

    def limit() -> int | None:
        found: int | None = json.loads((plan.folder.eval / "manifest.json").read_text())["limit"]
        return found

    def execute(replace: bool = False) -> None:
        pipeline.execute(plan, QUIET, replace, scripted())
        assert plan.folder.summary() is not None

    def evaluate_two() -> None:
        evaluate(plan.runs, Options("test", limit=2, probes="none"), replace=True)
        assert limit() == 2

    monkeypatch.setattr(pipeline, "train_policy", trained)
    execute()
    assert limit() is None
    evaluate_two()
    execute()
    assert limit() == 2  # stays, and the run is finished
    execute(replace=True)
    assert limit() is None
    evaluate_two()
    names.append("second")
    execute()
    assert limit() is None  # that was of a policy that is no more


def trained_as(name: str) -> Callable[..., Path]:
    """In place of training: a stage's folder whose model passes for one."""

    def train(plan: Plan, scheduler: Scheduler, reporter: Reporter, number: int) -> Path:
        stage = plan.folder.train / "1-dpo"
        policy = model(stage / "model", name)
        (stage / "stage.json").write_text("{}", encoding="utf-8")
        return policy

    return train


@pytest.fixture
def planned(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """The plan of a run with these settings of `evaluate:`, whose training makes the policy "good"."""

    def plan_with(evaluate: str) -> Plan:
        extra = f"train: [{{stage: dpo}}]\nevaluate: {{temperature: 0, {evaluate}}}\n"
        model(model_folder, "base")
        monkeypatch.setattr(pipeline, "train_policy", trained_as("good"))
        return make_plan(write_workspace(tmp_path, model_folder, extra=extra), [], None, tmp_path / "runs")

    return plan_with


def test_a_run_compares_before_and_after_and_an_evaluation_on_demand_adds_to_it(
    planned: Callable[[str], Plan],
) -> None:
    plan = planned("axes: false")
    pipeline.execute(plan, QUIET, False, by_name())
    report, rows = plan.folder.policy_report(), plan.folder.evaluation()
    assert report is not None
    assert ({row.axis for row in report.comparisons}, report.probes, report.monitors) == ({"overall"}, [], [])
    assert [row.prompt_id for row in rows] == [prompt.id for prompt in plan.held_out]
    assert all(row.before.startswith("base says") and row.after.startswith("good says") for row in rows)
    assert report.comparisons[0].win_rate is not None and report.comparisons[0].win_rate.mean == 1.0
    asked = cached_answers(plan.runs / "cache.sqlite")
    more = evaluate(plan.runs, Options("test", probes="none"))
    assert {row.axis for row in more.comparisons} == {"overall", "helpful", "safe"}
    both = plan.folder.evaluation()
    assert all(row.p_helpful is not None and row.p_safe is not None for row in both)
    assert [row.model_copy(update={"p_helpful": None, "p_safe": None}) for row in both] == rows  # from the cache
    assert more.cost["cache_hits"] == 2 * len(rows) + 2 * len(rows) * len(plan.eval_constitution.principles)
    assert cached_answers(plan.runs / "cache.sqlite") == asked + more.cost["cache_misses"]
    pipeline.execute(plan, QUIET, False, by_name())
    assert plan.folder.policy_report() == more  # a run that goes on takes nothing away


def test_a_run_asks_on_both_axes_and_a_finished_one_adds_them(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "train: [{stage: dpo}]\nevaluate: {temperature: 0}\n"
    model(model_folder, "base")
    run_file = write_workspace(tmp_path, model_folder, extra=extra)
    monkeypatch.setattr(pipeline, "train_policy", trained_as("good"))
    plans = [make_plan(run_file, [f"evaluate.axes={axes}"], None, tmp_path / "runs") for axes in ("false", "true")]
    for plan in plans:
        pipeline.execute(plan, QUIET, False, by_name())
    folder = plans[0].folder
    report, summary = folder.policy_report(), folder.summary()
    assert report is not None and summary is not None
    assert {row.axis for row in report.comparisons} == {"overall", "helpful", "safe"}
    assert [standing.policy for standing in report.standings][1:] == ["test"]
    assert summary["metrics"]["helpful_win_rate"]["mean"] == summary["metrics"]["safe_win_rate"]["mean"] == 1.0
    pipeline.execute(plans[0], QUIET, False, by_name())  # without axes it takes nothing away
    assert folder.policy_report() == report
    assert {check.state for check in verify_run(folder) if check.part in ("eval/", "eval: win rates")} == {"matches"}
    file = folder.eval / "evaluation.json"
    for rate in ("win_rate", "mean_p", "length_controlled_win_rate"):
        values = report.model_dump(mode="json")
        [row] = [row for row in values["comparisons"] if row["axis"] == "safe"]
        row[rate] = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 2}
        file.write_text(json.dumps(values), encoding="utf-8")
        assert "eval: win rates" in {check.part for check in verify_run(folder) if check.state == "differs"}


def test_a_run_without_an_eval_judge_measures_its_answers_and_an_evaluation_on_demand_adds_one(
    planned: Callable[[str], Plan],
) -> None:
    plan = planned("judge: off")
    stages = [line.stage for line in dry_run(plan).lines]
    assert "test: answers" in stages and "judge: comparisons" not in stages
    pipeline.execute(plan, QUIET, False, by_name())
    folder, rows = plan.folder, plan.folder.evaluation()
    summary, report = folder.summary(), folder.policy_report()
    assert summary is not None and report is not None
    assert [row.prompt_id for row in rows] == [prompt.id for prompt in plan.held_out]
    assert all((row.p, row.verdicts, row.judge) == (None, [], "") for row in rows)
    assert summary["metrics"]["win_rate"] is None and summary["metrics"]["eval_position_bias"] is None
    assert summary["metrics"]["after_words"]["n"] == len(rows) and summary["evaluation"]["compared"] == 0
    assert (report.comparisons, report.ratings, report.standings) == ([], [], [])
    assert "held-out" not in dict(run_trust(summary))["ties"]
    assert "differs" not in {check.state for check in verify_run(folder)}

    asked = cached_answers(plan.runs / "cache.sqlite")
    more = evaluate(plan.runs, Options("test", probes="none"))  # of the same answers, so that it need not replace
    assert more.cost["cache_hits"] == 2 * len(rows)
    assert cached_answers(plan.runs / "cache.sqlite") == asked + more.cost["cache_misses"]
    assert all(row.p is not None and row.judge for row in folder.evaluation())
    pipeline.execute(plan, QUIET, False, by_name())
    assert folder.policy_report() == more  # a run that goes on takes nothing away


def test_probes_without_an_eval_judge_are_an_error_that_names_both(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="evaluate: {judge: off, probes: true}\n")
    with pytest.raises(CaiError, match=r"evaluate\.probes: true, and `evaluate\.judge: off`"):
        make_plan(run_file, [], None, tmp_path / "runs")


def test_an_evaluation_on_demand_leaves_the_axes_out_where_asked(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "good")
    report = evaluate(tmp_path / "runs", Options("good", limit=2, probes="none", settings=("axes=false",)))
    assert {row.axis for row in report.comparisons} == {"overall"}
    assert "Two axes" not in "\n".join(map(str, report_tables(report, 80)))


def test_a_base_model_of_the_runs_name_gets_another_in_its_evaluation(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "train: [{stage: dpo}]\nevaluate: {temperature: 0}\n"
    model(model_folder, "base")
    run_file = write_workspace(tmp_path, model_folder, extra=extra)
    plan = make_plan(run_file, [], tmp_path.name, tmp_path / "runs")
    monkeypatch.setattr(pipeline, "train_policy", trained_as("good"))
    pipeline.execute(plan, QUIET, False, by_name())
    report = plan.folder.policy_report()
    assert report is not None
    name = plan.folder.name
    assert [policy.name for policy in report.policies] == [f"{name} (base)", name]
    assert len(plan.folder.evaluation()) == len(plan.held_out)


def test_a_run_whose_policy_answers_nothing_lists_every_refusal_and_finishes(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "train: [{stage: dpo}]\nevaluate: {temperature: 0}\n"
    model(model_folder, "base")
    plan = make_plan(write_workspace(tmp_path, model_folder, extra=extra), [], None, tmp_path / "runs")
    monkeypatch.setattr(pipeline, "train_policy", trained_as("good"))
    monkeypatch.setattr("cai.evaluation.policy.respond", refuse_all)
    pipeline.execute(plan, QUIET, False, by_name())
    assert plan.folder.summary() is not None
    assert plan.folder.evaluation() == []
    refused = [row.prompt_id for row in plan.folder.skipped() if row.stage == "test: answers"]
    assert refused == [prompt.id for prompt in plan.held_out]


async def refuse_all(*_: Any, **__: Any) -> Any:
    raise RequestRefused("too long")


def test_an_evaluation_that_does_not_name_its_policies_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "good")
    evaluate(tmp_path / "runs", Options("good", limit=2, probes="none"))
    (run.eval / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CaiError, match=r"manifest\.json: policies: not those of an evaluation"):
        run.evaluation()
