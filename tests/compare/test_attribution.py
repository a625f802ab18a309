import json
import random
from pathlib import Path

import pytest

from cai.compare.attribution import attribute
from cai.compare.record import Attributed, Attribution
from cai.config.errors import CaiError
from cai.constitution.principles import Constitution
from tests.compare.made import make_run, principles

IDS = ("calm", "plain", "short")


def revise(prompt_id: str, drawn: str) -> str:
    """`short` writes four words, the others about twelve."""
    rng = random.Random(prompt_id + drawn)
    return " ".join(f"w{rng.randint(0, 99)}" for _ in range(4 if drawn == "short" else rng.randint(10, 14)))


def better(kept: Constitution) -> float:
    return 0.8 if "calm" in {p.id for p in kept.principles} else 0.6  # without `calm` the policy wins by less


def write_sweep(folder: Path, how: str, prompts: int = 60) -> Path:
    entries = []
    for i in (None, *IDS):
        ids = IDS if i is None else tuple(k for k in IDS if (k != i) == (how == "leave-one-out"))
        kept, name = principles(*ids), "all" if i is None else f"{how}-{i}"
        make_run(folder / name, kept, revise, prompts, evaluation=lambda prompt_id, kept=kept: better(kept))
        entries.append(
            {"run": name, "varies": {}, "principles": {"how": "all" if i is None else how, "id": i, "n": None}}
        )
    (folder / "sweep.json").write_text(json.dumps({"name": "trial", "runs": entries}))
    return folder


def row(found: Attribution, id: str) -> Attributed:
    return next(row for row in found.rows if row.principle_id == id)


def test_leaving_a_principle_out_shows_what_it_adds(tmp_path: Path) -> None:
    (found,) = attribute(write_sweep(tmp_path / "trial", "leave-one-out"))
    assert (found.how, found.base) == ("leave-one-out", "all")
    assert row(found, "short").effects["words in the revision"].significant
    assert row(found, "short").effects["words in the revision"].mean == pytest.approx(
        -8 / 3, abs=0.8
    )  # a third of prompts, eight words
    assert (
        row(found, "plain").effects["words in the revision"].mean > 0
    )  # in its place comes `short` in half of the draws
    assert row(found, "calm").effects["P(after better)"].mean == pytest.approx(0.2)
    assert (row(found, "calm").effects["head-to-head"].mean, row(found, "plain").effects["head-to-head"].mean) == (
        0.5,
        0.0,
    )
    assert not row(found, "plain").effects["P(after better)"].significant
    assert "P(revision better)" not in found.outcomes  # no judge was asked about revisions
    assert any(line.startswith("short, words in the revision: significant, -2.") for line in found.findings)
    assert len(found.findings) <= 10


def test_a_principle_alone_is_set_against_all_of_them(tmp_path: Path) -> None:
    (found,) = attribute(write_sweep(tmp_path / "trial", "one-at-a-time"))
    effect = row(found, "short").effects["words in the revision"]
    assert effect.significant
    assert effect.mean == pytest.approx(4 - found.means["words in the revision"])
    assert row(found, "calm").effects["P(after better)"].mean == 0.0


def test_a_run_that_does_not_exist_yet_is_a_missing_row_with_a_warning(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "trial", "leave-one-out", prompts=12)
    (folder / "leave-one-out-calm").rename(tmp_path / "away")
    (folder / "leave-one-out-plain/summary.json").unlink()
    (found,) = attribute(folder)
    assert [row.principle_id for row in found.rows] == ["plain", "short"]
    assert "trial/leave-one-out-calm has not been started, so its row is missing" in found.warnings
    assert any("leave-one-out-plain is unfinished" in note for note in found.warnings)


def test_principles_that_no_prompt_drew_are_named_and_warnings_of_all_runs_appear_once(tmp_path: Path) -> None:
    (found,) = attribute(write_sweep(tmp_path / "trial", "leave-one-out", prompts=1))
    assert sum(note.startswith("no revision of trial/all sampled ") for note in found.warnings) == 2
    result = [note for note in found.warnings if "in common" in note]
    assert result == ["trial/all and each of 3 others evaluate only 1 held-out prompt in common: intervals are wide"]


def test_every_combination_of_other_settings_has_its_own_matrix(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "trial", "leave-one-out", prompts=12)
    index = json.loads((folder / "sweep.json").read_text())
    twice = [{**entry, "varies": {"seed": seed}} for seed in (0, 1) for entry in index["runs"]]
    (folder / "sweep.json").write_text(json.dumps({"name": "trial", "runs": twice}))
    assert [matrix.varies for matrix in attribute(folder)] == [{"seed": 0}, {"seed": 1}]


def test_what_is_no_sweep_of_principles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaiError, match=r"no sweep: sweep.json is not there"):
        attribute(tmp_path)
    (tmp_path / "sweep.json").write_text('{"name": "x", "runs": []}')
    with pytest.raises(CaiError, match="no runs with all principles beside runs without one"):
        attribute(tmp_path)
    (tmp_path / "sweep.json").write_text('{"name": "x", "runs": [{"run": "a"}]}')
    with pytest.raises(CaiError, match=r"sweep.json: runs\[0\].varies"):
        attribute(tmp_path)
