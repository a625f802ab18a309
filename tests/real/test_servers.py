"""Two real vLLM servers answer as the engine in this process does, and one of them may die."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from cai.data.records import Message
from cai.inference.endpoints import ServerEngine
from cai.inference.engine import Choose, Completion, Engine, EngineConfig, Generate, Sampling
from cai.inference.models import Server
from cai.inference.servers import resolve_endpoints
from cai.inference.vllm import VllmEngine
from tests.real.conftest import CONTEXT

pytestmark = pytest.mark.real
START_SECONDS = 240.0
ARGUMENTS = (
    *("--max-model-len", str(CONTEXT), "--max-num-batched-tokens", "2048", "--no-enable-chunked-prefill"),
    *("--enforce-eager", "--dtype", "float32", "--block-size", "32", "--max-num-seqs", "16"),
    *("--kv-cache-memory-bytes", str(2**29), "--generation-config", "vllm", "--served-model-name", "small"),
)


class Running(NamedTuple):
    """A server's process and its address."""

    process: subprocess.Popen[bytes]
    url: str

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/models", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """The server and its engine, a process of its own that would outlive it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def two(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    folder = tmp_path_factory.mktemp("servers")
    environment = os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    servers, logs = [], []
    for number in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs.append((folder / f"{number}.log").open("wb"))
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(real_model)]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), *ARGUMENTS],
            env=environment, stdout=logs[-1], stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        servers.append(Running(process, f"http://127.0.0.1:{port}/v1"))
    try:
        end = time.monotonic() + START_SECONDS
        while not all(server.is_up() for server in servers):
            ended = [server for server in servers if server.process.poll() is not None]
            assert time.monotonic() < end and not ended, (folder / "0.log").read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        yield servers
    finally:
        for server in servers:
            server.kill()
        for server in servers:
            server.process.wait()
        for log in logs:
            log.close()


def questions() -> list[Generate | Choose]:
    topics = ("the moon", "bread", "a river", "music", "glass", "the sea")
    asked = [[Message(role="user", content=f"Say something about {topic} in one sentence.")] for topic in topics]
    start = Message(role="assistant", content="Answer")
    judged = [
        [Message(role="user", content=f"Which is better, A: {topic} or B: silence? Answer with A or B."), start]
        for topic in topics
    ]
    sampling = Sampling(repetition_penalty=1.2, stop=["."])
    return [
        *(Generate(messages, 12, 0.0, 0) for messages in asked),
        Generate(asked[0], 12, 0.0, 0, sampling=sampling),
        *(Choose(messages, (" A", " B")) for messages in judged),
        Choose(judged[0], (" Zebra", " xylophone")),  # far from the 20 likeliest
    ]


async def answers(engine: Engine) -> list[Completion | list[float]]:
    asked = (engine.choose(q) if isinstance(q, Choose) else engine.generate(q) for q in questions())
    return list(await asyncio.gather(*asked))


def test_servers_answer_as_the_engine_in_this_process(two: list[Running], engine: VllmEngine) -> None:
    server = resolve_endpoints("anything", EngineConfig(endpoints=[running.url for running in two]))
    assert server.name == "small"

    async def by_servers() -> list[Completion | list[float]]:
        client = ServerEngine(server, "f")
        try:
            return await answers(client)
        finally:
            await client.close()

    found, expected = asyncio.run(by_servers()), asyncio.run(answers(engine))
    for ours, theirs in zip(expected, found, strict=True):
        if isinstance(ours, Completion):
            assert isinstance(theirs, Completion)
            assert (theirs.text, theirs.finish) == (ours.text, ours.finish)
            assert (theirs.prompt_tokens, theirs.completion_tokens) == (ours.prompt_tokens, ours.completion_tokens)
        else:
            assert theirs == pytest.approx(ours, abs=1e-4)


def test_a_server_that_is_killed_in_the_middle_loses_no_answer(two: list[Running]) -> None:
    requests = [Generate([Message(role="user", content=f"Count from {n}.")], 8, 0.0, 0) for n in range(24)]

    async def run() -> list[Completion]:
        engine = ServerEngine(Server(resolved.addresses, resolved.name), "f")
        running = [asyncio.ensure_future(engine.generate(request)) for request in requests]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        two[0].kill()
        try:
            return list(await asyncio.gather(*running))
        finally:
            await engine.close()

    resolved = resolve_endpoints("small", EngineConfig(endpoints=[server.url for server in two]))
    completions = asyncio.run(run())
    assert len(completions) == 24
    assert all(completion.completion_tokens for completion in completions)
