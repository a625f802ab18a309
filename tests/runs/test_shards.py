"""`cai run --shard`: machines share the calls of a run, whose caches are merged."""

from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cai.cli.main import app
from cai.config.errors import CaiError
from cai.inference.engine import ScriptedEngine
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import make_plan
from cai.runs.shard import Shard, shard_plan
from cai.runs.verify import verify_run
from tests.conftest import scripted, write_workspace

SHARDS = 3


def cai(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_shards_on_several_machines_then_the_whole_run_from_the_merged_cache(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[ScriptedEngine] = []
    monkeypatch.setattr("cai.cli.run.execute", partial(execute, open_engine=scripted(engines)))
    run_file = write_workspace(tmp_path, model_folder, prompts=40, extra="judge: {principles: 2}\n")
    assert cai("run", run_file, "--runs", tmp_path / "alone").exit_code == 0
    calls = len(engines[0].requests)

    engines.clear()
    parts = []
    for number in range(1, SHARDS + 1):
        result = cai("run", run_file, "--shard", f"{number}/{SHARDS}", "--runs", tmp_path / f"machine{number}")
        assert result.exit_code == 0 and f"cai cache merge {tmp_path}/machine{number} SOURCE..." in result.output
        parts.append(RunFolder(tmp_path / f"machine{number}/test-shard-{number}-of-{SHARDS}"))
    assert sum(len(engine.requests) for engine in engines) == calls

    machines = [tmp_path / f"machine{number}" for number in range(1, SHARDS + 1)]
    assert cai("cache", "merge", tmp_path / "all", *machines).exit_code == 0
    engines.clear()
    assert cai("run", run_file, "--runs", tmp_path / "all").exit_code == 0
    assert not engines
    alone, whole = RunFolder(tmp_path / "alone/test"), RunFolder(tmp_path / "all/test")
    for name in ("revisions.jsonl", "preferences.jsonl"):
        assert (whole.path / name).read_bytes() == (alone.path / name).read_bytes()

    shards = [[prompt.id for prompt in folder.prompts()] for folder in parts]
    assert sorted(id for ids in shards for id in ids) == sorted(row.id for row in alone.prompts()[:30])
    assert all(len(ids) >= 5 for ids in shards)
    assert parts[0].manifest()["shard"] == "1/3" and parts[0].manifest()["held_out"] == []
    assert not [check for check in verify_run(parts[0]) if check.state == "differs"]


def test_a_shard_neither_trains_nor_reads_labels_and_skips_that_the_whole_run_lists(
    tmp_path: Path, model_folder: Path
) -> None:
    run_file = write_workspace(tmp_path, model_folder, extra="train: [{stage: sft}]\niterations: 1\n")
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"id": "p0", "prompt": "Question number 0?"}\n')
    plan = make_plan(run_file, [], None, tmp_path / "runs")
    assert plan.prompts_skipped and plan.held_out
    shard = shard_plan(plan, Shard(1, 2))
    assert not shard.train and not shard.config.train and not shard.held_out and not shard.prompts_skipped
    assert list(shard_plan(make_plan(run_file, [], "other", tmp_path / "runs"), Shard(1, 2)).training) == list(
        shard.training
    )


@pytest.mark.parametrize("text", ["3-16", "0/4", "5/4", "1/0", "/", "1/2/3", "x/4", "²/4"])
def test_a_shard_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(CaiError, match="expected K/N with K from 1 to N, such as 3/16"):
        Shard.parse(text)


def test_a_shard_without_prompts_is_an_error(tmp_path: Path, model_folder: Path) -> None:
    plan = make_plan(write_workspace(tmp_path, model_folder), [], None, tmp_path / "runs")
    with pytest.raises(CaiError, match="none of the 6 training prompts is in this shard"):
        for number in range(1, 101):
            shard_plan(plan, Shard(number, 100))
