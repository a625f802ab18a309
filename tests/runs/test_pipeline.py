import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest
from rich.console import Console

from cai.config.errors import CaiError, RequestRefused
from cai.data.jsonl import read_rows
from cai.data.manifest import exclusive
from cai.data.records import Ranking
from cai.inference.engine import Choose, Completion, Generate, ScriptedEngine
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import check_folder, claim, make_plan, split, start_folder, start_warnings
from tests.conftest import ROOT, cached_answers, prompt, scripted, write_workspace
from tests.runs.slow_run import weigh

ROWS = ("prompts.jsonl", "revisions.jsonl", "preferences.jsonl", "skipped.jsonl")


def run_to_end(
    run_file: Path,
    engines: list[ScriptedEngine] | None = None,
    overrides: tuple[str, ...] = (),
    name: str | None = None,
    replace: bool = False,
    open_engine: OpenEngine | None = None,
) -> RunFolder:
    plan = make_plan(run_file, list(overrides), name, run_file.parent / "runs")
    execute(plan, Reporter(Console(quiet=True)), replace, open_engine or scripted(engines))
    return plan.folder


def asked(engines: list[ScriptedEngine]) -> int:
    return sum(len(engine.requests) for engine in engines)


def rows(folder: RunFolder) -> dict[str, str]:
    return {name: (folder.path / name).read_text(encoding="utf-8") for name in ROWS}


def test_every_training_prompt_ends_as_rows_or_as_a_listed_reason(tmp_path: Path, model_folder: Path) -> None:
    folder = run_to_end(write_workspace(tmp_path, model_folder))
    training = [p.id for p in folder.prompts()][:6]
    assert [r.prompt_id for r in folder.revisions()] == [i for i in training for _ in range(2)]
    assert len(folder.preferences()) + len(folder.skipped()) == 12
    summary = folder.summary()
    assert summary is not None
    # 6 prompts: a draft and a second sample, 2 rounds of 2 calls, 4 principles in 2 orders, and the 2 rounds' in 2 orders
    assert summary["calls"]["cache_misses"] == 6 * (2 + 4 + 8 + 4)


def test_prompts_may_be_in_any_form_and_what_is_no_new_prompt_is_listed(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    asked = ["Why?", "How?", "Who?", "Why?"]
    pairs = [
        {"chosen": f"\n\nHuman: {a}\n\nAssistant: x", "rejected": f"\n\nHuman: {a}\n\nAssistant: y"} for a in asked
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    folder = run_to_end(run_file, overrides=(f"prompts.source={tmp_path}/pairs.json", "prompts.holdout=0"))
    assert [p.messages[0]["content"] for p in folder.prompts()] == ["Why?", "How?", "Who?"]
    assert [(row.stage, row.reason) for row in folder.skipped()][:1] == [
        ("pairs.json:entry 4", "a row above has the same prompt")
    ]


def test_data_that_is_no_file_may_be_on_the_hub(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.config.locate.local_file", lambda name: {"org/asked:test": tmp_path / "asked.txt"}[name])
    (tmp_path / "asked.txt").write_text("Why?\nHow?\n")
    run_file = write_workspace(tmp_path, model_folder)
    plan = make_plan(run_file, ["prompts.source=org/asked:test", "prompts.holdout=0.5"], None, tmp_path / "runs")
    assert [len(plan.training), len(plan.held_out)] == [1, 1]
    with pytest.raises(CaiError, match=r"prompts\.source: 'nothing\.jsonl' not found"):
        make_plan(run_file, ["prompts.source=nothing.jsonl"], None, tmp_path / "runs")


def test_running_again_asks_nothing_and_writes_the_same_rows(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    engines: list[ScriptedEngine] = []
    first = rows(run_to_end(run_file, engines))
    again = run_to_end(run_file, later := [])
    assert rows(again) == first
    assert later == []  # not even opened
    summary = again.summary()
    assert summary is not None
    assert summary["calls"] == {"cache_misses": 0, "cache_hits": asked(engines), "tokens": 0}


def test_running_again_erases_nothing_of_what_a_run_has_cost(tmp_path: Path, model_folder: Path) -> None:
    run_file, engines = write_workspace(tmp_path, model_folder), list[ScriptedEngine]()
    first = run_to_end(run_file, engines).summary()
    again = run_to_end(run_file).summary()
    assert first is not None
    assert again is not None
    assert again["in_all"]["sessions"] == 2
    assert again["in_all"]["cache_misses"] == first["calls"]["cache_misses"] == asked(engines)
    assert again["in_all"]["tokens"] == first["calls"]["tokens"] > 0
    assert again["in_all"]["seconds"]["feedback"] == pytest.approx(
        first["seconds"]["feedback"] + again["seconds"]["feedback"], abs=0.11
    )


def test_an_interrupted_session_is_in_the_cost(tmp_path: Path, model_folder: Path) -> None:
    run_file, calls = write_workspace(tmp_path, model_folder), 0

    def interrupted(request: Choose) -> list[float]:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyboardInterrupt
        return weigh(request)

    with pytest.raises(KeyboardInterrupt):
        run_to_end(run_file, open_engine=scripted(weigh=interrupted))
    paid = cached_answers(tmp_path / "runs/cache.sqlite")
    summary = run_to_end(run_file, open_engine=scripted(weigh=weigh)).summary()
    assert summary is not None
    assert paid > 0
    assert summary["in_all"]["sessions"] == 2
    before = summary["in_all"]["cache_misses"] - summary["calls"]["cache_misses"]
    assert 0 < before <= paid  # a call that was in flight may be cached and not counted


def test_runs_with_other_principles_share_the_drafts(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    run_to_end(run_file)
    engines: list[ScriptedEngine] = []
    run_to_end(run_file, engines, ("constitution=constitutions/brief.yaml",), "other")
    assert asked(engines) == 6 * (4 + 8 + 4)
    assert all(len(r.messages) > 1 for r in engines[0].requests)  # no plain answer was asked for again


def test_a_changed_setting_needs_another_name_or_replace(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    before = rows(run_to_end(run_file))
    with pytest.raises(CaiError, match=r"(?s)revise\.rounds: 2 → 1.*--name NEW.*--replace"):
        run_to_end(run_file, overrides=("revise.rounds=1",))
    folder = RunFolder(tmp_path / "runs/test")
    assert rows(folder) == before
    replaced = run_to_end(run_file, overrides=("revise.rounds=1",), replace=True)
    assert len(replaced.revisions()) == 6


def test_a_changed_setting_of_an_unfinished_run_is_named_with_what_is_replaced(
    tmp_path: Path, model_folder: Path
) -> None:
    def interrupted(request: Choose) -> list[float]:
        raise KeyboardInterrupt

    run_file = write_workspace(tmp_path, model_folder)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(run_file, open_engine=scripted(weigh=interrupted))
    replaces = [
        f"{tmp_path}/runs/test: replaces unfinished results with other settings; answers in the cache are kept and "
        "reused:",
        "  revise.rounds: 2 → 1",
    ]
    changed = make_plan(run_file, ["revise.rounds=1"], None, tmp_path / "runs")
    assert check_folder(changed, replace=False).splitlines() == replaces  # as a dry run prints it
    folder = run_to_end(run_file, overrides=("revise.rounds=1",))
    log = folder.log.read_text(encoding="utf-8").splitlines()
    assert " test: 6 prompts for training" in log[0]  # whose time is the start of the run
    assert [log[1].partition(" ")[2], log[2].removeprefix("  ")] == replaces


def test_the_run_file_in_a_runs_folder_is_the_same_run(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    run_file = write_workspace(tmp_path / "mine", model_folder, extra="# a comment\nevaluate: {constitution: plain}\n")
    shutil.copyfile(ROOT / "constitutions/brief.yaml", tmp_path / "mine/brief.yaml")
    monkeypatch.chdir(tmp_path)
    overrides = ("revise.rounds=1", "train=[{stage: sft, learning_rate: 1.0e-5}]")
    plan = make_plan(run_file, list(overrides), "other", tmp_path / "runs")
    plan.folder.path.mkdir(parents=True)
    start_folder(plan, replace=False)
    again = make_plan(tmp_path / "runs/other/run.yaml", [], None, tmp_path / "runs")
    assert again.folder.path == plan.folder.path
    assert claim(again).changes() == []
    first = plan.folder.run_yaml.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# Settings of this run, from {run_file} --set revise.rounds=1 --set train=[")

    moved = make_plan(run_file, ["constitution=brief.yaml"], "moved", tmp_path / "runs")
    moved.folder.path.mkdir()
    start_folder(moved, replace=False)
    again = make_plan(moved.folder.run_yaml, [], None, tmp_path / "runs")
    assert again.constitution_file == run_file.parent / "brief.yaml"
    assert claim(again).changes() == []  # the same file under another name

    same = make_plan(run_file, [], None, tmp_path / "runs")
    same.folder.path.mkdir()
    start_folder(same, replace=False)
    assert same.folder.run_yaml.read_text().partition("\n")[2] == run_file.read_text()


def test_the_run_file_in_a_runs_folder_says_which_files_have_changed_since(tmp_path: Path, model_folder: Path) -> None:
    run_file, live = write_workspace(tmp_path, model_folder), tmp_path / "live.yaml"
    shutil.copyfile(ROOT / "constitutions/brief.yaml", live)
    folder = make_plan(run_file, [f"constitution={live}"], "own", tmp_path / "runs").folder
    folder.path.mkdir(parents=True)
    start_folder(make_plan(run_file, [f"constitution={live}"], "own", tmp_path / "runs"), replace=False)
    folder.summary_json.write_text("{}", encoding="utf-8")
    assert start_warnings(make_plan(folder.run_yaml, [], "again", tmp_path / "runs")) == []

    live.write_text(live.read_text(encoding="utf-8").replace("Rewrite", "Write"), encoding="utf-8")
    copy = f"constitution={folder.constitution_yaml}"
    change = f"{folder.run_yaml}: constitution: {live} has changed since this run; --set {copy} reads the run's copy"
    assert start_warnings(make_plan(folder.run_yaml, [], "again", tmp_path / "runs")) == [f"warning: {change}"]
    with pytest.raises(CaiError, match="holds finished results") as refused:
        check_folder(make_plan(folder.run_yaml, [], None, tmp_path / "runs"), replace=False)
    assert str(refused.value).endswith(f"\n{change}")
    own = make_plan(folder.run_yaml, [copy], None, tmp_path / "runs")
    assert check_folder(own, replace=False) == "" and start_warnings(own) == []
    assert start_warnings(make_plan(run_file, [f"constitution={live}"], "own", tmp_path / "runs")) == []

    copied = folder.templates / "critique.jinja"
    text = copied.read_text(encoding="utf-8")
    copied.write_text(f"Now, {text}", encoding="utf-8")
    (warned,) = start_warnings(make_plan(folder.run_yaml, [copy], "again", tmp_path / "runs"))
    assert f"--set templates={folder.templates} reads the run's copy" in warned


@pytest.mark.slow
def test_a_killed_run_is_completed_by_running_it_again(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.inference.cache.LEASE_SECONDS", 0.5)  # of the killed run, waited out
    run_file = write_workspace(tmp_path, model_folder, extra="engine: {concurrency: 2}\n")
    command = [sys.executable, "-m", "tests.runs.slow_run", str(run_file)]
    killed = subprocess.Popen([*command, "killed", str(tmp_path / "runs")], cwd=ROOT)
    cache = tmp_path / "runs/cache.sqlite"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and cached_answers(cache) < 15:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    kept = cached_answers(cache)
    assert 15 <= kept < 108
    assert not RunFolder(tmp_path / "runs/killed").summary_json.exists()

    run_to_end(run_file, name="killed", open_engine=scripted(weigh=weigh))
    resumed = RunFolder(tmp_path / "runs/killed")
    summary = resumed.summary()
    assert summary is not None
    assert summary["calls"]["cache_hits"] == kept
    assert summary["calls"]["cache_misses"] == 108 - kept

    run_to_end(run_file, name="undisturbed", open_engine=scripted(weigh=weigh))
    assert rows(resumed) == rows(RunFolder(tmp_path / "runs/undisturbed"))


@pytest.mark.parametrize(
    ("error", "logged"),
    [(CaiError("nothing to train on"), "nothing to train on"), (KeyError("x"), "unexpected KeyError: 'x'")],
)
def test_the_error_that_ends_a_run_is_in_its_log(
    error: Exception, logged: str, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> Path:
        raise error

    monkeypatch.setattr("cai.runs.pipeline.train_policy", train)
    with pytest.raises(type(error)):
        run_to_end(write_workspace(tmp_path, model_folder))
    log = (tmp_path / "runs/test/log.txt").read_text(encoding="utf-8").splitlines()
    assert log[-1].endswith(f" error: {logged}")


def test_a_prompt_the_model_refuses_is_listed_and_the_others_go_on(tmp_path: Path, model_folder: Path) -> None:
    class Picky(ScriptedEngine):
        async def generate(self, request: Generate) -> Completion:
            if request.messages[0]["content"] == "Question number 1?":
                raise RequestRefused("the request has 9000 tokens, the context holds 8192 with the answer")
            return await super().generate(request)

    folder = run_to_end(write_workspace(tmp_path, model_folder), open_engine=lambda *_: Picky())
    failed = [row for row in folder.skipped() if row.failed]
    assert [(row.prompt_id, row.stage) for row in failed] == [("p1", "feedback")]
    assert "9000 tokens" in failed[0].reason
    assert len({row.prompt_id for row in folder.revisions()}) == 5


def test_a_refused_critique_costs_the_prompt_its_revisions_but_not_its_judged_pair(
    tmp_path: Path, model_folder: Path
) -> None:
    class Picky(ScriptedEngine):
        async def generate(self, request: Generate) -> Completion:
            if len(request.messages) > 1 and request.messages[0]["content"] == "Question number 1?":
                raise RequestRefused("too long")
            return await super().generate(request)

    folder = run_to_end(write_workspace(tmp_path, model_folder), open_engine=lambda *_: Picky())
    assert [(row.prompt_id, row.stage) for row in folder.skipped() if row.failed] == [("p1", "revisions")]
    assert "p1" in {row.prompt_id for row in folder.preferences() if row.source == "judge"}
    assert "p1" not in {row.prompt_id for row in folder.revisions()}


def test_another_judge_reads_the_samples_after_the_model_is_closed(tmp_path: Path, model_folder: Path) -> None:
    judge_folder = tmp_path / "judge"
    judge_folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (judge_folder / name).write_text('{"another": 1}', encoding="utf-8")
    engines: list[ScriptedEngine] = []
    folder = run_to_end(write_workspace(tmp_path, model_folder), engines, (f"judge.model={judge_folder}",))
    writer, judge = engines
    assert all(isinstance(r, Generate) for r in writer.requests)
    assert all(isinstance(r, Choose) for r in judge.requests)
    judged = [row for row in folder.preferences() if row.source == "judge"]
    assert {(row.model, row.judge) for row in judged} == {(writer.fingerprint, judge.fingerprint)}


def test_two_processes_do_not_work_on_one_run(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    folder = RunFolder(tmp_path / "runs/test")
    with exclusive(folder.path), pytest.raises(CaiError, match="another process"):
        run_to_end(run_file)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    (tmp_path / "runs/test").mkdir(parents=True)
    (tmp_path / "runs/test/thesis.txt").write_text("mine")
    with pytest.raises(CaiError, match="is not empty and holds no results of `cai run`"):
        run_to_end(run_file)


def test_a_name_may_look_like_a_number(tmp_path: Path, model_folder: Path) -> None:
    assert run_to_end(write_workspace(tmp_path, model_folder), name="2024").name == "2024"


def test_the_number_in_flight_may_change_within_a_run(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    first = rows(run_to_end(run_file))
    assert rows(run_to_end(run_file, overrides=("engine.concurrency=1",))) == first


def test_replace_does_not_clear_away_its_own_inputs(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder)
    inside = run_to_end(run_file).constitution_yaml
    with pytest.raises(CaiError, match="copy it elsewhere first"):
        run_to_end(run_file, overrides=(f"constitution={inside}", "seed=9"), replace=True)
    assert inside.exists()


def test_the_manifest_records_what_decided_the_run(tmp_path: Path, model_folder: Path) -> None:
    folder = run_to_end(write_workspace(tmp_path, model_folder))
    manifest = json.loads(folder.manifest_json.read_text(encoding="utf-8"))
    assert set(manifest["versions"]) >= {"cai", "python", "torch", "trl"}
    assert manifest["config"]["revise"]["rounds"] == 2
    assert len(manifest["constitution"]["principles"]) == 16
    assert folder.constitution().fingerprint == manifest["constitution"]["fingerprint"]


def test_held_out_prompts_do_not_depend_on_their_order_and_stay_out_of_training() -> None:
    prompts = [prompt(f"p{i}", f"{i}?") for i in range(40)]
    training, held = split(prompts, 0.25)
    assert (len(training), len(held)) == (30, 10)
    assert {p.id for p in held} == {p.id for p in split(prompts[::-1], 0.25)[1]}
    assert not {p.id for p in training} & {p.id for p in held}
    assert split(prompts, 0.0)[1] == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("constitution=constitutions/none.yaml", "constitution: 'constitutions/none.yaml' not found"),
        ("model=/nowhere", "model '/nowhere': no such folder"),
        ("templates=examples", "critique.jinja: no such file"),
        ("prompts.source=none.jsonl", "prompts.source: 'none.jsonl' not found"),
        (
            "train=[{stage: ppoo}]",
            "--set train: train[0].stage: expected one of 'sft', 'reward', 'ppo', 'dpo'",
        ),
        ("train=[{stage: dpo, betta: 1}]", "did you mean 'beta'?"),
        (
            "revise.rounds=-1",
            "--set revise.rounds: expected a whole number from 0 to 100, found -1",
        ),
        ("prompts.holdout=0.99", "prompts.holdout: all of the 8 prompts are held out; leave some"),
        ("judge.model=[model, model]", "judge.model: 'model' and 'model' are the same model; a panel has each once"),
        ("name=../up", "--set name: expected a name of letters, digits, '.', '_' and '-' that begins"),
    ],
)
def test_errors_are_reported_before_anything_is_written(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, override: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run_file = write_workspace(tmp_path, model_folder)
    with pytest.raises(CaiError) as caught:
        run_to_end(run_file, overrides=(override,))
    assert expected in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_more_than_two_samples_are_ranked_and_a_panel_is_asked_one_after_another(
    tmp_path: Path, model_folder: Path
) -> None:
    other = shutil.copytree(model_folder, tmp_path / "other-model")
    (other / "config.json").write_text('{"other": true}', encoding="utf-8")
    judges = f"judge: {{samples: 3, principles: 2, ask: choice, model: [{model_folder}, {other}]}}\n"
    engines: list[ScriptedEngine] = []
    folder = run_to_end(write_workspace(tmp_path, model_folder, extra=judges), engines)
    rankings = read_rows(folder.rankings_jsonl, Ranking)
    assert [row.prompt_id for row in rankings] == [p.id for p in folder.prompts()][:6]
    assert all(len(row.responses) == 3 for row in rankings)
    judged = [row for row in folder.preferences() if row.source == "judge"]
    assert len(judged) == 18
    first, second = engines
    assert {v.judge for row in judged for v in row.verdicts} == {first.fingerprint, second.fingerprint}
    assert all(len(row.verdicts) == 4 for row in judged)
    assert all(isinstance(request, Choose) for request in second.requests)
    # prompts; 2 principles in 3 orders, and of the revision the 2 rounds' in both
    assert len(second.requests) == 6 * (2 * 3 + 2 * 2)


@pytest.mark.parametrize("another", [False, True])
def test_the_judge_is_asked_about_revisions_by_the_principles_that_made_them(
    tmp_path: Path, model_folder: Path, another: bool
) -> None:
    judge = shutil.copytree(model_folder, tmp_path / "judge") if another else model_folder
    (judge / "tokenizer.json").write_text('{"of": "the judge"}', encoding="utf-8")
    run_file = write_workspace(tmp_path, model_folder, extra=f"judge: {{samples: 0, model: {judge}}}\n")
    folder = run_to_end(run_file)
    made_by = {row.prompt_id: set[str]() for row in folder.revisions()}
    for row in folder.revisions():
        made_by[row.prompt_id].add(row.principle_id)
    pairs = folder.preferences()
    assert pairs
    for pair in pairs:
        assert pair.source == "revision"
        assert {v.principle_id for v in pair.verdicts} == made_by[pair.prompt_id]
        assert pair.p == pytest.approx(mean(v.p for v in pair.verdicts)) and 0.5 <= pair.p < 1
        assert pair.judge


def test_certain_revision_pairs_need_no_verdicts(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="judge: {samples: 0}\n")
    certain = "revise.label=certain"
    asked = run_to_end(run_file, overrides=(certain,), name="asked")
    without = run_to_end(run_file, overrides=(certain, "judge.revisions=false"), name="without")
    assert {pair.p for folder in (asked, without) for pair in folder.preferences()} == {1.0}
    assert all(pair.verdicts for pair in asked.preferences())
    assert [pair.verdicts for pair in without.preferences()] == [[]] * len(asked.preferences())


def test_a_run_without_revision_pairs_asks_nothing_about_them(tmp_path: Path, model_folder: Path) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="judge: {samples: 0}\n")
    engines: list[ScriptedEngine] = []
    folder = run_to_end(run_file, engines, overrides=("revise.label=off",))
    assert folder.revisions() and folder.preferences() == []
    assert folder.skipped() == []  # it is a setting, and no row is lost
    assert not any(isinstance(request, Choose) for engine in engines for request in engine.requests)


def test_labels_of_a_judge_that_is_not_asked_are_an_error_that_names_both_settings(
    tmp_path: Path, model_folder: Path
) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="judge: {revisions: false}\n")
    with pytest.raises(CaiError, match=r"run\.yaml:\d+: judge\.revisions: false, and `revise\.label: judge` needs"):
        make_plan(run_file, [], None, tmp_path / "runs")
    make_plan(run_file, ["revise.rounds=0"], None, tmp_path / "runs")  # no revisions, nothing to label


@pytest.mark.parametrize("label", ["judge", "certain"])
def test_a_refused_question_about_a_revision_costs_its_pair_where_it_decides_the_label(
    tmp_path: Path, model_folder: Path, label: str
) -> None:
    class Shy(ScriptedEngine):
        async def choose(self, request: Choose) -> list[float]:
            if "Question number 1?" in request.messages[0]["content"]:
                raise RequestRefused("too long")
            return await super().choose(request)

    run_file = write_workspace(tmp_path, model_folder, extra="judge: {samples: 0}\n")
    folder = run_to_end(
        run_file,
        overrides=(f"revise.label={label}",),
        open_engine=lambda model, fingerprint, settings: Shy(
            fingerprint, lambda request: f"{request.step} {request.seed}"
        ),
    )
    pairs = {pair.prompt_id: len(pair.verdicts) for pair in folder.preferences()}
    assert pairs.pop("p1", None) == (0 if label == "certain" else None)
    assert pairs and all(pairs.values())
    failed = [(row.prompt_id, row.stage) for row in folder.skipped() if row.failed]
    assert failed == [("p1", "verdicts on revisions")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cache.sqlite", r"name: 'cache\.sqlite' is a name of the cache's files; choose another \(--name NEW\)"),
        ("memo.sqlite", r"'memo\.sqlite' is a name of the cache's files"),
        ("x" * 256, r"name: 256 bytes; expected at most 255"),
    ],
)
def test_a_name_that_cannot_be_a_folder_beside_the_cache_is_refused(
    tmp_path: Path, model_folder: Path, name: str, expected: str
) -> None:
    with pytest.raises(CaiError, match=expected):
        make_plan(write_workspace(tmp_path, model_folder), [], name, tmp_path / "runs")


@pytest.mark.slow
def test_two_runs_at_once_pay_for_each_call_once_and_have_the_same_rows(tmp_path: Path, model_folder: Path) -> None:
    run_file, runs = write_workspace(tmp_path, model_folder, prompts=12), tmp_path / "runs"

    def start(name: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.runs.slow_run", str(run_file), name, str(runs)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def calls(name: str) -> dict[str, int]:
        return dict(json.loads((runs / name / "summary.json").read_text())["calls"])

    for process in [start("one"), start("two")]:
        assert process.wait(timeout=120) == 0
    paid = [calls(name)["cache_misses"] for name in ("one", "two")]
    assert sum(paid) == calls("one")["cache_misses"] + calls("one")["cache_hits"]
    first = rows(RunFolder(runs / "one"))
    assert rows(RunFolder(runs / "two")) == first
    for name in ("one", "two"):
        run_to_end(run_file, name=name, open_engine=scripted(weigh=weigh))
        assert calls(name)["cache_misses"] == 0
        assert rows(RunFolder(runs / name)) == first
