import json
import sys
from pathlib import Path

import pytest

from cai.cli.main import main
from cai.constitution.difference import changed_calls
from cai.constitution.principles import load_constitution
from cai.runs.folder import RunFolder
from tests.conftest import ROOT, SIXTEEN

SHIPPED = ROOT / "constitutions"


class Result:
    """What a command left: its exit status and what it printed."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `cai constitution …` in this process and in an empty folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["cai", "constitution", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


def edited(folder: Path, name: str, *replacements: tuple[str, str]) -> Path:
    """A copy of a shipped constitution, or of the tests' own, with some of its text replaced."""
    text = (SIXTEEN if name == "harmless" else SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}-edited.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def make_run(folder: Path, name: str) -> Path:
    run = RunFolder(folder / "runs" / name)
    run.path.mkdir(parents=True)
    run.manifest_json.write_text("{}", encoding="utf-8")
    run.constitution_yaml.write_bytes((SHIPPED / "brief.yaml").read_bytes())
    return run.path


def test_new_writes_a_starter_once(cai, tmp_path: Path) -> None:
    assert cai("new", "deep/mine.yaml").status == 0
    path = tmp_path / "deep/mine.yaml"
    assert load_constitution(path).name == "mine"
    path.write_text("edited", encoding="utf-8")
    result = cai("new", "deep/mine.yaml")
    assert result.status == 2
    assert "deep/mine.yaml: already exists" in result.err
    assert path.read_text(encoding="utf-8") == "edited"
    assert cai("new", "other.yaml", "--name", "yes: no").status == 0
    assert load_constitution(tmp_path / "other.yaml").name == "yes: no"
    assert cai("lint", "other.yaml", "--strict").status == 0
    assert "cannot be written" in cai("new", "other.yaml/x.yaml").err


def test_show_prints_texts_weights_and_shares(cai) -> None:
    c = load_constitution(SIXTEEN)
    result = cai("show", SIXTEEN)
    assert result.status == 0
    assert f"harmless: 16 principles, fingerprint {c.fingerprint}" in result.out
    rows = {line.split()[0]: line for line in result.out.splitlines() if line.startswith(" ")}
    for p in c.principles:
        share = "9.1 %" if p.id == "care-in-distress" else "6.1 %"
        assert f"{p.weight:g}" in rows[p.id]
        assert share in rows[p.id]
        assert p.fingerprint in rows[p.id]
    assert max(map(len, result.out.splitlines())) <= 80
    result = cai("show", SIXTEEN, "--principle", "privacy")
    assert "spy on a person or share" in result.out
    assert "weight 1, sampled 6.1 %, tags harm, privacy" in result.out
    assert "lawful" not in result.out
    result = cai("show", SIXTEEN, "--principle", "privcy")
    assert result.status == 2
    assert "did you mean 'privacy'?" in result.err
    assert "known ids: good-for-people" in cai("show", SHIPPED / "plain.yaml", "--principle", "x").err


def test_a_constitution_is_a_file_a_shipped_one_or_a_run(cai, tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    for name in (SHIPPED / "brief.yaml", "constitutions/brief.yaml", "mine", run):
        result = cai("show", name)
        assert (result.status, "brief: 4 principles" in result.out) == (0, True)
    assert "brief: 4" in cai("show", "mine", "--runs", tmp_path / "runs").out
    result = cai("show", "mime")
    assert result.status == 2
    assert "mime: no such file, nor a run in runs/ (did you mean 'mine'?)" in result.err
    assert "a folder without a run" in cai("show", tmp_path).err
    assert "Traceback" not in result.err


def test_diff_marks_changed_words_and_counts_the_calls_to_repeat(cai, tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        "harmless",
        ("- id: privacy", "- id: private-life"),
        ("weight: 1.5", "weight: 3"),
        ("Which answer is kinder to the person", "Which answer is much kinder to every person"),
        ("tags: [harm, law]", "tags: [law]"),
    )
    result = cai("diff", SIXTEEN, path)
    assert result.status == 1
    assert "removed  privacy  (sampled 6.1 %)" in result.out
    assert "added  private-life  (sampled 5.6 %)" in result.out
    assert "reweighted  care-in-distress  1.5 → 3  (sampled 9.1 % → 16.7 %)" in result.out
    assert (
        "reworded  no-bullying\n  judge\n    Which answer is {+much+} kinder to [-the-]{+every+} person" in result.out
    )
    changed = changed_calls(load_constitution(SIXTEEN), load_constitution(path))
    critiques, revisions, judge = (f"{100 * share:.1f} %" for share in changed)
    said = f"New calls: {critiques} of critiques, {revisions} of revisions, {judge} of verdicts, and those"
    assert said in " ".join(result.out.split())
    assert "without effect on a run: lawful-conduct." in result.out
    assert "reworded  privacy" not in result.out


def test_diff_as_json(cai, tmp_path: Path) -> None:
    path = edited(tmp_path, "brief", ("Is it longer?", "Is it much longer?"), ("tags: [brief, words]", "weight: 2"))
    result = cai("diff", SHIPPED / "brief.yaml", path, "--json")
    assert result.status == 1
    found = json.loads(result.out)
    assert (found["equal"], found["added"], found["removed"]) == (False, [], [])
    assert found["reweighted"] == {"plain-words": {"before": 1, "after": 2}}
    assert list(found["reworded"]) == ["short"]
    (field, texts), *rest = found["reworded"]["short"].items()
    assert (field, rest) == ("critique", [])
    assert ["added", "much "] in texts["changes"]
    assert "".join(text for what, text in texts["changes"] if what != "added") == texts["before"]
    assert 0 < found["changed_calls"]["judge"] < found["changed_calls"]["revisions"] < 1


def test_show_and_diff_say_where_a_principle_applies(cai, tmp_path: Path) -> None:
    where = "applies_to: {tags: [long], question: 'Is the message long?'}"
    path = edited(tmp_path, "brief", ("tags: [brief, words]", f"tags: [brief, words]\n    {where}"))
    assert "applies to tags long; Is the message long?" in cai("show", path, "--principle", "plain-words").out
    result = cai("diff", SHIPPED / "brief.yaml", path)
    assert result.status == 1
    said = " ".join(result.out.split())
    assert "rescoped plain-words applies to all prompts → tags long; Is the message long?" in said
    assert "New calls: 25.0 % of critiques, 25.0 % of revisions, 25.0 % of verdicts, and those" in said
    assert "later rounds). On prompts that all" in said
    [*_, calls, following, where] = result.out.splitlines()
    assert calls.startswith("New calls: ") and following.endswith("later rounds).") and where.startswith("On prompts")
    found = json.loads(cai("diff", SHIPPED / "brief.yaml", path, "--json").out)
    assert found["rescoped"] == {
        "plain-words": {"before": None, "after": {"tags": ["long"], "question": "Is the message long?"}}
    }
    dropped = "applies_to, so that the principles apply to all prompts"
    assert dropped in " ".join(cai("export", path, "--format", "huggingface").err.split())


def test_diff_finds_equal_what_no_run_can_tell_apart(cai, tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    path = edited(tmp_path, "brief", ("name: brief", "name: other"), ("tags: [brief, words]", "tags: []"))
    lines = path.read_text(encoding="utf-8").split("\n\n")
    path.write_text("\n\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")  # but the first principle
    for a, b in ((run, path), ("mine", path), (path, "mine")):
        result = cai("diff", a, b)
        assert result.status == 0
        assert "Equal: same principles, texts, weights and applies_to." in result.out
        assert "the name, plain-words." in result.out
    assert json.loads(cai("diff", "mine", path, "--json").out)["equal"] is True
    assert cai("diff", path, "none.yaml").status == 2


def test_diff_shows_changes_of_spaces_and_hides_control_characters(cai, tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        "plain",
        ("judge: >-\n      Which answer would", 'judge: "Which\\n\\nanswer \\e[2Jwould'),
        ("and kind?", 'and kind?"'),
    )
    result = cai("diff", SHIPPED / "plain.yaml", path)
    assert "Which[-␣-]{+␣␣+}" in result.out
    assert "{+\\x1b[2Jwould+}" in result.out
    assert "\x1b[2J" not in result.out


@pytest.mark.parametrize(
    ("edit", "strict", "status"),
    [
        (("", ""), True, 0),
        (("Make it useful,\n      truthful and safe, and keep it kind.", "Be kind."), True, 0),  # a hint never fails
        (("Which answer would do", "Would answer A do"), False, 0),
        (("Which answer would do", "Would answer A do"), True, 1),
        (("Imagine", "Ima\u200bgine"), False, 1),
        (("critique:", "critic:"), False, 1),
    ],
)
def test_lint_fails_on_errors_and_with_strict_on_warnings(
    cai, tmp_path: Path, edit: tuple[str, str], strict: bool, status: int
) -> None:
    path = edited(tmp_path, "plain", edit)
    assert cai("lint", path, SHIPPED / "brief.yaml", *(["--strict"] if strict else [])).status == status


def test_lint_prints_findings_as_a_compiler_does(cai, tmp_path: Path) -> None:
    path = edited(tmp_path, "plain", ("Which answer would do", "Would answer A do"), ("Imagine", "Ima\u200bgine"))
    result = cai("lint", path.name, "constitutions/brief.yaml")
    assert (
        f"{path.name}:10: error hidden-character 'good-for-people'\n    column 10 contains U+200B ZERO WIDTH SPACE"
        in result.out
    )
    assert (
        f"{path.name}:15: warning position 'good-for-people'\n    judge refers to a position, “answer A”" in result.out
    )
    assert result.out.splitlines()[-1] == "1 error, 2 warnings in 2 files"
    findings = json.loads(cai("lint", path.name, "--json").out)
    assert [(f["file"], f["line"], f["rule"], f["severity"], f["principle"]) for f in findings] == [
        (path.name, 10, "hidden-character", "error", "good-for-people"),
        (path.name, 15, "position", "warning", "good-for-people"),
        (path.name, 15, "no-choice", "warning", "good-for-people"),
    ]
    assert all(f["reason"] and f["suggestion"] for f in findings)
    assert cai("lint", "constitutions/brief.yaml").out == "No findings in 1 file\n"
    assert json.loads(cai("lint", "constitutions/brief.yaml", "--json").out) == []


def test_advice_follows_a_question_as_a_sentence_of_its_own(cai, tmp_path: Path) -> None:
    path = edited(tmp_path, "plain", ("critique:", "critque:"))
    printed = " ".join(cai("lint", path.name).out.split())
    assert "did you mean 'critique'? No run can load this file" in printed
    assert "?;" not in printed


def test_lint_goes_on_after_a_file_that_cannot_be_read(cai, tmp_path: Path) -> None:
    path = edited(tmp_path, "plain", ("Which answer would do", "Would answer A do"))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    result = cai("lint", "none.yaml", path.name, "latin.yaml", "constitutions/brief.yaml")
    assert result.status == 2
    assert "warning position" in result.out
    assert result.out.endswith("2 warnings in 2 files\n")
    assert "none.yaml: no such file\nlatin.yaml:1: not UTF-8 text: byte 0xe9" in result.err
    result = cai("lint", "none.yaml", path.name, "--json")
    assert (result.status, len(json.loads(result.out))) == (2, 2)


def test_what_is_exported_is_imported(cai, tmp_path: Path) -> None:
    result = cai("export", SHIPPED / "brief.yaml", "--format", "anthropic-critiques", "--out", "theirs.json")
    assert (result.status, "Wrote theirs.json" in result.out) == (0, True)
    assert (
        "note: dropped, since the format has no field for them: the judge's questions, tags, tests, the description"
        in result.err
    )
    result = cai("import", "theirs.json", "--out", "back.yaml")
    assert "Wrote back.yaml: 4 principles from theirs.json (anthropic-critiques)" in result.out
    assert "note: the format has no judge questions" in result.err
    ours, back = (load_constitution(p) for p in (SHIPPED / "brief.yaml", tmp_path / "back.yaml"))
    assert [(p.id, p.critique, p.revision) for p in back.principles] == [
        (p.id, p.critique, p.revision) for p in ours.principles
    ]
    text = (tmp_path / "back.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Imported from theirs.json, in the format anthropic-critiques.\n# the format has no judge")
    assert cai("import", "theirs.json").out == text
    result = cai("import", "theirs.json", "--out", "back.yaml")
    assert (result.status, "already exists" in result.err) == (2, True)
    assert cai("lint", "back.yaml", "--strict").status == 0
    assert "repeated-text" in cai("lint", "back.yaml").out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["export", "constitutions/brief.yaml", "--format", "csv"],
            "--format csv: expected one of anthropic-critiques",
        ),
        (["export", "constitutions/brief.yaml"], "missing option '--format'"),
        (["import", "none.json"], "none.json: no such file"),
        (["import", "empty.json"], "empty.json:1: not valid JSON"),
        (["import", "object.json"], "unknown format of a constitution"),
        (["diff", "constitutions/brief.yaml"], "missing argument"),
        (["lint", "empty.json", "--srict"], "no such option --srict; did you mean --strict?"),
        (["lint", "none.yaml"], "none.yaml: no such file"),
        (["lnit", "x"], "no such command 'lnit'"),
    ],
)
def test_a_mistake_is_an_error_message_with_status_2(cai, tmp_path: Path, arguments: list[str], expected: str) -> None:
    (tmp_path / "empty.json").touch()
    (tmp_path / "object.json").write_text("{}", encoding="utf-8")
    result = cai(*arguments)
    assert result.status == 2
    assert expected in result.err
    assert "Traceback" not in result.err
