import json
import math
from pathlib import Path

import pytest

from cai.config.errors import CaiError
from cai.training.tracking import add_metrics, drop_metrics_after, read_metrics


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    for step in (1, 2, 3):
        add_metrics(path, {"step": step, "loss": 1 / step})
    drop_metrics_after(path, 2)
    assert read_metrics(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_a_last_line_that_is_cut_short_is_skipped_and_a_resume_goes_on_behind_the_others(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    add_metrics(path, {"step": 1, "loss": math.nan})
    path.write_text(path.read_text() + '{"step": 2, "lo')
    [line] = read_metrics(path)
    assert line["step"] == 1 and math.isnan(line["loss"])
    drop_metrics_after(path, 5)
    add_metrics(path, {"step": 2, "loss": 0.5})
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("damaged", ['{"step": 1, "lo', "[1, 2]", "word"])
def test_another_line_that_is_no_object_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 3}}\n')
    with pytest.raises(CaiError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)


def test_a_step_that_is_no_number_is_that_of_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [math.nan, None, "x", 7.0]
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps) + '{"loss": 1}\n')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 7, 5]
