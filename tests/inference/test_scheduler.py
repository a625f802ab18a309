import asyncio
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cai.config.errors import RequestRefused
from cai.data.records import Message, Skipped
from cai.inference.cache import Cache
from cai.inference.engine import EngineConfig, Generate, ScriptedEngine
from cai.inference.reporter import Reporter
from cai.inference.scheduler import AHEAD, Scheduler, Stage, run_concurrently
from tests.conftest import scripted


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 8))
def test_results_keep_their_order_and_no_more_than_the_limit_are_alive(delays: list[int], limit: int) -> None:
    alive = most = 0

    async def work(item: tuple[int, int]) -> int:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        for _ in range(item[1] + 1):
            await asyncio.sleep(0)
        alive -= 1
        return item[0] * 10

    async def collect() -> list[tuple[tuple[int, int], int]]:
        return [pair async for pair in run_concurrently(work, list(enumerate(delays)), limit)]

    assert asyncio.run(collect()) == [((i, d), i * 10) for i, d in enumerate(delays)]
    assert most == min(limit, len(delays))


def test_a_slow_example_does_not_hold_up_the_others() -> None:
    finished: list[int] = []

    async def work(item: int) -> int:
        await asyncio.sleep(0.2 if item == 0 else 0.001)
        finished.append(item)
        return item

    async def collect() -> list[int]:
        return [result async for _, result in run_concurrently(work, range(20), 2)]

    assert asyncio.run(collect()) == list(range(20))
    assert finished[-1] == 0


def test_results_that_wait_for_a_slow_example_are_bounded() -> None:
    begun, slow = 0, asyncio.Event()

    async def work(item: int) -> int:
        nonlocal begun
        begun += 1
        await (slow.wait() if item == 0 else asyncio.sleep(0))
        return item

    async def collect() -> list[int]:
        async def later() -> None:
            for _ in range(1000):
                await asyncio.sleep(0)
            assert begun == AHEAD * 3  # of 500
            slow.set()

        watching = asyncio.ensure_future(later())
        results = [result async for _, result in run_concurrently(work, range(500), 3)]
        await watching
        return results

    assert asyncio.run(collect()) == list(range(500))


def test_an_example_that_ends_costs_the_same_however_many_run() -> None:
    def callbacks(limit: int) -> int:
        """How often a running task is looked at, while one example after the other ends beside `limit` that wait."""
        looks = 0

        class Task(asyncio.Task[None]):
            def add_done_callback(self, *args: Any, **kwargs: Any) -> None:
                nonlocal looks
                looks += 1
                super().add_done_callback(*args, **kwargs)

        async def collect() -> None:
            asyncio.get_running_loop().set_task_factory(lambda loop, coro, **kwargs: Task(coro, loop=loop, **kwargs))
            gate = asyncio.Event()

            async def work(item: int) -> None:
                await (gate.wait() if item < limit else asyncio.sleep(0))
                if item == limit + 50:
                    gate.set()

            async for _ in run_concurrently(work, range(limit + 51), limit + 1):
                pass

        asyncio.run(collect())
        return looks - limit

    assert callbacks(400) < callbacks(10) + 150


def test_the_first_error_cancels_the_rest() -> None:
    cancelled = []

    async def work(item: int) -> None:
        if item == 1:
            raise ValueError("one")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    async def collect() -> None:
        async for _ in run_concurrently(work, range(10), 3):
            pass

    with pytest.raises(ValueError, match="one"):
        asyncio.run(collect())
    assert sorted(cancelled) == [0, 2]


def scheduler(folder: Path, engines: list[ScriptedEngine], console: Console | None = None) -> Scheduler:
    reporter = Reporter(console) if console else None
    return Scheduler(EngineConfig(concurrency=2), Cache(folder / "cache.sqlite"), reporter, scripted(engines))


def generate(text: str, seed: int = 0) -> Generate:
    return Generate([Message(role="user", content=text)], 9, 1.0, seed)


def run_stage(scheduler: Scheduler, model: Path, items: list[str]) -> list[str]:
    engine = scheduler.engine(model)

    async def work(item: str) -> str:
        if item in ("busy", "too long"):
            raise RequestRefused(item, retryable=item == "busy")
        return (await engine.generate(generate(item))).text

    async def collect() -> list[str]:
        stage = Stage("stage", [engine], len(items), len(items))
        return [item async for item, _ in scheduler.each(stage, items, work, lambda item: f"id of {item}")]

    return asyncio.run(collect())


def test_a_refused_item_is_listed_as_skipped_and_the_others_go_on(tmp_path: Path, model_folder: Path) -> None:
    engines: list[ScriptedEngine] = []
    stages = scheduler(tmp_path, engines)
    assert run_stage(stages, model_folder, ["a", "busy", "too long", "b"]) == ["a", "b"]
    assert stages.skipped == [
        Skipped(prompt_id="id of busy", stage="stage", reason="busy", failed=True),
        Skipped(prompt_id="id of too long", stage="stage", reason="too long", failed=False),
    ]


def test_a_stage_is_accounted_for_by_engine_with_cache_hits_and_misses(tmp_path: Path, model_folder: Path) -> None:
    stages = scheduler(tmp_path, [])
    run_stage(stages, model_folder, ["a", "b"])
    run_stage(stages, model_folder, ["a", "b", "c"])
    first, second = stages.work
    assert first.engine == stages.engine(model_folder).fingerprint
    assert [(t.cache_misses, t.cache_hits) for t in first.work.steps.values()] == [(2, 0)]
    assert [(t.cache_misses, t.cache_hits) for t in second.work.steps.values()] == [(1, 2)]
    assert stages.cost(1.0)[:2] == (3, 2)


def test_folders_of_the_same_content_share_one_engine(tmp_path: Path, model_folder: Path) -> None:
    engines: list[ScriptedEngine] = []
    stages = scheduler(tmp_path, engines)
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    assert stages.engine(model_folder) is stages.engine(copy)
    run_stage(stages, model_folder, ["a"])
    run_stage(stages, copy, ["b"])
    assert len(engines) == 1


def test_the_last_line_of_a_stage_counts_its_calls_and_cache_hits(tmp_path: Path, model_folder: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    stages = scheduler(tmp_path, [], console)
    run_stage(stages, model_folder, ["a", "b"])
    run_stage(stages, model_folder, ["a", "b", "c"])
    last = console.file.getvalue().splitlines()[-1]
    assert last.startswith("  stage: 3 calls in ")
    assert last.endswith(", 2 cache hits")


def test_a_model_that_is_loaded_is_announced_and_cache_hits_load_none(tmp_path: Path, model_folder: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    run_stage(scheduler(tmp_path, [], console), model_folder, ["a", "b"])
    assert console.file.getvalue().splitlines()[0] == "  loading the model"
    console = Console(file=io.StringIO(), width=200)
    run_stage(scheduler(tmp_path, [], console), model_folder, ["a", "b"])
    assert "loading" not in console.file.getvalue()
