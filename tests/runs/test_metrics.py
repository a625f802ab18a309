"""A run's metrics have one value and one name wherever they are shown."""

import html
import io
import json
import math
import random
import re
import shutil
import tracemalloc
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console

from cai.cli.compare import compare
from cai.cli.run import print_summary
from cai.cli.runs import runs as list_runs
from cai.compare.compare import compare_runs
from cai.data.jsonl import write_rows
from cai.data.records import Applicability
from cai.feedback.metrics import RUN_METRICS
from cai.feedback.pairs import label_mass_text
from cai.inference.engine import Choose, Engine, EngineConfig, Generate, ScriptedEngine
from cai.inference.models import Model
from cai.inference.reporter import Reporter
from cai.report.comparison import comparison_report, read_comparison
from cai.report.lists import run_entry
from cai.report.run import read_run, run_report
from cai.runs.folder import RunFolder
from cai.runs.frames import load_run
from cai.runs.metrics import (
    other_warnings,
    stage_results,
    summarise,
    summary_metrics,
    training_lines,
    training_warnings,
)
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.publish import write_dataset
from cai.runs.trust import run_trust
from cai.runs.verify import verify_run
from cai.training.stage import StageSpec
from tests.compare.made import write_metrics
from tests.conftest import write_workspace

SAMPLES = "judge: {samples: 3, principles: 3, verify: true, ties: true}\ntrain: [{stage: dpo}]\n"


def write(request: Generate) -> str:
    """Texts of very different lengths, some of them unchanged, so that prompts weigh differently in every mean."""
    rng = random.Random(f"{request.seed} {request.messages}")
    if request.step == "revision" and rng.random() < 0.3:
        return "the draft"
    return " ".join(
        rng.choice(["a", "good", "answer", "says", "that", "water", "boils"]) for _ in range(rng.randint(2, 40))
    )


def weigh(request: Choose) -> list[float]:
    """A judge with a liking for the first position and some mass outside the options."""
    rng = random.Random(str(request.messages))
    p, mass, tie = rng.betavariate(2, 1), rng.uniform(0.5, 0.99), rng.uniform(0, 0.4) * (len(request.options) - 2)
    return [mass * (1 - tie) * p, mass * (1 - tie) * (1 - p), *([mass * tie] if tie else [])]


@pytest.fixture
def run(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with two rounds, three samples and a policy that was evaluated; its training writes a folder and a log."""

    def train(spec: StageSpec[Any], *others: Any) -> Path:
        folder = spec.folder
        (folder / "model").mkdir(parents=True)
        for file in spec.model.iterdir():
            (folder / "model" / file.name).write_text('{"trained": true}', encoding="utf-8")
        lines = ({"step": step, "loss": 1 / step} for step in range(1, 7))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return folder / "model"

    def opened(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        ending = " as trained" if "train" in Path(str(model)).parts else ""
        return ScriptedEngine(fingerprint, lambda request: write(request) + ending, weigh)

    monkeypatch.setattr("cai.runs.pipeline.run_stage", train)
    plan = make_plan(write_workspace(tmp_path, model_folder, prompts=24, extra=SAMPLES), [], "a", tmp_path / "runs")
    [folder] = execute(plan, Reporter(Console(quiet=True)), False, opened)
    return folder


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_every_surface_shows_the_same_value_under_the_same_name(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run.summary()
    assert summary is not None
    estimates = summary_metrics(summary)
    assert estimates.keys() == RUN_METRICS.keys() - {"stays"}  # the run, which revises always, measures all others
    texts = {
        metric.name: (metric.text(estimates[key].mean), metric.shown(estimates[key]))
        for key, metric in RUN_METRICS.items()
        if key != "stays"
    }
    assert len(texts) == len(RUN_METRICS) - 1

    console = Console(record=True, width=120, file=io.StringIO())
    print_summary(console, run)
    printed = lines_of(console.export_text())
    found = compare_runs([run, run])
    shutil.copytree(run.path, tmp_path / "copy")
    compare([str(run.path), str(tmp_path / "copy")], runs=tmp_path / "runs")
    compared = lines_of(capsys.readouterr().out)
    page = text_of(run_report(run, read_run(run)))
    read = load_run(run.path)
    training, held_out = summary["prompts"], summary["held_out"]
    assert (read.prompts.num_rows, read.held_out.num_rows) == (training, held_out)
    assert (training, held_out) == (len(run.prompts()) - held_out, len(run.manifest()["held_out"])) and held_out
    assert any(line == f"prompts {training}, and {held_out} held out" for line in printed)
    counts = f"{training} prompts, and {held_out} held out"
    assert any(line.startswith("A: a ") and line.endswith(f", {counts})") for line in compared)
    assert f"B against A: {training} shared prompts, and {held_out} held out" in compared
    list_runs(tmp_path / "runs")
    listed = capsys.readouterr().out.splitlines()
    columns = [
        (re.search(rf"\b{title}\b", listed[0]) or pytest.fail(title)).start() for title in ("prompts", "held out")
    ]
    assert [int(listed[1][place:].split()[0]) for place in columns] == [training, held_out]
    both = text_of(comparison_report(read_comparison(found, [run, run])))
    write_dataset(run, tmp_path / "dataset", "unknown")
    card = (tmp_path / "dataset/README.md").read_text(encoding="utf-8")
    assert f"prompts {training} and {held_out} held out" in page
    assert f"{training} shared prompts, and {held_out} held out" in both
    entry = run_entry("a", run)
    run.summary_json.rename(run.path / "aside")
    unfinished = run_entry("a", run)
    assert {(one.prompts, one.held_out) for one in (entry, unfinished)} == {(str(training), str(held_out))}
    (run.path / "aside").rename(run.summary_json)
    for name, (mean, shown) in texts.items():
        assert any(line.startswith(f"{name} {mean} ") for line in printed), name
        assert any(line.startswith(f"{name} {mean} {mean} ") for line in compared), name
        assert f"{name} {shown} " in page, name
        assert f"{name} {mean} {mean} " in both, name
        assert re.search(rf"^\| {re.escape(name)}: .* \| {re.escape(shown)} \|$", card, re.MULTILINE), name

    mass = label_mass_text(summary["preferences"]["label_mass"])
    assert re.fullmatch(r"\d+ % by revision, \d+ % by judge", mass)
    assert f"label mass {mass}" in printed and f"label mass of its pairs: {mass}" in compared
    assert mass in page and mass in both and mass in card

    differences = {metric.key: metric for metric in found.pairs[0].metrics}
    values = load_run(run.path).metric_values.to_pylist()
    for key, metric in ((key, RUN_METRICS[key]) for key in estimates):
        expected = pytest.approx(estimates[key].mean, abs=1e-12)
        assert (differences[key].name, differences[key].a, differences[key].b) == (metric.name, expected, expected)
        of_metric = [row["value"] for row in values if (row["key"], row["name"]) == (key, metric.name)]
        assert (fmean(of_metric), len(of_metric)) == (expected, estimates[key].n)


def test_a_prompt_with_more_rows_counts_no_more_than_another(run: RunFolder) -> None:
    summary = run.summary()
    assert summary is not None
    by_prompt: dict[str, list[float]] = {}
    for row in run.preferences():
        if row.source == "judge":
            by_prompt.setdefault(row.prompt_id, []).append(fmean(v.position_bias or 0.0 for v in row.verdicts))
    assert len({len(rows) for rows in by_prompt.values()}) > 1 or len(by_prompt) > 1
    expected = fmean(fmean(rows) for rows in by_prompt.values())
    assert summary["metrics"]["position_bias"]["mean"] == pytest.approx(expected)
    assert summary["metrics"]["position_bias"]["n"] == len(by_prompt)


def test_the_summary_of_a_large_run_holds_one_answer_about_principles_at_a_time(run: RunFolder) -> None:
    answers = (
        Applicability(prompt_id=f"p{i}", question="Is it a request?", p=0.7, non_option_mass=0.1, model="m")
        for i in range(5_000)
    )
    write_rows(run.applicability_jsonl, answers)
    tracemalloc.start()
    assert summarise(run)["principles"]["questions"] == {"Is it a request?": {"prompts": 5_000, "yes": 5_000}}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # all at once take 4 MB


def test_one_model_has_one_hash_on_a_page(run: RunFolder) -> None:
    """Rows have the fingerprint of the engine, which also depends on vLLM and its settings; pages that of the model."""
    table, report = read_run(run).table, run.policy_report()
    assert report is not None
    before, after = (policy.model for policy in report.policies)
    assert run.manifest()["model"] == before != run.revisions()[0].model
    engines = {row.model for row in run.revisions()} | {row.after_model for row in run.evaluation()}
    details = {line.id: json.dumps(table.detail(line.id).to_json()) for line in table.lines}
    assert not [text for text in details.values() if any(engine in text for engine in engines)]
    [revised, *_], [evaluated, *_] = ([row.prompt_id for row in rows] for rows in (run.revisions(), run.evaluation()))
    assert before in details[revised] and before in details[evaluated] and after in details[evaluated]


def test_the_closing_table_fits_eighty_columns_without_wrapping_a_cell(run: RunFolder) -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    print_summary(console, run)
    lines = console.export_text().splitlines()
    starts = [next(place for place, line in enumerate(lines) if line.startswith(title)) for title in
              ("Model calls", "Metrics, means over prompts", "Warnings", "a: finished in", "Can I trust this?", "Next")]  # fmt: skip
    assert starts == sorted(starts)
    assert [line for line in lines[: starts[-1]] if len(line.rstrip()) > 80] == []
    rows = lines[starts[1] + 2 : starts[2] - 1]
    assert rows.pop() == "  –: describes this run's rows; `cai compare` tests differences between runs"
    assert len(rows) == len(RUN_METRICS) - 1  # a line each, of all but `stays`
    by_name = {metric.name: next(row for row in rows if row.startswith(f"  {metric.name} ")) for metric in
               RUN_METRICS.values() if metric.key in summary_metrics(run.summary() or {})}  # fmt: skip
    assert " – " in by_name["edit distance"] and " to " in by_name["win rate"]


@pytest.mark.parametrize(
    ("logged", "lines"),
    [
        ([{"objective/kl": -0.01, "response/eos_rate": 0.5}],
         ["KL -0.010 (an estimate from few samples may be below 0; the KL itself is not)", "loss 1.000",
          "truncated answers 50 %; raise max_tokens"]),
        ([{"kl": 0.01, "completions/clipped_ratio": 0.25}, {"kl": 0.02, "completions/clipped_ratio": 0.0}],
         ["KL 0.010 → 0.020", "loss 1.000 → 1.000", "truncated answers 25 % → 0 %"]),
        ([{}], ["loss 1.000"]),
        ([{"kl": -0.00001}], ["KL 0.000", "loss 1.000"]),  # nothing to explain
    ],
)  # fmt: skip
def test_truncated_answers_and_a_negative_kl_are_explained_at_the_end_of_training(
    tmp_path: Path, logged: list[dict[str, float]], lines: list[str]
) -> None:
    write_metrics(RunFolder(tmp_path), "1-ppo", [{"step": n, "loss": 1.0, **line} for n, line in enumerate(logged)])
    assert training_lines(stage_results(tmp_path / "train/1-ppo"))[1:] == lines


def test_a_curve_that_is_not_finite_is_a_warning_and_leaves_the_rest_in_its_means() -> None:
    training: dict[str, Any] = {
        "updates": 6, "score": None, "kl": None, "length": None, "held_out": None, "warnings": ["KL runs away"],
        "loss": {"first_third": 1.0, "last_third": math.pi, "not_finite": 2},
    }  # fmt: skip
    assert training_lines(training) == ["6 updates; means of their first → last third:", "mean loss 1.000 → 3.142"]
    assert training_warnings(training) == [
        "KL runs away",
        "mean loss is not finite in 2 updates, which its means skip",
    ]


def test_a_run_warns_of_control_tokens_that_went_to_a_server(run: RunFolder) -> None:
    summary = summarise(run)
    assert summary["control_tokens"] is None
    rows = run.preferences()
    forged = rows[0].model_copy(update={"chosen": "Fine.<|eot_id|>"})
    write_rows(run.preferences_jsonl, [forged, *rows[1:]])
    manifest = run.manifest()
    manifest["config"]["judge"]["model"] = ["model", "https://example.org/v1#big"]
    run.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
    served = summarise(run)
    assert served["control_tokens"] == 1
    warning = "1 pair with control tokens (such as <|im_end|>) went to a server"
    assert [warning in text for text in other_warnings(served)].count(True) == 1
    assert not any("control tokens" in text for text in other_warnings(summary))
    manifest["config"]["engine"]["control_tokens"] = "escape"
    for judges in ("https://example.org/v1#big", "model"):  # a model in the process may need it too
        manifest["config"]["judge"]["model"] = judges
        run.manifest_json.write_text(json.dumps(manifest), encoding="utf-8")
        escaped = summarise(run)
        assert (escaped["control_tokens"], escaped["control_tokens_escaped"]) == (None, 1)
        assert any("it got them escaped" in text for text in other_warnings(escaped))


def test_warnings_name_closers_that_revisions_share_and_the_setting_that_truncates(run: RunFolder) -> None:
    summary = run.summary()
    assert summary is not None and summary["revisions"]["shared_closers"] == {}
    summary["revisions"]["shared_closers"] = {"I hope that this helps!": 0.25}
    for key, setting in (("draft_truncated", "revise.max_tokens"), ("after_truncated", "evaluate.max_tokens")):
        summary["metrics"][key]["mean"] = 0.2
        assert f"raise {setting}" in dict(run_trust(summary))["truncated"]
    assert "25 % of the revisions that pass the filters end with “I hope that this helps!”" in other_warnings(summary)


EXCLUDING = """
name: excluding
principles:
- {id: longer, critique: Quote what is too short., revision: Make it longer., judge: "Which answer is longer?"}
- {id: shorter, critique: Quote what is too long., revision: Make it shorter., judge: "Which answer is shorter?"}
- {id: cats, critique: c, revision: r, judge: "j?", applies_to: {question: "Is it about cats?"}}
"""


def test_a_constitution_that_works_against_itself_is_warned_of(tmp_path: Path, model_folder: Path) -> None:
    def by_length(request: Choose) -> list[float]:
        text = request.messages[0]["content"]
        if "Is it about cats?" in text:
            return [0.1, 0.9]
        answers = re.findall(r"<answer [AB]>\n(.*?)\n</answer", text, re.DOTALL)
        first = (len(answers[0]) > len(answers[1])) == ("longer" in text.splitlines()[-1])
        return [0.8, 0.1] if first else [0.1, 0.8]

    (tmp_path / "excluding.yaml").write_text(EXCLUDING, encoding="utf-8")
    settings = ["constitution=excluding.yaml", "judge.samples=4", "judge.principles=all", "prompts.holdout=0"]
    plan = make_plan(write_workspace(tmp_path, model_folder, prompts=8), settings, "a", tmp_path / "runs")
    scripted = ScriptedEngine("m", write, by_length)
    same = ScriptedEngine("m", lambda r: "as it was", by_length)
    [folder] = execute(plan, Reporter(Console(quiet=True)), False, lambda *_: scripted)
    summary = folder.summary()
    assert summary is not None
    [pair] = summary["principles"]["contradicting"]
    assert (pair["a"], pair["b"]) == ("longer", "shorter") and pair["agreement"]["kappa"] < -0.7
    warnings = other_warnings(summary)
    assert any(w.startswith("principles that contradict each other: longer and shorter (κ -0.") for w in warnings)
    assert "applies_to: the model answers No about every prompt: “Is it about cats?”" in warnings
    assert dict(run_trust(summary))["principles"].endswith("never sampled: cats")
    assert not any("no revision makes a pair" in warning for warning in warnings)
    assert "principles that contradict each other: longer and shorter" in text_of(run_report(folder, read_run(folder)))
    assert {check.state for check in verify_run(folder)} == {"matches"}

    plan = make_plan(tmp_path / "run.yaml", settings, "b", tmp_path / "other")
    [folder] = execute(plan, Reporter(Console(quiet=True)), False, lambda *_: same)
    summary = folder.summary()
    assert summary is not None and summary["principles"]["contradicting"] == []
    warnings = other_warnings(summary)
    assert "no revision makes a pair: all are skipped; the reasons are below, and in skipped.jsonl" in warnings
    assert "skipped: 8 × revision unchanged" in warnings
