import json
import shutil
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.data.jsonl import write_rows
from cai.data.records import Skipped
from cai.report.examples import Examples
from tests.report.folders import write_run


def test_every_row_of_a_run_is_listed_under_its_prompt(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", prompts=9)
    examples = Examples(folder)
    assert examples.ids == [prompt.id for prompt in folder.prompts()]
    found = [examples.read(i) for i in examples.ids]
    assert [row for e in found for row in e.revisions] == folder.revisions()
    assert [row for e in found for row in e.preferences] == folder.preferences()
    assert [row for e in found for row in e.evaluation] == folder.evaluation()
    assert [row for e in found for row in e.skipped] == folder.skipped()
    assert [e.id for e in found if e.held_out] == folder.manifest()["held_out"] == ["p06", "p07", "p08"]
    assert len(found[0].rankings) == 1


def test_rounds_come_in_order_however_they_were_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    first = folder.revisions()[0]
    later = [first.model_copy(update={"round": n}) for n in (3, 1, 2)]
    write_rows(folder.revisions_jsonl, later)
    assert [row.round for row in Examples(folder).read("p00").revisions] == [1, 2, 3]


def test_what_only_other_files_name_is_an_example_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    pair = folder.preferences()[0].model_copy(update={"prompt_id": "from a file", "source": "human"})
    write_rows(folder.preferences_jsonl, [pair])
    write_rows(folder.skipped_jsonl, [Skipped(prompt_id="line 7", stage="human", reason="no answer")])
    examples = Examples(folder)
    assert examples.ids[-2:] == ["from a file", "line 7"]
    assert examples.read("from a file").messages == pair.messages
    assert examples.read("line 7").messages == []


def test_a_run_without_files_yet_has_the_prompts_it_has(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for path in (folder.revisions_jsonl, folder.preferences_jsonl, folder.rankings_jsonl):
        path.unlink()
    shutil.rmtree(folder.eval)
    examples = Examples(folder)
    assert len(examples.ids) == 6
    assert examples.read("p00").revisions == []


def test_rows_stay_as_they_were_opened_when_the_run_goes_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    examples, before = Examples(folder), folder.preferences()
    write_rows(folder.preferences_jsonl, [row.model_copy(update={"chosen": "new"}) for row in reversed(before)])
    assert [row for i in examples.ids for row in examples.read(i).preferences] == before


@pytest.mark.parametrize("line", ["{", "[]", '{"p": 1}', "7"])
def test_a_line_that_is_no_row_is_an_error_with_its_place(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "run")
    folder.preferences_jsonl.write_text(folder.preferences_jsonl.read_text(encoding="utf-8") + "\n" + line + "\n")
    with pytest.raises(CaiError, match=r"preferences\.jsonl:6: expected a row of a run"):
        Examples(folder)


def test_a_row_of_another_form_is_an_error_with_its_field(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    row = folder.preferences()[0].model_dump() | {"p": 2}
    folder.preferences_jsonl.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(CaiError, match=r"preferences\.jsonl:1: p: "):
        Examples(folder).read("p00")


def test_a_text_that_is_there_is_never_missed(tmp_path: Path) -> None:
    odd = 'Ünï "quoted"\n\ttab \\ back \x1b \u2028'
    folder = write_run(tmp_path / "run", say=lambda what, n: f"{what} {odd} {n}")
    examples = Examples(folder)
    assert all(examples.may_contain("p00", part) for part in (odd.lower(), "draft", "\x1b", "\n\t", "\\ back"))
    assert not examples.may_contain("p00", "nowhere")
