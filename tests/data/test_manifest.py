import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError
from cai.data.manifest import (
    BUSY,
    LOOK_SECONDS,
    Claim,
    aside,
    claimed,
    differences,
    exclusive,
    is_busy,
    read_manifest,
    take,
)


def claim(folder: Path, inputs: tuple[Path, ...] = (), command: str = "cai judge", **settings: Any) -> Claim:
    manifest = {"command": command, "settings": settings, "versions": {"cai": "any"}}
    return Claim(folder / "out", manifest, "judge.json", inputs)


def work(this: Claim, replace: bool = False, finish: bool = True) -> None:
    with claimed(this, replace):
        (this.folder / "rows.jsonl").write_text(json.dumps(this.manifest))
        if finish:
            (this.folder / this.finished).write_text("{}")


def test_the_same_content_goes_on_whatever_the_versions_are(tmp_path: Path) -> None:
    work(claim(tmp_path, seed=0))
    again = claim(tmp_path, seed=0)
    again.manifest["versions"] = {"cai": "another"}
    with claimed(again, replace=False):
        assert (again.folder / "rows.jsonl").exists()
    assert read_manifest(again.folder) == again.manifest


def test_unfinished_results_of_other_content_are_cleared(tmp_path: Path) -> None:
    work(claim(tmp_path, seed=0), finish=False)
    other = claim(tmp_path, seed=1)
    with claimed(other, replace=False) as replaced:
        assert {path.name for path in other.folder.iterdir()} == {".busy", "manifest.json"}
    assert replaced.splitlines() == [
        f"{tmp_path}/out: replaces unfinished results with other settings; answers in the cache are kept and reused:",
        "  settings.seed: 0 → 1",
    ]
    with claimed(other, replace=False) as replaced:
        assert replaced == ""


def test_finished_results_of_other_content_are_refused_with_what_differs_unless_replaced(tmp_path: Path) -> None:
    work(claim(tmp_path, seed=0, prompts="0123456789abcdef"))
    other = claim(tmp_path, seed=1, prompts="fedcba9876543210")
    with pytest.raises(CaiError) as refused:
        work(other)
    assert str(refused.value).splitlines() == [
        f"{tmp_path}/out: holds finished results of `cai judge` with other settings:",
        "  settings.seed: 0 → 1",
        "  settings.prompts: content changed",
        "Choose another folder (--out FOLDER), or overwrite this one (--replace).",
    ]
    work(other, replace=True)
    assert read_manifest(other.folder) == other.manifest


@pytest.mark.parametrize("output", ["train/1-dpo/checkpoints/checkpoint-2/x", "train/1-dpo/metrics.jsonl"])
def test_unfinished_training_of_other_content_is_refused_unless_replaced(tmp_path: Path, output: str) -> None:
    def training(seed: int) -> Claim:
        return replace(claim(tmp_path, seed=seed), trained=("train/*/checkpoints/*", "train/*/metrics*.jsonl"))

    work(training(0), finish=False)
    kept = tmp_path / "out" / output
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    with pytest.raises(CaiError) as refused:
        work(training(1))
    assert str(refused.value).splitlines() == [
        f"{tmp_path}/out: holds unfinished training of `cai judge` with other settings:",
        "  settings.seed: 0 → 1",
        "Choose another folder (--out FOLDER), or overwrite this one (--replace).",
    ]
    work(training(0), finish=False)  # resumes
    assert kept.exists()
    work(training(1), replace=True, finish=False)
    assert not kept.exists()


def test_a_folder_of_another_command_or_of_other_files_is_refused_even_with_replace(tmp_path: Path) -> None:
    work(claim(tmp_path))
    with pytest.raises(CaiError, match="holds the results of `cai judge`; choose another"):
        work(claim(tmp_path, command="cai eval"), replace=True)
    (tmp_path / "mine/out").mkdir(parents=True)
    (tmp_path / "mine/out/thesis.txt").write_text("mine")
    with pytest.raises(CaiError, match="is not empty and holds no results of `cai judge`"):
        work(claim(tmp_path / "mine"), replace=True)


def test_an_input_in_the_folder_is_not_cleared_away(tmp_path: Path) -> None:
    work(claim(tmp_path, seed=0))
    inside = tmp_path / "out/data.jsonl"
    inside.write_text("{}")
    with pytest.raises(CaiError, match=r"data\.jsonl: is in the folder .* copy it elsewhere first"):
        work(claim(tmp_path, (inside,), seed=1), replace=True)
    assert inside.exists()


@pytest.mark.parametrize("name", ["lock.json", "made_from.json"])
def test_a_folder_of_the_old_format_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(CaiError, match=rf"out: written by cai 0\.1 \(it has {name}\), which cai .* does not read"):
        work(claim(tmp_path), replace=True)


def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path / "out"), pytest.raises(CaiError, match="another process is working in this folder"):
        work(claim(tmp_path))


def test_whether_a_process_works_in_a_folder_is_seen_without_writing_there(tmp_path: Path) -> None:
    assert not is_busy(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path):
        assert is_busy(tmp_path)
    assert not is_busy(tmp_path)


def test_a_look_at_the_moment_a_process_starts_does_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / BUSY).touch()
    with (tmp_path / BUSY).open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(LOOK_SECONDS / 10, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with exclusive(tmp_path):
            assert is_busy(tmp_path)


def test_differences_name_what_changed_shortly() -> None:
    before = {"a": [{"name": "x"}], "b": {"c": 1, "d": [1, 2]}, "gone": None}
    after = {"a": [{"name": "x"}, {"name": "y"}], "b": {"c": 1, "d": [1, 3]}, "new": "t"}
    assert differences(before, after) == ['a: ["x"] → ["x", "y"]', "b.d[1]: 2 → 3", 'new: unset → "t"']


def test_changed_principles_are_named_without_their_hashes() -> None:
    def manifest(**principles: tuple[str, float]) -> dict[str, Any]:
        by_id = {name: {"text": text * 16, "weight": weight} for name, (text, weight) in principles.items()}
        return {"name": "c", "fingerprint": str(len(principles)) * 16, "principles": by_id}

    before = manifest(gone=("a", 1.0), heavy=("b", 1.0), other=("c", 1.0), same=("d", 1.0))
    after = manifest(heavy=("b", 2.0), other=("e", 1.5), same=("d", 1.0), new=("f", 1.0), more=("f", 1.0))
    heavy, other = "heavy: weight: 1.0 → 2.0", "other: text changed, weight: 1.0 → 1.5"
    lines = ["gone: removed", heavy, other, "new: added", "more: added"]
    assert differences({"constitution": before}, {"constitution": after}) == [f"principle {line}" for line in lines]
    changed = differences({"eval_constitution": before}, {"eval_constitution": after})
    assert changed == [f"evaluation principle {line}" for line in lines]
    damaged = {"constitution": {"principles": {"same": 3}}}
    assert differences(damaged, {"constitution": {"principles": {"same": "x"}}}) == ['principle same: 3 → "x"']


def gone() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def test_what_killed_processes_left_half_written_is_removed_and_that_of_others_stays(tmp_path: Path) -> None:
    work(claim(tmp_path, seed=0))
    out, dead = tmp_path / "out", gone()
    (out / f"manifest.json.{dead}.part").write_text("{")
    left = aside(out)
    left._finalizer.detach()  # type: ignore[attr-defined]
    (Path(left.name) / "0.jsonl").write_text("{}")
    others = [f"report.html.{os.getppid()}.part", "thesis.part"]
    for name in others:
        (out / name).write_text("of another process")
    with exclusive(out):
        assert {path.name for path in out.iterdir()} == {".busy", "manifest.json", "rows.jsonl", "judge.json", *others}


def test_a_file_system_without_locks_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CaiError, match=r"out: cannot be locked \(no locks available\); .* copy the folder .* --runs"):
        work(claim(tmp_path))


def test_settings_of_a_run_file_are_named_as_options_name_them(tmp_path: Path) -> None:
    def claim(beta: float) -> Claim:
        manifest = {"command": "cai run", "config": {"train": [{"beta": beta}]}, "held_out": [f"p[{beta}]"]}
        return Claim(tmp_path / "run", manifest, "done")

    with exclusive(tmp_path / "run"):
        take(claim(0.1), replace=False)
    assert claim(0.2).changes() == ["train.0.beta: 0.1 → 0.2", 'held_out[0]: "p[0.1]" → "p[0.2]"']
