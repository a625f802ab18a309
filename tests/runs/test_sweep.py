"""Runs that differ by a grid of settings or by the principles they keep."""

import errno
import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cai.config.errors import FULL_DISK, CaiError
from cai.constitution.principles import load_constitution
from cai.inference.cache import Cache
from cai.inference.engine import ScriptedEngine
from cai.inference.reporter import Reporter
from cai.runs.dry_run import dry_run
from cai.runs.folder import all_runs, open_run
from cai.runs.pipeline import execute
from cai.runs.plan import Plan, iteration, start_folder
from cai.runs.sweep import Member, is_finished, make_sweep, refuse_other_runs, run_members
from tests.conftest import ROOT, scripted, write_workspace


def write_sweep(folder: Path, model: Path, **settings: object) -> Path:
    write_workspace(folder, model)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "trial", "run": "run.yaml", **settings}, sort_keys=False), encoding="utf-8")
    return path


def names(members: list[Member]) -> list[str]:
    return [member.name for member in members]


def run_all(path: Path, engines: list[ScriptedEngine]) -> dict[str, str]:
    runs = path.parent / "runs"
    name, members = make_sweep(path, [], runs)
    quiet = Reporter(Console(quiet=True))
    return run_members(name, members, runs, lambda plan: execute(plan, quiet, False, scripted(engines)), lambda _: None)


def test_a_grid_makes_every_combination(tmp_path: Path, model_folder: Path) -> None:
    grid = {"revise.rounds": [1, 2], "revise.critique": [True, False], "constitution": ["constitutions/brief.yaml"]}
    _, members = make_sweep(write_sweep(tmp_path, model_folder, grid=grid), ["seed=3"], tmp_path / "runs")
    assert names(members)[:2] == [
        "rounds-1_critique-true_constitution-brief",
        "rounds-1_critique-false_constitution-brief",
    ]
    assert [(m.plan.config.revise.rounds, m.plan.config.revise.critique) for m in members] == [
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    ]
    assert {m.plan.config.seed for m in members} == {3}


@pytest.mark.parametrize(
    ("ablation", "kept"),
    [
        ("leave-one-out", {"all": "abc", "without-a": "bc", "without-b": "ac", "without-c": "ab"}),
        ("one-at-a-time", {"all": "abc", "only-a": "a", "only-b": "b", "only-c": "c"}),
        ("first-n", {"first-1": "a", "first-2": "ab", "all": "abc"}),
    ],
)
def test_principles_are_skipped_or_stand_alone(
    tmp_path: Path, model_folder: Path, ablation: str, kept: dict[str, str]
) -> None:
    principles = [{"id": i, "critique": f"c {i}", "revision": f"r {i}", "judge": f"j {i}", "weight": 2} for i in "abc"]
    given = tmp_path / "three.yaml"
    given.write_text(yaml.safe_dump({"name": "three", "principles": principles}), encoding="utf-8")
    path = write_sweep(tmp_path, model_folder, principles=ablation, set={"constitution": str(given)})
    _, members = make_sweep(path, [], tmp_path / "runs")
    assert {m.name: "".join(p.id for p in m.plan.constitution.principles) for m in members} == kept
    whole = {p.id: p for p in load_constitution(given).principles}
    assert all(p == whole[p.id] for m in members for p in m.plan.constitution.principles)


def test_runs_share_what_they_ask_and_a_second_time_nothing_is_done(tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1, 2, 3]})
    engines: list[ScriptedEngine] = []
    assert run_all(path, engines) == {}
    # 6 prompts: 2 answers and 8 verdicts once, each round's 2 calls once, and 2 verdicts by each round of each last revision
    assert sum(len(engine.requests) for engine in engines) == 6 * (2 + 8 + 3 * 2 + 2 + 4 + 6)
    assert run_all(path, later := []) == {}
    assert later == []
    index = json.loads((tmp_path / "runs/trial/sweep.json").read_text(encoding="utf-8"))
    assert [(run["run"], run["varies"], run["state"]) for run in index["runs"]] == [
        (f"rounds-{n}", {"revise.rounds": n}, "finished") for n in (1, 2, 3)
    ]
    assert {folder.name for folder in all_runs(tmp_path / "runs")} == {f"trial/rounds-{n}" for n in (1, 2, 3)}
    assert len(open_run("trial/rounds-3", tmp_path / "runs").revisions()) == 18


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (CaiError("no such model"), "no such model"),
        (OSError(errno.ENOSPC, "No space left on device", "rows.jsonl"), f"rows.jsonl: {FULL_DISK}"),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_a_sweep_goes_on_past_a_run_that_fails_and_again_after_it(
    tmp_path: Path, model_folder: Path, error: Exception, reported: str
) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"seed": [0, 1, 2]})
    runs = tmp_path / "runs"
    name, members = make_sweep(path, [], runs)
    done: list[str] = []

    def broken(plan: object) -> None:
        if members[1].plan is plan:
            raise error
        execute(plan, Reporter(Console(quiet=True)), False, scripted())  # type: ignore[arg-type]
        done.append("run")

    failed = run_members(name, members, runs, broken, lambda _: None)
    assert list(failed) == ["seed-1"]
    assert failed["seed-1"].startswith(reported)
    index = json.loads((runs / "trial/sweep.json").read_text(encoding="utf-8"))
    assert [run["state"] for run in index["runs"]] == ["finished", "failed", "finished"]
    engines: list[ScriptedEngine] = []
    assert run_all(path, engines) == {}
    assert len(engines) == 1


def test_a_run_of_several_iterations_is_finished_with_its_last(tmp_path: Path, model_folder: Path) -> None:
    both = ["iterations=2", "train=[{stage: dpo}]"]
    path = write_sweep(tmp_path, model_folder, grid={"seed": [0, 1]})
    name, members = make_sweep(path, both, tmp_path / "runs")

    def carried_out(plan: Plan, upto: int = 2) -> None:
        for number in range(1, upto + 1):
            one = iteration(plan, number, plan.model)
            one.folder.path.mkdir(parents=True, exist_ok=True)
            start_folder(one, replace=False)
            one.folder.summary_json.write_text("{}", encoding="utf-8")

    carried_out(members[0].plan, upto=1)
    assert not is_finished(members[0].plan)
    done: list[Plan] = []
    run_members(name, members, tmp_path / "runs", lambda plan: carried_out(plan) or done.append(plan), lambda _: None)
    assert len(done) == 2
    run_members(name, members, tmp_path / "runs", done.append, lambda _: None)
    assert len(done) == 2
    index = json.loads((tmp_path / "runs/trial/sweep.json").read_text(encoding="utf-8"))
    assert [(run["run"], run["state"]) for run in index["runs"]] == [
        ("seed-0/iteration-2", "finished"), ("seed-1/iteration-2", "finished"),
    ]  # fmt: skip


def test_runs_of_other_settings_are_refused_once_with_what_a_sweep_can_do_about_it(
    tmp_path: Path, model_folder: Path
) -> None:
    path, runs = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1, 2]}), tmp_path / "runs"
    run_all(path, [])
    name, members = make_sweep(path, [], runs)
    refuse_other_runs(path, name, members)  # they are the same runs
    said = r"(?s)rounds-1: holds a finished run .*seed: 0 → 7\n2 of the sweep's 2 runs .*`name: trial` in .*sweep\.yaml.*--replace"
    with pytest.raises(CaiError, match=said) as error:
        refuse_other_runs(path, *make_sweep(path, ["seed=7"], runs))
    assert "--name" not in str(error.value)
    for member in members:
        member.plan.folder.summary_json.unlink()
    refuse_other_runs(path, *make_sweep(path, ["seed=7"], runs))  # nothing but cached calls
    (members[1].plan.folder.train / "1-dpo/checkpoints/checkpoint-1").mkdir(parents=True)
    said = r"(?s)rounds-2: holds an unfinished run, partly trained, with other settings.*\n1 of the sweep's 2 runs"
    with pytest.raises(CaiError, match=said):
        refuse_other_runs(path, *make_sweep(path, ["seed=7"], runs))


def test_a_forecast_of_a_sweep_counts_shared_calls_once(tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1, 2, 3]})
    _, members = make_sweep(path, [], tmp_path / "runs", tmp_path / "aside")
    counted = Cache(tmp_path / "counted.sqlite")
    asked = [sum(line.cache_misses for line in dry_run(member.plan, counted).lines) for member in members]
    assert asked == [6 * 14, 6 * 6, 6 * 8]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "nothing varies"),
        ({"grid": {"revise.rounds": [1, 1]}}, r"two runs would be named rounds-1"),
        (
            {"grid": {"revise.round": [1]}},
            r"sweep\.yaml: in the run round-1:\n.*unknown key 'round'; did you mean 'rounds'",
        ),
        ({"grid": {"revise.rounds": []}}, r"grid\.revise\.rounds"),
        ({"principles": "leave-two-out"}, "leave-one-out"),
        ({"grid": {"seed": [1]}, "run": "nowhere.yaml"}, r"run: 'nowhere\.yaml' not found"),
    ],
)
def test_errors_in_a_sweep_are_reported(
    tmp_path: Path, model_folder: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(CaiError, match=said):
        make_sweep(write_sweep(tmp_path, model_folder, **settings), [], tmp_path / "runs")


def test_a_mistaken_setting_of_a_sweep_is_named_with_its_line_and_one_of_an_option_with_the_option(
    tmp_path: Path, model_folder: Path
) -> None:
    file = write_sweep(tmp_path, model_folder, set={"seeds": -1, "judge.samplez": 2}, grid={"judge.principels": [1, 2]})
    with pytest.raises(CaiError) as wrong:
        make_sweep(file, ["judge.foo=1", "seeds=0"], tmp_path / "runs")
    where, *problems = str(wrong.value).splitlines()
    assert where == f"{file}: in the run principels-1:"
    found = [problem.partition(": unknown")[0].partition(": expected")[0] for problem in problems]
    lines = [re.sub(r":\d+:", ":N:", place) for place in found]
    assert sorted(lines) == sorted(
        [f"{file}:N: set: judge.samplez", f"{file}:N: grid: judge.principels", "--set judge.foo", "--set seeds"]
    )


def test_a_setting_that_varies_is_not_set_for_all_runs(tmp_path: Path, model_folder: Path) -> None:
    file = write_sweep(tmp_path, model_folder, grid={"revise.rounds": [1, 2]})
    with pytest.raises(CaiError, match=rf"^--set revise\.rounds: {file} varies it in its grid; change the grid"):
        make_sweep(file, ["judge.principles=1", "revise.rounds=2"], tmp_path / "runs")
    assert len(make_sweep(file, ["judge.principles=1"], tmp_path / "runs")[1]) == 2


def test_a_sweep_does_not_lie_in_a_runs_folder(tmp_path: Path, model_folder: Path) -> None:
    path = write_sweep(tmp_path, model_folder, grid={"seed": [0, 1]}, set={"constitution": "\U0001f600.yaml"})
    (tmp_path / "\U0001f600.yaml").write_bytes((ROOT / "constitutions/brief.yaml").read_bytes())
    assert len(make_sweep(path, [], tmp_path / "runs")[1]) == 2
    (tmp_path / "runs/trial").mkdir(parents=True)
    (tmp_path / "runs/trial/manifest.json").write_text("{}")
    with pytest.raises(CaiError, match=r"sweep\.yaml: name: .*runs/trial is a run"):
        make_sweep(path, [], tmp_path / "runs")


def test_the_shipped_experiments_can_be_planned(tmp_path: Path, model_folder: Path) -> None:
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        _, members = make_sweep(path, [f"model={model_folder}"], tmp_path / "runs", tmp_path / "aside")
        assert len(members) > 1


@pytest.mark.parametrize(
    "grid",
    [
        {"judge.model": ["http://me:SEKRET@h/v1"]},
        {"judge.model": [["http://h/v1", "http://me:SEK@RET@h/v1"]]},
        {"model": ["http://me:SEKRET@h/v1#m"]},
        {"engine.endpoints": [["http://me:SEKRET@h/v1"]]},
        {"engine.ray.address": ["me:SEKRET@h:6379"]},
        {"engine.ray.address": ["ray://me:SEKRET@h:6379"]},
        {"prompts.source": ["https://me:SEKRET@h/rows.jsonl"]},
        {"constitution": ["https://me:SEKRET@h"]},
        {"templates": ["https://h/x?key=SEKRET"]},
    ],
)
def test_a_password_in_an_address_is_neither_printed_nor_part_of_a_name(
    tmp_path: Path, model_folder: Path, grid: dict[str, list[object]]
) -> None:
    path = write_sweep(tmp_path, model_folder, grid=grid, principles="first-n")
    with pytest.raises(CaiError) as error:
        make_sweep(path, [], tmp_path / "runs")
    said = str(error.value).lower()  # as names of runs are
    assert "sek" not in said and "ret@" not in said and "***" in said
    assert not [file for file in (tmp_path / "runs").rglob("*") if "sek" in file.name.lower()]
