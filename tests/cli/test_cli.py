import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai.cli.main import COMMANDS, app, main
from cai.inference.engine import Choose
from cai.inference.reporter import Reporter
from cai.runs.pipeline import execute
from cai.runs.run_file import RunConfig
from tests.conftest import ROOT, scripted, write_workspace
from tests.report.folders import write_run
from tests.runs.test_evaluate import make_run


def cai(monkeypatch: pytest.MonkeyPatch, *arguments: object, columns: int = 100) -> int:
    """Run the command in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["cai", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def workspace(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with run.yaml, and an engine that needs no model."""
    monkeypatch.setattr(execute, "__defaults__", (False, scripted()))
    write_workspace(tmp_path, model_folder)
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['cai', '--help']\n"
        "from cai.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'trl', 'pydantic', 'scipy', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: cai" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["train", "run", "eval", "judge", "judge-eval", "export"])
def test_no_line_of_help_is_broken_at_a_hyphen(name: str) -> None:
    printed = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
    assert not [line for line in printed.splitlines() if line.endswith("-")]
    assert "\u2011" not in printed
    if name == "train":
        assert "docs/run-file.md" in printed and "[default: runs/STAGE-DATA]" in printed


@pytest.mark.parametrize("group", [["constitution"], ["models"]])
def test_what_a_command_does_is_listed_whole_at_80_columns(group: list[str]) -> None:
    listed = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "80"}).output.partition("Commands:\n")[2]
    assert listed
    assert all(line.endswith(".") and not line.endswith("..") for line in listed.splitlines())


def test_every_command_is_listed_in_one_line_that_is_the_first_line_of_its_own_help() -> None:
    printed = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    for name, command in COMMANDS.items():
        assert f"  {name:<12}  {command.help}\n" in printed
        own = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
        assert "[required]" not in own and "<=x" not in own
        assert command.help == own.split("\n\n")[1].strip()
        assert len(command.help) <= 70


def test_an_option_that_stands_for_a_setting_has_its_description_and_default() -> None:
    listed = CliRunner().invoke(app, ["judge", "--help"], env={"COLUMNS": "120"}).output
    for field in ("seed", "templates"):
        setting = RunConfig.model_fields[field]
        described = str(setting.description).partition(";")[0]
        assert re.search(rf"--{field} .*{re.escape(described)}\.  \[default: {setting.default}\]\n", listed)


def test_the_usage_line_names_what_is_required() -> None:
    usage = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "80"}).output.splitlines()[0]
    assert usage.endswith("STAGE --model NAME [OPTIONS]")


def test_a_run_is_run_shown_listed_and_compared(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--runs", workspace / "runs")
    assert cai(monkeypatch, "run", workspace / "run.yaml", *runs) == 0
    out = capsys.readouterr().out
    assert "6 prompts for training, 2 held out; constitution harmless (16 principles)" in out
    assert re.search(r"total +108 +0 +108 ", out)
    assert cai(monkeypatch, "run", workspace / "run.yaml", *runs, "--name", "other", "--set", "revise.rounds=1") == 0
    capsys.readouterr()

    assert cai(monkeypatch, "show", "test", "-n", 1, *runs) == 0
    out = capsys.readouterr().out
    for part in (
        "Question number",
        "draft",
        "principle, round 2",
        "critique",
        "revision",
        "P(revision better) = 0.5000, by the judge, principles: ",
    ):
        assert part in out
    assert cai(monkeypatch, "show", "test", "--stage", "preferences", *runs) == 0
    assert "P(chosen better) = " in capsys.readouterr().out

    assert cai(monkeypatch, "runs", *runs) == 0
    out = capsys.readouterr().out
    assert "test" in out
    assert "finished" in out

    assert cai(monkeypatch, "compare", "test", "other", *runs) == 0
    out = capsys.readouterr().out
    assert "revise.rounds: 2 → 1" in out
    assert (workspace / "runs/comparison.html").exists()
    assert cai(monkeypatch, "compare", "test", "other", *runs, "--out", workspace / "run.yaml/x.html") == 2
    assert "x.html: cannot be written" in capsys.readouterr().err


def test_the_list_of_runs_fits_the_terminal_and_names_what_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "a-run-whose-name-is-long-enough-to-leave-no-room-for-the-rest"):
        write_run(tmp_path / name)
    write_run(tmp_path / "damaged").manifest_json.write_text('{"command": "cai run", "config": [', encoding="utf-8")
    assert cai(monkeypatch, "runs", "--runs", tmp_path, columns=80) == 0
    out = capsys.readouterr().out
    listed = [line for line in out.splitlines() if line.startswith("  ")]
    assert max(map(len, listed)) <= 80
    assert "not shown at 80 columns: " in listed[-1]
    assert [line.split()[0] for line in listed if "unreadable" in line] == ["damaged"]
    assert out.splitlines()[-1].startswith("damaged: ") and "manifest.json: not valid JSON" in out.splitlines()[-1]
    result = CliRunner().invoke(
        app, ["runs", "--runs", str(tmp_path)], env={"COLUMNS": None}
    )  # a pipe, for other programs
    assert "not shown" not in result.output and "held out" in result.output
    assert "a-run-whose-name-is-long-enough-to-leave-no-room-for-the-rest  " in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "none.yaml"], "none.yaml: no such file"),
        (["run", "RUN", "--set", "judge.principels=3"], "did you mean 'principles'?"),
        (["run", "RUN", "--set", "seed"], "--set seed: expected key=value"),
        (["show", "none"], "no run 'none'"),
        (["compare", "x", "y"], "no run 'x'"),
        (["run", "RUN", "--nmae", "x"], "cai run: no such option --nmae; did you mean --name?\nSee cai run --help"),
        (["show", "x", "--limt", "3"], "cai show: no such option --limt; did you mean --limit?"),
        (["cache", "check"], "cai cache: no such command 'check'; expected one of stats, verify, "),
        (["constitution", "export", "plain", "--format", "antropic-judge"], "; did you mean 'anthropic-judge'"),
        (["export", "RUN", "--format", "trl", "--out", "x.jsonl"], "did you mean 'trl-implicit' or 'trl-preference'?"),
        (["rnu"], "cai: no such command 'rnu'; did you mean 'run'?"),
        (["comparre", "a", "b"], "cai: no such command 'comparre'; did you mean 'compare'?"),
        (["constitution", "lnit"], "cai constitution: no such command 'lnit'; did you mean 'lint'?"),
        (["judge", "--model", "x"], "cai judge: --model is now --judge"),
        (["judge-eval", "--model", "x"], "cai judge-eval: --model is now --judge"),
        (["report", "x", "--html", "y"], "cai report: --html is now --out"),
        (["eval", "x", "--referee", "y"], "cai eval: --referee is now --constitution"),
        (["run"], "cai run: missing argument 'RUN.yaml'"),
        (["run", "RUN", "--limit", "3"], "cai run: no such option --limit; use --set prompts.limit=N\nSee "),
        (["sweep", "RUN", "--seed", "3"], "cai sweep: no such option --seed; use --set seed=N\nSee "),
        (
            ["train", "sft", "--dry-run"],
            "cai train: no such option --dry-run; --estimate shows the memory it takes\nSee ",
        ),
        (["train", "stf", "--data", "x"], "unknown stage 'stf'; did you mean 'sft'?"),
        (["run", "RUN", "--name", "my q"], "error: --name my q: expected a name of letters, digits, "),
        (["eval", "x", "--limit", "0"], "cai eval: invalid value for '--limit': expected at least 1\nSee "),
        (["eval", "x", "--limit", "x"], "cai eval: invalid value for '--limit': expected a valid integer, unable to "),
    ],
)
def test_a_mistake_is_an_error_message_with_status_2(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(workspace)
    assert cai(monkeypatch, *[workspace / "run.yaml" if a == "RUN" else a for a in arguments]) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err


def test_what_an_error_quotes_of_a_file_cannot_steer_the_terminal(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "bad.yaml").write_text('name: x\nprinciples: [{id: "\\e[2Jx", "\\e[31mjudge": j}]', encoding="utf-8")
    assert cai(monkeypatch, "constitution", "show", workspace / "bad.yaml") == 2
    err = capsys.readouterr().err
    assert "principles[0] ('\\x1b[2Jx').\\x1b[31mjudge: unknown key" in err
    assert "\x1b" not in err


def test_an_unknown_stage_names_the_known_ones(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--runs", workspace / "runs")
    cai(monkeypatch, "run", workspace / "run.yaml", *runs)
    assert cai(monkeypatch, "show", "test", "--stage", "revision", *runs) == 2
    assert "expected one of revisions, preferences, evaluation, skipped" in capsys.readouterr().err


def test_a_stage_without_rows_is_said_to_have_none(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ("--runs", workspace / "runs")
    cai(monkeypatch, "run", workspace / "run.yaml", *runs, "--set", "revise.rounds=0")
    capsys.readouterr()
    for stage, expected in (("evaluation", "test has no evaluation yet\n"), ("revisions", "test has no revisions\n")):
        assert cai(monkeypatch, "show", "test", "--stage", stage, *runs) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("settings", "warned"), [((), False), (("train=[{stage: sft}]",), True)])
def test_a_holdout_that_rounds_to_no_prompt_is_a_warning(
    settings: tuple[str, ...],
    warned: bool,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f for value in ("prompts.limit=1", *settings) for f in ("--set", value)]
    cai(monkeypatch, "run", workspace / "run.yaml", "--runs", workspace / "runs", "--dry-run", *options)
    printed = " ".join(capsys.readouterr().out.split())
    assert ("prompts.holdout 0.25 of 1 prompt is none: the policy will not be evaluated" in printed) == warned


@pytest.mark.parametrize("inside", [True, False])  # typer turns an interrupt within a command into an exit
def test_an_interrupt_does_not_wait_for_a_model_that_is_still_loading(inside: bool) -> None:
    code = (
        "import atexit, sys, threading, cai.cli.main as cli\n"
        "def interrupted():\n"
        "    threading.Thread(target=threading.Event().wait, name='vllm', daemon=True).start()\n"
        "    print('resume')\n"
        "    raise KeyboardInterrupt\n"
        f"if {inside}:\n"
        "    cli.app.command('stop')(interrupted)\n"
        "    sys.argv = ['cai', 'stop']\n"
        "else:\n"
        "    cli.app = lambda **_: interrupted()\n"
        "atexit.register(print, 'taken apart beneath it')\n"
        "cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "resume\n", "Interrupted.\n")


def test_an_interrupt_prints_the_command_that_resumes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(plan: object, reporter: Reporter, *_: object) -> None:
        reporter.advanced = True
        raise KeyboardInterrupt

    monkeypatch.setattr("cai.cli.run.execute", interrupted)
    assert cai(monkeypatch, "run", workspace / "run.yaml", "--runs", workspace / "runs", "--replace") == 130
    out = capsys.readouterr().out
    assert f"cai run {workspace}/run.yaml --runs {workspace}/runs\n" in out


@pytest.mark.parametrize("answered", [False, True])
def test_an_interrupted_evaluation_says_that_answers_are_cached_once_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answered: bool
) -> None:
    def interrupted(plan: object, out: object, cache: object, reporter: Reporter, *_: object) -> None:
        reporter.advanced = answered
        raise KeyboardInterrupt

    make_run(tmp_path / "runs", "good")
    monkeypatch.setattr("cai.cli.eval.evaluate_policies", interrupted)
    assert cai(monkeypatch, "eval", "good", "--runs", tmp_path / "runs") == 130
    assert ("All answers so far are cached" in capsys.readouterr().out) is answered


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["runs"], ["show", "test"], ["constitution", "show", "plain"], ["schema", "run"]]
)
def test_a_reader_that_takes_the_first_lines_alone_is_no_error(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    runs = [] if "schema" in arguments else ["--runs", str(workspace / "runs")]
    assert cai(monkeypatch, "run", workspace / "run.yaml", "--runs", workspace / "runs") == 0
    command = [sys.executable, "-m", "cai.cli.main", *arguments, *runs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)


def test_a_broken_pipe_within_a_command_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("cai.cli.runs.all_entries", broken)
    assert cai(monkeypatch, "runs") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_unfinished_run_is_listed_with_its_number_of_prompts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = workspace / "runs"
    cai(monkeypatch, "run", workspace / "run.yaml", "--runs", runs)
    (runs / "test/summary.json").unlink()
    capsys.readouterr()
    assert cai(monkeypatch, "runs", "--runs", runs) == 0
    assert "stopped  harmless (16)        6         2 " in capsys.readouterr().out
    with (runs / "test/log.txt").open("a", encoding="utf-8") as log:
        log.write("2026-11-30T18:38:01 error: no space left\n")
    assert cai(monkeypatch, "runs", "--runs", runs) == 0
    shown = capsys.readouterr().out
    assert "failed  harmless (16)        6         2 " in shown
    assert shown.endswith("\ntest failed: no space left\n")


def test_model_text_cannot_steer_the_terminal(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = scripted(answer=lambda r: f"\x1b[2J[bold]\x07 {r.seed}")
    monkeypatch.setattr(execute, "__defaults__", (False, engine))
    runs = ("--runs", workspace / "runs")
    cai(monkeypatch, "run", workspace / "run.yaml", *runs)
    capsys.readouterr()
    cai(monkeypatch, "show", "test", *runs)
    out = capsys.readouterr().out
    assert "\\x1b[2J[bold]\\x07" in out
    assert "\x1b[2J" not in out


@pytest.mark.parametrize(
    ("command", "file", "said"),
    [
        (
            "run",
            "constitution",
            "expected a run file, found a constitution; a run file names it as `constitution:`",
        ),
        ("run", "sweep", "expected a run file, found a sweep; `cai sweep FILE` runs it"),
        ("sweep", "run", "expected a sweep, found a run file; `cai run FILE` runs it"),
        ("sweep", "constitution", "expected a sweep, found a constitution; a run file names it"),
        ("try", "run", "expected a constitution, found a run file; `cai run FILE` runs it"),
        ("constitution lint", "run", "expected a constitution, found a run file; `cai run FILE`"),
        ("constitution lint", "sweep", "expected a constitution, found a sweep; `cai sweep FILE`"),
        ("constitution test", "run", "expected a constitution, found a run file"),
        ("run --set constitution=", "run", "expected a constitution, found a run file"),
    ],
)
def test_a_file_of_another_kind_is_named_in_one_line_with_what_takes_it(
    command: str,
    file: str,
    said: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = workspace / "run.yaml"
    files = {
        "run": run,
        "sweep": ROOT / "experiments/revisions.yaml",
        "constitution": ROOT / "constitutions/brief.yaml",
    }
    path = files[file]
    if command.endswith("="):
        arguments: list[object] = ["run", run, "--set", f"constitution={path}"]
    else:
        arguments = [*command.split(), path, *(["-p", "Hello?"] if command == "try" else [])]
    assert cai(monkeypatch, *arguments) == 2
    found = capsys.readouterr().err.replace(str(path), "FILE").strip()
    assert f"FILE: {said}" in found
    assert "\n" not in found


def test_only_commands_take_more_than_six_parameters() -> None:
    commands = {command.target.partition(":")[2] for command in COMMANDS.values()} | {"test"}  # of `cai constitution`
    for path in sorted((ROOT / "cai/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name not in commands and not node.decorator_list:
                assert len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) <= 6, (path, node.name)


@pytest.mark.slow
def test_no_command_imports_a_model_library_before_it_runs() -> None:
    modules = sorted({command.target.partition(":")[0] for command in COMMANDS.values()})
    heavy = {"torch", "vllm", "transformers", "trl", "datasets", "ray"}
    code = (
        f"import importlib, sys; [importlib.import_module('cai.cli.' + name) for name in {modules}]\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_a_traceback_is_printed_with_debug_alone() -> None:
    command = (sys.executable, "-m", "cai.cli.main")
    plain = subprocess.run([*command, "run", "none.yaml"], capture_output=True, text=True)
    debug = subprocess.run([*command, "--debug", "run", "none.yaml"], capture_output=True, text=True)
    assert plain.returncode == debug.returncode == 2
    assert plain.stderr == "error: none.yaml: no such file\n"
    assert "Traceback" in debug.stderr and debug.stderr.endswith(plain.stderr)


def test_an_interrupt_ends_with_one_line_and_status_130(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cai.cli.runs.all_entries", interrupted)
    assert cai(monkeypatch, "runs", "--runs", workspace) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_gate_leaves_the_page_of_the_judge_whether_it_passes_or_not(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    gate = f"judge_gate: {{data: {tmp_path / 'pairs.jsonl'}, accuracy: 0.9}}\n"
    run_file = write_workspace(tmp_path, model_folder, extra=gate)
    page = tmp_path / "runs/test/judge/judge.html"
    for weights, passes in (((0.5, 0.5), False), (None, True)):
        engine = scripted(weigh=lambda request, weights=weights: weights or likes_good(request))
        monkeypatch.setattr(execute, "__defaults__", (False, engine))
        result = CliRunner().invoke(app, ["run", str(run_file), "--runs", str(tmp_path / "runs"), "--replace"])
        assert (result.exit_code == 0) == passes, result.output
        assert "accuracy" in page.read_text(encoding="utf-8")
        page.unlink()
        (tmp_path / "runs/cache.sqlite").unlink()


def likes_good(request: Choose) -> tuple[float, float]:
    return (0.9, 0.1) if "<answer A>\ngood" in request.messages[0]["content"] else (0.1, 0.9)
