"""Several servers of one model: a conversation keeps to one of them, and a server that fails loses no request."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.inference import endpoint_pool
from cai.inference.endpoint_pool import LATENCIES, Endpoint, EndpointPool, Window
from cai.inference.endpoints import ServerEngine
from cai.inference.engine import Completion, Generate, Sampling
from cai.inference.models import Address, Server
from tests.inference.test_endpoints import Service, completion

Reply = tuple[int, dict[str, Any]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_pool, "BACK_OFF", 0.001)
    monkeypatch.setattr(endpoint_pool, "LONGEST_BACK_OFF", 0.01)
    monkeypatch.setattr(endpoint_pool, "REST_SECONDS", 0.05)


@pytest.fixture
def services() -> Iterator[list[Service]]:
    opened = [Service(["big"]) for _ in range(3)]
    for service in opened:
        service.answer = lambda asked: (200, completion(f"to {asked['messages'][0]['content']}", None))
    yield opened
    for service in opened:
        with suppress(OSError):
            service.close()


def servers(services: list[Service]) -> Server:
    return Server(tuple(Address(service.url) for service in services), "big")


def question(number: int, *more: str) -> Generate:
    turns = [Message(role="user", content=f"question {number}")]
    for answer, next_question in zip(more[::2], more[1::2], strict=True):
        turns += [Message(role="assistant", content=answer), Message(role="user", content=next_question)]
    return Generate(turns, 8, 0.0, 0)


def ask(server: Server, requests: list[Generate], concurrency: int = 8) -> list[Completion]:
    async def all_of_them() -> list[Completion]:
        engine = ServerEngine(server, "f", concurrency)
        try:
            return await asyncio.gather(*map(engine.generate, requests))
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(all_of_them(), 60))


def questions_of(service: Service) -> set[str]:
    return {asked["messages"][0]["content"] for asked in service.asked}


def test_conversations_spread_and_each_keeps_to_one_server(services: list[Service]) -> None:
    requests = [question(n) for n in range(60)] + [question(n, "an answer", "and then?") for n in range(60)]
    answers = ask(servers(services), requests)
    assert [answer.text for answer in answers] == [f"to question {n % 60}" for n in range(120)]
    shares = [questions_of(service) for service in services]
    assert sum(map(len, shares)) == 60  # no question is on two servers
    assert min(map(len, shares)) >= 10


def test_another_server_takes_few_conversations_from_each(services: list[Service]) -> None:
    requests = [question(n) for n in range(60)]
    ask(servers(services[:2]), requests)
    before = questions_of(services[0])
    services[0].asked.clear()
    ask(servers(services), requests)
    assert questions_of(services[0]) < before
    assert len(questions_of(services[0])) >= len(before) / 3  # two thirds stay, by the hash of ports that differ


def test_a_conversation_has_a_session_by_which_a_router_in_front_can_keep_it_together(services: list[Service]) -> None:
    ask(servers(services[:1]), [question(1), question(1, "an answer", "and then?"), question(2)])
    first, second, third = (headers["X-Session-ID"] for headers in sorted_headers(services[0]))
    assert first == second != third


def sorted_headers(service: Service) -> list[dict[str, str]]:
    by_question = sorted(zip(service.asked, service.headers, strict=True), key=lambda pair: str(pair[0]["messages"]))
    return [headers for _, headers in by_question]


def failing(service: Service, status: int) -> None:
    service.answer = lambda asked: (status, {"error": {"message": f"fault {status}"}})


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failing_servers_requests_go_to_the_others(services: list[Service], status: int) -> None:
    failing(services[0], status)
    answers = ask(servers(services), [question(n) for n in range(60)])
    assert [answer.text for answer in answers] == [f"to question {n}" for n in range(60)]


@pytest.mark.slow
def test_a_killed_server_loses_no_request_and_gets_its_own_again_when_it_is_back(
    services: list[Service], capsys: pytest.CaptureFixture[str]
) -> None:
    first = services[0]
    kept = questions_of_each(services)[0]
    first.close()

    async def run() -> None:
        engine = ServerEngine(servers(services), "f", 8)
        lost = await asyncio.gather(*(engine.generate(question(n)) for n in range(60)))
        assert [answer.text for answer in lost] == [f"to question {n}" for n in range(60)]
        assert "rests, and the other servers get its requests" in capsys.readouterr().err
        back = services[0] = Service(["big"], first.port)
        back.answer = services[1].answer
        while not back.listed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await asyncio.gather(*(engine.generate(question(n)) for n in range(60)))
        assert questions_of(back) == kept
        assert f"{back.url}#big: is back" in capsys.readouterr().err
        await engine.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def questions_of_each(services: list[Service]) -> list[set[str]]:
    ask(servers(services), [question(n) for n in range(60)])
    return [questions_of(service) for service in services]


def test_a_server_that_comes_back_with_another_model_stays_out(services: list[Service]) -> None:
    failing(services[0], 500)
    services[0].models = ["other"]

    async def run() -> None:
        engine = ServerEngine(servers(services), "f", 8)
        await asyncio.gather(*(engine.generate(question(n)) for n in range(60)))
        while len(services[0].listed) < 2:
            await asyncio.sleep(0.01)
        services[0].asked.clear()
        await asyncio.gather(*(engine.generate(question(n)) for n in range(60)))
        assert not services[0].asked
        await engine.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_all_servers_down_is_an_error_that_says_so(services: list[Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_pool, "FAILURES_IN_A_ROW", 1)
    for service in services:
        failing(service, 503)
    with pytest.raises(CaiError, match=r"all 3 servers failed on 1 requests in a row, the last time: .*fault 503"):
        ask(servers(services), [question(1)])


def test_a_server_that_does_not_take_the_key_ends_the_command_with_its_address(services: list[Service]) -> None:
    failing(services[1], 401)
    with pytest.raises(CaiError, match=rf"^model '{services[1].url}#big': status 401: fault 401"):
        ask(servers(services), [question(n) for n in range(30)])


def test_each_server_gets_the_key_that_is_its_own(services: list[Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST", "first-key")
    monkeypatch.setenv("SECOND", "second-key")
    addresses = (Address(services[0].url, "FIRST"), Address(services[1].url, "SECOND"), Address(services[2].url))
    ask(Server(addresses, "big"), [question(n) for n in range(60)])
    assert [set(service.keys) for service in services] == [{"Bearer first-key"}, {"Bearer second-key"}, {None}]


def test_sampling_settings_go_by_their_names_and_a_refused_one_is_an_error_that_names_it(
    services: list[Service],
) -> None:
    [service] = services[:1]
    request = question(1)
    drawn = Sampling(top_p=0.9, top_k=5, stop=["END"])
    sampled = Generate(request.messages, 8, 0.5, 0, sampling=drawn)
    ask(servers([service]), [sampled, request])
    [asked] = [asked for asked in service.asked if asked["temperature"] == 0.5]
    assert {name: asked[name] for name in ("top_p", "top_k", "stop")} == {"top_p": 0.9, "top_k": 5, "stop": ["END"]}
    assert "min_p" not in asked
    service.answer = lambda asked: (400, {"error": {"message": "Unrecognized request argument supplied: top_k"}})
    with pytest.raises(CaiError, match=r"#big': the server does not take top_k: .*Unrecognized"):
        ask(servers([service]), [sampled])
    service.answer = lambda asked: (400, {"error": {"message": "please stop; at the top"}})
    with pytest.raises(RequestRefused, match="please stop"):
        ask(servers([service]), [sampled])


def test_a_text_longer_than_the_servers_context_is_not_asked_for_again(services: list[Service]) -> None:
    services[0].answer = lambda asked: (400, {"error": {"message": "This model's maximum context length is 8 tokens"}})
    with pytest.raises(RequestRefused, match="maximum context length") as refusal:
        ask(servers(services[:1]), [question(1)])
    assert not refusal.value.retryable


# The window of one server


def test_a_window_doubles_until_the_first_overload_then_grows_by_one_a_round_trip() -> None:
    async def run() -> None:
        window = Window(100)
        sizes = [window.limiter.total_tokens]
        for _ in range(2):
            for _ in range(window.limiter.total_tokens):
                window.answered(time.monotonic(), "text", 1)
            sizes.append(window.limiter.total_tokens)
        assert sizes == [16, 32, 64]
        sent = time.monotonic()
        window.overloaded(sent)
        window.overloaded(sent)  # of the same round trip
        assert window.limiter.total_tokens == 32
        for _ in range(33):
            window.answered(time.monotonic(), "text", 1)
        assert window.limiter.total_tokens == 33
        for _ in range(10):
            window.overloaded(time.monotonic())
        assert window.limiter.total_tokens == 1
        for _ in range(10_000):
            window.answered(time.monotonic(), "text", 1)
        assert window.limiter.total_tokens == 100

    asyncio.run(run())


@pytest.mark.parametrize(
    ("seconds", "tokens", "shrinks"), [(9.0, 10, True), (9.0, 90, False), (2.0, 1, False), (1.0, 10, False)]
)
def test_a_window_halves_for_an_answer_that_is_slow_for_its_length(seconds: float, tokens: int, shrinks: bool) -> None:
    async def run() -> None:
        window = Window(500)
        for _ in range(LATENCIES):
            window.answered(time.monotonic() - 1.0, "text", 10)
        before = window.size
        window.answered(time.monotonic() - 100.0, "verdict", 1)  # another kind, whose usual is not known
        assert window.size > before
        before = window.size
        window.answered(time.monotonic() - seconds, "text", tokens)
        assert (window.size < before) == shrinks

    asyncio.run(run())


def test_an_overloaded_server_gets_fewer_requests_at_a_time(services: list[Service]) -> None:
    [service] = services[:1]
    running, most = [0], [0]

    def answer(asked: dict[str, Any]) -> Reply:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        busy = running[0] > 6
        running[0] -= 1
        return (429, {"error": {"message": "busy"}}) if busy else (200, completion("fine", None))

    service.answer = answer
    answers, window = run_pool(service, [question(n) for n in range(200)])
    assert len(answers) == 200
    assert most[0] > 6
    assert window.size < 32  # 200 good answers alone would open it to 64


def run_pool(service: Service, requests: list[Generate]) -> tuple[list[Any], Window]:
    async def run() -> tuple[list[Any], Window]:
        pool = EndpointPool(servers([service]), 64, 30.0)

        async def attempt(endpoint: Endpoint) -> Any:
            return await endpoint.chat({"messages": []}, "")

        answers = await asyncio.gather(*(pool.ask(str(n), attempt) for n in range(len(requests))))
        await pool.close()
        return answers, pool.endpoints[0].window

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_a_cancelled_request_frees_its_place(services: list[Service]) -> None:
    services[0].answer = slowly(services[0].answer)

    async def run() -> None:
        engine = ServerEngine(servers(services[:1]), "f", 1)
        running = asyncio.ensure_future(engine.generate(question(1)))
        await asyncio.sleep(0.05)
        running.cancel()
        assert (await engine.generate(question(2))).text == "to question 2"
        await engine.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def slowly(answer: Callable[[dict[str, Any]], Reply]) -> Callable[[dict[str, Any]], Reply]:
    def later(asked: dict[str, Any]) -> Reply:
        time.sleep(0.2)
        return answer(asked)

    return later
