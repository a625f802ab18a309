"""How answering scales over servers, and whether a row is lost when they fail.

    python benchmarks/endpoints.py [PROMPTS]

The servers are processes that answer after 400 ms, 8 requests at a time, like a model that decodes in batches. PROMPTS
(400) for each server go through the scheduler and the cache of a run, to 1, 2 and 4 servers. Then 4 servers answer in
such a way that 10 % of the requests meet an error, a reset connection or a stall, and one of them is killed when a
quarter of the rows is there; run again, as after a run with failed rows, the cache answers what was answered.

Reading the line of JSON: `efficiency` is the throughput of 2 and 4 servers as a share of 2 and 4 times that of one, in
the same run; `per_second` the throughput itself. Under `faults`, `rows` of `prompts` have an answer after the first
pass, `after_rerun` after the second; `wrong` are answers to another prompt, `twice` rows that came more than once, and
`busiest` the largest share of the answers that one server gave.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from cai.config.errors import RequestRefused
from cai.data.records import Message
from cai.inference.cache import Cache
from cai.inference.endpoints import ServerEngine
from cai.inference.engine import Completion, EngineConfig, Generate
from cai.inference.models import Address, Server
from cai.inference.scheduler import Scheduler, Stage

SECONDS = 0.4  # of an answer
SLOTS = 8  # answers at a time
TIMEOUT = 5.0
FAULTS = 0.1


class Fake(NamedTuple):
    """A server's process and its address."""

    process: BaseProcess
    url: str


def serve(pipe: Connection, fault_share: float) -> None:
    """Answer chat completions over HTTP, by an echo and the port, until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    chance = random.Random(os.getpid())

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
                asked = await reader.readexactly(length)
                if head.startswith("get"):
                    reply(writer, 200, {"data": [{"id": "m"}]})
                    continue
                fault = chance.choice(("error", "reset", "stall")) if chance.random() < fault_share else ""
                if fault == "stall":
                    await asyncio.sleep(4 * TIMEOUT)
                async with slots:
                    await asyncio.sleep(SECONDS)
                if fault == "reset":
                    writer.transport.abort()
                    return
                if fault == "error":
                    reply(writer, 500, {"error": {"message": "fault"}})
                    continue
                text = f"{port}: {json.loads(asked)['messages'][0]['content']}"
                message = {"role": "assistant", "content": text}
                reply(writer, 200, {"choices": [{"message": message, "finish_reason": "stop"}]})
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def reply(writer: asyncio.StreamWriter, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, len(content)) + content)

    async def main() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
        nonlocal port
        port = server.sockets[0].getsockname()[1]
        pipe.send(port)
        await server.serve_forever()

    port, slots = 0, asyncio.Semaphore(SLOTS)
    asyncio.run(main())


def start(number: int, fault_share: float = 0.0) -> list[Fake]:
    context = multiprocessing.get_context("spawn")
    servers = []
    for _ in range(number):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, fault_share), daemon=True)
        process.start()
        servers.append(Fake(process, f"http://127.0.0.1:{ours.recv()}/v1"))
    return servers


def ask(servers: list[Fake], prompts: int, cache: Path, came: Callable[[int], None] = lambda n: None) -> list[str]:
    """The answers, in order, through scheduler and cache; those without one are missing."""
    target = Server(tuple(Address(server.url) for server in servers), "m")
    settings = EngineConfig(endpoints=[server.url for server in servers])
    answers: list[str] = []

    async def run() -> None:
        with closing(Cache(cache)) as store:
            scheduler = Scheduler(settings, store, None, lambda m, f, s: ServerEngine(target, f, 64, TIMEOUT))
            engine = scheduler.engine(target)

            async def one(number: int) -> Completion:
                return await engine.generate(Generate([Message(role="user", content=f"prompt {number}")], 64, 0.0, 0))

            try:
                async for _, result in scheduler.run(Stage("asking", [engine], prompts, prompts), range(prompts), one):
                    if not isinstance(result, RequestRefused):
                        answers.append(result.text)
                        came(len(answers))
            finally:
                await engine.close()

    asyncio.run(run())
    return answers


def throughput(number: int, prompts: int, folder: Path) -> float:
    """Answers a second of so many servers."""
    servers = start(number)
    begun = time.perf_counter()
    answers = ask(servers, prompts * number, folder / f"{number}.sqlite")
    seconds = time.perf_counter() - begun
    for server in servers:
        server.process.kill()
    assert len(answers) == prompts * number
    return len(answers) / seconds


def under_faults(prompts: int, folder: Path) -> dict[str, float]:
    """The rows of 4 servers that fail at times, one of which is killed."""
    servers = start(4, FAULTS)

    def kill(rows: int) -> None:
        if rows == prompts // 4:
            servers[0].process.kill()

    begun = time.perf_counter()
    first = ask(servers, prompts, folder / "faults.sqlite", kill)
    seconds = time.perf_counter() - begun
    second = ask(servers, prompts, folder / "faults.sqlite")
    for server in servers:
        server.process.kill()
    asked = Counter(text.partition(": ")[2] for text in second)
    by_server = Counter(text.partition(": ")[0] for text in second)
    return {
        "prompts": prompts,
        "rows": len(first),
        "after_rerun": len(second),
        "wrong": len(set(asked) - {f"prompt {n}" for n in range(prompts)}),
        "twice": sum(count > 1 for count in asked.values()),
        "busiest": round(max(by_server.values()) / len(second), 2),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    logging.disable()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rates = {number: throughput(number, prompts, folder) for number in (1, 2, 4)}
        faults = under_faults(prompts, folder)
    result = {
        "benchmark": "endpoints",
        "prompts": prompts,
        "per_second": {number: round(rate, 1) for number, rate in rates.items()},
        "efficiency": {number: round(rates[number] / rates[1] / number, 3) for number in (2, 4)},
        "faults": faults,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
