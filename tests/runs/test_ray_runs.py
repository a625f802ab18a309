"""Runs whose models are replicas on a Ray cluster; scripted engines take vLLM's place."""

from pathlib import Path

import pytest
from rich.console import Console

from cai.inference.engine import Engine, EngineConfig
from cai.inference.models import Model
from cai.inference.ray_engine import RayEngine
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine
from cai.runs.bench import bench
from cai.runs.folder import RunFolder
from cai.runs.pipeline import execute
from cai.runs.plan import Plan, make_plan
from tests.conftest import write_workspace
from tests.inference import ray_engines

pytestmark = pytest.mark.slow  # a local Ray takes seconds to start
ROWS = ("revisions.jsonl", "preferences.jsonl", "rankings.jsonl", "prompts.jsonl")
EXTRA = "revise: {rounds: 2}\njudge: {samples: 3, principles: 2}\n"


def planned(folder: Path, model: Path, extra: str = "") -> Plan:
    folder.mkdir()
    return make_plan(write_workspace(folder, model, 16, EXTRA + extra), [], None, folder / "runs")


def run(plan: Plan, open_engine: OpenEngine) -> RunFolder:
    execute(plan, Reporter(Console(quiet=True)), open_engine=open_engine)
    return plan.folder


def replicated(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
    assert isinstance(model, Path)
    return RayEngine(model, fingerprint, settings, ray_engines.varied)


def in_this_process(model: Model, fingerprint: str, settings: EngineConfig) -> Engine:
    assert isinstance(model, Path)
    return ray_engines.varied(model, fingerprint, settings)


def test_a_run_on_two_replicas_writes_the_rows_of_the_run_in_this_process(
    cluster: str, tmp_path: Path, model_folder: Path
) -> None:
    alone = run(planned(tmp_path / "alone", model_folder), in_this_process)
    ray = f"engine: {{ray: {{address: '{cluster}', replicas: 2}}}}\n"
    on_ray = run(planned(tmp_path / "ray", model_folder, ray), replicated)
    for name in ROWS:
        assert (on_ray.path / name).read_bytes() == (alone.path / name).read_bytes(), name
    assert len(on_ray.revisions()) == 12 * 2
    summary, expected = on_ray.summary(), alone.summary()
    assert summary is not None and expected is not None
    assert summary["calls"] == expected["calls"]


def test_the_bench_of_replicas_measures_rates_and_times_and_knows_no_share(
    cluster: str, tmp_path: Path, model_folder: Path
) -> None:
    plan = planned(tmp_path / "ray", model_folder, f"engine: {{ray: {{address: '{cluster}', replicas: 2}}}}\n")
    result = bench(plan, 6, Reporter(Console(quiet=True)), replicated)
    assert [phase.name for phase in result.phases] == ["writing", "judging"]
    for phase in result.phases:
        assert phase.engine_share is phase.prefix_cache_hits is None
        assert phase.latency_median is not None and phase.latency_median < phase.seconds
        assert phase.load_seconds > 0.01
    assert result.phases[0].tokens_read and result.phases[1].verdicts
