import re
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.config import yaml_files
from cai.config.errors import CaiError
from cai.config.yaml_files import RENAMED, Kind, Section, load_yaml, read_kind, read_yaml
from cai.runs.run_file import load_run_file
from tests.conftest import ROOT


class Inner(Section):
    id: str = "x"
    size: int = 1


class Outer(Section):
    name: str
    inner: Inner = Inner()
    parts: list[Inner] = []


def fault(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaiError) as caught:
        load_yaml(path, Outer)
    return str(caught.value).replace(str(path), "f.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ninnner: {}\n", "f.yaml:2: innner: unknown key 'innner'; did you mean 'inner'?"),
        ("name: a\nqqq: 1\n", "f.yaml:2: qqq: unknown key 'qqq'; known keys: name, inner, parts"),
        ("inner: {}\n", "f.yaml:1: name: missing; expected a text"),
        (
            "name: a\ninner:\n  size: big\n",
            "f.yaml:3: inner.size: expected a whole number, found 'big'",
        ),
        (
            "name: a\nparts:\n  - {size: 1}\n  - {id: egg, size: []}\n",
            "f.yaml:4: parts[1] ('egg').size: expected a whole number, found an empty list",
        ),
        ("name: a\nname: b\n", "f.yaml:2: duplicate key 'name', first on line 1"),
        ("name: [a\n", "f.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "\tname: a\n",
            "f.yaml:1: not valid YAML: found character '\\t' that cannot start any token; put spaces in place of the tab",
        ),
        ("", "f.yaml: the file is empty"),
        ("- a\n", "f.yaml:1: expected a mapping with name, inner, parts, found a list of 1"),
        (
            "name: no\n",
            "f.yaml:1: name: expected a text, found false; put it in quotes to mean the text",
        ),
        (
            "name: 2024-02-01\n",
            "f.yaml:1: name: expected a text, found 2024-02-01; put it in quotes to mean the text",
        ),
        ("name:\n", "f.yaml:1: name: expected a text, found nothing"),
        ("name: {a: b}\n", "f.yaml:1: name: expected a text, found a mapping"),
        (
            "name: a\ninner: {size: \u0435}\n",
            "f.yaml:2: inner.size: expected a whole number, found '\u0435' (with U+0435 CYRILLIC SMALL LETTER IE)",
        ),
        (
            "n\u0430me: a\n",
            "f.yaml:1: n\u0430me: unknown key 'n\u0430me' (with U+0430 CYRILLIC SMALL LETTER A); did you mean 'name'?",
        ),
        (
            "name: Say: this\n",
            "f.yaml:1: not valid YAML: mapping values are not allowed here; put a text with a colon in quotes, or below `>-`",
        ),
        (
            "name: *this*\n",
            "f.yaml:1: not valid YAML: expected alphabetic or numeric character, but found '*'; put a text that begins with * or & in quotes, or below `>-`",
        ),
        (
            "name: *this way\n",
            "f.yaml:1: not valid YAML: found undefined alias 'this'; put a text that begins with * in quotes, or below `>-`",
        ),
        ("name: a\n\n# bell: \x07\n", "f.yaml:3: not valid YAML: the control character U+0007"),
        ("name: 2024-13-45\n", "f.yaml:1: not valid YAML: expected a date, found '2024-13-45'"),
        (
            "name: a\nparts: &all [*all]\n",
            "f.yaml: not valid YAML: nested too deeply, or an alias within what it stands for",
        ),
        ("[" * 5000, "f.yaml: not valid YAML: nested too deeply, or an alias within what it stands for"),
    ],
)
def test_a_fault_names_file_line_and_field(tmp_path: Path, text: str, expected: str) -> None:
    assert fault(tmp_path / "f.yaml", text) == expected


def test_every_error_of_a_file_is_reported_at_once(tmp_path: Path) -> None:
    result = fault(tmp_path / "f.yaml", "inner: {size: x}\nparts: [{size: y}]\n")
    assert len(result.splitlines()) == 3


def test_aliases_that_stand_for_too_much_are_refused_at_once(tmp_path: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 10))
    result = fault(tmp_path / "f.yaml", "name: a\nl0: &l0 [x, x, x, x, x, x, x, x, x, x]\n" + levels)
    assert result == "f.yaml: more than 100,000 values; its aliases stand for too many"


def test_what_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"name: a\n# caf\xe9\n")
    with pytest.raises(CaiError, match=r"f\.yaml:2: not UTF-8 text: byte 0xe9"):
        load_yaml(tmp_path / "f.yaml", Outer)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CaiError, match="no such file"):
        load_yaml(tmp_path / "none.yaml", Outer)
    with pytest.raises(CaiError, match="cannot be read"):
        load_yaml(tmp_path, Outer)
    (tmp_path / "harmless.yaml").write_text("name: a\n")
    with pytest.raises(CaiError, match=r"no such file; did you mean '.*/harmless\.yaml'\?$"):
        load_yaml(tmp_path / "harmles.yaml", Outer)
    with pytest.raises(CaiError, match=r"no such file$"):
        load_yaml(tmp_path / "none.yaml", Outer)


def test_overrides_reach_any_field(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("name: a\nparts: [{id: x}, {id: y}]\n", encoding="utf-8")
    source = yaml_files.apply_overrides(yaml_files.read_yaml(path), ["inner.size=7", "parts.1.size=3", "name=b=c"])
    outer = yaml_files.validate(source, Outer)
    assert (outer.inner.size, outer.parts[1].size, outer.name) == (7, 3, "b=c")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.size", "inner.size: expected key=value, such as judge.principles=16"),
        ("=3", "=3: expected key=value, such as judge.principles=16"),
        ("inner={", "inner: the value '{' is not valid YAML: expected the node content, but found '<stream end>'"),
        ("parts.7.size=1", "parts.7.size: 'parts' has only parts.0, parts.1; to add one, set the list: parts=[…]"),
        ("parts.size=1", "parts.size: 'parts' is a list of 2; name an entry by its number, such as parts.0"),
        ("name.first=x", "name.first: expected a mapping at 'name', found 'a'"),
        ("innr.size=1", "innr.size: unknown key 'innr'; did you mean 'inner.size'?"),
        ("inner.sise=1", "inner.sise: unknown key 'sise'; did you mean 'size'?"),
        ("inner.size.x=1", "inner.size.x: inner.size: expected a whole number, found a mapping"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("name: a\nparts: [{id: x}, {id: y}]\n", encoding="utf-8")
    with pytest.raises(CaiError) as raised:
        yaml_files.validate(yaml_files.apply_overrides(yaml_files.read_yaml(path), [override]), Outer)
    assert str(raised.value) == f"--set {message}"


def test_a_stage_without_a_reward_model_is_reported_where_the_stage_was_set(tmp_path: Path) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("model: m\nconstitution: c\nprompts: {source: p}\ntrain: [{stage: sft}]\n", encoding="utf-8")
    with pytest.raises(CaiError) as raised:
        load_run_file(run_file, ["train.0.stage=ppo"])
    expected = "ppo needs a reward model: add a reward stage before it, or set its `reward:`"
    assert str(raised.value) == f"--set train.0.stage: {expected}"


@given(st.text(max_size=200))
def test_whatever_a_file_holds_the_answer_is_a_model_or_a_cai_error(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            load_yaml(path, Outer)
        except CaiError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("judge.thoughts=2", "--set judge.thoughts: 'thoughts' is now called 'cot_samples'"),
        ("judge.band=[0, 1]", "--set judge.band: 'band' is now called 'cot_clamp'"),
        ("thoughts=2", "--set thoughts: 'thoughts' is now called 'judge.cot_samples'"),
        ("engine.max_in_flight=2", "--set engine.max_in_flight: 'max_in_flight' is now called 'concurrency'"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(tmp_path: Path, override: str, message: str) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("model: m\nconstitution: c.yaml\nprompts: {source: p.jsonl}\n", encoding="utf-8")
    with pytest.raises(CaiError) as raised:
        load_run_file(run_file, [override])
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("revise.rounds=1000000000", "expected a whole number from 0 to 100, found 1000000000"),
        ("revise.max_tokens=1000000000", "expected a whole number from 1 to 10000000, found 1000000000"),
        ("revise.temperature=1.0e+308", "expected a number from 0 to 100, found 1e+308"),
        ("judge.samples=1000000000", "expected a whole number from 0 to 26, found 1000000000"),
        ("judge.cot_samples=1000000000", "expected a whole number from 0 to 1000, found 1000000000"),
        ("judge.cot_max_tokens=1000000000", "expected a whole number from 1 to 10000000, found 1000000000"),
        ("judge.temperature=1.0e+308", "expected a number above 0 and at most 100, found 1e+308"),
        ("iterations=1000000000", "expected a whole number from 1 to 100, found 1000000000"),
        ("evaluate.max_tokens=1000000000", "expected a whole number from 1 to 10000000, found 1000000000"),
        ("engine.concurrency=1000000000", "expected a whole number from 1 to 65536 or null, found 1000000000"),
        ("engine.max_model_len=1000000000", "expected a whole number from 64 to 10000000 or null, found 1000000000"),
        ("engine.stall_minutes=1.0e+308", "expected a number above 0 and at most 10080, found 1e+308"),
        ("train.0.updates=1000000000", "expected a whole number from 1 to 1000000, found 1000000000"),
        ("train.0.rollouts=1000000000", "expected a whole number from 2 to 1000000, found 1000000000"),
        ("train.0.max_tokens=1000000000", "expected a whole number from 1 to 10000000, found 1000000000"),
        ("train.0.max_length=1000000000", "expected a whole number from 8 to 10000000, found 1000000000"),
        ("train.0.learning_rate=1.0e+308", "expected a number above 0 and at most 1, found 1e+308"),
        ("train.1.num_train_epochs=1.0e+308", "expected a number above 0 and at most 10000, found 1e+308"),
    ],
)
def test_a_number_that_only_a_typing_error_can_be_is_one_line(tmp_path: Path, setting: str, expected: str) -> None:
    run_file = tmp_path / "run.yaml"
    stages = "[{stage: ppo, reward: r}, {stage: dpo}]"
    run_file.write_text(f"model: m\nconstitution: c\nprompts: {{source: p}}\ntrain: {stages}\n", encoding="utf-8")
    with pytest.raises(CaiError) as raised:
        load_run_file(run_file, [setting])
    assert str(raised.value) == f"--set {setting.partition('=')[0]}: {expected}"


def test_a_renamed_key_leads_to_one_that_exists() -> None:
    schemas = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "schemas").glob("*.json"))
    for old, new in RENAMED.items():
        assert f'"{new.split(".")[-1]}": {{' in schemas, f"{old} is said to be called {new} now, which no file may hold"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("evaluate: {referee: x.yaml}", "evaluate.referee: 'referee' is now called 'constitution'"),
        ("train: [{stage: dpo, epochs: 2}]", "train[0].epochs: 'epochs' is now called 'num_train_epochs'"),
        ("train: [{stage: ppo, epochs: 2}]", "train[0].epochs: 'epochs' is now called 'num_ppo_epochs'"),
        ("train: [{stage: dpo, loss: ipo}]", "train[0].loss: 'loss' is now called 'loss_type'"),
        ("train: [{stage: sft, loss: ipo}]", "train[0].loss: unknown key 'loss'"),
        (
            "train: [{stage: rloo, generations: 2}]",
            "train[0].generations: 'generations' is now called 'num_generations'",
        ),
    ],
)
def test_a_key_of_an_earlier_version_is_answered_with_its_new_name(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\nconstitution: c\nprompts: {{source: p}}\n{old}\n")
    with pytest.raises(CaiError, match=rf"run\.yaml:4: {re.escape(new)}"):
        load_run_file(path)


def test_a_missing_file_is_suggested_by_its_kind_or_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    for name in ("first.yaml", "examples/quick.yaml"):
        (tmp_path / name).write_text("model: m\nprompts: {source: p}\n", encoding="utf-8")
    for name in ("own.yaml", "firsts.yaml"):
        (tmp_path / name).write_text("name: c\nprinciples: []\n", encoding="utf-8")
    for wrong, kind, right in (
        ("own", "run file", ""),
        ("firstt.yaml", "run file", "; did you mean 'first.yaml'?"),
        ("first.yml", "constitution", "; did you mean 'firsts.yaml'?"),
        ("quik", "run file", "; did you mean 'examples/quick.yaml'?"),
    ):
        with pytest.raises(CaiError) as error:
            read_kind(Path(wrong), cast("Kind", kind))
        assert str(error.value) == f"{wrong}: no such file{right}"
    with pytest.raises(CaiError, match=r"^own\.yam: no such file; did you mean 'own\.yaml'\?$"):
        read_yaml(Path("own.yam"))


def test_a_file_that_is_read_again_has_data_of_its_own_and_what_it_says_now(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("a: {b: [1]}\n", encoding="utf-8")
    first = read_yaml(path)
    first.data["a"]["b"].append(2)
    assert read_yaml(path).data == {"a": {"b": [1]}}
    path.write_text("a: {b: [3]}\n", encoding="utf-8")
    assert read_yaml(path).data == {"a": {"b": [3]}}
