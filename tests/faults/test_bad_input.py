"""Input of a wrong kind is one clear line that names file, line or field, and nothing else happens."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from cai.config.errors import CaiError
from cai.constitution.external import read_external, read_few_shot
from cai.constitution.principles import load_constitution
from cai.constitution.templates import Templates
from cai.data.files import rows
from cai.data.preferences import iter_preferences
from cai.data.prompts import iter_completions
from cai.runs.plan import make_plan
from cai.runs.sweep import make_sweep
from cai.training.settings import SFTConfig
from cai.training.stage import StageSpec, run_stage
from tests.conftest import write_workspace
from tests.faults.commands import command, furnish

CONSTITUTION = "name: x\nprinciples:\n  - {id: a, critique: c, revision: r, judge: j}\n"


def error_of(work: Callable[[], object]) -> str:
    with pytest.raises(CaiError) as caught:
        work()
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("!!bool x", "expected true or false, found 'x'"),
        ('!!int ""', "expected a whole number, found ''"),
        ("!!int _", "expected a whole number, found '_'"),
        ("!!float +", "expected a number, found '+'"),
        ("!!timestamp x", "expected a date, found 'x'"),
        ("2024-13-45", "expected a date, found '2024-13-45'"),
        ("9" * 5000, "expected a whole number, found '999"),
        ("0x" + "f" * 5000, "expected a number of at most 300 digits, found '0xfff"),
        ("1:" * 3000 + "1", "expected a number of at most 300 digits, found '1:1:"),
        ("1:" * 3000 + "1.5", "expected a number, found '1:1:"),
        (r'"\ud800"', "half of a surrogate pair in '\\ud800'"),
        ("{[a]: 1}", "found unhashable key"),
    ],
)
def test_a_value_that_is_not_what_its_tag_or_form_says_is_an_error_with_its_line(
    tmp_path: Path, value: str, problem: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"# a comment\nname: {value}\n" + CONSTITUTION.partition("\n")[2])
    assert error_of(lambda: load_constitution(path)).startswith(f"{path}:2: not valid YAML: {problem}")


def test_a_pair_of_surrogate_escapes_is_one_character_as_in_json(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONSTITUTION.replace("name: x", r'name: "\ud83d\ude00"'))
    assert load_constitution(path).name == "😀"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_in_utf16_is_named_as_such(tmp_path: Path, encoding: str) -> None:
    text = "\ufeff" + CONSTITUTION
    (tmp_path / "c.yaml").write_bytes(text.encode(encoding))
    (tmp_path / "c.jsonl").write_bytes(text.encode(encoding))
    assert "the file is UTF-16, save it as UTF-8" in error_of(lambda: load_constitution(tmp_path / "c.yaml"))
    assert "the file is UTF-16, save it as UTF-8" in error_of(lambda: list(rows(tmp_path / "c.jsonl")))


@pytest.fixture
def run_file(tmp_path: Path, model_folder: Path) -> Path:
    return write_workspace(tmp_path, model_folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.².x=1", "--set train.².x: 'train' is a list of 0; name an entry by its number, such as train.0"),
        (f"train.{'9' * 5000}=1", "'train' is a list of 0; name an entry by its number"),
        (f"sede.{'9' * 5000}=1", "unknown key 'sede'"),
        ("seed=!!bool x", "--set seed: the value '!!bool x' is not valid YAML: expected true or false, found 'x'"),
        ("seed=2024-99-99", "is not valid YAML: expected a date, found '2024-99-99'"),
        ("seed=" + "9" * 5000, "is not valid YAML: expected a whole number, found '9999"),
        ("seed=" + "[" * 5000, "--set seed: the value is nested too deeply"),
        ("seed=-1", "--set seed: expected a whole number from 0 to 4294967295, found -1"),
        ("seed=4294967296", "--set seed: expected a whole number from 0 to 4294967295, found 4294967296"),
        ("constitution=''", "constitution: expected the name of a file or folder, found ''"),
        (f"constitution={'a' * 300}", "constitution: 'aaa"),
        (f"templates={'a' * 300}", "templates: 'aaa"),
        (f"prompts.source={'a' * 300}", "prompts.source: 'aaa"),
        (f"model={'a' * 300}", "no such folder; expected smollm2-135m"),
        ('prompts.source="\\0"', "prompts.source: '\0' not found"),
        ("prompts.source=/dev/null", "/dev/null: is a device; expected a file"),
    ],
)
def test_an_override_of_a_wrong_kind_is_an_error_that_names_it(run_file: Path, override: str, message: str) -> None:
    set_stage = ["train=[]"] if override.startswith("train.") else []
    assert message in error_of(lambda: make_plan(run_file, [*set_stage, override], None, run_file.parent / "runs"))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{constitution: [null]}", "sweep.yaml:3: grid: constitution: expected a text, found nothing"),
        ("{constitution: [1]}", "sweep.yaml:3: grid: constitution: expected a text, found 1"),
        ("{seed: [2024-01-01]}", "grid.seed[0]: expected a text, a number, true, false, null, a list or a mapping"),
        ("{seed: [!!binary aGk=]}", "grid.seed[0]: expected a text, a number, true, false, null, a list or a mapping"),
        ("{seed: [[!!set {a}]]}", "grid.seed[0]: expected a text, a number, true, false, null, a list or a mapping"),
        ("{judge: [{1: 2}]}", "grid.judge[0]: expected texts as keys, found 1"),
        ("{1: [2]}", "expected a text as the key, found 1; put it in quotes to mean the text"),
        ("{seed: [-1]}", "sweep.yaml:3: grid: seed: expected a whole number from 0 to 4294967295, found -1"),
        ("{judge.key_env: [" + "V" * 299 + "]}", "name: 307 bytes; expected at most 255"),
    ],
)
def test_a_grid_of_wrong_values_is_an_error_that_names_them(run_file: Path, grid: str, message: str) -> None:
    sweep = run_file.parent / "sweep.yaml"
    sweep.write_text(f"name: s\nrun: {run_file}\ngrid: {grid}\n")
    error = error_of(lambda: make_sweep(sweep, [], run_file.parent / "runs", run_file.parent / "aside"))
    assert error.startswith(str(sweep))
    assert message in error


def test_a_sweep_whose_name_no_folder_can_have_is_refused(run_file: Path) -> None:
    sweep = run_file.parent / "sweep.yaml"
    sweep.write_text(f"name: {'s' * 300}\nrun: {run_file}\ngrid: {{seed: [1]}}\n")
    error = error_of(lambda: make_sweep(sweep, [], run_file.parent / "runs"))
    assert error == f"{sweep}: name: 300 bytes; expected at most 255 (choose a shorter one)"


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("nowhere --nproc_per_node 2", "launcher: 'nowhere' not found; expected a command such as torchrun"),
        ("'", 'launcher: "\'": no closing quotation; expected a command'),
        ("torchrun \0", "launcher: holds a NUL character"),
    ],
)
def test_a_launcher_that_cannot_start_is_an_error_before_the_run(run_file: Path, launcher: str, message: str) -> None:
    run_file.write_text(run_file.read_text() + "train: [{stage: sft}]\n")
    override = "launcher=" + '"' + launcher.replace("\0", "\\0") + '"'
    error = error_of(lambda: make_plan(run_file, [override], None, run_file.parent / "runs"))
    assert error.startswith(f"{run_file}: {message}")


ANNOTATED = {"metadata": {"version": "2.0", "default_annotator": "d"}, "annotators": {"d": {}}, "comparisons": []}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ANNOTATED, "annotators": {"d": "me"}}, "annotators.d: expected a JSON object, found 'me'"),
        (
            {**ANNOTATED, "metadata": {"version": "2.0", "default_annotator": ["d"]}},
            "a list of 1 is not among the annotat",
        ),
    ],
)
def test_annotated_pairs_of_a_wrong_type_are_an_error_with_the_row(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    error = error_of(lambda: list(iter_preferences(path)))
    assert error.startswith(f"{path}:1: ")
    assert message in error


def test_bytes_in_a_parquet_file_are_an_error_with_row_and_field_where_a_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    turns = [{"role": "user", "content": b"\xff"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": turns, "completion": "a", "image": b"\xff"}]), path)
    error = error_of(lambda: list(iter_completions(path)))
    assert error == f"{path}:row 1: messages[0].content: expected a text, found b'\\xff'"


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (
            {"role": None, "content": "q"},
            "messages[0].role: expected one of 'system', 'user', 'assistant', found nothing",
        ),
        ({"role": "user", "content": [1]}, "messages[0].content: expected a text, found a list of 1"),
    ],
)
def test_demonstrations_of_a_wrong_type_are_an_error_with_the_entry(
    tmp_path: Path, templates: Templates, turn: dict[str, object], message: str
) -> None:
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"system_chat": [[turn, {"role": "assistant", "content": "a"}]]}))
    assert error_of(lambda: read_few_shot(path, templates)) == f"{path}:entry 1: {message}"


def test_a_number_of_too_many_digits_is_no_constitution(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("[" + "9" * 5000 + "]")
    assert error_of(lambda: read_external(path)).startswith(f"{path}: not valid JSON: Exceeds the limit")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt", ".parquet", ".jsonl.gz", ".jsonl.zst", ".yaml"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    read: Callable[[Path], object] = load_constitution if suffix == ".yaml" else lambda path: list(rows(path))
    assert error_of(lambda: read(path)) == f"{path}: is a pipe; expected a file: write what it holds to one"


def trained_by(launcher: str, folder: Path, model: Path) -> Path:
    data = folder / "rows.jsonl"
    data.write_text("{}\n")
    spec = StageSpec(SFTConfig(stage="sft"), data, model, folder / "stage", launcher=launcher)
    return run_stage(spec, lambda event: None)


def test_a_launcher_that_trains_nothing_is_a_failure(tmp_path: Path, model_folder: Path) -> None:
    stage = tmp_path / "stage"
    assert error_of(lambda: trained_by("true", tmp_path, model_folder)) == (
        f"{stage / 'model'}: expected the trained model there, found nothing: `true` ended without training; "
        f"{stage / 'train.log'} ends: (nothing)"
    )


def test_what_a_launcher_prints_goes_into_the_log(tmp_path: Path, model_folder: Path) -> None:
    launcher = r"""sh -c 'printf "3\n[\377 hello\n"'"""
    error = error_of(lambda: trained_by(launcher, tmp_path, model_folder))
    assert error.endswith("train.log ends: [\N{REPLACEMENT CHARACTER} hello")


@pytest.mark.parametrize("seed", [-1, 2**32, True, "1"])
def test_a_stage_refuses_a_seed_out_of_range(tmp_path: Path, model_folder: Path, seed: int) -> None:
    error = error_of(lambda: StageSpec(SFTConfig(stage="sft"), tmp_path, model_folder, tmp_path, seed))
    assert error.startswith("seed: expected a whole number from 0 to 4294967295, found ")


def test_the_launcher_in_a_received_run_folder_is_not_run_by_what_reads_the_folder(tmp_path: Path) -> None:
    furnish(tmp_path)
    runs, started = tmp_path / "runs", tmp_path / "started"
    for name in ("one", "two"):
        shutil.copytree(runs / "test", runs / name)
        for file in ("run.yaml", "manifest.json"):
            parse = yaml.safe_load if file == "run.yaml" else json.loads
            content = parse((runs / name / file).read_text())
            (content.get("config") or content).update(launcher=f"touch {started}", train=[{"stage": "sft"}])
            (runs / name / file).write_text(json.dumps(content))
        stage = runs / name / "train/1-sft"
        stage.mkdir(parents=True)
        shutil.copytree(tmp_path / "model", stage / "model")
        (stage / "stage.json").write_text(json.dumps({"launcher": f"touch {started}", "model": "model"}))
    for line in (
        "show one", "runs", "report one", "compare one two", "eval one --prompts p.jsonl --constitution c.yaml",
        "constitution show one", "verify one", "run runs/one/run.yaml --dry-run --name other",
    ):  # fmt: skip
        printed = command(line.split(" "), tmp_path)
        assert "error" not in printed or "nothing to compare" in printed, printed
    assert not started.exists()


@pytest.mark.parametrize("out", [".", "runs"])
def test_a_folder_as_the_name_of_an_output_is_an_error(tmp_path: Path, out: str) -> None:
    furnish(tmp_path)
    assert f"error: {out}: cannot be written: is a directory\n" in command(["report", "test", "--out", out], tmp_path)
