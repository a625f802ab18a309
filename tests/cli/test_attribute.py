import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from cai.cli.attribute import attribute
from cai.compare.record import Attribution
from tests.compare.test_attribution import write_sweep


def test_the_matrix_is_printed_in_a_hundred_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "trial", "leave-one-out")
    attribute("trial", False, None, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed.pop() == f"Report: {tmp_path / 'trial/attribution.html'}"
    assert max(len(line.rstrip()) for line in printed) <= 100
    assert next(line for line in printed if line.startswith("  short")).count("*") == 1


def test_the_legend_is_of_the_columns_that_fit_and_names_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "trial", "leave-one-out")
    monkeypatch.setattr("cai.cli.attribute.result_console", lambda: Console(width=60))
    attribute("trial", False, None, tmp_path)
    matrix = capsys.readouterr().out.partition("Effect of adding")[2].partition("smallest p values")[0]
    hidden = re.search(r"not shown at 60 columns: (.*?)  ", matrix.replace("\n", " "))
    assert hidden is not None
    assert not [name for name in hidden[1].split(", ") if f"{name}: " in matrix]
    assert "P(after better): " in matrix


def test_effects_without_intervals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "trial", "leave-one-out", prompts=2)
    attribute("trial", False, None, tmp_path)
    printed = capsys.readouterr().out
    assert "No intervals: all " in printed
    assert "corrected for" not in printed  # no effect is tested
    assert "no effect of 3 principles can be tested: too few prompts, or equal ones" in " ".join(printed.split())
    assert "min. detectable" not in printed


def test_json_is_the_whole_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "trial", "leave-one-out", prompts=12)
    attribute(str(folder), True, None, tmp_path)
    (matrix,) = json.loads(capsys.readouterr().out)
    assert Attribution.model_validate(matrix).how == "leave-one-out"
    assert not (folder / "attribution.html").exists()


def test_no_text_of_an_index_steers_the_terminal_or_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "trial", "leave-one-out", prompts=12)
    index = json.loads((folder / "sweep.json").read_text())
    index["name"] = "\x1b[31m<script>alert(1)</script>[bold]"
    index["runs"][1]["principles"]["id"] = "<img src=x>\x1b]0;title\x07[red]"
    (folder / "sweep.json").write_text(json.dumps(index))
    attribute("trial", False, tmp_path / "page.html", tmp_path)
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert not {"\x1b", "\x07"} & set(printed) and "[bold]" in printed and "[red]" in printed
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
