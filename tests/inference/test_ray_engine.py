"""Replicas answer as the engine in the process does, whatever becomes of them; scripted engines take vLLM's place."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.inference import ray_cluster, ray_engine
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.chat import ControlTokenRefused
from cai.inference.engine import Choose, Completion, EngineConfig, Generate, RayConfig, ScriptedEngine, UnusableAnswer
from cai.inference.ray_cluster import Cluster
from cai.inference.ray_engine import RayEngine
from cai.inference.ray_replica import Node, OpenReplica, check_node, this_node
from cai.inference.scheduler import deciding_settings, engine_fingerprint, open_model
from cai.inference.vllm_settings import check_arguments, prompts_at_once
from tests.conftest import ROOT
from tests.inference import ray_engines

pytestmark = pytest.mark.slow  # a local Ray takes seconds to start
SOON = 300.0  # seconds: what takes longer hangs; a replica that starts again imports for half a minute on busy cores


def hello(text: str = "Hi", seed: int = 0) -> Generate:
    return Generate([Message(role="user", content=text)], 8, 0.0, seed)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


class Shared:
    """An engine of scripted replicas for several tests, each of which runs in its event loop."""

    def __init__(self, model: Path, replicas: int) -> None:
        self._runner = asyncio.Runner()
        settings = EngineConfig(ray=RayConfig(replicas=replicas), stall_minutes=1.0)
        self._engine = RayEngine(model, "scripted", settings, ray_engines.faulty)

    def run(self, work: Callable[[RayEngine], Coroutine[Any, Any, Any]]) -> Any:
        """What the work returns, with all replicas up before it."""

        async def soon() -> Any:
            await all_up(self._engine)
            return await work(self._engine)

        return self._runner.run(asyncio.wait_for(soon(), SOON))

    def ask(self, *requests: Generate | Choose) -> list[Any]:
        """The answers, or errors, of requests asked together."""
        return self.run(lambda engine: together(engine, *requests))

    def close(self) -> None:
        """End the replicas."""
        self._runner.run(self._engine.close())
        self._runner.close()


def shared(folder: Path, replicas: int) -> Iterator[Shared]:
    (folder / "config.json").write_text("{}")
    engine = Shared(folder, replicas)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def two(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Two replicas."""
    yield from shared(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def one(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One replica."""
    yield from shared(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection beside that of the shared replicas, as of a command of its own."""
    monkeypatch.setattr(Cluster, "_shared", None)


def with_engine(
    work: Callable[[RayEngine], Coroutine[Any, Any, Any]],
    model: Path,
    open_engine: OpenReplica = ray_engines.faulty,
    stall_seconds: float = 60.0,
    **ray: Any,
) -> Any:
    async def opened() -> Any:
        settings = EngineConfig(ray=RayConfig(**({"replicas": 2} | ray)), stall_minutes=stall_seconds / 60)
        engine = RayEngine(model, "scripted", settings, open_engine)
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(opened(), SOON))


def ask(model: Path, *requests: Generate | Choose, **settings: Any) -> list[Any]:
    """The answers, or errors, of requests asked together."""

    return with_engine(lambda engine: together(engine, *requests), model, **settings)


async def together(engine: RayEngine, *requests: Generate | Choose) -> list[Any]:
    return await asyncio.gather(
        *(engine.choose(r) if isinstance(r, Choose) else engine.generate(r) for r in requests), return_exceptions=True
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


async def all_up(engine: RayEngine) -> None:
    await engine.generate(hello())
    await engine.all_loaded()
    assert all(place.up for place in engine._places)


def test_answers_are_those_of_the_engine_in_the_process(two: Shared) -> None:
    texts = [hello(f"prompt {number}", number) for number in range(100)]
    choice = Choose([Message(role="user", content="?"), Message(role="assistant", content="=")], (" A", " B"))
    local = ScriptedEngine()

    async def alone() -> list[Any]:
        return [*[await local.generate(text) for text in texts], await local.choose(choice)]

    assert two.ask(*texts, choice) == asyncio.run(alone())


def test_a_conversation_keeps_to_one_replica_and_both_have_some(two: Shared) -> None:
    async def pids(engine: RayEngine) -> list[set[str]]:
        conversations = [
            [Message(role="user", content=f"prompt {number}"), Message(role="assistant", content="…")]
            for number in range(8)
        ]
        last = [Message(role="user", content="pid")]
        return [
            {(await engine.generate(Generate(messages + last, 8, 0.0, seed))).text for seed in range(3)}
            for messages in conversations
        ]

    processes = two.run(pids)
    assert all(len(of_one) == 1 for of_one in processes)
    assert len(set.union(*processes)) == 2


def test_one_conversation_alone_takes_all_replicas(two: Shared) -> None:
    async def counts(engine: RayEngine) -> list[int]:
        asked = [asyncio.ensure_future(engine.generate(hello("slow and the same", seed))) for seed in range(100)]
        await asyncio.sleep(0.05)
        in_flight = [len(place.in_flight) for place in engine._places]
        await asyncio.gather(*asked)
        return in_flight

    assert sorted(two.run(counts)) == [37, 63]


def test_refusals_cross_the_process_with_their_kind_and_reason(two: Shared) -> None:
    answered, refused, control, unusable, cancelled = two.ask(
        hello(), hello("refuse"), hello("control"), hello("unusable"), hello("cancel")
    )
    assert isinstance(answered, Completion)
    assert (type(refused), str(refused), refused.retryable) == (RequestRefused, "too long", False)
    assert (type(control), control.retryable) == (ControlTokenRefused, False)
    assert (type(unusable), unusable.retryable) == (UnusableAnswer, True)
    assert (type(cancelled), str(cancelled)) == (UnusableAnswer, "the engine cancelled the request")


def test_a_short_answer_waits_for_no_long_one_of_its_batch(one: Shared) -> None:
    async def shorter(engine: RayEngine) -> bool:
        later = asyncio.ensure_future(engine.generate(hello("later")))
        await asyncio.gather(*(engine.generate(hello(f"slow {seed}", seed)) for seed in range(20)))
        return not later.done() and later.cancel()

    assert one.run(shorter)


def test_a_killed_replica_loses_nothing_and_gives_nothing_twice(
    two: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path / "cache.sqlite")

    async def killed(engine: RayEngine) -> list[str]:
        cached = CachedEngine("scripted", cache, lambda: engine)
        asked = [asyncio.ensure_future(cached.generate(hello(f"slow prompt {seed}", seed))) for seed in range(400)]
        await asyncio.sleep(0.05)
        before = engine._places[0].node
        os.kill(before.pid, signal.SIGKILL)
        answers = [completion.text for completion in await asyncio.gather(*asked)]
        await until(lambda: engine._places[0].up)
        assert engine._places[0].node.pid != before.pid
        assert cached.tally.cache_misses == len(asked)
        return answers

    answers = two.run(killed)
    cache.close()
    assert answers == [f"Answer {seed} to: slow prompt {seed}" for seed in range(400)]
    assert "replica 0 on node" in (told := capsys.readouterr().err)
    assert "requests asked again" in told


def test_the_last_replica_that_dies_for_good_is_everyones_error(
    cluster: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "RESTARTS", 1)
    died, waited = ask(model, hello("die"), hello("later"), replicas=1)
    assert isinstance(died, CaiError)
    assert "replica 0 died" in str(died)
    assert isinstance(waited, Completion) or str(waited) == str(died)


def test_an_engine_that_stops_is_replaced(one: Shared, capsys: pytest.CaptureFixture[str]) -> None:
    async def stopped(engine: RayEngine) -> tuple[str, str]:
        before = await engine.generate(hello("pid"))
        stop = asyncio.ensure_future(engine.generate(hello("stop")))
        await until(lambda: engine._places[0].killed is not None)
        stop.cancel()
        return before.text, (await engine.generate(hello("pid"))).text

    before, after = one.run(stopped)
    assert before != after
    assert "vLLM stopped" in capsys.readouterr().err


def test_a_model_that_does_not_load_is_the_runs_error_with_the_replicas_message(cluster: str, model: Path) -> None:
    first, second = ask(model, hello(), hello("other"), open_engine=ray_engines.unloadable)
    assert isinstance(first, CaiError)
    assert f"on node {socket.gethostname()}: out of memory; lower engine.max_model_len" in str(first)
    assert str(second) == str(first)


def test_a_replica_that_dies_as_it_loads_is_not_restarted_for_ever(
    cluster: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "RESTARTS", 1)
    (error,) = ask(model, hello(), open_engine=ray_engines.dying, replicas=1)
    assert isinstance(error, CaiError)
    assert "replica 0 on node" in str(error)


def test_a_replica_that_hangs_is_replaced(
    one: Shared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_engine, "HEARTBEAT_SECONDS", 0.5)

    async def hung(engine: RayEngine) -> Completion:
        pid = int((await engine.generate(hello("pid"))).text)
        patience, engine._stall_seconds = engine._stall_seconds, 1.0
        await asyncio.sleep(1)
        asked = asyncio.ensure_future(engine.generate(hello("hang")))
        await until(lambda: engine._places[0].killed == pid)
        engine._stall_seconds = patience
        asked.cancel()
        return await engine.generate(hello())

    answer = one.run(hung)
    assert isinstance(answer, Completion)
    assert "it did not move for 1.0 s" in capsys.readouterr().err


def test_what_nobody_waits_for_is_not_answered(one: Shared) -> None:
    async def requests(engine: RayEngine) -> tuple[str, str]:
        before = await engine.generate(hello("requests"))
        given_up = asyncio.ensure_future(engine.generate(hello("later")))
        await asyncio.sleep(0.3)
        given_up.cancel()
        await asyncio.sleep(2)
        assert not engine._places[0].in_flight
        return before.text, (await engine.generate(hello("requests"))).text

    before, after = one.run(requests)
    assert after == before


def test_replicas_without_their_resources_are_named_and_then_an_error(
    cluster: str, apart: None, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_engine, "PENDING_SECONDS", 0.3)
    (error,) = ask(model, hello(), address="auto", gpus_per_replica=4, stall_seconds=1.0)
    wait = "2 of 2 replicas wait for 1 CPU and 4 GPU each; the cluster has 2 CPU and 0 GPU, of which 2 CPU and 0 GPU"
    assert isinstance(error, CaiError)
    assert f"engine.ray: no replica started within 1.0 s: {wait}" in str(error)
    assert wait in capsys.readouterr().err


def test_more_replicas_than_this_machine_has_room_for_are_an_error_at_once(cluster: str, model: Path) -> None:
    (error,) = ask(model, hello(), replicas=3, cpus_per_replica=1)
    assert (
        str(error) == "engine.ray.replicas: 3 replicas with 1 CPU and 0 GPU each, but this machine has 2 CPU and 0 GPU"
    )


def test_a_model_folder_that_the_node_does_not_have_is_named(cluster: str, model: Path, tmp_path: Path) -> None:
    async def removed(engine: RayEngine) -> None:
        (model / "config.json").unlink()
        model.rmdir()
        await engine.generate(hello())

    with pytest.raises(CaiError) as caught:
        with_engine(removed, model)
    assert f"node {socket.gethostname()} has no folder {model}; put the model on storage" in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_within_two_seconds_and_no_process_of_a_ray_that_was_started(
    model: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "tests.inference.slow_replicas", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        children = psutil.Process(process.pid).children(recursive=True)
        begun = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=SOON)
        assert time.monotonic() - begun < 4  # two, and a busy machine
    assert process.returncode == 128 + number
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert (out, err.strip()) in {("", ""), ("", "Interrupted.")}


def test_nodes_with_other_versions_or_another_model_are_named(model: Path) -> None:
    here = this_node(model)
    assert here.files == {"config.json": 2}

    def node(files: dict[str, int] | None = here.files, **versions: str) -> Node:
        return Node("gpu-3", 1, {**here.versions, **versions}, files)

    assert check_node(node(), here, model) == []
    assert check_node(node(torch="1.0"), here, model)[0].startswith("node gpu-3 has torch 1.0, this machine ")
    for package, found in {"python": "3.9", "cai": "0.1.0", "vllm": "vllm 0.30.0"}.items():
        with pytest.raises(CaiError, match=f"node gpu-3 has {package} {found}, this machine {here.versions[package]}"):
            check_node(node(**{package: found}), here, model)
    with pytest.raises(CaiError, match=r"node gpu-3 has another model: .*config\.json has 3 bytes there, has 2 bytes"):
        check_node(node({"config.json": 3}), here, model)
    with pytest.raises(CaiError, match=r"model\.safetensors has 9 bytes there, is missing on this machine"):
        check_node(node({"config.json": 2, "model.safetensors": 9}), here, model)


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://head:10001", "http://head:6379", "head:port"])
def test_an_address_that_is_none_is_an_error_of_the_run_file(address: str) -> None:
    with pytest.raises(ValueError, match="expected auto, or HOST:PORT of the cluster's head node"):
        RayConfig(address=address)


def test_an_address_without_a_ray_is_named(apart: None, model: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        (error,) = ask(model, hello(), address=address)
    assert isinstance(error, CaiError)
    assert f"engine.ray.address: {address} cannot be reached: Connection refused" in str(error)


def test_replicas_change_no_answer_and_no_manifest_but_how_many_prompts_run(model: Path) -> None:
    alone, three = EngineConfig(), EngineConfig(ray=RayConfig(replicas=3))
    assert engine_fingerprint(model, three) == engine_fingerprint(model, alone)
    assert deciding_settings(three) == deciding_settings(alone)
    assert prompts_at_once(three) == 3 * prompts_at_once(alone)
    assert isinstance(open_model(model, "f", three), RayEngine)


def test_tensor_parallelism_beyond_a_replicas_gpus_is_an_error_of_the_run_file() -> None:
    settings = EngineConfig(vllm={"tensor_parallel_size": 4}, ray=RayConfig(gpus_per_replica=1))
    with pytest.raises(CaiError, match=r"engine\.ray\.gpus_per_replica: 1, but engine\.vllm needs 4"):
        check_arguments(settings)


def test_without_ray_the_error_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: None)
    (error,) = ask(model, hello())
    assert "pip install 'cai-rlaif[ray]'" in str(error)
