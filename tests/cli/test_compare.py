import json
from pathlib import Path

import pytest
from rich.console import Console

from cai.cli.compare import compare
from cai.cli.compare_output import _curves
from cai.cli.console import Grid, show
from cai.compare.record import Curve, RunComparison
from cai.config.errors import CaiError
from tests.compare.made import make_run, principles, write_metrics

HOSTILE = "\x1b[31mred\x1b[0m [bold]markup[/] \u202e turned \x07 "


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        run = make_run(
            tmp_path / name,
            principles("calm", "a-principle-with-a-very-long-name-that-fills-a-line", name),
            lambda i, drawn, name=name: f"{HOSTILE} {i} {drawn} {name} " * 9,
            prompts=30,
            labels=lambda i: 0.6,
            verdict=lambda i, drawn: 0.7,
            evaluation=lambda i: 0.6,
        )
        write_metrics(
            run, "1-ppo[red]", [{"step": i, "objective/scores": i / 9, "objective/kl": 2.0} for i in range(40)]
        )
    return tmp_path


@pytest.mark.parametrize(("columns", "width"), [("", 100), ("80", 80)])
def test_everything_fits_in_a_hundred_columns_or_those_of_the_environment(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    compare(["a", "b", "c"], False, None, runs)
    printed = capsys.readouterr().out.splitlines()
    written = printed.pop()
    assert max(len(line.rstrip()) for line in printed) <= width
    assert written == f"Report: {runs / 'comparison.html'}"
    assert (runs / "comparison.html").exists()
    for heading in (
        "Findings",
        "B against A: 30 shared prompts, and 30 held out",
        "C against A: 30 shared prompts, and 30 held out",
        "Training curves, by update",
    ):
        assert heading in printed


def test_a_narrow_terminal_is_told_which_columns_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, words in {"a": 2, "b": 3}.items():
        make_run(tmp_path / name, principles("calm"), lambda i, _, n=words: f"{i} " * (n + int(i[1:]) % n), prompts=9)
    printed = {}
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        compare(["a", "b"], False, None, tmp_path)
        printed[columns] = capsys.readouterr().out
    assert "  not shown at 80 columns: min. detectable\n" in printed["80"]
    assert "not shown at 120 columns" not in printed["120"] and "detectable" in printed["120"]


@pytest.mark.parametrize("again", ["a", "./a", "b/../a"])
def test_a_run_is_not_compared_with_itself(runs: Path, again: str) -> None:
    with pytest.raises(CaiError, match=r"/a: named twice; expected different runs"):
        compare(["a", "b", str(runs / again)], False, None, runs)


def test_of_three_runs_the_output_says_which_are_compared_and_the_baseline_can_be_chosen(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(["a", "b", "c"], False, None, runs)
    said = "B and C are each compared with A (a), and not with each other (--baseline: another A)"
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in (runs / "comparison.html").read_text(encoding="utf-8")
    compare(["a", "b", "c"], True, None, runs, baseline="c")
    found = RunComparison.model_validate_json(capsys.readouterr().out)
    assert [run.name for run in found.runs] == ["c", "a", "b"]
    assert found.findings[0].startswith("B and C are each compared with A (c)")
    with pytest.raises(CaiError, match="--baseline d: expected one of the runs to compare: a, b, c"):
        compare(["a", "b", "c"], True, None, runs, baseline="d")
    compare(["a", "b"], True, None, runs)
    assert not any("each compared with" in line for line in json.loads(capsys.readouterr().out)["findings"])


def test_texts_cannot_steer_the_terminal(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(["a", "b"], False, None, runs)
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)
    assert "\\x1b[31mred\\x1b[0m [bold]markup[/] \\u202e turned \\x07" in printed
    assert "ppo[red] score" in printed


def test_json_is_the_whole_record_and_nothing_else(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(["a", "b"], True, None, runs)
    printed = capsys.readouterr().out
    assert RunComparison.model_validate_json(printed).runs[1].name == "b"
    assert "NaN" not in printed and json.loads(printed)["pairs"][0]["shared"] == 30
    assert not (runs / "comparison.html").exists()
    compare(["a", "b"], True, runs / "page.html", runs)
    assert (runs / "page.html").exists()


def test_curves_of_one_kind_of_stage_stand_under_each_other_on_one_scale(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(["a", "b"], False, None, runs)
    lines = capsys.readouterr().out.splitlines()
    score = next(number for number, line in enumerate(lines) if "ppo[red] score" in line)
    assert "A    ▁" in lines[score] and "█" in lines[score] and "B    ▁" in lines[score + 1]
    assert "0.000 → 4.333       40" in lines[score]


def test_of_one_update_there_is_a_value_and_no_curve(capsys: pytest.CaptureFixture[str]) -> None:
    curves = [
        Curve(run=run, stage="1-sft", name="loss", steps=[*range(len(values))], values=values, missing=0)
        for run, values in enumerate(([5.191], [4.932]))
    ]
    (grid,) = [part for part in _curves(curves, ["A", "B"]) if isinstance(part, Grid)]
    show(Console(width=100), grid)
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if "." in line] == [
        ["sft", "loss", "A", "5.191", "1"],
        ["B", "4.932", "1"],
    ]


def test_a_page_that_is_overwritten_without_being_named_is_mentioned(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, again = runs / "comparison.html", []
    for out in (None, None, page):
        compare(["a", "b"], False, out, runs)
        again.append(capsys.readouterr().out.splitlines()[-1])
    assert again == [
        f"Report: {page}",
        f"Report: {page}, in place of the earlier one (--out FILE writes another)",
        f"Report: {page}",
    ]


def test_effects_without_a_known_interval_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, principles("calm", name), lambda i, drawn: f"{i} {drawn}", prompts=2)
    compare(["a", "b"], False, None, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    result = [number for number, line in enumerate(printed) if line.startswith("Effects of principles, B − A")]
    assert len(result) == 1
    assert "none to show, 5 effects on too few or equal prompts" in printed[result[0]]
    findings = " ".join(" ".join(printed).split())
    assert "no effect of a principle can be tested: too few prompts, or equal ones" in findings
    assert not any("outcome" in line for line in printed)


def test_a_plan_names_the_prompts_of_each_metric(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(["a", "b"], False, None, runs, ["edit_distance=0.1", "after_words=5"])
    section = capsys.readouterr().out.partition("Prompts that a difference needs")[2].splitlines()
    row = next(line.split() for line in section if line.strip().startswith("edit distance"))
    assert row[2:4] == ["0.100", "30"] and (row[4] == "–" or int(row[4].replace(",", "")) >= 2)
    [words] = [line for line in section if line.strip().startswith("words after training")]
    assert words.endswith(" 1") and "1: equal on every prompt" in "\n".join(section)
    assert max(map(len, section[:6])) <= 80
    compare(["a", "b"], True, None, runs, ["edit_distance=0.1"])
    assert [row.key for row in RunComparison.model_validate_json(capsys.readouterr().out).plan] == ["edit_distance"]


def test_policies_of_one_training_say_so_beside_the_number_on_the_terminal_the_page_and_in_json(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "prompts only; training variance unknown"
    compare(["a", "b"], False, None, runs)
    printed, page = capsys.readouterr().out.splitlines(), (runs / "comparison.html").read_text()
    for name in ("P(after better)", "words after training"):
        assert any(line.strip().startswith(name) and note in line for line in printed)
        assert any(name in line and note in line for line in page.splitlines())
    compare(["a", "b"], True, None, runs)
    (pair,) = RunComparison.model_validate_json(capsys.readouterr().out).pairs
    assert {m.effect.note for m in pair.metrics if m.key.startswith("after_")} == {note}


def test_a_mark_is_explained_only_where_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, of_seeds in {"a": (0.1, 0.9), "b": (0.9, 0.1)}.items():  # trainings differ by more than runs
        first, second = (lambda i, p=p: p + 0.001 * (int(i[6:]) % 3) for p in of_seeds)
        make_run(tmp_path / name, principles("calm"), lambda i, _: i, prompts=9, evaluation=first, seeds=[second])
    compare(["a", "b"], False, None, tmp_path)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert any("Metrics of the trained policies" in line for line in lines)
    assert not any(line.startswith("  none: ") for line in lines) or any(line.endswith(" none") for line in lines)
    table = lines[lines.index("Principles, over the rounds of revision that sampled them: A / B") :]
    table = table[: table.index("")]
    assert any("*" in line for line in table if "calm" in line) == any("other principles" in line for line in table)
